"""Statistics of a column whose values come in pieces, merged to those of all rows. As pandas has them: missing values, and
those that are not a number, do not count. Sums are those of fixed pieces, so that they are the same for blocks of any size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.data.row_blocks import AT, ROW, RowBlocks

NUMBERS = (pl.Float64, pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
DIGIT = 16
"""Bits of a value that one pass of `order_statistics` decides."""


def supports(view: RowBlocks, metric: str, column: str | None) -> bool:
    """Whether `of` computes what Great Expectations calls `metric`, for the type of the column (None: for the table)."""
    if metric in OF_TABLE or column is None:
        return metric in OF_TABLE and column is None
    kind = view.schema.schema[column]
    return metric in OF_ANY_COLUMN or (metric in OF_NUMBERS and any(kind == each for each in NUMBERS))


def of(view: RowBlocks, metric: str, column: str | None, quantiles: Sequence[float] = ()) -> Any:
    """The statistic of the column that Great Expectations calls `metric`; `quantiles`: which, from 0 to 1."""
    if column is None:
        return OF_TABLE[metric](view)
    if metric == "column.quantile_values":
        return quantile_values(view, column, quantiles)
    return (OF_ANY_COLUMN | OF_NUMBERS)[metric](view, column)


def extremes(view: RowBlocks, column: str) -> pl.DataFrame:
    """A few rows with the same smallest and largest value as the column, and a missing one if it has any."""
    found = view.schema.select(column)
    for values in view.column(column):
        present = _present(values).to_frame()
        ends = [present.select(pl.all().min()), present.select(pl.all().max())] if len(present) else []
        absent = values.to_frame().filter(pl.all().is_null()).head(1)
        found = pl.concat([found, *ends, absent]).unique(maintain_order=True)
    return found


def distinct(view: RowBlocks, column: str) -> pl.DataFrame:
    """The values of the column, each once, in the order in which they come first."""
    found = view.schema.select(column)
    for values in view.column(column):
        found = pl.concat([found, values.to_frame()]).unique(maintain_order=True)
    return found


def missing(view: RowBlocks, column: str) -> int:
    return sum(len(values) - len(_present(values)) for values in view.column(column))


def with_nulls(view: RowBlocks, columns: Sequence[str]) -> dict[str, bool]:
    """Column -> whether a value of it is missing."""
    found = pl.concat(piece.null_count() for piece in view.pieces(columns)) if columns else pl.DataFrame()
    return {column: bool(found[column].sum()) for column in columns}


def total(view: RowBlocks, column: str) -> float | int:
    """A whole number for a column of whole numbers without missing values."""
    parts = [values.sum() for values in _numbers(view, column)]
    if parts and all(isinstance(part, np.integer) for part in parts):
        return int(sum(map(int, parts)))
    return _sum(map(float, parts))


def mean(view: RowBlocks, column: str) -> float:
    count, middle, _ = _moments(view, column)
    return middle if count else math.nan


def standard_deviation(view: RowBlocks, column: str) -> float:
    """Of a sample: n - 1."""
    count, _, squares = _moments(view, column)
    return math.sqrt(squares / (count - 1)) if count > 1 and not math.isnan(squares) else math.nan


def _moments(view: RowBlocks, column: str) -> tuple[int, float, float]:
    """Number, mean and sum of squared deviations; those of two pieces add up as in Chan, Golub and LeVeque (1979)."""
    pieces: list[tuple[int, float, float]] = []
    with np.errstate(invalid="ignore", over="ignore"):
        for values in _numbers(view, column):
            whole = float(values.sum(dtype=np.float64))
            pieces.append((len(values), whole, float(((values - whole / len(values)) ** 2).sum())))
        count, whole = sum(piece[0] for piece in pieces), _sum(piece[1] for piece in pieces)
        middle = whole / count if count else math.nan
        apart = (piece[2] + piece[0] * (np.float64(piece[1]) / piece[0] - middle) ** 2 for piece in pieces)
        return count, middle, _sum(map(float, apart))


def _sum(parts: "Iterator[float] | Sequence[float]") -> float:
    """Exactly rounded; infinite parts as numpy adds them."""
    parts = list(parts)
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return float(np.sum(parts))


def distinct_count(view: RowBlocks, column: str) -> int:
    return sum(_present(part[column]).n_unique() for part in view.equals([column]))


def unique_proportion(view: RowBlocks, column: str) -> float:
    present = rows(view) - missing(view, column)
    return distinct_count(view, column) / present if present else 0


def non_null_proportion(view: RowBlocks, column: str) -> float:
    return (rows(view) - missing(view, column)) / rows(view) if rows(view) else 0


def rows(view: RowBlocks) -> int:
    return view.height


def names(view: RowBlocks) -> list[str]:
    return [column for column in view.schema.columns if column not in (ROW, AT)]


def median(view: RowBlocks, column: str) -> float:
    count = sum(len(values) for values in _numbers(view, column))
    if not count:
        return math.nan
    low, high = order_statistics(view, column, [(count - 1) // 2, count // 2])
    return float(low) if (count % 2) else (float(low) + float(high)) / 2.0


def quantile_values(view: RowBlocks, column: str, quantiles: Sequence[float]) -> list[float | int]:
    """The nearest values of the column, those of an even rank where two are equally near."""
    count = sum(len(values) for values in _numbers(view, column))
    if not count:
        return [math.nan] * len(quantiles)
    places = [float(each) * 100.0 / 100.0 * (count - 1) for each in quantiles]
    found = order_statistics(view, column, [round(each) for each in places])
    return [each.item() for each in found]


def order_statistics(view: RowBlocks, column: str, ranks: Sequence[int]) -> list[Any]:
    """The values of these ranks, from 0, in ascending order: 64 bits, decided DIGIT at a time by counting."""
    prefixes, left = [0] * len(ranks), list(ranks)
    for shift in range(64 - DIGIT, -1, -DIGIT):
        counts = {prefix: np.zeros(2**DIGIT, dtype=np.int64) for prefix in prefixes}
        for values in _numbers(view, column):
            keys = _sortable(values)
            for prefix, counted in counts.items():
                mine = keys if shift == 64 - DIGIT else keys[(keys >> np.uint64(shift + DIGIT)) == np.uint64(prefix)]
                digits = ((mine >> np.uint64(shift)) & np.uint64(2**DIGIT - 1)).astype(np.int64)
                counted += np.bincount(digits, minlength=2**DIGIT)
        for place, prefix in enumerate(prefixes):
            upto = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(upto, left[place], side="right"))
            left[place] -= int(upto[digit - 1]) if digit else 0
            prefixes[place] = (prefix << DIGIT) | digit
    kind = next(iter(_numbers(view, column))).dtype
    return [_unsortable(np.uint64(each), kind) for each in prefixes]


_SIGN = np.uint64(2**63)


def _sortable(values: np.ndarray) -> np.ndarray:
    """Numbers as unsigned ones in the same order."""
    if values.dtype.kind == "f":
        bits = (values + 0.0).view(np.uint64)
        return np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return values.astype(np.uint64) if values.dtype.kind == "u" else values.astype(np.int64).view(np.uint64) ^ _SIGN


def _unsortable(key: np.uint64, kind: np.dtype[Any]) -> Any:
    if kind.kind == "f":
        return np.array([key ^ _SIGN if key & _SIGN else ~key], dtype=np.uint64).view(np.float64)[0]
    return key if kind.kind == "u" else np.array([key ^ _SIGN], dtype=np.uint64).view(np.int64)[0]


def _numbers(view: RowBlocks, column: str) -> Iterator[np.ndarray]:
    """The present values, piece by piece; whole numbers as floats where the column has missing values, as in pandas."""
    kind = view.schema.schema[column]
    as_float = kind.is_float() or with_nulls(view, [column])[column]
    for values in view.column(column):
        present = _present(values)
        if len(present):
            yield (present.cast(pl.Float64) if as_float else present).to_numpy()


def _present(values: pl.Series) -> pl.Series:
    present = values.drop_nulls()
    return present.filter(present.is_not_nan()) if present.dtype.is_float() else present


OF_TABLE: dict[str, Callable[[RowBlocks], Any]] = {
    "table.row_count": rows,
    "table.columns": names,
    "table.column_count": lambda view: len(names(view)),
}
OF_ANY_COLUMN: dict[str, Callable[[RowBlocks, str], Any]] = {
    "column.distinct_values.count": distinct_count,
    "column.unique_proportion": unique_proportion,
    "column.non_null_proportion": non_null_proportion,
}
OF_NUMBERS: dict[str, Callable[[RowBlocks, str], Any]] = {
    "column.mean": mean,
    "column.sum": total,
    "column.standard_deviation": standard_deviation,
    "column.median": median,
    "column.quantile_values": lambda view, column: quantile_values(view, column, ()),
}
