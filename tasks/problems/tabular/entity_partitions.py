"""Parts of the entities, by a hash of their keys: each is read and computed by itself, here or on a Dask cluster.

A row needs the events of its own entity alone, so the result is the same to the bit for any number of parts and workers. How
many parts there are follows from the memory that one may take, EVERGREEN_MEMORY_MB in the environment.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.core import dask_cluster, memory
from evergreen.tasks.problems.tabular.known_events import PART, Known, Part, keyed

log = logging.getLogger(__name__)

BYTES_PER_EVENT = 250
"""While 70 features are made at 22 cutoffs, measured on the worked example; more cutoffs and features take more."""


def count(events: int) -> int:
    """Number of parts for so many events. Raises ParamsError where the environment says no positive number."""
    return max(1, -(-events * BYTES_PER_EVENT // memory.limit()))


def split(events: int) -> list[Part]:
    """The parts for so many events."""
    number = count(events)
    return [Part(place, number) for place in range(number)]


def lay_apart(known: Known, events: int, folder: Path) -> Known:
    """`known` whose events lie in files of `folder`, those of each part by themselves and in their order: each row is read once
    and not by every part.
    """
    parts = split(events)
    if len(parts) == 1:
        return known
    log.info("%d events are laid apart for %d parts", events, len(parts))
    apart = {name: folder / name for name, rows in known.tables.items() if known.entity in rows.collect_schema()}
    for name, place in apart.items():
        rows = keyed(known.tables[name], known.entity)
        by_part = {PART: pl.col(known.entity).hash(0) % len(parts)}
        files = pl.PartitionBy(place, key=by_part, include_key=False, approximate_bytes_per_file=None)
        rows.filter(pl.col(known.entity).is_not_null()).sink_parquet(files, compression="lz4", mkdir=True)
    return replace(known, apart=apart)


@dataclass(frozen=True)
class Largest:
    """The entity of a part that has most events, and how many these are. A part holds whole entities."""

    entity: Any
    events: int


def each(function: Callable[[Any, Part], pl.DataFrame], shared: Any, known: Known, events: int) -> Iterator[pl.DataFrame]:
    """function(shared, part) for each part, in order; several parts on the cluster that the environment names, if any.

    `events`: of all entities of `known`. Warns of an entity that alone takes more memory than a part may.
    """
    parts = split(events)
    number = len(parts)
    if number == 1:
        yield function(shared, parts[0])
        return
    scheduler = dask_cluster.address()
    log.info("%d events in %d parts, %s", events, number, f"on {scheduler}" if scheduler else "one after the other")
    given = function, shared, known
    found = (
        dask_cluster.each(scheduler, _measured, given, [(part,) for part in parts])
        if scheduler
        else (_measured(given, part) for part in parts)
    )
    for part, (rows, peak, largest) in zip(parts, found, strict=True):
        log.info("part %d of %d: %d rows, peak memory %.0f MB", part.place + 1, number, rows.height, peak)
        if largest and largest.events * BYTES_PER_EVENT > memory.limit():
            _warn(known.entity, largest, events)
        yield rows


def _warn(entity: str, largest: Largest, events: int) -> None:
    log.warning(
        "%s = %s: has %s of %s events, for which its part takes about %.0f MB, more than %s = %.0f. An entity is in one part: "
        "give the process, or the worker, that memory; or leave the entity out if it is none, such as a till or a test",
        *(entity, largest.entity, f"{largest.events:,}", f"{events:,}", largest.events * BYTES_PER_EVENT / 2**20),
        *(memory.LIMIT, memory.limit() / 2**20),
    )


def _measured(
    given: tuple[Callable[[Any, Part], pl.DataFrame], Any, Known], part: Part
) -> tuple[pl.DataFrame, float, Largest | None]:
    """The rows, the peak memory in MB of the process that made them, and the largest entity."""
    function, shared, known = given
    largest = _largest(known.of(part))
    return function(shared, part), memory.peak_mb(), largest


def _largest(known: Known) -> Largest | None:
    """None: the part has no events."""
    counts = [known.own(known.tables[name]).select(known.entity) for name in known.tables if known.is_events(name)]
    if not counts:
        return None
    numbers = pl.concat(counts).drop_nulls().group_by(known.entity).len("events")
    found = numbers.sort("events", known.entity, descending=[True, False]).head(1).collect(engine="streaming")
    return Largest(*found.row(0)) if found.height else None
