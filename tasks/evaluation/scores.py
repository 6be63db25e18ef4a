"""Scores of the model and its baseline over the test windows, with confidence intervals."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Problem
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.base import Config, Data, Fold, Kind, Metric, Model
from evergreen.tasks.search.time_budget import MIN_RESAMPLES, Clock

log = logging.getLogger(__name__)

Scores = dict[str, float]
NUMBERS = ("score", "low", "high", "baseline", "gain", "gain_low", "gain_high")
"""The numbers of a metric in metrics.json and evaluation.json. gain: positive is better."""
UNLIMITED = Clock(None)
RESERVED_SHARE = 0.05
"""With a time budget: the share of it that is reserved for the work after the intervals."""


@dataclass(frozen=True)
class Window:
    """A test window. predictions and baseline: one row per entity, in the same order, and a column cutoff."""

    fold: Fold
    predictions: pl.DataFrame
    baseline: pl.DataFrame
    whole: Scores
    """Metrics of the model as a whole, which do not follow from rows."""
    baseline_whole: Scores


@dataclass(frozen=True)
class MetricScore:
    """One metric, over all windows. Intervals are NaN for metrics of the model as a whole."""

    metric: Metric
    score: float
    baseline: float
    low: float = math.nan
    high: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    why: str = ""
    """Why the score has no interval; empty where it has one, and for metrics of the model as a whole."""

    @property
    def gain(self) -> float:
        return self.metric.gain(self.score, self.baseline)

    def numbers(self) -> dict[str, float | None]:
        return {name: known(getattr(self, name)) for name in NUMBERS}


def evaluate_window(
    kind: Kind, data: Data, fold: Fold, config: Config, section: Problem, seed: int, model: Model | None, label: str
) -> Window:
    """Predictions of the model (fitted here for None) and of the baseline for one test window."""
    log.info("%s: window after %s%s", label, fold.test, "" if model else ": fits the data known by then")
    model = model or kind.fit(data, fold.train, config, section, seed)
    simple = kind.defaults(kind.baseline, section)
    baseline = kind.fit(data, fold.train, simple, section, seed)
    rows = [kind.predict(each, data, fold.test, section) for each in (model, baseline)]
    if rows[0].is_empty():
        raise DataError(f"{label}: no rows at {fold.test} to evaluate. Check features.population and the newest data.")
    ordered = [frame.with_columns(pl.lit(fold.test).alias("cutoff")) for frame in bootstrap.paired(*rows)]
    return Window(
        fold=fold,
        predictions=ordered[0],
        baseline=ordered[1],
        whole=kind.score_model(model, data, fold, config, section, seed),
        baseline_whole=kind.score_model(baseline, data, fold, simple, section, seed),
    )


def compare(kind: Kind, tested: Sequence[Window], section: Problem, seed: int, clock: Clock = UNLIMITED) -> list[MetricScore]:
    """Each metric of the kind, in its order: model and baseline on the same rows, with the same entities left out.

    Where the time of `clock` is nearly over, entities are left out in MIN_RESAMPLES groups.
    """

    def score(frame: pl.DataFrame) -> Scores:
        return kind.score(frame, section)

    model, baseline = [each.predictions for each in tested], [each.baseline for each in tested]
    began = time.monotonic()
    scores, baselines = bootstrap.mean_scores(model, score), bootstrap.mean_scores(baseline, score)
    groups = _affordable_groups(section.evaluate.resamples, time.monotonic() - began, clock)
    without = [
        [bootstrap.mean_scores(part, score) for part in (frames[: len(model)], frames[len(model) :])]
        for frames in intervals.leave_out([*model, *baseline], seed, groups)
    ]
    whole = _mean_of([each.whole for each in tested]), _mean_of([each.baseline_whole for each in tested])
    found = []
    for metric in kind.metrics:
        if metric.name in scores:
            plain = MetricScore(metric, scores[metric.name], baselines[metric.name])
            found.append(_with_intervals(plain, without, section.evaluate.confidence))
        elif metric.name in whole[0]:
            found.append(MetricScore(metric, whole[0][metric.name], whole[1].get(metric.name, math.nan)))
    return found


def _affordable_groups(most: int, seconds: float, clock: Clock) -> int:
    """Of `most` groups as many as there is time for, at `seconds` each; at least MIN_RESAMPLES."""
    left = clock.left() - RESERVED_SHARE * (clock.seconds or 0)
    return most if left > most * seconds else min(most, max(MIN_RESAMPLES, int(left / seconds)))


def _with_intervals(plain: MetricScore, without: Sequence[Sequence[Scores]], confidence: float) -> MetricScore:
    """`plain` with the intervals of its score and its gain. `without`: model's and baseline's scores without each group."""
    metric = plain.metric
    own = intervals.interval(plain.score, [model[metric.name] for model, _ in without], confidence, metric.scale)
    gains = [metric.gain(model[metric.name], baseline[metric.name]) for model, baseline in without]
    gain = intervals.interval(plain.gain, gains, confidence)
    return replace(plain, low=own.low, high=own.high, gain_low=gain.low, gain_high=gain.high, why=own.why)


def _mean_of(scores: Sequence[Scores]) -> Scores:
    return {name: bootstrap.mean([each[name] for each in scores]) for name in scores[0]}


def describe_score(scored: MetricScore) -> str:
    """`scored` in one line."""
    score, low, high, baseline, gain, gain_low, gain_high = (
        format(getattr(scored, name), scored.metric.format) for name in NUMBERS
    )
    own = f" ({scored.why})" if scored.why else f" [{low}, {high}]"
    return f"{scored.metric.name} {score}{own}, baseline {baseline}, gain {gain} [{gain_low}, {gain_high}]"


def describe(kind: Kind, tested: Sequence[Window], found: Sequence[MetricScore], section: Problem) -> dict[str, Any]:
    """The numbers of evaluation.json."""
    rows = pl.concat([each.predictions.select("entity") for each in tested])
    return {
        "baseline": kind.baseline,
        "primary": kind.headline(section).name,
        "confidence": section.evaluate.confidence,
        "rows": rows.height,
        "entities": rows["entity"].n_unique(),
        "windows": [_window(kind, each, section) for each in tested],
        "metrics": [
            {"name": each.metric.name, "greater_is_better": each.metric.greater_is_better}
            | each.numbers()
            | ({"no_interval": each.why} if each.why else {})
            for each in found
        ],
        "cutoff": tested[-1].fold.test,
    }


def _window(kind: Kind, window: Window, section: Problem) -> dict[str, Any]:
    scores = kind.score(window.predictions, section) | window.whole
    baseline = kind.score(window.baseline, section) | window.baseline_whole
    return {
        "cutoff": window.fold.test,
        "trained_on": window.fold.train,
        "rows": window.predictions.height,
        "scores": {name: known(value) for name, value in scores.items()},
        "baseline": {name: known(value) for name, value in baseline.items()},
    }


def known(value: float) -> float | None:
    """`value` for JSON: None where it is undefined."""
    return float(value) if math.isfinite(value) else None
