"""Evaluate the model on the test windows, beside its baseline, with confidence intervals: means over the windows.

The saved model is evaluated on the last window. For each earlier one, the same configuration is fitted on data known by then.
"""

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem, Section
from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import Layout, read_json, write_json, writing
from evergreen.tasks.model_files.trained_model import load_evaluated_model
from evergreen.tasks.problems.base import Config, Data, Fold, Kind, Metric, Model
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.time_budget import MIN_RESAMPLES, Clock

log = logging.getLogger(__name__)

Scores = dict[str, float]
NUMBERS = ("score", "low", "high", "baseline", "gain", "gain_low", "gain_high")
"""The numbers of a metric in metrics.json and evaluation.json. gain: positive is better."""
UNLIMITED = Clock(None)
RESERVED_SHARE = 0.05
"""With a time budget: the share of it that is reserved for the work after the resamples."""
MAX_CATEGORIES = 12
"""Most categories of a feature that are slices of their own; the others are one slice."""
SLICE_RESAMPLES = 100
"""Most resamples for the interval of a slice, because there are many slices."""


class Result(Section):
    metrics: str
    """Path of metrics.json."""
    evaluation: str
    """Path of evaluation.json."""
    metric: str
    """The primary metric, which the numbers below are about; null where it is undefined."""
    score: float | None
    low: float | None
    high: float | None
    baseline: float | None
    gain: float | None
    rows: int


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

    @property
    def gain(self) -> float:
        return self.metric.gain(self.score, self.baseline)

    def numbers(self) -> dict[str, float | None]:
        return {name: known(getattr(self, name)) for name in NUMBERS}


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Evaluate the trained model of `problem`; writes the evaluation folder, the tables of the plots and metrics.json.

    Raises StepError where train did not run for these windows, ParamsError for an unknown slice.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind, seed = params.section(problem), problems.kind(params.kind(problem)), params.project.seed
    clock = time_budget.clock(params, problem, layout, "evaluate")
    data = kind.load(layout.features(problem), section)
    folds = list(kind.splits(data, section).tests)
    model, config = load_evaluated_model(layout.model(problem), problem, folds[-1])
    folds = _affordable_windows(folds, clock, problem)
    tested = [
        evaluate_window(kind, data, fold, config, section, seed, model if fold is folds[-1] else None, f"{problem}: evaluate")
        for fold in folds
    ]
    log.info("%s: evaluate: %d resamples of entities", problem, section.evaluate.resamples)
    found = compare(kind, tested, section, seed, clock)
    report = {
        "problem": problem,
        "kind": kind.name,
        "question": section.question,
        "model": config["model"],
        "config": config,
        **describe(kind, tested, found, section),
        "slices": score_slices(kind, data, tested, section, seed),
        "search": read_json(layout.model(problem) / "model.json").get("search", {}),
    }
    rows = _stack(tested)
    folder = layout.report(problem)
    _write(folder, report, rows, kind.plots(*rows, model, data, section))
    first = found[0]
    log.info("%s: evaluate: %s", problem, describe_score(first))
    numbers = first.numbers()
    return Result(
        metrics=str(folder / "metrics.json"),
        evaluation=str(folder / "evaluation" / "evaluation.json"),
        metric=first.metric.name,
        rows=rows[0].height,
        **{name: numbers[name] for name in ("score", "low", "high", "baseline", "gain")},
    )


def _affordable_windows(folds: list[Fold], clock: Clock, problem: str) -> list[Fold]:
    """With a time budget the last window alone, because there is no time for fits for the earlier ones."""
    if clock.seconds is None or len(folds) == 1:
        return folds
    log.info("%s: evaluate: with tune.budget_seconds, only the last window is evaluated", problem)
    return folds[-1:]


def describe_score(scored: MetricScore) -> str:
    """`scored` in one line."""
    score, low, high, baseline, gain, gain_low, gain_high = (
        format(getattr(scored, name), scored.metric.format) for name in NUMBERS
    )
    return f"{scored.metric.name} {score} [{low}, {high}], baseline {baseline}, gain {gain} [{gain_low}, {gain_high}]"


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
    """Each metric of the kind, in its order: model and baseline on the same rows, resampled together.

    Where the time of `clock` is nearly over, only MIN_RESAMPLES are drawn.
    """

    def score(frame: pl.DataFrame) -> Scores:
        return kind.score(frame, section)

    model, baseline = [each.predictions for each in tested], [each.baseline for each in tested]
    scores, baselines = bootstrap.mean_scores(model, score), bootstrap.mean_scores(baseline, score)
    drawn = []
    for frames in bootstrap.draw([*model, *baseline], section.evaluate.resamples, seed):
        drawn.append([bootstrap.mean_scores(part, score) for part in (frames[: len(model)], frames[len(model) :])])
        if len(drawn) >= MIN_RESAMPLES and clock.left() < RESERVED_SHARE * (clock.seconds or 0):
            break
    whole = _mean_of([each.whole for each in tested]), _mean_of([each.baseline_whole for each in tested])
    found = []
    for metric in kind.metrics:
        if metric.name in scores:
            plain = MetricScore(metric, scores[metric.name], baselines[metric.name])
            found.append(_with_intervals(plain, drawn, section.evaluate.confidence))
        elif metric.name in whole[0]:
            found.append(MetricScore(metric, whole[0][metric.name], whole[1].get(metric.name, math.nan)))
    return found


