"""The rows of features from events as files: those that a model learns from, cutoff by cutoff, and those of the last day.

What an earlier run wrote is used again at each cutoff up to whose labels no event has changed, so a new day costs what it adds.
The bytes are those of a run from nothing, and the rows of one cutoff alone are in memory.
"""

import hashlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from evergreen.tasks.config.params import Features
from evergreen.tasks.core import step_cache
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.core.paths import read_json, sha256, write_json
from evergreen.tasks.problems.base import FeatureFolders
from evergreen.tasks.problems.tabular import entity_partitions, point_in_time
from evergreen.tasks.problems.tabular.known_events import DAY, Known, refuse_mixed_keys
from evergreen.tasks.problems.tabular.point_in_time import CUTOFF, Definitions, Labels

log = logging.getLogger(__name__)

FILE = "rows.parquet"
"""Of both folders."""
Source = tuple[str, tuple[str, str] | None]
"""A table, and the table and the key that are joined to it."""
Keys = Mapping[str, str]
"""Cutoff, and "facts" -> a digest of what its rows follow from."""
FACTS = "facts"
Rows = Callable[[date], pl.DataFrame]
"""Those at a cutoff, sorted by entity."""


def _recorded(folders: FeatureFolders) -> Keys:
    """Of the earlier rows; none where they are not those of the record."""
    try:
        found = read_json(folders.record)
        return found["keys"] if found["sha256"] == sha256(folders.earlier / FILE) else {}
    except (OSError, ProjectError, KeyError, TypeError):
        return {}


def write(
    tables: Mapping[str, pl.LazyFrame],
    times: Mapping[str, str | None],
    section: Features,
    as_of: date,
    folders: FeatureFolders,
) -> None:
    """Write the rows of `point_in_time` as FILE in two folders: in `learned` those with complete labels, sorted by cutoff and
    entity, a row group for each cutoff; in `newest` those at `as_of`. Raises what `point_in_time` raises.
    """
    learned, newest, earlier = (folder / FILE for folder in (folders.learned, folders.newest, folders.earlier))
    known, cutoffs = Known(tables, times, section.entity, as_of), point_in_time.list_cutoffs(section, as_of)
    refuse_mixed_keys(known.entity, tables)
    definitions, before = point_in_time.bind(known, section), _recorded(folders)
    with tempfile.TemporaryDirectory(prefix="parts.", dir=folders.newest) as scratch:
        known = entity_partitions.lay_apart(known, point_in_time.count_events(known), Path(scratch))
        keys = _keys(known, section, definitions, cutoffs[:-1])
        kept = [each for each in cutoffs[:-1] if before.get(str(each)) == keys[str(each)]]
        made = [each for each in cutoffs if each not in kept]
        log.info("features at %d cutoffs from %s to %s, %d of them as before", len(cutoffs), cutoffs[0], as_of, len(kept))
        new = _made(known, section, definitions, made, Path(scratch))
        new(as_of).write_parquet(newest)
        if keys == before:
            following = cutoffs[-2] + timedelta(days=section.cutoffs.every_days + section.horizon_days)
            log.info("no label is newer than before: models learn from the same rows until %s", following)
            shutil.copyfile(earlier, learned)
        else:
            old = _kept(known, section, earlier) if kept else new
            pieces = ((old if each in kept else new)(each) for each in cutoffs[:-1])
            point_in_time.refuse_rows(_write(pieces, learned), known, section, cutoffs)
    write_json(folders.record, {"sha256": sha256(learned), "keys": keys})


def _write(pieces: Iterator[pl.DataFrame], path: Path) -> Labels:
    """Write `pieces`, of which there is at least one, as row groups of one file."""
    found, first = Labels(), next(pieces)
    begun: Any = first
    with pq.ParquetWriter(path, begun.to_arrow().schema, compression="zstd") as file:
        writer: Any = file
        for each in itertools.chain([first], pieces):
            if len(each):
                writer.write_table(each.to_arrow(), row_group_size=len(each))
            found.add(each)
    return found


