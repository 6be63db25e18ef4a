"""Bootstrap by entity: how far a score would move had other entities been drawn. Pure functions of frames.

Entities are resampled, not rows, since the rows of one entity resemble each other; all frames of one resample hold the same
entities, so that scores of several windows, and of a model and its rival, move together.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl

from evergreen.tasks.core.errors import DataError

Score = Callable[[pl.DataFrame], dict[str, float]]
"""Rows of predictions -> metric -> score."""


def draw(frames: Sequence[pl.DataFrame], count: int, seed: int) -> Iterator[list[pl.DataFrame]]:
    """`count` resamples of `frames`: as many entities as there are, drawn with replacement, with all of their rows."""
    names = pl.concat([frame.select("entity") for frame in frames]).unique().sort("entity").with_row_index("code")
    groups = [_groups(frame, names) for frame in frames]
    random = np.random.default_rng(seed)
    for _ in range(count):
        drawn = random.integers(0, names.height, names.height)
        yield [frame[_rows(drawn, *group)] for frame, group in zip(frames, groups, strict=True)]


def _groups(frame: pl.DataFrame, names: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers ordered by entity; and per entity where its rows start in that order, and how many there are."""
    codes = frame.select("entity").join(names, on="entity", how="left", maintain_order="left")["code"].to_numpy()
    sizes = np.bincount(codes, minlength=names.height)
    return np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes, sizes


def _rows(drawn: np.ndarray, order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The row numbers of the `drawn` entities, one after the other."""
    counts = sizes[drawn]
    before = np.cumsum(counts) - counts
    return order[np.repeat(starts[drawn] - before, counts) + np.arange(counts.sum())]


def paired(candidate: pl.DataFrame, other: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames ordered by entity.

    Raises DataError where they are not about the same rows: another number of them, or other entities.
    """
    left, right = candidate.sort("entity", maintain_order=True), other.sort("entity", maintain_order=True)
    if left.height != right.height or not left["entity"].equals(right["entity"]):
        only = len(set(left["entity"]) ^ set(right["entity"]))
        raise DataError(
            f"predictions to compare must be about the same rows: {left.height:,} against {right.height:,} rows, "
            f"{only:,} entities in one of them alone. Let both predict the same cutoff of the same features."
        )
    return left, right


def mean_scores(frames: Sequence[pl.DataFrame], score: Score) -> dict[str, float]:
    """Metric -> mean over `frames` of its score; see `mean` for windows where a metric is undefined."""
    scores = [score(frame) for frame in frames if frame.height]
    return {name: mean([each[name] for each in scores]) for name in (scores[0] if scores else {})}


def mean(values: Sequence[float]) -> float:
    """Mean of the finite `values` (a metric can be undefined in one window: no positives); NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The middle `confidence` of the resampled `values` (percentile bootstrap).

    Resamples in which the metric is undefined are left out; (NaN, NaN) where they are more than half.

    >>> interval([0.1, 0.2, 0.3, 0.4, 0.5, math.nan], confidence=0.5)
    (0.2, 0.4)
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) <= len(values) / 2:
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
