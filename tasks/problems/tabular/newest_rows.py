"""The features of events at one cutoff, of a few entities or of all: what servers answer with.

The same definitions as in point_in_time, and to the bit the same numbers, in one query per table and join in place of one per
window. Each table and join is kept as a copy sorted by entity, so that the events of one entity are read in milliseconds.
"""

import glob
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Features
from evergreen.tasks.core.errors import StorageError
from evergreen.tasks.core.paths import is_truncated, locking, writing
from evergreen.tasks.problems.tabular import point_in_time as batch
from evergreen.tasks.problems.tabular.known_events import DAY, Known, keyed
from evergreen.tasks.problems.tabular.point_in_time import AGE, CUTOFF, IN_ORDER, TARGET, Definitions, Measure

log = logging.getLogger(__name__)

ROW_GROUP = 2**13
"""Rows per row group of a sorted copy: about what is read for one entity."""
Join = tuple[str, str] | None
Source = tuple[str, Join]
"""Table, and what is joined to it."""
Events = Mapping[Source, pl.DataFrame]


@dataclass(frozen=True)
class Tables:
    """The tables of a problem as events, sorted by entity."""

    known: Known
    section: Features
    definitions: Definitions
    sources: Mapping[Source, pl.LazyFrame]
    """Entity, day and what the features use."""
    keys: Mapping[str, pl.LazyFrame]
    """Entity and key of each row, for the tables that take rows."""
    facts: Sequence[pl.DataFrame]
    """Of each of section.attributes: its table's columns, one row per entity."""
    sums: Mapping[Source, "Sums"]
    """What is computed of the events of each source."""

    def of(self, entities: Collection[Any] | None) -> Events:
        """The events of `entities` (None: of all) in the tables."""
        frames = [self._chosen(frame, entities) for frame in self.sources.values()]
        return dict(zip(self.sources, pl.collect_all(frames, engine=IN_ORDER), strict=True))

    def stored_keys(self, table: str, entities: Collection[Any]) -> set[tuple[Any, ...]]:
        """Entity and key of the rows that the table holds of `entities`."""
        return set(self._chosen(self.keys[table], entities).collect().rows())

    def _chosen(self, frame: pl.LazyFrame, entities: Collection[Any] | None) -> pl.LazyFrame:
        if entities is None:
            return frame
        one = pl.col(self.known.entity)
        return frame.filter(one == next(iter(entities)) if len(entities) == 1 else one.is_in(list(entities)))

    def events_of(self, table: str, rows: pl.DataFrame) -> dict[Source, pl.DataFrame]:
        """What `rows`, with the columns of `table`, add to each of the sources."""
        mine = [source for source in self.sources if source[0] == table]
        frames = [self._added(rows, *source).select(self.sources[source].collect_schema().names()) for source in mine]
        return dict(zip(mine, pl.collect_all(frames, engine=IN_ORDER), strict=True))

    def _added(self, rows: pl.DataFrame, table: str, join: Join) -> pl.LazyFrame:
        tables = {**self.known.tables, table: rows.lazy()}
        if join:  # of the joined table the rows that are needed
            wanted = keyed(rows.lazy(), join[1]).select(join[1]).unique()
            tables[join[0]] = keyed(self.known.tables[join[0]], join[1]).join(wanted, on=join[1], how="semi").collect().lazy()
        return replace(self.known, tables=tables).events(table, join)

    def features(self, events: Events, cutoff: date, entities: Collection[Any] | None = None) -> pl.DataFrame:
        """The rows that `point_in_time` builds at `cutoff`, with a `target` of nulls, of the entities whose `events` are given.

        `entities`: these entities, None: all. A row depends on the events of its entity alone, and on their order.
        """
        entity, section = self.known.entity, self.section
        dated = {source: _dated(frame, cutoff) for source, frame in events.items()}
        rows = self._population(dated).with_columns(
            pl.lit(cutoff).alias(CUTOFF),
            pl.lit(None, pl.Float64).alias(TARGET),
            *batch.calendar(section.calendar, pl.lit(cutoff)),
        )
        found = [plan for source, frame in dated.items() for plan in self.sums[source].plans(frame, entity)]
        facts = [self._chosen(each.lazy(), entities) for each in self.facts]
        for each in (*found, *(frame.drop(DAY, strict=False) for frame in facts)):
            rows = rows.join(each, on=entity, how="left", maintain_order="left")
        rows = batch.fill_counts(rows, _measures(self.definitions))
        rows = batch.select_features(batch.divide(rows, section.ratios, self.definitions.shares), section, self.definitions)
        made = rows.collect(engine=IN_ORDER)
        for attributes, each in zip(section.attributes, self.facts, strict=True):
            if DAY in each.columns:
                batch.refuse_leak(made.join(each.select(entity, DAY), on=entity), attributes)
        return made

    def _population(self, dated: Mapping[Source, pl.LazyFrame]) -> pl.LazyFrame:
        """The entities that have a row, sorted."""
        chosen, entity = self.section.population, self.known.entity
        frames = [dated[each, None] for each in batch.population_tables(self.known, self.section)]
        if chosen:
            frames = [frame.filter(pl.col(AGE) < chosen.within_days) for frame in frames]
        return pl.concat([frame.select(entity) for frame in frames]).unique().sort(entity)


