"""Blocks: predictions of one version and day, packed column by column: `head`, `outputs` and `features`.

A block of few rows is compressed JSON, a larger one is a parquet file: a parquet file of a few wide rows is mostly metadata.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from io import BytesIO
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger import json_columns
from evergreen.monitoring.ledger.schema import BLOCK_LABELS, BLOCKS, DAY_MICROS

PARQUET_ROWS = 64
"""Blocks with fewer rows are JSON."""
HEIGHT = "__height"
"""The only column of a block without columns: it keeps the number of rows."""


HEAD: dict[str, Any] = {"id": pl.String, "variant": pl.String, "at": pl.Int64, "cutoff": pl.Int32, "entity": pl.String}
"""Columns of `head`."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Predictions of some blocks, oldest first; one row per prediction in each frame."""

    head: pl.DataFrame
    """block, position (in its block), version, day (the cutoff, else the day of `at`), and HEAD."""
    outputs: pl.DataFrame
    features: pl.DataFrame
    """Without columns where they were not read."""
    labels: dict[int, tuple[int, bytes | None]]
    """Block -> number of the newest label among its packed labels, and those."""

    def where(self, condition: pl.Expr) -> "Blocks":
        """The predictions that meet a condition on `head`, oldest first."""
        rows = self.head.with_row_index("__row").filter(condition).sort("at", "block", "position")
        if rows.is_empty():
            return Blocks(rows.drop("__row"), pl.DataFrame(), pl.DataFrame(), {})
        outputs, features = (each[rows["__row"]] if each.width else each for each in (self.outputs, self.features))
        return Blocks(rows.drop("__row"), outputs, features, {each: self.labels[each] for each in rows["block"].unique()})

    def tail(self, rows: int) -> "Blocks":
        """The newest rows of what `where` returns."""
        head, outputs, features = (each.tail(rows) for each in (self.head, self.outputs, self.features))
        return Blocks(head, outputs, features, {each: self.labels[each] for each in head["block"].unique()})


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


def pack_whole(frame: pl.DataFrame, height: int) -> bytes:
    """All columns of a frame of `height` rows; it may have none."""
    return pack_frame(frame, frame.columns) if frame.width else pack_columns({}, height)


def pack_columns(columns: Mapping[str, Sequence[Any]], height: int) -> bytes:
    """Columns of `height` values of any type."""
    if height >= PARQUET_ROWS and columns:
        return pack_frame(_as_frame(columns, height), list(columns))
    return zlib.compress(orjson.dumps([height, columns], default=_as_text, option=orjson.OPT_SERIALIZE_NUMPY))


def pack_rows(rows: Sequence[Mapping[str, Any] | bytes]) -> bytes:
    """Rows, each from name to value or as JSON, column by column."""
    if len(rows) >= PARQUET_ROWS and all(type(each) is bytes for each in rows):
        frame = json_columns.to_frame(cast("Sequence[bytes]", rows), as_series)
        if frame is not None:
            return pack_frame(frame, frame.columns)
    return pack_columns(to_columns([orjson.loads(each) if isinstance(each, bytes) else each for each in rows]), len(rows))


def to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each name in `rows`, in order of appearance, to its values; None where a row lacks it."""
    orders = dict.fromkeys(map(tuple, rows))
    names = dict.fromkeys(chain.from_iterable(orders))
    values = [row.values() if len(orders) == 1 else map(row.get, names) for row in rows]
    return dict(zip(names, map(list, zip(*values, strict=True)), strict=True))


def read(
    connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]], outputs: bool = True, features: bool = True
) -> Blocks:
    """The blocks that meet the conditions, from one statement: a block that is merged meanwhile is seen once."""
    wanted = [BLOCKS.c.head, *([BLOCKS.c.outputs] if outputs else []), *([BLOCKS.c.features] if features else [])]
    query = sa.select(BLOCKS.c.number, BLOCKS.c.version, BLOCK_LABELS.c.upto, BLOCK_LABELS.c.labels, *wanted)
    query = query.outerjoin(BLOCK_LABELS, BLOCK_LABELS.c.block == BLOCKS.c.number).where(*where)
    rows = connection.execute(query.order_by(BLOCKS.c.first, BLOCKS.c.number)).all()
    head, sizes = unpack([row.head for row in rows])
    return Blocks(
        _complete(head, [row.number for row in rows], [row.version for row in rows], sizes),
        unpack([row.outputs for row in rows])[0] if outputs else pl.DataFrame(),
        unpack([row.features for row in rows])[0] if features else pl.DataFrame(),
        {row.number: (row.upto or 0, row.labels) for row in rows},
    )


def _complete(head: pl.DataFrame, numbers: Sequence[int], versions: Sequence[int], sizes: Sequence[int]) -> pl.DataFrame:
    head = head.select(pl.col(name).cast(dtype) for name, dtype in HEAD.items()) if sizes else pl.DataFrame(schema=HEAD)
    return head.with_columns(
        pl.Series("block", np.repeat(numbers, sizes), dtype=pl.Int64),
        pl.Series("version", np.repeat(versions, sizes), dtype=pl.Int64),
        pl.Series("position", np.concatenate([np.arange(size) for size in sizes] or [[]]), dtype=pl.Int64),
        day=pl.coalesce(pl.col("cutoff"), (pl.col("at") // DAY_MICROS).cast(pl.Int32)),
    )


def unpack(packed: Sequence[bytes]) -> tuple[pl.DataFrame, list[int]]:
    """The rows of all packed frames, in their order, and the number of rows of each."""
    frames, sizes = list[pl.DataFrame](), list[int]()
    for is_json, run in groupby(packed, key=_is_json):
        found = (_unpack_json if is_json else _unpack_parquet)(list(run))
        frames += found[0]
        sizes += found[1]
    if not frames:
        return pl.DataFrame(), []
    whole = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    return whole.drop(HEIGHT, strict=False), sizes


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
    types = set(map(type, values)) - {type(None)}
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
