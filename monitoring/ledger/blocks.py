"""Blocks: the outputs or features of the predictions that were written together, packed column by column.

A block of few rows is compressed JSON, a larger one is a parquet file: a parquet file of a few wide rows is mostly metadata.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger.schema import BLOCKS, ROWS_PER_STATEMENT, chunk

PARQUET_ROWS = 64
"""Blocks with fewer rows are JSON."""
HEIGHT = "__height"
"""The only column of a block without columns: it keeps the number of rows."""


class MissingBlockError(Exception):
    """A block was removed while it was read."""


def pack_frame(frame: pl.DataFrame, names: Sequence[str]) -> bytes:
    """The columns `names` of `frame`. Dates become text."""
    if not names:
        return pack_columns({}, frame.height)
    frame = frame.select(names).with_columns(pl.selectors.temporal().cast(pl.String), pl.selectors.float().fill_nan(None))
    if frame.height < PARQUET_ROWS:
        return pack_columns(frame.to_dict(as_series=False), frame.height)
    buffer = BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def pack_columns(columns: Mapping[str, Sequence[Any]], height: int) -> bytes:
    """Columns of `height` values of any type."""
    if height >= PARQUET_ROWS and columns:
        return pack_frame(_as_frame(columns, height), list(columns))
    return zlib.compress(orjson.dumps([height, columns], default=_as_text, option=orjson.OPT_SERIALIZE_NUMPY))


def to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each name in `rows`, in order of appearance, to its values; None where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def gather(connection: sa.Connection, column: sa.Column[Any], block: np.ndarray, position: np.ndarray) -> pl.DataFrame:
    """One row per entry of `block` and `position`, from the packed frames in `column`.

    Raises MissingBlockError where a block is not there.
    """
    numbers, read = np.unique(block), list[int]()
    frames, sizes = list[pl.DataFrame](), list[int]()
    for part in chunk(numbers.tolist(), ROWS_PER_STATEMENT):
        query = sa.select(BLOCKS.c.number, column).where(BLOCKS.c.number.in_(part)).order_by(BLOCKS.c.number)
        for is_json, rows in groupby(connection.execute(query), key=lambda row: _is_json(row[1])):
            found, packed = zip(*rows, strict=True)
            unpacked = (_unpack_json if is_json else _unpack_parquet)(packed)
            read += found
            frames += unpacked[0]
            sizes += unpacked[1]
    if read != numbers.tolist():
        raise MissingBlockError
    if not frames:
        return pl.DataFrame()
    starts = np.cumsum([0, *sizes[:-1]])
    whole = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    return whole[starts[np.searchsorted(numbers, block)] + position].drop(HEIGHT, strict=False)


def _is_json(packed: bytes) -> bool:
    return bytes(packed[:4]) != b"PAR1"


def _unpack_parquet(packed: Sequence[bytes]) -> tuple[list[pl.DataFrame], list[int]]:
    """One frame per block, and the number of rows of each block."""
    frames = [pl.read_parquet(BytesIO(each)) for each in packed]
    return frames, [each.height for each in frames]


def _unpack_json(packed: Sequence[bytes]) -> tuple[list[pl.DataFrame], list[int]]:
    """One frame of all blocks, and the number of rows of each block."""
    columns, rows, sizes = dict[str, list[Any]](), 0, list[int]()
    for each in packed:
        height, found = orjson.loads(zlib.decompress(each))
        for name, values in found.items():
            column = columns.setdefault(name, [])
            column += [None] * (rows - len(column)) + values
        rows += height
        sizes.append(height)
    return [_as_frame({name: column + [None] * (rows - len(column)) for name, column in columns.items()}, rows)], sizes


def _as_frame(columns: Mapping[str, Sequence[Any]], height: int) -> pl.DataFrame:
    if not columns:
        return pl.DataFrame({HEIGHT: pl.Series([None] * height, dtype=pl.Boolean)})
    return pl.DataFrame([as_series(name, values) for name, values in columns.items()])


def as_series(name: str, values: Sequence[Any]) -> pl.Series:
    """Values of one type keep it; numbers of several types become numbers; any other mixture becomes text."""
    types = {type(value) for value in values} - {type(None)}
    if not types:
        return pl.Series(name, values, dtype=pl.Null)
    if types <= {int, float, bool}:
        dtype = pl.Boolean if types == {bool} else pl.Float64 if float in types else pl.Int64
        try:
            return pl.Series(name, values, dtype=dtype, strict=False)
        except (OverflowError, TypeError):
            return pl.Series(name, values, dtype=pl.Float64, strict=False)
    if len(types) == 1 and types <= {str, list, date, datetime}:
        try:
            return pl.Series(name, values)
        except (TypeError, pl.exceptions.PolarsError):  # lists of several types
            pass
    texts = [value if value is None or type(value) is str else _as_text(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else json.dumps(value, default=str)
