"""Rows of the tables of events received since the tables were read: for features that are as new as the last event."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa

from evergreen.serving.event_log import ROWS, START, EventLog, Identified


@dataclass(frozen=True)
class ReceivedRow(Identified):
    """One row of a table."""

    table: str
    row: str
    """A JSON object, with each column of the table."""

    @property
    def values(self) -> Mapping[str, Any]:
        return json.loads(self.row)


@dataclass(frozen=True)
class RowChanges:
    """What happened to the rows of a problem since a reader's position."""

    rows: Sequence[ReceivedRow]
    withdrawn: bool
    """Rows were withdrawn: a reader that may have them begins again at START, which leaves them out."""
    position: str


class RowLog(EventLog):
    """The rows of each problem, stored and read like purchases; see EventLog."""

    TABLE = ROWS

    def of_problems(self, problems: Sequence[str]) -> pl.DataFrame:
        """The rows of these problems that are not withdrawn, in the order of their arrival: problem, id, table, row."""
        columns = ["problem", "id", "table", "row"]
        query = sa.select(*(self.TABLE.c[name] for name in columns)).order_by(self.TABLE.c.number)
        query = query.where(self.TABLE.c.problem.in_(problems), self.TABLE.c.withdrawn.is_(None))
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return pl.DataFrame(list(map(tuple, rows)), schema=dict.fromkeys(columns, pl.String), orient="row")

    def rows_since(self, problem: str, position: str = START) -> RowChanges:
        """What transactions changed that committed after `position`. One cheap query where none did."""
        new, withdrawn, now = self._changed(problem, position, ["id", "table", "row"])
        return RowChanges([ReceivedRow(*row[:-1]) for row in new], withdrawn, now)
