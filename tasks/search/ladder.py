"""The ladder of models: each one's best trial on the same windows, with intervals, and the simplest that is good enough.

A unit is what varies independently, such as a user; its values on several folds vary together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.problems.base import Metric
from evergreen.tasks.search.trials import FinishedTrial

CONFIDENT = 1.96
"""Standard errors to each side of a mean: 95 %."""


@dataclass(frozen=True)
class Rung:
    """One model on the validation windows, with the 95 % interval of its score."""

    model: str
    trial: int
    score: float
    low: float
    high: float
    units: int
    """Number of units judged."""
    behind: float
    """How far the best model is ahead on the same units, in the unit of the metric."""
    error: float
    """Standard error of `behind`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def build_ladder(
    trials: Sequence[FinishedTrial],
    models: Sequence[str],
    metric: Metric,
    values: Callable[[int], Sequence[pl.DataFrame] | None],
) -> list[Rung]:
    """One rung per model with a complete trial, in the order of `models`, which is from simple to complex.

    `values`: number of a trial -> per fold the columns unit and value; None where they were not kept.
    """
    found: dict[str, tuple[FinishedTrial, pl.DataFrame]] = {}
    for each in trials:
        better = each.model not in found or metric.gain(each.score, found[each.model][0].score) > 0
        if each.state == "complete" and each.model in models and better and (frames := values(each.number)):
            numbered = [frame.with_columns(fold=pl.lit(fold)) for fold, frame in enumerate(frames)]
            found[each.model] = each, pl.concat(numbered).drop_nulls().drop_nans()
    ordered = {model: found[model] for model in models if model in found}
    if not ordered:
        return []
    top = max(ordered, key=lambda model: metric.gain(ordered[model][0].score, 0.0))
    return [_rung(trial, table, ordered[top][1], metric) for trial, table in ordered.values()]


def _rung(trial: FinishedTrial, table: pl.DataFrame, top: pl.DataFrame, metric: Metric) -> Rung:
    score, error = mean_and_error(table)
    pairs = top.join(table, on=["fold", "unit"], suffix="_other")
    gain = pl.col("value") - pl.col("value_other")
    behind, spread = mean_and_error(pairs.select("unit", value=gain if metric.greater_is_better else -gain))
    low, high = score - CONFIDENT * error, score + CONFIDENT * error
    return Rung(trial.model, trial.number, score, low, high, table["unit"].n_unique(), behind, spread)


def mean_and_error(table: pl.DataFrame) -> tuple[float, float]:
    """The mean of `value` and its standard error; rows of one `unit` vary together."""
    mean = table["value"].mean()
    if not isinstance(mean, float):
        return float("nan"), float("nan")
    apart = table.group_by("unit").agg((pl.col("value") - mean).sum())["value"].to_numpy()
    return mean, float(np.sqrt((apart**2).sum())) / table.height


def choose_rung(ladder: Sequence[Rung], allowed: Mapping[int, bool]) -> Rung | None:
    """The simplest within one standard error of the best, of those whose trial is allowed. None where none is."""
    return next((each for each in ladder if allowed.get(each.trial) and each.behind <= each.error), None)


def explain_rung(ladder: Sequence[Rung], chosen: Rung, metric: Metric, baseline: str) -> str:
    """Why `chosen` was selected, in one line."""
    judged = f"{chosen.units:,} judged"
    if chosen.model == baseline:
        return f"nothing beats {baseline} by more than one standard error ({judged}), so {baseline} serves"
    if chosen.behind <= 0:
        return f"the best score; no simpler model is within one standard error ({judged})"
    top = min(ladder, key=lambda each: -metric.gain(each.score, 0.0))
    return (
        f"the simplest within one standard error of the best: {top.model} is ahead by {chosen.behind:.3g}, "
        f"standard error {chosen.error:.3g} ({judged})"
    )
