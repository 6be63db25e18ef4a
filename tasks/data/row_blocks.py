"""A table as validation sees it: blocks of its rows, with the columns that rules add, in memory one after the other.

How many rows a block has follows from the memory that it may take, EVERGREEN_MEMORY_MB in the environment.
"""

import base64
import io
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from evergreen.tasks.core import memory, table_parts

ROW = "__row"
"""Column with the row number, from 1, in the file of data/raw."""
AT = "__at"
"""Column with the position, from 0, among the rows that were not dropped as duplicates."""
_DROPPED, _EQUAL = "__dropped", "__equal"
GRAIN = table_parts.PART_ROWS
"""Blocks are multiples of so many rows: a part of the table."""
BYTES_PER_VALUE = 25
"""While a block is checked, measured on the worked example: in Polars, in pandas, and in results."""
BYTES_PER_KEY = 80
"""Of a row and column while equal rows are looked for."""
SCAN_ROWS = 2**20
"""Rows of one column at a time, in the same places for any size of blocks, so that sums are the same to the bit."""


@dataclass(frozen=True)
class RowBlocks:
    """The rows of one table."""

    table: pl.LazyFrame
    """As read."""
    read: int
    """Number of its rows."""
    rows: int
    """Rows of one block, at most."""
    facts: tuple[tuple[str, pl.DataFrame], ...] = ()
    """Column -> the columns that its reference joins."""
    derived: tuple[tuple[str, pl.Expr], ...] = ()
    scan: int = SCAN_ROWS
    """Rows of one column at a time."""
    grain: int = GRAIN
    """The rows after the last multiple of it are a block by themselves: more follow them when the table grows."""
    scratch: Path | None = None
    """The folder of temporary files; None: the system's."""
    parts: tuple[Path, ...] = ()
    """The files of the table, see table_parts: few rows open few of them. Empty: it has none."""
    dropped: pl.Series | None = field(default=None, compare=False)
    """Per row whether it is a dropped duplicate. None: none is."""

    @cached_property
    def schema(self) -> pl.DataFrame:
        """No rows, with all columns."""
        return self._view(0, 0).collect()

    @property
    def height(self) -> int:
        """Number of the rows that were not dropped."""
        return self.read - (0 if self.dropped is None else int(self.dropped.sum()))

    def spans(self, rows: range | None = None) -> list[range]:
        """The rows of the file (from 0) of each block; `rows`: of those alone. A table without rows is one empty block."""
        rows = range(self.read) if rows is None else rows
        last = max(rows.start, rows.stop - rows.stop % self.grain)
        starts = [*range(rows.start, last, self.rows), *range(last, rows.stop, self.rows)] or [rows.start]
        return [range(one, other) for one, other in pairwise([*starts, rows.stop])]

    def whole(self) -> "RowBlocks":
        """As one block, for expressions that look at other rows."""
        every = max(self.read, 1)
        return replace(self, rows=every, scan=every, grain=every)

    def part(self, rows: range, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """Of these rows of the file (from 0) those that were not dropped, with ROW, AT and `columns` at least; None: with all
        columns, also those that rules add.
        """
        return self._view(rows.start, len(rows), columns)

    def undropped(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Those of `rows`, which have ROW, that were not dropped."""
        return rows if self.dropped is None else rows.filter(~self.dropped.gather(rows[ROW] - 1))

    def starts(self, rows: int) -> range:
        return range(0, max(self.read, 1), rows)

    def column(self, name: str) -> Iterator[pl.Series]:
        """The values of a column in order, `scan` rows of the file at a time."""
        return (piece.to_series() for piece in self.pieces([name]))

    def pieces(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The values of `columns` in order, `scan` rows of the file at a time."""
        for start in self.starts(self.scan):
            yield self._view(start, self.scan, columns).select(columns).collect()

    def values(self, columns: Sequence[str]) -> pl.DataFrame:
        """ROW, AT and `columns` of all rows at once."""
        return self._view(0, self.read).select([*dict.fromkeys((ROW, AT, *columns))]).collect()

    def chosen(self, rows: np.ndarray, columns: Sequence[str]) -> pl.DataFrame:
        """ROW, AT and `columns` of the rows with these values of ROW."""
        names = [*dict.fromkeys((ROW, AT, *columns))]
        wanted = pl.col(ROW).is_in(pl.Series(rows, dtype=pl.get_index_type()).implode())
        return self._view(0, self.read, columns).select(names).filter(wanted).collect()

    def equals(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """ROW, AT and `columns` of all rows, in parts so that rows with equal values are in the same one; in their order.

        Several parts are laid apart in files first, so that each row is read twice, however many parts there are.
        """
        count = -(-self.read * BYTES_PER_KEY * (1 + len(columns)) // memory.limit())
        rows = self._view(0, self.read, columns).select(*dict.fromkeys((ROW, AT, *columns)))
        if count <= 1:
            yield rows.collect()
            return
        key = pl.struct(pl.col(each) + 0.0 if self.schema.schema[each].is_float() else pl.col(each) for each in columns)
        with tempfile.TemporaryDirectory(prefix="equals-", dir=self.scratch) as name:
            files = pl.PartitionBy(name, key={_EQUAL: key.hash(0) % count}, include_key=False, approximate_bytes_per_file=None)
            rows.sink_parquet(files, compression="lz4")
            for folder in sorted(Path(name).iterdir()):
                yield pl.read_parquet(folder, hive_partitioning=False).sort(ROW)

    def without(self, rows: np.ndarray) -> "RowBlocks":
        """Without these rows, by their values of ROW."""
        dropped = np.zeros(self.read, dtype=bool)
        dropped[rows - 1] = True
        return replace(self, dropped=pl.Series(dropped) if len(rows) else None)

    def _view(self, start: int, count: int, columns: Sequence[str] | None = None) -> pl.LazyFrame:
        """The rows of `count` rows of the file from `start` (from 0) on; with `columns` at least, None: with all."""
        rows, at = self._read(start, count).with_row_index(ROW, start + 1), start
        if self.dropped is not None:
            mask = self.dropped.slice(start, count).alias(_DROPPED).to_frame().lazy()
            rows = pl.concat([rows, mask], how="horizontal").filter(~pl.col(_DROPPED)).drop(_DROPPED)
            at -= int(self.dropped.slice(0, start).sum())
        rows = rows.with_row_index(AT, at)
        if columns is not None and set(columns) <= {ROW, AT, *self.table.collect_schema()}:
            return rows
        for column, known in self.facts:
            rows = rows.join(known.lazy(), on=column, how="left", maintain_order="left")
        for name, expression in self.derived:
            rows = rows.with_columns(expression.alias(name))
        return rows

    def _read(self, start: int, count: int) -> pl.LazyFrame:
        if not self.parts:
            return self.table.slice(start, count)
        return table_parts.between(self.parts, start, count)


def packed(mask: np.ndarray) -> str:
    """A mask of rows as text."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), level=1)).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The mask, of so many rows."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def packed_table(rows: pl.DataFrame) -> str:
    """A small table as text."""
    file = io.BytesIO()
    rows.write_parquet(file)
    return base64.b64encode(file.getvalue()).decode()


def unpacked_table(text: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(base64.b64decode(text)))


def rows_per_block(columns: int) -> int:
    """Of a table with so many columns, those of its rules included: a multiple of GRAIN."""
    return max(1, memory.limit() // (BYTES_PER_VALUE * columns * GRAIN)) * GRAIN
