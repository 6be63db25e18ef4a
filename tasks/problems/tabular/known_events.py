"""Tables as events of one entity: when each row became known, what a joined table adds, and keys that match."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import polars as pl

from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest

DAY = "__day"
"""When an event became known."""
PART = "__part"
"""The part of an event's entity, in the names of files; no column of a table is called so."""


@dataclass(frozen=True)
class Part:
    """Part `place` of `count` of the entities, by a hash of their keys."""

    place: int
    count: int

    def holds(self, entity: str) -> pl.Expr:
        return pl.col(entity).hash(0) % self.count == self.place if self.count > 1 else pl.lit(True)


@dataclass(frozen=True)
class Known:
    """The tables as events of one entity, up to `as_of` (inclusive)."""

    tables: Mapping[str, pl.LazyFrame]
    times: Mapping[str, str | None]
    entity: str
    as_of: date
    part: Part | None = None
    """Of the entities; None: all of them."""
    apart: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Table -> a folder with the rows of each part by itself; see entity_partitions.lay_apart."""

    def of(self, part: Part | None) -> "Known":
        """Of the entities of `part`."""
        if part is None:
            return self
        files = {name: folder / f"{PART}={part.place}" for name, folder in self.apart.items()}
        own = {
            name: pl.scan_parquet(path, hive_partitioning=False) if path.is_dir() else self.tables[name].clear()
            for name, path in files.items()
        }
        return replace(self, tables={**self.tables, **own}, part=part)

    def events(self, table: str, join: tuple[str, str] | None = None) -> pl.LazyFrame:
        """One row per event of an entity: the table's columns, those that `join` adds, and the day on which both were known."""
        frame = self.dated(table)
        refuse_unknown("features.entity", self.entity, table, frame)
        frame = self._joined(table, frame, *join) if join else frame
        if DAY not in frame.collect_schema():
            raise ParamsError(
                f"ingest.{table}.time: is missing, so rows of {table} lie neither before nor after a cutoff; name the "
                "column, or join a table that has one"
            )
        return self.own(frame).filter(pl.col(self.entity).is_not_null(), pl.col(DAY) <= self.as_of)

    def own(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of `frame` whose entity is in the part; whole numbers of any width are the same key."""
        frame = keyed(frame, self.entity)
        return frame if self.part is None else frame.filter(self.part.holds(self.entity))

    def is_events(self, table: str) -> bool:
        return self.times.get(table) is not None and self.entity in self.tables[table].collect_schema()

    def dated(self, table: str) -> pl.LazyFrame:
        """The table, with its day where it has a time column."""
        frame, time = self.tables[table], self.times.get(table)
        if time is None:
            return frame
        kind = frame.collect_schema()[refuse_unknown(f"ingest.{table}.time", time, table, frame)]
        if kind != pl.Date and kind != pl.Datetime:
            raise ParamsError(f"ingest.{table}.time = {time}: is {kind}, no time; set ingest.{table}.types.{time} to datetime")
        return frame.with_columns(pl.col(time).cast(pl.Date).alias(DAY))

    def _joined(self, table: str, frame: pl.LazyFrame, other: str, key: str) -> pl.LazyFrame:
        facts = self.dated(other)
        for each, whole in ((table, frame), (other, facts)):
            refuse_unknown(f"features: join of {table} with {other}", key, each, whole)
        refuse_mixed_keys(key, {table: frame, other: facts})
        refuse_repeats(other, key, facts)
        frame, facts = keyed(frame, key), keyed(facts, key)
        mine = frame.collect_schema().names()
        facts = facts.drop(set(mine) - {key, DAY}, strict=False)
        if DAY not in facts.collect_schema():
            return frame.join(facts, on=key, how="left", maintain_order="left")
        both = frame.join(facts, on=key, suffix="_joined", maintain_order="left")
        return both.with_columns(pl.max_horizontal(DAY, f"{DAY}_joined")) if DAY in mine else both


def refuse_unknown(place: str, column: str, table: str, frame: pl.LazyFrame) -> str:
    columns = [name for name in frame.collect_schema().names() if not name.startswith("__")]
    if column not in columns:
        raise ParamsError(f"{place} = {column}: no such column in {table}{nearest(column, columns)}")
    return column


def refuse_repeats(table: str, key: str, frame: pl.LazyFrame) -> None:
    repeated = frame.group_by(key).len().filter(pl.col("len") > 1).sort(key).collect()
    if len(repeated):
        raise DataError(
            f"data/tables/{table}.parquet: {key}: {len(repeated):,} values stand in several rows (first {repeated[key][0]}); "
            f"a joined table has one row per {key}. Add unique: [{key}] to validate.{table}, or join another table."
        )


def keyed(frame: pl.LazyFrame, key: str) -> pl.LazyFrame:
    """Whole numbers of any width are the same key."""
    whole = frame.collect_schema()[key].is_integer()
    return frame.with_columns(pl.col(key).cast(pl.Int64)) if whole else frame


def refuse_mixed_keys(key: str, tables: Mapping[str, pl.LazyFrame]) -> None:
    types: dict[str, str] = {}
    for table, frame in tables.items():
        kind = frame.collect_schema().get(key)
        if kind is not None:
            types.setdefault("integer" if kind.is_integer() else "text" if kind == pl.String else str(kind), table)
    if len(types) > 1:
        (one, here), (two, there), *_ = types.items()
        raise DataError(
            f"{key}: is {one} in {here} and {two} in {there}, so they do not match; set ingest.{there}.types.{key} to {one}"
        )
