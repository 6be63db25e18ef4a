"""Rows of tables that servers received, as a source of ingest: a snapshot of the log per table.

The flows write the snapshots (data/received). Ingest appends the rows that a table's export lacks to those of the export, so
that every later step reads them like the others; validate sets aside those that break a rule, without stopping the run.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, is_truncated, writing

log = logging.getLogger(__name__)

ENOUGH = 0.5
"""Received rows move the last known day if at least this share of the usual number of entities is in them; as for purchases."""


def problems(params: Params) -> list[str]:
    """The problems that can receive rows: those of events, by tables whose rows have a key."""
    return [name for name in params.problems if _entities_of(params, name)]


def entities(params: Params) -> dict[str, str]:
    """Table that can receive rows -> the column of its entity."""
    found: dict[str, str] = {}
    for name in params.problems:
        found = _entities_of(params, name) | found
    return found


def _entities_of(params: Params, problem: str) -> dict[str, str]:
    features = params.section(problem).features
    keyed = (name for name in features.event_tables if name in params.validate_ and params.validate_[name].unique)
    return dict.fromkeys(keyed, features.event_entity)


def snapshots(params: Params, layout: Layout) -> dict[str, Path]:
    """Table -> the snapshot of its rows, for each table that has one."""
    paths = {name: layout.received(name) for name in entities(params)}
    return {name: path for name, path in paths.items() if path.is_file()}


def write_snapshot(path: Path, rows: pl.DataFrame) -> None:
    """Write rows (problem, id, row as JSON) in the order of the log, unless the file holds the same. No file without rows."""
    if path.is_file() and not is_truncated(path):
        if pl.read_parquet(path, glob=False).equals(rows):
            return
    elif rows.is_empty() and not path.is_file():
        return
    with writing(path) as scratch:
        rows.write_parquet(scratch, compression="zstd")


def read(params: Params, layout: Layout, exports: Mapping[str, pl.LazyFrame]) -> dict[str, pl.DataFrame]:
    """Table -> the received rows that its export lacks, in the order of the log; of rows with one key the first."""
    found: dict[str, pl.DataFrame] = {}
    for name, path in snapshots(params, layout).items():
        export = exports[name]
        schema = export.collect_schema()
        unique = [column for column in params.validate_[name].unique if column in schema]
        rows = frame(map(json.loads, pl.read_parquet(path, glob=False)["row"]), schema)
        whole = rows.drop_nulls(unique)
        if lost := len(rows) - len(whole):
            log.warning(
                "%s: %s received rows do not fit the columns of the export any more and are left out", name, f"{lost:,}"
            )
        found[name] = lacking(whole, export, unique)
    return {name: rows for name, rows in found.items() if len(rows)}


def lacking(rows: pl.DataFrame, known: pl.LazyFrame, unique: Sequence[str]) -> pl.DataFrame:
    """The first of `rows` by each key that `known` does not hold, in their order."""
    first = rows.unique(unique, keep="first", maintain_order=True)
    held = known.select(unique).join(first.lazy().select(unique), on=unique, how="semi").unique().collect()
    return first.join(held, on=unique, how="anti", maintain_order="left")


def frame(rows: Iterable[Mapping[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Received rows with the columns and types of their table; a value of another type is missing."""
    read = {name: pl.String() if kind.is_temporal() else kind for name, kind in schema.items()}
    times = [
        pl.col(name).str.to_date(strict=False) if kind == pl.Date else pl.col(name).str.to_datetime(strict=False).cast(kind)
        for name, kind in schema.items()
        if kind.is_temporal()
    ]
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    for row in rows:
        for name, values in columns.items():
            values.append(row.get(name))
    return pl.DataFrame(columns, schema=read, strict=False).with_columns(times)


def last_day(params: Params, as_of: date, received: Mapping[str, pl.DataFrame], exports: Mapping[str, pl.LazyFrame]) -> date:
    """The last known day: `as_of`, that of the exports, or the newest day of the received rows of a table.

    The latter if the days after `as_of` have at least half of the entities that as many days before have in the export.
    Otherwise servers do not receive all rows, and those days would be taken for weak ones: their rows wait for the export.
    """
    known = entities(params)
    days = [_last_day(rows, exports[name], known[name], params.ingest[name].time, as_of) for name, rows in received.items()]
    return max([as_of, *days])


def _last_day(rows: pl.DataFrame, export: pl.LazyFrame, entity: str, time: str | None, as_of: date) -> date:
    if time is None:
        return as_of
    day = pl.col(time).cast(pl.Date)
    later = rows.filter(day > as_of)
    if later.is_empty():
        return as_of
    newest: date = later.select(day.max()).item()
    usual = export.filter(day > as_of - (newest - as_of), day <= as_of).select(pl.col(entity).n_unique()).collect().item()
    return newest if later[entity].n_unique() >= ENOUGH * usual else as_of
