"""What a model costs to run: size, load time, and prediction time in Python."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Kind, RowKind

BATCH_ROWS = 1_000
TIMED_SECONDS, MAX_REPEATS = 0.4, 30


def measure_serving_cost(file: Path, kind: Kind, data: Any, section: Any) -> dict[str, float | None]:
    """model_mb, load_ms, row_ms (one row), batch_rows and batch_ms (null for a kind that predicts lists): wall times."""
    started = time.perf_counter()
    model = skops_models.load(file)
    loaded = time.perf_counter() - started
    example = kind.example(data, section)
    predict: Callable[[Any], Any] = getattr(model, "predict_proba", model.predict)
    batch = pd.concat([example] * math.ceil(BATCH_ROWS / len(example)), ignore_index=True).head(BATCH_ROWS)
    rows = isinstance(kind, RowKind)
    return {
        "model_mb": round(file.stat().st_size / 2**20, 3),
        "load_ms": round(1000 * loaded, 1),
        "row_ms": round(1000 * _median_seconds(lambda: predict(example.head(1))), 3),
        "batch_rows": len(batch) if rows else None,
        "batch_ms": round(1000 * _median_seconds(lambda: predict(batch)), 2) if rows else None,
    }


def _median_seconds(work: Callable[[], Any]) -> float:
    """Median wall time of `work`, repeated for TIMED_SECONDS; the first run does not count."""
    work()
    taken: list[float] = []
    while not taken or (sum(taken) < TIMED_SECONDS and len(taken) < MAX_REPEATS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
