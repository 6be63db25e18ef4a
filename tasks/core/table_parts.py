"""Tables of data/raw and data/tables: a folder NAME.parquet with one Parquet file (part) per PART_ROWS rows.

Which rows a part has follows from their places alone, not from the files that they were read from: the same rows are the same
bytes. A table that grows at its end changes its last part and adds others. Those before stay the same files, also for DVC,
which stores each file of a folder once. Earlier versions wrote one file per table; it is read the same way.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import sha256

PART_ROWS = 2**17
"""Rows of a part, the last one excepted: one row group, and one block of validation."""


def is_there(table: Path) -> bool:
    return table.is_file() or any(table.glob("*.parquet"))


def files(table: Path) -> list[Path]:
    """The parts in the order of their rows; of an earlier version's table its one file. Raises DataError if a part is missing
    before another one.
    """
    found = sorted(table.glob("*.parquet")) if table.is_dir() else [table]
    if table.is_dir() and (lost := _missing(found)):
        raise DataError(f"{table / lost}: is missing. Read the tables again: evergreen train --refresh")
    return found


def _missing(parts: Sequence[Path]) -> str | None:
    expected = map(name, range(len(parts)))
    return next((each for each, part in zip(expected, parts, strict=True) if part.name != each), None)


def name(number: int) -> str:
    """The file of a part, from 0."""
    return f"{number:06d}.parquet"


def scan(table: Path) -> pl.LazyFrame:
    return pl.scan_parquet(files(table), glob=False, hive_partitioning=False)


def between(parts: Sequence[Path], start: int, count: int) -> pl.LazyFrame:
    """`count` rows from `start` (from 0) on; of the parts, those alone are opened that have such rows."""
    first = min(start // PART_ROWS, len(parts) - 1)
    last = max(first, (start + count - 1) // PART_ROWS)
    held = pl.scan_parquet(list(parts[first : last + 1]), glob=False, hive_partitioning=False)
    return held.slice(start - first * PART_ROWS, count)


def rows(table: Path) -> int:
    """Number of rows, from the ends of the files."""
    return int(scan(table).select(pl.len()).collect().item())


def digests(table: Path) -> list[str]:
    """The SHA-256 of each part; empty if the table is not there, or a part is missing."""
    if not is_there(table) or (table.is_dir() and _missing(sorted(table.glob("*.parquet")))):
        return []
    return [sha256(path) for path in files(table)]


def write(table: pl.LazyFrame, to: Path, first: int = 0) -> None:
    """Write rows as the parts from number `first` on; a table without rows is one part without rows."""
    target = pl.PartitionBy(
        to,
        max_rows_per_file=PART_ROWS,
        approximate_bytes_per_file=None,
        file_path_provider=lambda each: name(first + each.index_in_partition),
    )
    table.sink_parquet(target, compression="zstd", row_group_size=PART_ROWS, maintain_order=True, mkdir=True)


def keep(part: Path, to: Path) -> None:
    """The same file under another name; a copy where the file system cannot do that. The old name is to be removed."""
    try:
        os.link(part, to, follow_symlinks=False)
    except OSError:
        shutil.copyfile(part, to)


def keep_all(table: Path, to: Path) -> None:
    """`keep` each part of a table, or its one file."""
    if table.is_dir():
        to.mkdir()
    for part in files(table):
        keep(part, to / part.name if table.is_dir() else to)


def masked(table: Path, mask: pl.Series) -> Iterator[tuple[Path, pl.Series]]:
    """Each part with its share of `mask`, one value per row of the table."""
    start = 0
    for part in files(table):
        count = rows(part)
        yield part, mask.slice(start, count)
        start += count
