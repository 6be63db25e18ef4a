"""Compare a compiled model with its pipeline: the difference of their predictions, and the time of one row."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype, is_string_dtype

from evergreen.tasks.config.params import Section
from evergreen.tasks.core.errors import CompileError
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.base import PredictRows

TOLERANCE = 1e-5
"""Largest allowed difference; for a number above 1, relative to it."""
PARITY_ROWS = 1_000
"""Most rows that are compared, each also in a perturbed copy."""


class Parity(Section):
    """How far the predictions of a compiled model and its pipeline differ."""

    rows: int
    """Rows that both predicted, with unseen categories and missing values among them."""
    difference: float
    """The largest difference."""
    tolerance: float


class Latency(Section):
    """Wall time of one row, median milliseconds on the machine that compiled."""

    row_ms: float
    """By the compiled model."""
    pipeline_row_ms: float
    """By the pipeline."""


def parity(predict: PredictRows, file: bytes, features: pd.DataFrame, seed: int) -> Parity:
    """Compare the predictions of `file` with those of the pipeline, `predict`, on `features`: held-out rows, if any.

    Each row comes with a copy that has missing values and unseen categories. Raises CompileError where predictions differ.
    """
    compiled = Compiled(file)
    rows = _with_perturbed_copies(features, np.random.default_rng(seed), gaps=not compiled.signature.requires_numbers)
    expected, found = predict(rows), compiled.predict_columns(rows, len(rows))
    difference = max(_difference(found[name], expected[name]) for name in expected)
    if not difference <= TOLERANCE:
        raise CompileError(f"the compiled form differs by {difference:.2g} (at most {TOLERANCE:g}) on {len(rows):,} rows")
    return Parity(rows=len(rows), difference=difference, tolerance=TOLERANCE)


def latency(predict: PredictRows, file: bytes, row: pd.DataFrame) -> Latency:
    """The time of the single row `row`."""
    compiled, cells = Compiled(file), row.to_dict("records")[0]
    return Latency(
        row_ms=_median_ms(lambda: compiled.predict_row(cells), 100),
        pipeline_row_ms=_median_ms(lambda: predict(row), 10),
    )


def refuses_missing_numbers(predict: PredictRows, row: pd.DataFrame) -> bool:
    """Whether the pipeline refuses missing numbers."""
    try:
        row = row.copy()
        row[list(row.select_dtypes("number"))] = np.nan
        predict(row)
    except ValueError:
        return True
    return False


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest one; for classes and groups, 0 if all are equal and infinite if not. NaN equals NaN alone."""
    if np.asarray(expected).dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    apart = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    return float(np.max(np.where(np.isnan(found) & np.isnan(expected), 0.0, apart), initial=0.0))


def _with_perturbed_copies(features: pd.DataFrame, draw: np.random.Generator, gaps: bool) -> pd.DataFrame:
    """`features`, then a copy with a tenth of the cells missing and another tenth of the categories unseen."""
    copy = features.copy()
    for name in features:
        chance = draw.random(len(features))
        if is_string_dtype(features[name]):
            copy[name] = copy[name].mask(chance < 0.2, "never seen").mask(chance < 0.1)
        elif gaps or not is_numeric_dtype(features[name]):
            copy[name] = copy[name].mask(chance < 0.1)
    return pd.concat([features, copy], ignore_index=True)


def _median_ms(work: Callable[[], Any], times: int) -> float:
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(1000 * float(np.median(taken)), 4)
