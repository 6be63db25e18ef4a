"""Search for the best model and hyper-parameters by cross-validation, on rows outside all test windows."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem, Section, Tune
from evergreen.tasks.core.paths import HELD_OUT, Layout, locking, writing
from evergreen.tasks.problems.base import Finishing, Kind, OutOfCore, Paired, Portfolio
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.ladder import build_ladder
from evergreen.tasks.search.nested_validation import estimate_optimism, inner_searches, run_inner_search, share_time
from evergreen.tasks.search.optuna_study import run_search
from evergreen.tasks.search.out_of_fold import OutOfFoldPredictions, predict_out_of_fold
from evergreen.tasks.search.probing import fit_to_budget, probes_as_trials
from evergreen.tasks.search.selection import select_trial
from evergreen.tasks.search.space import clamp_config, narrow_space
from evergreen.tasks.search.specification import Search, fingerprint, resolve_settings, stages_of
from evergreen.tasks.search.summary import summarise, trials_table
from evergreen.tasks.search.trials import Evaluator, FinishedTrial
from evergreen.tasks.search.warm_starts import warm_starts
from evergreen.tasks.search.workers import Workers, available_workers

MIN_SECONDS_FOR_WORKERS = 12.0
"""With a smaller time budget, trials run in this process: other processes would start too late."""


class Result(Section):
    best: str
    """Path of best.json."""
    trials: str
    """Path of trials.parquet."""
    model: str
    metric: str
    score: float
    std: float
    """Standard deviation of the score over the folds."""
    n_trials: int
    failed: int
    seconds: float
    """Total time of the trials, those before an interruption included."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Search for the best configuration of `problem`; writes best.json and trials.parquet.

    Raises ParamsError for an unknown model, hyper-parameter or metric; DataError for too few cutoffs; LockedError where another
    process tunes the same problem; StepError where every trial failed.
    """
    with problems.naming(problem), locking(layout.var / "tuning" / f"{problem}.lock", f"{problem}: tune"):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    evaluator, search, journal = _specify(params, problem, layout, kind)
    workers = available_workers(search.tune.batch_size or 1, search.tune.workers, search.clock)
    if search.clock.seconds is not None:
        search = _start(search, evaluator, section, workers, layout.features(problem))
    inner = inner_searches(search, evaluator, section.tune.folds) if search.tune.nested else {}
    trials = run_search(share_time(search, len(inner), 0), journal, workers)
    trials += probes_as_trials(search, trials)
    winners = {outer: run_inner_search(each, journal, workers) for outer, each in inner.items()}
    predictions = OutOfFoldPredictions(journal.with_suffix(""))
    ladder = build_ladder(trials, list(search.space), search.metric, predictions.load) if search.units else []
    best = select_trial(search, trials, ladder)
    nested = estimate_optimism(search, evaluator, best, winners) if winners else None
    finishes = isinstance(kind, Finishing) and kind.finishes(section)
    held_out = predict_out_of_fold(search, best.config, trials, predictions) if finishes else None
    summary = summarise(search, trials, best, nested, ladder) | _sample(kind, evaluator)
    result = _write(layout.tuning(problem), search, trials, best, summary, held_out)
    journal.unlink()
    predictions.clear()
    return result


def _specify(params: Params, problem: str, layout: Layout, kind: Kind) -> tuple[Evaluator, Search, Path]:
    """What evaluates a configuration, the search, and the path of its journal."""
    section, seed = params.section(problem), params.project.seed
    metric = problems.metric(kind, section.tune.metric, f"{problem}.tune.metric")
    space, tune = narrow_space(kind, section, problem), resolve_settings(section)
    clock = time_budget.clock(params, problem, layout, "tune")
    limit = kind.learning_limit(layout.features(problem), section) if isinstance(kind, OutOfCore) else None
    key = fingerprint(params, problem, layout, limit)
    journal = layout.var / "tuning" / f"{problem}-{key}.log"
    units = partial(kind.unit_values, metric=metric.name) if isinstance(kind, Paired) else None
    if units is not None:  # every training judges the whole ladder
        tune = tune.model_copy(update={"n_trials": max(tune.n_trials, len(space))})
    evaluator = Evaluator(
        kind=params.kind(problem),
        folder=_sampled_features(layout.features(problem), section, tune, seed, journal),
        section=section,
        metric=metric,
        seed=seed,
        key=key,
        max_rows=None if section.features.by_cutoff else tune.max_rows,
        learning_limit=limit,
        keep_predictions=tune.method == "staged" or units is not None,
    )
    search = Search(
        name=problem,
        space=space,
        defaults={model: clamp_config(kind.defaults(model, section), space[model]) for model in space},
        tune=tune,
        metric=metric,
        seed=seed,
        evaluate=evaluator,
        stages=stages_of(kind, section) if tune.method == "staged" else {},
        score=lambda frame: float(kind.score(frame, section)[metric.name]),
        units=units,
        clock=clock,
    )
    portfolio = kind.portfolio(section) if tune.method == "staged" and isinstance(kind, Portfolio) else ()
    return evaluator, replace(search, warm_starts=warm_starts(search, portfolio)), journal


def _sampled_features(features: Path, section: Problem, tune: Tune, seed: int, journal: Path) -> Path:
    """The folder that the search reads: for a large plain table a sample of its rows, beside the journal."""
    if section.features.by_cutoff is True:
        return features
    from evergreen.tasks.problems.tabular.subsample import sample

    return sample(features, tune.max_rows, section.features.test_share, seed, journal.with_suffix("") / "rows")


def _start(search: Search, evaluator: Evaluator, section: Problem, workers: Workers, features: Path) -> Search:
    """With a time budget: start the workers, and plan the search while they load the data."""
    if (search.clock.seconds or 0.0) >= MIN_SECONDS_FOR_WORKERS:
        workers.start(evaluator)
    else:
        workers.count = 1
    search = fit_to_budget(search, evaluator, section, workers.count, features)
    workers.clock = search.clock
    return search


def _sample(kind: Kind, evaluator: Evaluator) -> dict[str, Any]:
    """`sample`, where the table is too large for memory."""
    if not isinstance(kind, OutOfCore) or kind.learning_limit(evaluator.folder, evaluator.section) is None:
        return {}
    return {"sample": problems.describe_sample(kind, evaluator.data())}


def _write(
    folder: Path,
    search: Search,
    trials: Sequence[FinishedTrial],
    best: FinishedTrial,
    summary: dict[str, Any],
    held_out: pl.DataFrame | None,
) -> Result:
    with writing(folder) as scratch:
        scratch.mkdir()
        (scratch / "best.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        trials_table(search, trials, best).write_parquet(scratch / "trials.parquet")
        if held_out is not None:
            held_out.write_parquet(scratch / HELD_OUT)
    return Result(
        best=str(folder / "best.json"),
        trials=str(folder / "trials.parquet"),
        model=best.config["model"],
        metric=search.metric.name,
        score=best.score,
        std=best.std,
        n_trials=len(trials),
        failed=sum(each.state in ("failed", "killed") for each in trials),
        seconds=summary["seconds"],
    )
