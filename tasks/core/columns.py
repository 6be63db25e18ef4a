"""Columns of any type as numbers, or as names of categories."""

import math

import numpy as np
import polars as pl
from polars.exceptions import PolarsError


def numbers(values: pl.Series) -> tuple[np.ndarray, int]:
    """`values` as float64, NaN where there is none, and how many could not be read as finite numbers.

    A date counts in days since 1970; true and false are 1 and 0.
    """
    if values.dtype.is_temporal():
        values = values.cast(pl.Datetime("us"), strict=False).to_physical() / 86_400e6
    try:
        found = values.cast(pl.Float64, strict=False)
    except PolarsError:
        found = pl.Series([None] * len(values), dtype=pl.Float64)
    there = len(values) - values.null_count() - (int(values.is_nan().sum()) if values.dtype.is_float() else 0)
    array = found.to_numpy() if not found.null_count() else found.fill_null(math.nan).to_numpy()
    finite = np.isfinite(array)
    if not finite.all():
        array = np.where(finite, array, math.nan)
    return array, there - int(finite.sum())


def texts(values: pl.Series) -> pl.Series:
    """`values` as names of categories: a whole number is written without decimals, true and false as 1 and 0."""
    if values.dtype == pl.Boolean:
        values = values.cast(pl.Int8)
    if values.dtype.is_float():
        whole = values.is_finite() & (values == values.round())
        named = pl.DataFrame({"value": values.fill_nan(None), "whole": whole}).select(
            pl.when("whole")
            .then(pl.col("value").cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(pl.col("value").cast(pl.String))
        )
        return named.to_series().alias("name")
    if values.dtype in (pl.List, pl.Struct, pl.Array, pl.Object):
        return pl.Series("name", [None if each is None else str(each) for each in values], pl.String)
    return values.cast(pl.String).alias("name")


def is_number(dtype: pl.DataType) -> bool:
    """Whether values of this type have an order and distances: dates and booleans do too."""
    return dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean


LARGEST = float(np.finfo(np.float32).max)


def within_32_bits(numbers: np.ndarray) -> np.ndarray:
    """Numbers whose size 32 bits can hold, for trees of scikit-learn, which refuse others. Larger ones become the largest."""
    return np.clip(numbers, -LARGEST, LARGEST)
