"""Purchases that the server received, as a source of ingest: a snapshot of the event log per recommender.

The flows write the snapshot (data/events); ingest copies it into data/raw, validate into data/tables without rules: each event
was checked when it was received. The features step adds it to the table of purchases.
"""

from datetime import date
from pathlib import Path

import polars as pl

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import RECEIVED, Layout, is_truncated, writing


def table_name(problem: str) -> str:
    """The name of the events of `problem` among the tables; no table of params.yaml can have it."""
    return f"{RECEIVED}{problem}"


def snapshots(params: Params, layout: Layout) -> dict[str, Path]:
    """table_name -> the snapshot, for each recommender that has one."""
    return _existing({table_name(name): layout.events(name) for name in recommenders(params)})


def raw(params: Params, layout: Layout) -> dict[str, Path]:
    """table_name -> the copy in data/raw, for each recommender that has one."""
    return _existing({name: layout.raw(name) for name in map(table_name, recommenders(params))})


def _existing(paths: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if path.is_file()}


def recommenders(params: Params) -> list[str]:
    return [name for name in params.problems if params.section(name).predicts == "lists"]


def write_snapshot(path: Path, events: pl.DataFrame) -> None:
    """Write what EventLog.received gives, unless the file holds the same. Without events there is no file."""
    ordered = events.sort(pl.all())
    if path.is_file() and not is_truncated(path):
        if pl.read_parquet(path).equals(ordered):
            return
    elif ordered.is_empty() and not path.is_file():
        return
    with writing(path) as scratch:
        ordered.write_parquet(scratch, compression="zstd")


def copy(found: dict[str, Path], to: Path, as_of: date | None = None) -> dict[str, int]:
    """Copy the events up to `as_of` (inclusive; None: all) into the folder `to`. Returns table_name -> their number."""
    counts: dict[str, int] = {}
    for name, path in found.items():
        events = pl.read_parquet(path)
        known = events if as_of is None else events.filter(pl.col("day") <= as_of)
        known.write_parquet(to / f"{name}.parquet", compression="zstd")
        counts[name] = known.height
    return counts
