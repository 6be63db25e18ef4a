"""Find the file that made a step fail: one with damaged bytes between its first and its last, which look whole."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from evergreen.tasks.core.paths import Layout, parquet_files

ROWS = 500_000
"""Read at a time."""


def find(layout: Layout) -> tuple[Path, str] | None:
    """The first parquet file under data/ or models/ that cannot be read to its end, and why; None without one."""
    return next(_unreadable(layout), None)


def _unreadable(layout: Layout) -> Iterator[tuple[Path, str]]:
    for path in parquet_files(layout):
        try:
            _read(path)
        except (PolarsError, OSError) as error:
            yield path, str(error).strip().splitlines()[0]


def _read(path: Path) -> None:
    frame = pl.scan_parquet(path, glob=False)
    for first in range(0, frame.select(pl.len()).collect().item(), ROWS):
        frame.slice(first, ROWS).collect()
