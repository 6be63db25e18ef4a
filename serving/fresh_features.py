"""Features that are as new as the last event: the definitions in params.yaml over the tables and the rows received since.

The batch computation builds them (point_in_time.features_at), of the entities that an event names, when it arrives; of all
entities when the day or the tables change. A request looks its row up. So a row is, to the bit, the one that the batch
computation builds from the same rows in the same order.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, tzinfo
from typing import Any, ClassVar, Literal
from zoneinfo import ZoneInfo

import polars as pl
from polars.exceptions import PolarsError

from evergreen.serving.event_log import EventCounts, Withdrawal
from evergreen.serving.online_features import FeatureRow
from evergreen.serving.row_log import ReceivedRow, RowLog
from evergreen.serving.row_validation import RowValidator
from evergreen.tasks.config.params import Features, Params
from evergreen.tasks.core.errors import EvergreenError, ModelError, RequestError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import received_rows
from evergreen.tasks.data.snapshot import resolve_as_of
from evergreen.tasks.problems.tabular import point_in_time

log = logging.getLogger(__name__)


class FreshFeatures:
    """The features of `problem` at today's cutoff, for all versions that serve. Thread-safe.

    `clock`: the time, with a zone. Raises ModelError if a table is missing, and what point_in_time raises.
    """

    fresh: ClassVar[Literal[True]] = True

    def __init__(
        self,
        params: Params,
        problem: str,
        layout: Layout,
        rows: RowLog,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        section = params.section(problem).features
        assert isinstance(section, Features)
        self._params, self._problem, self._layout, self._section = params, problem, layout, section
        self._log, self._clock = rows, clock
        self._times = {name: params.ingest[name].time for name in section.tables}
        self._zone = business_zone(params, section.event_tables)
        self._updating = threading.Lock()
        self._written: Mapping[str, int] = {}
        self._failure = ""
        self._newer: dict[str, Mapping[str, Any] | None] = {}
        if lacking := self._times.keys() - self._write_times().keys():
            raise ModelError(
                f"{problem}: fresh features need data/tables/{min(lacking)}.parquet; run evergreen train {problem}"
            )
        self._update()

    @property
    def names(self) -> Sequence[str]:
        """The features."""
        return self._frame.columns

    @property
    def tables(self) -> Sequence[str]:
        """The tables whose rows it takes."""
        return list(self._events)

    @property
    def entity(self) -> str:
        return self._section.entity

    def lookup(self, key: str) -> FeatureRow:
        """The features of an entity and their cutoff. Raises RequestError for an unknown key."""
        if (row := self._newer.get(key)) is not None:
            return row, self._cutoff
        place = None if key in self._newer else self._places.get(key)
        if place is None:
            raise RequestError(self._section.entity, f"no features at {self._cutoff}", key)
        return self._frame.row(place, named=True), self._cutoff

    def keys(self) -> list[str]:
        """All known keys."""
        changed = self._newer
        return [*(key for key in self._places if key not in changed), *(key for key, row in changed.items() if row is not None)]

    def record(self, given: Iterable[Mapping[str, Any]]) -> EventCounts:
        """Store rows of tables, for every reader, and use them; see RowValidator. A rejected one stops no other."""
        rows, rejected = self._validator.validate(given, self._clock())
        new = len(self._log.append(self._problem, rows, rejected))
        if new:
            self.refresh()
        return EventCounts(new, len(rows) - new, tuple(rejected))

    def withdraw(self, ids: Sequence[str]) -> Withdrawal:
        """Withdraw rows by the ids of their events: the next answer is as if they had never been."""
        found = self._log.withdraw(self._problem, ids)
        self.refresh()
        return found

    def refresh(self) -> None:
        """Use what arrived since the last call: rows from any process, newer tables, a new day. Logs expected errors."""
        try:
            self._update()
            self._failure = ""
        except (EvergreenError, PolarsError, OSError) as error:  # the features before serve on
            if (text := str(error).splitlines()[0]) != self._failure:
                log.warning("%s: the features stay as they are: %s", self._problem, text)
            self._failure = text

    def _update(self) -> None:
        with self._updating:
            written = self._write_times()
            if written != self._written and len(written) == len(self._times):
                self._open_tables()
                self._build_all()
                self._written = written
            elif self._today() != self._cutoff:
                self._build_all()
            else:
                self._follow_log()

    def _open_tables(self) -> None:
        tables = {name: pl.scan_parquet(self._layout.table(name)) for name in self._times}
        as_of = resolve_as_of(self._params, self._layout)
        self._definitions = point_in_time.define(tables, self._times, self._section, as_of)
        self._events = {name: tables[name] for name in self._section.event_tables}
        self._others = {name: frame.collect().lazy() for name, frame in tables.items() if name not in self._events}
        self._schemas = {name: frame.collect_schema() for name, frame in self._events.items()}
        self._unique = {name: list(self._params.validate_[name].unique) for name in self._events}
        self._aside = {name: self._set_aside(name) for name in self._events}
        self._validator = RowValidator(self._params, self._section.entity, self._schemas, self._zone)

    def _set_aside(self, table: str) -> pl.DataFrame | None:
        """The keys of the rows that validate set aside: a received row among them does not count here either."""
        path = self._layout.quarantine(table)
        if not path.is_file():
            return None
        found = pl.read_parquet(path, columns=self._unique[table], glob=False).cast(
            {name: self._schemas[table][name] for name in self._unique[table]}
        )
        return found.unique()

    def _build_all(self) -> None:
        """Build the rows of all entities, from the tables and all received rows."""
        changes, cutoff = self._log.rows_since(self._problem), self._today()
        frame, keys = self._build(changes.rows, cutoff, None)
        self._received, self._position = list(changes.rows), changes.position
        self._frame, self._places, self._newer, self._cutoff = frame, dict(zip(keys, range(len(keys)), strict=True)), {}, cutoff

    def _follow_log(self) -> None:
        """Build the rows of the entities of which rows arrived."""
        changes = self._log.rows_since(self._problem, self._position)
        if changes.withdrawn:
            self._build_all()
        elif changes.rows:
            received = [*self._received, *changes.rows]
            changed = {each.values[self._section.entity] for each in changes.rows}
            frame, keys = self._build(received, self._cutoff, changed)
            gone: dict[str, Mapping[str, Any] | None] = dict.fromkeys(map(str, changed))
            self._newer = {**self._newer, **gone, **dict(zip(keys, frame.iter_rows(named=True), strict=True))}
            self._received, self._position = received, changes.position

    def _build(
        self, received: Sequence[ReceivedRow], cutoff: date, entities: set[Any] | None
    ) -> tuple[pl.DataFrame, list[str]]:
        """The features of `entities` (None: of all), one row each, and their keys."""
        events = {name: self._with_received(name, received, entities) for name in self._events}
        found = point_in_time.features_at(events | self._others, self._times, self._section, self._definitions, cutoff)
        entity = self._section.entity
        return found.drop(entity, point_in_time.CUTOFF, point_in_time.TARGET), list(map(str, found[entity]))

    def _with_received(self, table: str, received: Sequence[ReceivedRow], entities: set[Any] | None) -> pl.LazyFrame:
        """The table, then the received rows that it does not hold, in the order of the log."""
        stored, entity = self._events[table], self._section.entity
        rows = [each.values for each in received if each.table == table]
        if entities is not None:
            rows = [each for each in rows if each[entity] in entities]
            stored = stored.filter(pl.col(entity).is_in(list(entities)))
        whole = stored.collect()
        if not rows:
            return whole.lazy()
        new = received_rows.lacking(received_rows.frame(rows, self._schemas[table]), whole.lazy(), self._unique[table])
        if (aside := self._aside[table]) is not None:
            new = new.join(aside, on=self._unique[table], how="anti", maintain_order="left")
        return pl.concat([whole, new]).lazy()

    def _today(self) -> date:
        return self._params.project.as_of or self._clock().astimezone(self._zone).date()

    def _write_times(self) -> dict[str, int]:
        """Table -> when its file was written, in nanoseconds, of the files that are there."""
        paths = {name: self._layout.table(name) for name in self._times}
        return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.is_file()}


def business_zone(params: Params, tables: Iterable[str]) -> tzinfo:
    """The time zone of the business, by the first table that names one."""
    named = (params.ingest[name].local_timezone for name in tables)
    return next((ZoneInfo(each) for each in named if each), UTC)
