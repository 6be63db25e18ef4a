"""Parts of the entities, by a hash of their keys: each is read and computed by itself, here or on a Dask cluster.

A row needs the events of its own entity alone, so the result is the same to the bit for any number of parts and workers. How
many parts there are follows from the memory that one may take, EVERGREEN_MEMORY_MB in the environment.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from evergreen.tasks.core import dask_cluster, memory
from evergreen.tasks.problems.tabular.known_events import Part

log = logging.getLogger(__name__)

BYTES_PER_EVENT = 250
"""While 70 features are made at 22 cutoffs, measured on the worked example; more cutoffs and features take more."""


def count(events: int, bytes_per_event: int = BYTES_PER_EVENT) -> int:
    """Number of parts for so many events. Raises ParamsError where the environment says no positive number."""
    return max(1, -(-events * bytes_per_event // memory.limit()))


def split(events: int, bytes_per_event: int = BYTES_PER_EVENT) -> list[Part]:
    """The parts for so many events."""
    number = count(events, bytes_per_event)
    return [Part(place, number) for place in range(number)]


def each(function: Callable[[Any, Part], pl.DataFrame], shared: Any, events: int) -> Iterator[pl.DataFrame]:
    """function(shared, part) for each part, in order; several parts on the cluster that the environment names, if any."""
    parts = split(events)
    number = len(parts)
    if number == 1:
        yield function(shared, parts[0])
        return
    scheduler = dask_cluster.address()
    log.info("%d events in %d parts, %s", events, number, f"on {scheduler}" if scheduler else "one after the other")
    given = function, shared
    found = (
        dask_cluster.each(scheduler, _measured, given, [(part,) for part in parts])
        if scheduler
        else (_measured(given, part) for part in parts)
    )
    for part, (rows, peak) in zip(parts, found, strict=True):
        log.info("part %d of %d: %d rows, peak memory %.0f MB", part.place + 1, number, rows.height, peak)
        yield rows


def _measured(given: tuple[Callable[[Any, Part], pl.DataFrame], Any], part: Part) -> tuple[pl.DataFrame, float]:
    """The rows, and the peak memory of the process that made them, in MB."""
    function, shared = given
    return function(shared, part), memory.peak_mb()
