"""rows.parquet where it is too large for memory: a sample of its entities, and all of its rows block by block.

EVERGREEN_LEARNING_MB says how much memory the rows of a learning process may take. How many rows are read at a time follows
from it and from EVERGREEN_MEMORY_MB; the blocks that a model gets have the same rows whatever the settings, so that sums over
them are the same to the bit.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

log = logging.getLogger(__name__)

NUMBER_BYTES, TEXT_BYTES = 30, 200
"""A value, while a model learns from a table in memory; see docs/benchmarks.md, Growth."""
BINNED_BYTES, ROW_BYTES = 3, 60
"""A value, and besides a row, while boosted trees learn from all rows: bins, gradients and the order of rows."""
BUCKETS = 4096
"""The sample is made of buckets: groups of entities by a hash of their keys."""
FEWEST_ROWS = 1_000
"""A sample of fewer rows teaches nothing about a table that is too large for memory."""
FEWEST_PER_CLASS = 30
"""A class has so many rows in the sample, or all that it has."""
CLASSES = 50
"""A target with more values than this has no classes."""
BLOCK_VALUES = 2**19
"""Values of a block that a model gets: with splines and a column per category its matrix has many times as many."""
AT = "__at"
"""Column with the place of a row in the file."""
REPORTS = 10
"""Lines of progress while all rows are read once."""


@dataclass(frozen=True)
class StoredTable:
    """The rows of a parquet file."""

    path: Path
    entity: str
    target: str
    by_class: bool
    """Whether the target is a class."""

    @cached_property
    def height(self) -> int:
        return self._scan().select(pl.len()).collect().item()

    @cached_property
    def columns(self) -> int:
        return len(self._types)

    @cached_property
    def _types(self) -> list[pl.DataType]:
        return self._scan().collect_schema().dtypes()

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.path, glob=False)

    @cached_property
    def row_bytes(self) -> int:
        """What a row takes while a model learns in memory."""
        texts = sum(not (each.is_numeric() or each.is_temporal() or each == pl.Boolean) for each in self._types)
        return texts * TEXT_BYTES + (self.columns - texts) * NUMBER_BYTES

    def fits(self) -> bool:
        """Whether a model may learn from all rows in memory. Raises ParamsError for a limit that is no number."""
        return self.height * self.row_bytes <= memory.learning_limit()

    def fits_binned(self) -> bool:
        """Whether boosted trees may learn from all rows: their bins take half of the limit at most, the sample the rest."""
        return self.height * (self.columns * BINNED_BYTES + ROW_BYTES) <= memory.learning_limit() / 2

    def pieces(self, columns: Sequence[str] | None = None, wanted: np.ndarray | None = None) -> Iterator[pl.DataFrame]:
        """All rows in order with AT, some at a time. `columns`: some of them. `wanted`: per row; only those pieces and rows."""
        most = min(memory.limit(), memory.learning_limit() // 8)
        count = max(1, most // (self.row_bytes if columns is None else len(columns) * NUMBER_BYTES))
        rows = self._scan()
        for start in range(0, self.height, count):
            mask = None if wanted is None else wanted[start : start + count]
            if mask is not None and not mask.any():
                continue
            piece = rows.slice(start, count).select(pl.all() if columns is None else columns).collect()
            piece = piece.with_row_index(AT, start)
            yield piece if mask is None else piece.filter(pl.Series(mask))

    def values(self, name: str, most: int) -> list[str] | None:
        """The distinct texts of a column, sorted; None for more than `most`."""
        found = pl.Series(name, dtype=pl.String)
        for piece in self.pieces([name]):
            found = pl.concat([found, piece[name].cast(pl.String).drop_nulls()]).unique()
            if len(found) > most:
                return None
        return found.sort().to_list()

    def where(self, condition: pl.Expr) -> "Selection":
        """The rows that `condition` holds for."""
        names = condition.meta.root_names()
        found = [piece.select(condition.fill_null(False)).to_series() for piece in self.pieces(list(dict.fromkeys(names)))]
        return Selection(self, pl.concat(found).to_numpy())

    def sample(self) -> "Selection":
        """As many entities, with all of their rows, as learn in half of EVERGREEN_LEARNING_MB: always the same ones.

        Each class has FEWEST_PER_CLASS rows. Raises ParamsError where not even a bucket of entities fits.
        """
        most = memory.learning_limit() // 2 // self.row_bytes
        hashed, codes = self._hashed()
        sizes = np.bincount(hashed, minlength=BUCKETS)
        chosen, taken = np.zeros(BUCKETS, dtype=bool), 0
        for bucket in np.flatnonzero(sizes):  # one that is too large on its own is passed over
            if taken + sizes[bucket] <= most:
                chosen[bucket], taken = True, taken + sizes[bucket]
        if taken < min(FEWEST_ROWS, self.height):
            needed = (max(FEWEST_ROWS, int(sizes[sizes > 0].min())) * self.row_bytes * 2) // 2**20 + 1
            raise ParamsError(
                f"{memory.LEARNING} = {memory.learning_limit() / 2**20:,.0f}: is too small for {self.path}: the rows of a few "
                f"entities take more. Give it {needed:,} or more, or unset it."
            )
        mask = chosen[hashed]
        mask[_rare(codes, mask)] = True
        return Selection(self, mask)

    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        """Per row the bucket of its entity, and the code of its class, from 1 on; 0 without one."""
        hashed: list[np.ndarray] = []
        codes: list[np.ndarray] = []
        known: dict[Any, int] = {}
        for piece in self.pieces([self.entity, self.target] if self.by_class else [self.entity]):
            # the low bits: the test rows of plain tables are those with the lowest hashes
            hashed.append((hash_rows(piece.select(self.entity)) % BUCKETS).astype(np.uint16))
            if self.by_class:
                for value in piece[self.target].drop_nulls().unique(maintain_order=True):
                    known.setdefault(value, len(known) + 1)
                coded = piece[self.target].replace_strict(known, default=0, return_dtype=pl.Int32)
                codes.append(np.minimum(coded.to_numpy(), CLASSES + 1).astype(np.uint8))
        return np.concatenate(hashed), np.concatenate(codes) if codes else np.zeros(self.height, dtype=np.uint8)


def _same(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


@dataclass(frozen=True)
class Selection:
    """Some rows of a table."""

    table: StoredTable
    mask: np.ndarray
    """Per row of the file."""
    read: Callable[[pl.DataFrame], Any] = _same
    """What `blocks` makes of a frame with all columns and AT."""

    @cached_property
    def height(self) -> int:
        return int(self.mask.sum())

    def frame(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows at once, with AT."""
        return pl.concat(self.table.pieces(columns, self.mask))

    def keep(self, kept: np.ndarray) -> "Selection":
        """Of these rows those that `kept`, one value per row, says."""
        mask = self.mask.copy()
        mask[self.mask] = kept
        return replace(self, mask=mask)

    @property
    def block_rows(self) -> int:
        """Rows of each block but the last; by the columns of the table alone, so that sums over blocks are always the same."""
        return max(256, BLOCK_VALUES // self.table.columns)

    def blocks(self, what: str | None = None) -> Iterator[Any]:
        """What `read` makes of the rows, block by block, in order. `what`: is done with them, for lines of progress."""
        count, told = -(-self.height // self.block_rows), 0
        for done, frame in enumerate(self._cut(), 1):
            if what and (tenths := done * REPORTS // count) > told:
                told, rows = tenths, min(done * self.block_rows, self.height)
                log.info("%s: %s of %s rows, peak memory %.0f MB", what, f"{rows:,}", f"{self.height:,}", memory.peak_mb())
            yield self.read(frame)

    def _cut(self) -> Iterator[pl.DataFrame]:
        """The rows in frames of `block_rows`, whatever was read at a time."""
        left: list[pl.DataFrame] = []
        for piece in self.table.pieces(None, self.mask):
            joined = pl.concat([*left, piece]) if left else piece
            whole = joined.height - joined.height % self.block_rows
            for start in range(0, whole, self.block_rows):
                yield joined.slice(start, self.block_rows)
            left = [joined.slice(whole)] if joined.height > whole else []
        yield from left


def _rare(codes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Places of rows outside `mask` that give each class FEWEST_PER_CLASS rows; the first ones in the file."""
    if codes.max(initial=0) > CLASSES:
        return np.empty(0, dtype=int)
    inside, found = np.bincount(codes[mask], minlength=CLASSES + 1), [np.empty(0, dtype=int)]
    for code in np.unique(codes[codes > 0]):
        if (missing := FEWEST_PER_CLASS - inside[code]) > 0:
            found.append(np.flatnonzero((codes == code) & ~mask)[:missing])
    return np.concatenate(found)
