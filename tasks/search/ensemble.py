"""An ensemble of trials: greedy forward selection with replacement, by their out-of-fold predictions.

After Caruana, Niculescu-Mizil, Crew and Ksikes, Ensemble selection from libraries of models, ICML 2004.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from evergreen.tasks.problems.base import Config, Metric
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Cost, FinishedTrial

BLEND = "blend"
"""Name of the model that is the weighted mean of others."""
MAX_STEPS = 16
"""Most selections; a member can be selected more than once."""
CANDIDATES_PER_MODEL = 5
"""Most trials of a model that can become members."""
GROUPS = 3
"""Groups of folds that judge a blend in turn."""
MAX_ROWS = 20_000
"""Most rows of a fold that the selection uses."""
NOT_AVERAGED = ("entity", "label", "threshold")
"""Columns of predictions that keep the first member's values."""


def candidates(trials: Sequence[FinishedTrial], metric: Metric, baseline: str) -> list[FinishedTrial]:
    """The best trials of each model but the baseline, the best first."""
    done = [each for each in trials if each.state == "complete" and each.model not in (baseline, BLEND)]
    done.sort(key=lambda each: -metric.gain(each.score, 0.0))
    seen: Counter[str] = Counter()
    found = []
    for each in done:
        seen[each.model] += 1
        if seen[each.model] <= CANDIDATES_PER_MODEL:
            found.append(each)
    return found


def select(
    members: Sequence[FinishedTrial],
    predictions: Sequence[Sequence[pl.DataFrame]],
    score: Callable[[pl.DataFrame], float],
    metric: Metric,
    allowed: Callable[[Sequence[FinishedTrial]], bool],
    clock: Clock,
) -> list[int]:
    """How often each of `members` is selected. `predictions`: out-of-fold, one frame per member and fold.

    Each step adds the member that improves `score` most, among those whose ensemble is `allowed`. The selection ends where no
    member improves it, or where the time of `clock` is over.
    """
    sampled = [[_sample(frame) for frame in frames] for frames in predictions]
    selected: list[int] = []
    best = -np.inf
    for _ in range(MAX_STEPS):
        if clock.left() <= 0:
            break
        gains = {}
        for place, member in enumerate(members):
            if not allowed([*(members[each] for each in selected), member]):
                continue
            counts = Counter([*selected, place])
            weights = list(counts.values())
            frames = [weighted_mean([sampled[each][fold] for each in counts], weights) for fold in range(len(predictions[0]))]
            gains[place] = float(np.mean([metric.gain(score(frame), 0.0) for frame in frames]))
        if not gains or max(gains.values()) <= best:
            break
        selected.append(max(gains, key=lambda place: gains[place]))
        best = gains[selected[-1]]
    counts = Counter(selected)
    return [counts[place] for place in range(len(members))]


def held_out_scores(
    members: Sequence[FinishedTrial],
    predictions: Sequence[Sequence[pl.DataFrame]],
    score: Callable[[pl.DataFrame], float],
    metric: Metric,
    allowed: Callable[[Sequence[FinishedTrial]], bool],
    clock: Clock,
) -> list[float]:
    """The score on each fold of a blend whose members and weights are selected on other folds: those of the other groups.

    The score of a selection on its own rows is too good, so a blend of nearly equal models would always win. With a single
    fold it is that score; NaN where the time is over.
    """
    count = len(predictions[0])
    groups = min(GROUPS, count)
    found = [math.nan] * count
    for group in range(groups):
        judged = range(group, count, groups)
        rest = [fold for fold in range(count) if fold not in judged] or judged
        others = [[frames[fold] for fold in rest] for frames in predictions]
        counts = select(members, others, score, metric, allowed, clock)
        chosen = [(frames, weight) for frames, weight in zip(predictions, counts, strict=True) if weight]
        for fold in judged if chosen else ():
            found[fold] = score(weighted_mean([frames[fold] for frames, _ in chosen], [weight for _, weight in chosen]))
    return found


def weighted_mean(frames: Sequence[pl.DataFrame], weights: Sequence[float]) -> pl.DataFrame:
    """The weighted mean of predictions of the same rows."""
    names = [name for name, dtype in frames[0].schema.items() if dtype.is_float() and name not in NOT_AVERAGED]
    means = {name: np.average([frame[name].to_numpy() for frame in frames], axis=0, weights=weights) for name in names}
    return frames[0].with_columns(pl.Series(name, np.asarray(values)) for name, values in means.items())


def _sample(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame.height <= MAX_ROWS else frame.sample(MAX_ROWS, seed=0)


def config(members: Sequence[FinishedTrial], counts: Sequence[int]) -> Config:
    """The configuration of a blend: the members with a count above 0, and their weights, which sum to 1."""
    kept = [(member, count) for member, count in zip(members, counts, strict=True) if count]
    return {
        "model": BLEND,
        "members": [dict(member.config) for member, _ in kept],
        "weights": [round(count / sum(counts), 6) for _, count in kept],
    }


def cost(members: Sequence[FinishedTrial], wall_seconds: float, cpu_seconds: float) -> Cost:
    """The cost of a blend: the sum of the costs of its members. `wall_seconds`, `cpu_seconds`: of the selection."""
    total = {
        name: float(sum(getattr(each.cost, name) for each in members)) for name in ("fit_seconds", "latency_ms", "model_mb")
    }
    first = members[0].cost
    return Cost(
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=max(each.cost.peak_mb for each in members),
        fit_rows=first.fit_rows,
        score_seconds=first.score_seconds,
        score_rows=first.score_rows,
        **total,
    )
