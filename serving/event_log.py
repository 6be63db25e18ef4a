"""Purchases that came since the tables were read: in a database, each once, so that histories live on when a process does not.

What cannot be counted is kept too, with the reason.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import IntegrityError

from evergreen.tasks.core import database

METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("id", sa.String(255), nullable=False),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("item", sa.String(255), nullable=False),
    sa.Column("basket", sa.String(255), nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("quantity", sa.Float, nullable=False),
    sa.Column("place", sa.String(255)),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("problem", "id"),
)
REFUSED = sa.Table(
    "refused_events",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False, index=True),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
)
AT_ONCE = 500
"""Rows per statement: databases bound the values of one."""
ATTEMPTS = 20
"""To write what other writers write at the same time."""
OVERLAP = 1_000
"""So many numbers back are read again: of two writers at once the later number may be there first."""
SCHEMA = {"user": pl.String, "basket": pl.String, "item": pl.String, "day": pl.Date}

Mark = tuple[int, int]
"""How far a reader came: the highest number, and how many events lie so close before it that they are read again."""
NOTHING: Mark = (0, 0)


@dataclass(frozen=True)
class Event:
    """One line of a basket."""

    id: str
    """Of the event; one that comes again changes nothing."""
    user: str
    item: str
    basket: str
    day: date
    quantity: float
    place: str | None


@dataclass(frozen=True)
class Refusal:
    """What was not counted, and why."""

    event: Mapping[str, Any]
    reason: str


class EventLog:
    """The events, in tables at the SQLAlchemy `address`; missing tables, or the folder of an SQLite file, are made.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "events", METADATA)

    def append(self, problem: str, events: Sequence[Event], refusals: Sequence[Refusal] = ()) -> list[Event]:
        """Write all of them or none. Returns those that were not there yet; of two with the same id the first counts."""
        first = {event.id: event for event in reversed(events)}
        wanted = [event for event in events if first[event.id] is event]
        for attempt in range(ATTEMPTS):
            try:
                return self._append(problem, wanted, refusals)
            except IntegrityError as error:  # another writer was faster with one of them: now it is seen
                if attempt == ATTEMPTS - 1:
                    raise database.unusable(self._engine, "events", error) from error
        raise AssertionError

    def _append(self, problem: str, events: Sequence[Event], refusals: Sequence[Refusal]) -> list[Event]:
        now = {"problem": problem, "recorded": datetime.now(UTC)}
        with self._link() as link:
            known = set[str]()
            for part in _parts([event.id for event in events]):
                asked = sa.select(EVENTS.c.id).where(EVENTS.c.problem == problem, EVENTS.c.id.in_(part))
                known |= set(link.execute(asked).scalars())
            fresh = [event for event in events if event.id not in known]
            ordered = sorted(fresh, key=lambda event: event.id)  # two writers so never wait for each other
            for part in _parts([{**asdict(event), **now} for event in ordered]):
                link.execute(sa.insert(EVENTS), part)
            told = [{"event": json.dumps(dict(each.event), default=str), "reason": each.reason, **now} for each in refusals]
            for part in _parts(told):
                link.execute(sa.insert(REFUSED), part)
        return fresh

    def since(self, problem: str, mark: Mark = NOTHING) -> tuple[pl.DataFrame, Mark]:
        """user, basket, item and day of the events after `mark`, and the mark of all that there were.

        Some come twice: readers do not count what they know.
        """
        columns = [EVENTS.c[name] for name in SCHEMA]
        with self._link() as link:
            rows = link.execute(sa.select(EVENTS.c.number, *columns).where(*_after(problem, mark)).order_by("number")).all()
        newest = max(mark[0], rows[-1][0]) if rows else mark[0]
        near = sum(row[0] > newest - OVERLAP for row in rows)
        return pl.DataFrame([tuple(row[1:]) for row in rows], schema=SCHEMA, orient="row"), (newest, near)

    def mark(self, problem: str, mark: Mark = NOTHING) -> Mark:
        """What `since` would give as its mark; another one than `mark` where there is something new. Costs little."""
        with self._link() as link:
            wanted = sa.select(sa.func.max(EVENTS.c.number), sa.func.count()).where(*_after(problem, mark))
            newest, near = link.execute(wanted).one()
        return newest or mark[0], near

    def refused(self, problem: str) -> list[Refusal]:
        """All that was not counted, oldest first."""
        wanted = sa.select(REFUSED.c.event, REFUSED.c.reason).where(REFUSED.c.problem == problem).order_by(REFUSED.c.number)
        with self._link() as link:
            return [Refusal(json.loads(event), reason) for event, reason in link.execute(wanted)]

    def _link(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "events", (IntegrityError,))


def _after(problem: str, mark: Mark) -> list[sa.ColumnElement[bool]]:
    return [EVENTS.c.problem == problem, EVENTS.c.number > mark[0] - OVERLAP]


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE))
