"""Evaluate the model and its baseline on the test windows, with confidence intervals: means over the windows.

The saved model is evaluated on the last window. For each earlier one, the same configuration is fitted on data known by then.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core.paths import Layout, read_json, write_json, writing
from evergreen.tasks.evaluation.scores import NUMBERS, Window, compare, describe, describe_score, evaluate_window
from evergreen.tasks.evaluation.slices import score_slices
from evergreen.tasks.model_files.trained_model import load_evaluated_model
from evergreen.tasks.problems.base import Fold
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.time_budget import Clock

log = logging.getLogger(__name__)

HEADLINE = ("low", "high", "baseline")
"""What headline.json, for `dvc metrics`, holds beside the score of the primary metric."""


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


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Evaluate the trained model of `problem`; writes the evaluation folder, the tables of the plots, metrics.json and
    headline.json.

    Raises StepError where train did not run for these windows, ParamsError for an unknown slice.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind, seed = params.section(problem), problems.kind(params.kind(problem)), params.project.seed
    clock = time_budget.clock(params, problem, layout, "evaluate")
    data = problems.load_stored(kind, layout.features(problem), section)
    folds = list(kind.splits(data, section).tests)
    model, config = load_evaluated_model(layout.model(problem), problem, folds[-1])
    folds = _affordable_windows(folds, clock, problem)
    tested = [
        evaluate_window(kind, data, fold, config, section, seed, model if fold is folds[-1] else None, f"{problem}: evaluate")
        for fold in folds
    ]
    log.info("%s: evaluate: intervals, with at most %d groups of entities", problem, section.evaluate.resamples)
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
    first = metrics[report["primary"]]
    write_json(folder / "headline.json", {report["primary"]: first["score"], **{name: first[name] for name in HEADLINE}})