def _with_intervals(plain: MetricScore, drawn: Sequence[Sequence[Scores]], confidence: float) -> MetricScore:
    """`plain` with the intervals of its score and its gain. `drawn`: per resample the scores of model and baseline."""
    name = plain.metric.name
    low, high = bootstrap.interval([model[name] for model, _ in drawn], confidence)
    gains = [plain.metric.gain(model[name], baseline[name]) for model, baseline in drawn]
    gain_low, gain_high = bootstrap.interval(gains, confidence)
    return replace(plain, low=low, high=high, gain_low=gain_low, gain_high=gain_high)


def _mean_of(scores: Sequence[Scores]) -> Scores:
    return {name: bootstrap.mean([each[name] for each in scores]) for name in scores[0]}


def score_slices(kind: Kind, data: Data, tested: Sequence[Window], section: Problem, seed: int) -> list[dict[str, Any]]:
    """The primary metric by each feature of evaluate.slices: one dictionary per feature and value, in that order."""
    names = section.evaluate.slices
    if not names:
        return []
    tests = [each.fold.test for each in tested]
    values = pl.concat([kind.slices(data, test, names, section).with_columns(pl.lit(test).alias("cutoff")) for test in tests])
    found = []
    for name in names:
        labels, order = slice_labels(values[name])
        rows = values.select("entity", "cutoff").with_columns(labels.alias("value"))
        for value in order:
            kept = rows.filter(pl.col("value") == value)
            frames = [each.predictions.join(kept, on=["entity", "cutoff"], how="semi") for each in tested]
            found.append({"feature": name, "value": value, **_score_slice(kind, frames, section, seed)})
    return found


def _score_slice(kind: Kind, frames: Sequence[pl.DataFrame], section: Problem, seed: int) -> dict[str, Any]:
    def score(part: Sequence[pl.DataFrame]) -> float:
        scores = bootstrap.mean_scores(part, lambda frame: kind.score(frame, section))
        return scores.get(kind.metrics[0].name, math.nan)

    frames = [frame for frame in frames if frame.height]
    if not frames:
        return {"rows": 0, "score": None, "low": None, "high": None}
    drawn = [score(part) for part in bootstrap.draw(frames, min(section.evaluate.resamples, SLICE_RESAMPLES), seed)]
    low, high = bootstrap.interval(drawn, section.evaluate.confidence)
    rows = sum(frame.height for frame in frames)
    return {"rows": rows, "score": known(score(frames)), "low": known(low), "high": known(high)}


def slice_labels(values: pl.Series) -> tuple[pl.Series, list[str]]:
    """The slice of each value, and the slices in order: numbers are cut at their quartiles, categories ordered by size.

    Numbers with at most four values count as categories. The MAX_CATEGORIES largest categories have a slice of their own, the
    others are `other`; missing values are `missing`.
    """
    values = values.fill_nan(None) if values.dtype.is_float() else values
    if values.dtype.is_numeric() and values.drop_nulls().n_unique() > 4:
        labels, order = _quartiles(values)
    else:
        labels, order = _largest(values)
    labels = labels.fill_null("missing")
    return labels, [name for name in [*order, "other", "missing"] if (labels == name).any()]


def _quartiles(values: pl.Series) -> tuple[pl.Series, list[str]]:
    edges = sorted({float(values.quantile(share, "linear") or 0) for share in (0.25, 0.5, 0.75)})
    inner = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    order = [f"up to {edges[0]:.4g}", *inner, f"above {edges[-1]:.4g}"]
    places = np.searchsorted(edges, values.fill_null(math.nan).to_numpy(), side="left").clip(max=len(edges))
    labels = pl.Series([order[place] for place in places])
    return labels.set(values.is_null(), None), order


def _largest(values: pl.Series) -> tuple[pl.Series, list[str]]:
    names = pl.Series(
        [f"{value:g}" if isinstance(value, float) else value if value is None else str(value) for value in values]
    )
    names = names.cast(pl.String)
    order = [name for name, _ in Counter(names.drop_nulls()).most_common(MAX_CATEGORIES)]
    return pl.Series([name if name is None or name in order else "other" for name in names], dtype=pl.String), order


def describe(kind: Kind, tested: Sequence[Window], found: Sequence[MetricScore], section: Problem) -> dict[str, Any]:
    """The numbers of evaluation.json."""
    rows = pl.concat([each.predictions.select("entity") for each in tested])
    return {
        "baseline": kind.baseline,
        "primary": kind.metrics[0].name,
        "confidence": section.evaluate.confidence,
        "rows": rows.height,
        "entities": rows["entity"].n_unique(),
        "windows": [_window(kind, each, section) for each in tested],
        "metrics": [
            {"name": each.metric.name, "greater_is_better": each.metric.greater_is_better, **each.numbers()} for each in found
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


def _stack(tested: Sequence[Window]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions of the model and of the baseline in all windows."""
    return pl.concat([each.predictions for each in tested]), pl.concat([each.baseline for each in tested])


def _write(
    folder: Path, report: dict[str, Any], rows: tuple[pl.DataFrame, pl.DataFrame], plots: dict[str, pl.DataFrame]
) -> None:
    with writing(folder / "evaluation") as scratch:
        scratch.mkdir()
        (scratch / "evaluation.json").write_text(json.dumps(report, indent=2, default=str, allow_nan=False) + "\n")
        rows[0].write_parquet(scratch / "predictions.parquet")
        rows[1].write_parquet(scratch / "baseline.parquet")
    with writing(folder / "plots") as scratch:
        scratch.mkdir()
        for name, table in plots.items():
            table.write_csv(scratch / f"{name}.csv")
    metrics = {each["name"]: {name: each[name] for name in NUMBERS} for each in report["metrics"]}
    write_json(folder / "metrics.json", metrics)