def _made(known: Known, section: Features, definitions: Definitions, cutoffs: Sequence[date], scratch: Path) -> Rows:
    """The rows at `cutoffs`, which wait in `scratch`, those of each cutoff and part by themselves."""
    parts = entity_partitions.each(
        point_in_time.rows_of, (known, section, definitions, cutoffs), known, point_in_time.count_events(known)
    )
    empty, files = pl.DataFrame(), dict[date, list[Path]]()
    for number, rows in enumerate(parts):
        empty = rows.clear()
        for (cutoff,), own in rows.partition_by(CUTOFF, as_dict=True).items():
            files.setdefault(cutoff, []).append(scratch / f"{cutoff} {number}.parquet")
            own.write_parquet(files[cutoff][-1])

    def at(cutoff: date) -> pl.DataFrame:
        own = (pl.read_parquet(each, glob=False) for each in files.get(cutoff, []))
        return pl.concat([empty, *own]).sort(section.entity)

    return at


def _kept(known: Known, section: Features, file: Path) -> Rows:
    """The rows that an earlier run wrote, with the present facts about their entities."""
    rows, facts = pl.scan_parquet(file, glob=False), [point_in_time.facts(known, each) for each in section.attributes]

    def at(cutoff: date) -> pl.DataFrame:
        found = whole = rows.filter(pl.col(CUTOFF) == cutoff).collect()
        for attributes, each in zip(section.attributes, facts, strict=True):
            found = found.drop(attributes.columns, strict=False)
            found = point_in_time.join_facts(found, each, section.entity, attributes)
        return found.select(whole.columns).sort(section.entity)

    return at


# What rows follow from


def _keys(known: Known, section: Features, definitions: Definitions, cutoffs: Sequence[date]) -> Keys:
    """Of the rows at each of `cutoffs`: definitions, code, and the events up to the last day of labels, in their order."""
    used = _used(known, section, definitions)
    schemas = {source: known.events(*source).select(columns).collect_schema() for source, columns in used.items()}
    shares = {name: [str(each.where) for each in measures] for name, measures in definitions.shares.items()}
    texts = section.model_dump_json(), step_cache.code(), pl.__version__, str(schemas), str(shares)
    digest, days = hashlib.sha256("\0".join(texts).encode()), _days(known, used)
    keys = {FACTS: _digest_facts(known, section)}
    for cutoff in cutoffs:
        last = cutoff + timedelta(days=section.horizon_days)
        digest.update(repr(days.filter(pl.col(DAY) <= last).rows()).encode())
        days = days.filter(pl.col(DAY) > last)
        keys[str(cutoff)] = digest.hexdigest()
    return keys


def _used(known: Known, section: Features, definitions: Definitions) -> dict[Source, list[str]]:
    """Source of events -> its columns that rows depend on."""
    found: dict[Source, set[str]] = {(each, None): set() for each in point_in_time.population_tables(known, section)}
    for each in (*definitions.measures, *(part for parts in definitions.shares.values() for part in parts)):
        found.setdefault((each.table, each.join), set()).update(each.columns)
    if section.target:
        measure = point_in_time.target_measure(known, section.target, section.horizon_days)
        found.setdefault((measure.table, None), set()).update(measure.columns)
    return {source: [known.entity, DAY, *sorted(columns - {known.entity, DAY})] for source, columns in found.items()}


def _days(known: Known, used: Mapping[Source, Sequence[str]]) -> pl.DataFrame:
    """Day, source, part of the entities, number of events and a digest of them, sorted by day, source and part."""
    found: list[pl.DataFrame] = []
    for part in entity_partitions.split(point_in_time.count_events(known)):
        for number, (source, columns) in enumerate(used.items()):
            events = known.of(part).events(*source).select(DAY, digest=_digest_rows(columns))
            names = pl.lit(number).alias("source"), pl.lit(part.place).alias("part")
            days = events.collect(engine="streaming").group_by(DAY, maintain_order=True)
            found.append(days.agg(*names, pl.len(), _in_order("digest")))
    return pl.concat(found).sort(DAY, "source", "part")


def _digest_rows(columns: Sequence[str]) -> pl.Expr:
    return pl.sum_horizontal(pl.col(each).hash(seed) for seed, each in enumerate(columns))


def _in_order(digest: str) -> pl.Expr:
    """One digest of the rows of a group, which depends on their order."""
    return (pl.col(digest) * (2 * pl.int_range(pl.len(), dtype=pl.UInt64) + 1)).sum()


def _digest_facts(known: Known, section: Features) -> str:
    digest = hashlib.sha256()
    for each in section.attributes:
        facts = point_in_time.facts(known, each).sort(known.entity)
        rows = facts.select(digest=_digest_rows(facts.columns))
        digest.update(repr(rows.select(_in_order("digest")).item()).encode())
    return digest.hexdigest()
