"""The learning curve: the score by the number of training rows, and the gain that more rows may bring."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.diagnosis.examination import Examination, Fit, skill
from evergreen.tasks.diagnosis.recommendation import Facts
from evergreen.tasks.problems.base import Metric


def extrapolate(examination: Examination, facts: Facts, curve: Mapping[float, Fit], chosen: Fit) -> Facts:
    """`facts` with the gain of the last doubling of rows, and the expected gain of another one.

    `curve`: share of the rows -> fit. Gains shrink from doubling to doubling as the last two did. Where only one fold gained,
    the interval of the last doubling includes 0.
    """
    if 0.5 not in curve:
        return facts
    last = examination.skill_gain(curve[0.5], chosen)
    if not _gains_without_the_best_fold(curve[0.5], chosen):
        last = (last[0], min(last[1], 0.0), last[2])
    before = curve[0.5].skill - curve[0.25].skill if 0.25 in curve else math.nan
    shrinks = min(max(last[0] / before, 0.3), 0.9) if before > 0 and last[0] > 0 else 0.6
    doublings = math.log2(facts.all_rows / facts.rows) + 1
    return replace(facts, last_gain=last, doubling=max(last[0], 0.0) * shrinks**doublings)


def _gains_without_the_best_fold(fit: Fit, other: Fit) -> bool:
    """Whether the folds gain in the mean without the one that gains most: one odd fold decides nothing. True for one fold."""
    gains = [skill(after) - skill(before) for before, after in zip(fit.validation, other.validation, strict=True)]
    return len(gains) < 2 or sum(gains) > max(gains)


def learning_curve_table(curve: Mapping[float, Fit], examination: Examination, metric: Metric) -> pl.DataFrame:
    """rows, series, score, low, high, metric: one row per point and series."""
    rows = [
        {"rows": round(share * examination.rows), **point}
        for share in sorted(curve)
        for point in score_points(curve[share], metric)
    ]
    return pl.DataFrame(rows).with_columns(metric=pl.lit(metric.name)) if rows else pl.DataFrame()


def score_points(fit: Fit, metric: Metric) -> list[dict[str, Any]]:
    """Training and validation score: mean over the folds, lowest and highest fold."""
    found = []
    for series, scores in (("training", fit.train), ("validation", fit.validation)):
        values = [each[metric.name] for each in scores if math.isfinite(each.get(metric.name, math.nan))]
        if values:
            found.append({"series": series, "score": float(np.mean(values)), "low": min(values), "high": max(values)})
    return found
