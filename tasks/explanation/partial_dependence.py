"""Partial dependence: the mean prediction if every row had the same value in one column.

Source: Friedman, Greedy function approximation, 2001; the spread of rows after Goldstein and others, 2015.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.explanation.column_values import as_number, as_text, is_date
from evergreen.tasks.explanation.model_outputs import Predict
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.rows import Rows

MAX_CURVES, GRID_POINTS, MAX_ROWS = 6, 12, 150
"""Columns with a curve, values of each curve, rows that it is averaged over."""


def partial_dependence(predict: Predict, outputs: Sequence[str], rows: Rows, columns: Sequence[str]) -> pl.DataFrame:
    """output, column, value (text), x (number; null for categories), mean, low, high: one row per point of a curve.

    The curves of the first MAX_CURVES of `columns`. low, high: the middle half of the rows, each relative to its own mean over
    the values of the curve.
    """
    few: Any = rows.features.iloc[row_subset.evenly(np.arange(len(rows)), MAX_ROWS)]
    found = []
    for column in columns[:MAX_CURVES]:
        grid = _grid(pd.Series(rows.features[column]))
        if len(grid) < 2:
            continue
        frames = [_with_value(few, column, value) for value in grid]
        predictions = predict(pd.concat(frames, ignore_index=True)).reshape(len(grid), len(few), -1)
        spread = np.quantile(predictions - predictions.mean(axis=0), [0.25, 0.75], axis=1) + predictions.mean(axis=(0, 1))
        for place, value in enumerate(grid):
            for output, name in enumerate(outputs):
                low, high = spread[:, place, output]
                found.append(
                    {"column": column, "output": name, "value": as_text(value), "x": as_number(value)}
                    | {"mean": float(predictions[place, :, output].mean()), "low": float(low), "high": float(high)}
                )
    return pl.DataFrame(found, infer_schema_length=None)


def _with_value(rows: pd.DataFrame, column: str, value: Any) -> pd.DataFrame:
    rows = rows.copy(deep=False)
    rows[column] = pd.Series([value] * len(rows), index=rows.index).astype(rows[column].dtype)
    return rows


def _grid(values: Any) -> list[Any]:
    """Quantiles of numbers and dates, from the 2nd to the 98th per cent; the most frequent categories."""
    known = values.dropna()
    if pd.api.types.is_string_dtype(values):
        return known.value_counts().index[:GRID_POINTS].tolist()
    if known.nunique() <= GRID_POINTS:
        return sorted(known.unique().tolist())
    points = known.quantile(np.linspace(0.02, 0.98, GRID_POINTS))
    return list(dict.fromkeys((points.dt.normalize() if is_date(points) else points).tolist()))
