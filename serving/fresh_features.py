"""Features that are as new as the last event: the definitions in params.yaml over the tables and the rows received since.

They are built (newest_rows) of the entities that an event names, when it arrives; of all entities when the day or the tables
change. A request looks its row up. A row is, to the bit, the one that the batch computation builds from the same rows in the
same order.
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
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import EvergreenError, ModelError, RequestError
from evergreen.tasks.core.paths import Layout, truncated_parquet
from evergreen.tasks.data import received_rows
from evergreen.tasks.data.snapshot import resolve_as_of
from evergreen.tasks.problems.tabular import newest_rows, point_in_time
from evergreen.tasks.problems.tabular.known_events import Known

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
        try:
            self._update()
        except PolarsError as error:
            if broken := truncated_parquet(layout):
                raise ModelError(
                    f"{problem}: {broken}: is damaged: truncated parquet file. Remove it, then run evergreen train {problem}."
                ) from error
            raise

    @property
    def names(self) -> Sequence[str]:
        """The features."""
        return self._frame.columns

    @property
    def tables(self) -> Sequence[str]:
        """The tables whose rows it takes."""
        return self._section.event_tables

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
                self._open_tables(written)
                self._build_all()
                self._written = written
            elif self._today() != self._cutoff:
                self._build_all()
            else:
                self._follow_log()

    def _open_tables(self, written: Mapping[str, int]) -> None:
        tables = {name: table_parts.scan(self._layout.table(name)) for name in self._times}
        as_of = resolve_as_of(self._params, self._layout)
        definitions = point_in_time.define(tables, self._times, self._section, as_of)
        events = self._section.event_tables
        tables |= {name: frame.collect().lazy() for name, frame in tables.items() if name not in events}
        known = Known(tables, self._times, self._section.entity, as_of)
        unique = {name: self._params.validate_[name].unique for name in events}
        schemas = {name: tables[name].collect_schema() for name in events}
        aside = {name: self._set_aside(name, schemas[name]) for name in events}
        validator = RowValidator(self._params, self._section.entity, schemas, self._zone)
        folder = self._layout.var / "fresh" / self._problem
        self._tables = newest_rows.read(known, self._section, definitions, unique, folder, str(sorted(written.items())))
        self._schemas, self._aside, self._validator = schemas, aside, validator

    def _set_aside(self, table: str, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The keys of the rows that validate set aside: a received row among them does not count here either."""
        unique, path = list(self._params.validate_[table].unique), self._layout.quarantine(table)
        types = pl.Schema({name: schema[name] for name in unique})
        if not path.is_file():
            return pl.DataFrame(schema=types)
        return pl.read_parquet(path, columns=unique, glob=False).cast(types).unique()

    def _build_all(self) -> None:
        """Build the rows of all entities, from the tables and all received rows."""
        changes, cutoff = self._log.rows_since(self._problem), self._today()
        received = self._read(changes.rows, _Received())
        events = dict(self._tables.of(None))
        for source, stored in events.items():
            events[source] = pl.concat([stored, *(told for mine, told in received.events.items() if mine[0] == source)])
        frame, keys = self._rows(self._tables.features(events, cutoff))
        self._received, self._position = received, changes.position
        self._frame, self._places, self._newer, self._cutoff = frame, dict(zip(keys, range(len(keys)), strict=True)), {}, cutoff

    def _follow_log(self) -> None:
        """Build the rows of the entities of which rows arrived."""
        changes = self._log.rows_since(self._problem, self._position)
        if changes.withdrawn:
            self._build_all()
        elif changes.rows:
            new = self._read(changes.rows, self._received)
            frame, keys = self._rows(self._tables.features(self._events_of(new), self._cutoff, new.entities))
            gone: dict[str, Mapping[str, Any] | None] = dict.fromkeys(map(str, new.entities))
            self._newer = {**self._newer, **gone, **dict(zip(keys, frame.iter_rows(named=True), strict=True))}
            self._received.add(new)
            self._position = changes.position

    def _events_of(self, new: "_Received") -> newest_rows.Events:
        """The events of the entities of `new`: those of the tables, those received before, then those of `new`."""
        events = dict(self._tables.of(new.entities))
        for source, stored in events.items():
            told = [each.events.get((source, entity)) for entity in new.entities for each in (self._received, new)]
            events[source] = pl.concat([stored, *(each for each in told if each is not None)])
        return events

    def _rows(self, found: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """The features, one row per entity, and the entities' keys."""
        entity = self._section.entity
        return found.drop(entity, point_in_time.CUTOFF, point_in_time.TARGET), list(map(str, found[entity]))

    def _read(self, rows: Sequence[ReceivedRow], before: "_Received") -> "_Received":
        """Those of `rows`, in the order of the log, that neither the tables nor `before` hold."""
        new = _Received()
        for table in dict.fromkeys(each.table for each in rows if each.table in self._schemas):
            values = [each.values for each in rows if each.table == table]
            new.entities |= {each[self._section.entity] for each in values}
            for source, frame in self._tables.events_of(table, self._counting(table, values, before, new)).items():
                for (entity,), part in frame.partition_by(self._section.entity, as_dict=True, maintain_order=True).items():
                    new.events[source, entity] = part
        return new

    def _counting(self, table: str, values: Sequence[Mapping[str, Any]], before: "_Received", new: "_Received") -> pl.DataFrame:
        """The rows of these that count, with the columns of `table`. Adds their keys to `new`."""
        entity, unique = self._section.entity, list(self._params.validate_[table].unique)
        rows = received_rows.frame(values, self._schemas[table])
        if len(self._aside[table]):
            rows = rows.join(self._aside[table], on=unique, how="anti", maintain_order="left")
        keys = rows.select(entity, *(each for each in unique if each != entity)).rows()
        known = {(table, *key) for key in self._tables.stored_keys(table, {key[0] for key in keys})} if keys else set[Any]()
        kept = list[int]()
        for place, key in enumerate((table, *key) for key in keys):
            if key not in known and key not in before.keys and key not in new.keys:
                new.keys.add(key)
                kept.append(place)
        return rows[kept]

    def _today(self) -> date:
        return self._params.project.as_of or self._clock().astimezone(self._zone).date()

    def _write_times(self) -> dict[str, int]:
        """Table -> when it was written, in nanoseconds, of the tables that are there."""
        paths = {name: self._layout.table(name) for name in self._times}
        return {name: path.stat().st_mtime_ns for name, path in paths.items() if path.exists()}


def business_zone(params: Params, tables: Iterable[str]) -> tzinfo:
    """The time zone of the business, by the first table that names one."""
    named = (params.ingest[name].local_timezone for name in tables)
    return next((ZoneInfo(each) for each in named if each), UTC)


class _Received:
    """What was received and counts.

    `events`: source and entity -> its events, in the order of the log. `keys`: table, entity and key of each row. `entities`:
    those of rows that were read, whether they count or not.
    """

    def __init__(self) -> None:
        self.events: dict[tuple[newest_rows.Source, Any], pl.DataFrame] = {}
        self.keys: set[tuple[Any, ...]] = set()
        self.entities: set[Any] = set()

    def add(self, new: "_Received") -> None:
        for place, rows in new.events.items():
            known = self.events.get(place)
            self.events[place] = rows if known is None else pl.concat([known, rows], rechunk=True)
        self.keys |= new.keys
        self.entities |= new.entities
