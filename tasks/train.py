"""Fit the selected configuration on all rows whose labels are complete before the last test window, and save the model."""

import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem, Section
from evergreen.tasks.core.paths import BACKGROUND, HELD_OUT, JUDGED, LEVELS, MODEL, Layout, read_json, writing
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Data, Finishing, Fold, Kind, Model, RowKind, Splits
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.best_config import load_best_config, summarise_search
from evergreen.tasks.search.time_budget import SLACK, Clock
from evergreen.tasks.search.workers import worker_count

log = logging.getLogger(__name__)

MIN_GROWTH = 2.0
"""With a time budget: the model is fitted again where there is time for this many times the rows."""
MIN_FIT_SHARE = 0.2
"""Share of the time budget that the fits may always take."""
BACKGROUND_ROWS = 100
"""Training rows that the contributions of a served model start from."""


class Result(Section):
    model: str
    """Path of model.skops."""
    card: str
    """Path of model.json."""
    cutoff: str
    """The last test window, unseen by the evaluated model: its cutoff, or its name in a plain table."""
    rows: int
    """Training rows."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Fit the best configuration for the last test window; writes model.skops and model.json.

    Where the served model is refitted on the test rows too (train.refit of a plain table), the evaluated model is judged.skops.

    Raises StepError where tune did not run before, DataError for too few cutoffs, ModelError for a model that cannot be saved.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    clock = time_budget.clock(params, problem, layout, "train")
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    config = load_best_config(layout.tuning(problem), problem)
    stored = problems.load_stored(kind, layout.features(problem), section)
    data = problems.scope(kind, stored, config, section)
    sample = problems.describe_sample(kind, stored)
    if sample and data is not stored:
        log.info("%s: train: %s learns from the sample: it needs its rows in memory", problem, config["model"])
    splits = kind.splits(data, section)
    limit = _limit(layout.tuning(problem), clock, section.tune.budget_seconds)
    evaluated, model, trained_on = _fit(kind, data, splits, config, section, params.project.seed, problem, limit)
    evaluated, model = _finish(kind, evaluated, model, layout.tuning(problem), section, params.project.seed)
    fold = splits.tests[-1]
    rows = kind.rows(data, splits.refit) if splits.refit and model is not evaluated else trained_on
    card = describe(kind, model, data, fold, rows, config, section) | {"search": summarise_search(layout.tuning(problem))}
    if sample:
        card["sample"] = sample | {"learned_from": "all rows before it" if data is stored else "the sample too"}
    folder = layout.model(problem)
    with writing(folder) as scratch:
        scratch.mkdir()
        skops_models.save(model, scratch / MODEL)
        if model is not evaluated:
            skops_models.save(evaluated, scratch / JUDGED)
        (scratch / LEVELS).write_text(json.dumps(kind.levels(stored) if isinstance(kind, RowKind) else {}) + "\n")
        (scratch / BACKGROUND).write_text(background_rows(data, fold) + "\n" if isinstance(kind, RowKind) else "[]\n")
        text = json.dumps({"problem": problem, **card}, indent=2, default=str, allow_nan=False)
        (scratch / "model.json").write_text(text + "\n")
    return Result(model=str(folder / MODEL), card=str(folder / "model.json"), cutoff=str(fold.test), rows=rows)


@dataclass(frozen=True)
class Limit:
    """With a time budget: the time for fitting, and what a fold took in the search (seconds and rows)."""

    clock: Clock
    seconds: float
    rows: float

    def rows_for(self, wanted: int) -> int | None:
        """Rows that there is time to fit, never fewer than in the search; None where there is time for all `wanted`."""
        expected, left = SLACK * self.seconds * wanted / max(self.rows, 1.0), max(self.clock.left(), 0.0)
        return None if expected <= left else int(max(self.rows, wanted * left / expected))


def _limit(folder: Path, clock: Clock, budget: float | None) -> Limit | None:
    """None without a time budget, or where the search measured nothing."""
    summary = read_json(folder / "best.json")
    known, cost = summary.get("budget"), summary.get("cost") or {}
    if clock.seconds is None or budget is None or not known or not cost.get("fit_rows"):
        return None
    end = max(clock.seconds - known["evaluation"], clock.spent() + MIN_FIT_SHARE * budget)
    return Limit(Clock(end, clock.began), cost["fit_seconds"] or 0.0, cost["fit_rows"])


def _fit(
    kind: Kind, data: Data, splits: Splits, config: Config, section: Problem, seed: int, problem: str, limit: Limit | None
) -> tuple[Model, Model, int]:
    """The evaluated model, the served model (the same where there is no refit), and the training rows of the first.

    With a time budget and two cores, both are fitted at the same time, unless memory is short. Where
    time is short, the first is fitted on fewer rows, and there is no refit.
    """
    fold, sampled = splits.tests[-1], data
    wanted = kind.rows(data, fold.train)
    limit = limit if config["model"] != kind.baseline else None
    in_parallel = worker_count(section.tune.workers, 2) > 1 and not problems.describe_sample(kind, data)
    every = splits.refit if in_parallel else None
    if limit and every and limit.rows_for(kind.rows(data, every)) is None:
        log.info("%s: train: %s on %s, and on all rows, to serve", problem, config["model"], describe_training_rows(fold))
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(kind.fit, data, every, config, section, seed)
            return kind.fit(data, fold.train, config, section, seed), served.result(), wanted
    fewer = limit.rows_for(wanted) if limit else None
    while True:
        if fewer is not None and fewer < wanted:
            sampled = _sample(data, fewer, seed)
            log.info("%s: train: %s on %d of %d rows, as time allows", problem, config["model"], fewer, wanted)
        else:
            sampled = data
            log.info("%s: train: %s on %s", problem, config["model"], describe_training_rows(fold))
        began = time.monotonic()
        evaluated = kind.fit(sampled, fold.train, config, section, seed)
        took = time.monotonic() - began
        if limit is None or sampled is data:
            break
        limit = replace(limit, seconds=took, rows=kind.rows(sampled, fold.train))
        before, fewer = fewer or wanted, limit.rows_for(wanted)
        if limit.clock.left() <= 0 or (fewer is not None and fewer < MIN_GROWTH * before):
            break
    trained_on = kind.rows(sampled, fold.train)
    if not splits.refit:
        return evaluated, evaluated, trained_on
    more = kind.rows(data, splits.refit) / max(trained_on, 1)
    if limit and (sampled is not data or took * more > limit.clock.left()):
        log.info("%s: train: no time for a refit on all rows; the evaluated model is served", problem)
        return evaluated, evaluated, trained_on
    log.info("%s: train: %s on all rows, to serve", problem, config["model"])
    return evaluated, kind.fit(data, splits.refit, config, section, seed), trained_on


def _sample(data: Data, rows: int, seed: int) -> Data:
    from evergreen.tasks.problems.tabular.subsample import thin

    return thin(data, rows, seed)


def _finish(kind: Kind, evaluated: Model, model: Model, folder: Path, section: Problem, seed: int) -> tuple[Model, Model]:
    """Both models, finished with the out-of-fold predictions of the search, for kinds that use them (calibration)."""
    path = folder / HELD_OUT
    if not (isinstance(kind, Finishing) and kind.finishes(section) and path.exists()):
        return evaluated, model
    held_out = pl.read_parquet(path)
    finished = kind.finish(evaluated, held_out, section, seed)
    return finished, finished if model is evaluated else kind.finish(model, held_out, section, seed)


def describe_training_rows(fold: Fold) -> str:
    """The training rows of a fold, in words."""
    return (
        f"{len(fold.train)} cutoffs up to {fold.train[-1]}" if isinstance(fold.test, date) else ", ".join(map(str, fold.train))
    )


def describe(kind: Kind, model: Model, data: Data, fold: Fold, rows: int, config: Config, section: Problem) -> dict[str, Any]:
    """What model.json holds: configuration, training rows (`rows` of them), features and their importance, example rows."""
    example = kind.example(data, section)
    return {
        "kind": kind.name,
        "config": config,
        "cutoff": fold.test,
        "begins": kind.begins(data, fold.test),
        "trained_on": fold.train,
        "rows": rows,
        "features": [str(name) for name in example.columns],
        "importance": {name: round(float(value), 6) for name, value in kind.importance(model).items()},
        "example": [{str(name): _plain(value) for name, value in row.items()} for row in example.to_dict("records")],
    }


def background_rows(data: Data, fold: Fold) -> str:
    """BACKGROUND_ROWS of the training rows, spread evenly over them, as JSON."""
    features = data.at(fold.train).features
    places = np.linspace(0, len(features) - 1, min(BACKGROUND_ROWS, len(features))).astype(int)
    return features.iloc[places].to_json(orient="records", date_format="iso", double_precision=15)


def _plain(value: Any) -> Any:
    """`value` in JSON types: no NumPy types, null for what is not a finite number."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