def read(
    known: Known,
    section: Features,
    definitions: Definitions,
    unique: Mapping[str, Sequence[str]],
    folder: Path,
    mark: str,
) -> Tables:
    """`unique`: table that takes rows -> the columns of its key. `folder`: for the sorted copies, which processes share; where
    it cannot be written, they are in memory. `mark`: changes with the tables.

    Raises what `point_in_time` raises.
    """
    known = replace(known, as_of=date.max)
    measures = _measures(definitions)
    used: dict[Source, set[str]] = {(each, None): set() for each in batch.population_tables(known, section)}
    for each in measures:
        used.setdefault((each.table, each.join), set()).update(each.columns)
    frames = {
        source: known.events(*source).select(known.entity, DAY, *sorted(columns - {known.entity, DAY}))
        for source, columns in used.items()
    }
    keys = {
        name: known.own(known.tables[name]).select(known.entity, *(each for each in columns if each != known.entity))
        for name, columns in unique.items()
    }
    names = {source: "-".join([source[0], *(source[1] or ())]) for source in frames}
    return Tables(
        known,
        section,
        definitions,
        {source: _sorted(frame, known.entity, folder, names[source], mark) for source, frame in frames.items()},
        {name: _sorted(frame, known.entity, folder, f"{name}@keys", mark) for name, frame in keys.items()},
        [batch.facts(known, each) for each in section.attributes],
        {source: _sums([each for each in measures if (each.table, each.join) == source]) for source in frames},
    )


def _sorted(frame: pl.LazyFrame, entity: str, folder: Path, name: str, mark: str) -> pl.LazyFrame:
    """`frame` by entity, rows of one in their order: a file that all processes use while plan and `mark` are the same."""
    digest = hashlib.sha256(f"{pl.__version__} {mark} {frame.explain(optimized=False)}".encode()).hexdigest()[:16]
    path, ordered = folder / f"{name}.{digest}.parquet", frame.sort(entity, maintain_order=True)
    try:
        with locking(folder / f"{name}.lock", name, wait=True):
            if not path.is_file() or is_truncated(path):
                with writing(path) as scratch:
                    ordered.sink_parquet(scratch, row_group_size=ROW_GROUP, maintain_order=True)
                for old in set(folder.glob(f"{glob.escape(name)}.*.parquet")) - {path}:
                    old.unlink(missing_ok=True)
    except (StorageError, OSError) as error:
        log.warning("%s The events of %s are kept in memory.", str(error).splitlines()[0], name)
        return ordered.collect().lazy()
    return pl.scan_parquet(path, glob=False)


def _within(ages: range, where: pl.Expr | None = None) -> batch.Pick:
    """Leaves the rows of these ages that fulfil `where`."""
    young = [pl.col(AGE) < ages.stop] if ages != batch.EVER else []
    chosen = [*young, *([] if where is None else [where])]
    return lambda rows: rows.filter(*chosen) if chosen else rows


def _dated(frame: pl.DataFrame, cutoff: date) -> pl.LazyFrame:
    """The events up to `cutoff` with their age, in days."""
    age = (pl.lit(cutoff) - pl.col(DAY)).dt.total_days().alias(AGE)
    return frame.lazy().filter(pl.col(DAY) <= cutoff).with_columns(age, pl.lit(cutoff).alias(CUTOFF))


@dataclass(frozen=True)
class Sums:
    """What is computed of the events of one source."""

    parts: Sequence[pl.Expr]
    """Of the events of a day."""
    totals: Sequence[pl.Expr]
    """Of the days of an entity."""
    direct: Sequence[pl.Expr]
    """Of the events of an entity."""

    def plans(self, events: pl.LazyFrame, entity: str) -> Iterator[pl.LazyFrame]:
        """Frames of one row per entity that has events."""
        if self.totals:
            days = events.group_by(entity, DAY, maintain_order=True).agg(pl.col(AGE).first(), *self.parts).sort(entity, DAY)
            yield days.group_by(entity, maintain_order=True).agg(self.totals)
        if self.direct:
            yield events.sort(entity, DAY, maintain_order=True).group_by(entity, maintain_order=True).agg(self.direct)


def _sums(measures: Sequence[Measure]) -> Sums:
    daily = [each for each in measures if not each.late and each.function != "n_unique"]
    return Sums(
        [part for number, each in enumerate(daily) for part in batch.parts(str(number), each)],
        [
            batch.total(str(number), each.function, _within(ages)).alias(name)
            for number, each in enumerate(daily)
            for ages, name in zip(each.ages, each.names, strict=True)
        ],
        [
            batch.direct(each, _within(ages, each.where)).alias(name)
            for each in measures
            if each not in daily
            for ages, name in zip(each.ages, each.names, strict=True)
        ],
    )


def _measures(definitions: Definitions) -> list[Measure]:
    return [*definitions.measures, *(part for parts in definitions.shares.values() for part in parts)]
