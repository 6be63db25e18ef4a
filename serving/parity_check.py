"""Compares compiled models with their pipelines while they serve: a sample of the predictions is made again by the pipeline."""

import logging
import math
import random
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from evergreen.serving.background_work import BackgroundWork
from evergreen.serving.loaded_model import ParsedRow, RowModel
from evergreen.serving.metrics import Metrics

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
"""All rows sampled meanwhile are compared in one call: it costs some 20 ms whatever their number."""
TOLERANCE = 1e-5
"""Largest accepted difference; for numbers above 1 the relative difference."""
MAX_ROWS = 64
"""Most rows of one version per comparison."""


def _has_pipelines() -> bool:
    """Whether scikit-learn is installed."""
    with suppress(ImportError):
        return find_spec("sklearn") is not None
    return False


class ParityCheck:
    """`share`: probability that a prediction of a compiled model is sampled. None is where scikit-learn is not installed."""

    def __init__(self, share: float, metrics: Metrics, background: BackgroundWork) -> None:
        self._share, self._metrics, self._background = share if _has_pipelines() else 0.0, metrics, background
        self._sampled: list[tuple[RowModel, ParsedRow, Mapping[str, Any]]] = []

    def maybe_sample(self, model: RowModel, row: ParsedRow, output: Mapping[str, Any]) -> None:
        if self._share and model.compiled and random.random() < self._share:
            self._sampled.append((model, row, output))

    async def compare(self) -> None:
        """Compare the sampled predictions with the pipeline's; count and log the mismatches."""
        sampled, self._sampled = self._sampled, []
        for model in {model for model, _, _ in sampled}:
            part = [(row, output) for each, row, output in sampled if each is model][:MAX_ROWS]
            rows = [row for row, _ in part]
            expected = await self._background.run(self._background.other, model.predict_with_pipeline, rows)
            for (_, output), other in zip(part, expected, strict=True):
                gap = difference(output, other)
                self._metrics.count_parity(model.problem, gap > TOLERANCE)
                if gap > TOLERANCE:
                    log.error("%s v%d: compiled model and pipeline differ by %.2g", model.problem, model.version, gap)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest difference between two outputs; relative for numbers above 1; infinite if a cluster or class differs.

    Where there are probabilities only they count: a class that flips at the threshold is no difference.
    """
    names = [name for name in one if name != "prediction"] or ["prediction"]
    found = 0.0
    for name in names:
        first, second = one[name], other[name]
        if isinstance(first, float) or isinstance(second, float):
            found = max(found, abs(first - second) / max(1.0, abs(second)))
        elif first != second:
            return math.inf
    return found
