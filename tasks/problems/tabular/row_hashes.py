"""Hashes of rows that are the same in every version of the libraries."""

import numpy as np
import polars as pl
from pandas.util import hash_pandas_object  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]


def hash_rows(about: pl.DataFrame) -> np.ndarray:
    """One number per row, the same for the same content: whole numbers and others alike, days and moments alike."""
    columns: list[pl.Expr] = []
    for name, kind in about.schema.items():
        column = (
            pl.col(name).cast(pl.Datetime("us")).cast(pl.Int64) if isinstance(kind, pl.Date | pl.Datetime) else pl.col(name)
        )
        number = kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean
        columns.append(column.cast(pl.Float64) + 0.0 if number else column.cast(pl.String))
    return hash_pandas_object(about.select(columns).to_pandas(), index=False).to_numpy()  # pyright: ignore
