"""Learn with the chosen configuration on all rows whose labels are complete before the last test window, and save the model."""

import json
import logging
import math
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem, Section
from evergreen.tasks.core.paths import HELD_OUT, JUDGED, MODEL, Layout, read_json, writing
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import Config, Data, Finishing, Fold, Kind, Model, Splits
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.best_config import load_best_config, summarise_search
from evergreen.tasks.search.time_budget import SLACK, Clock

log = logging.getLogger(__name__)


MORE = 2.0
"""With a budget: where there is time for so many times the rows, the model learns once more."""
LEAST = 0.05
"""Learning may always take that share of the budget."""


class Result(Section):
    model: str
    """Path of model.skops."""
    card: str
    """Path of model.json."""
    cutoff: str
    """The last test window, which the model that is judged knows nothing of: its cutoff, or its name in a plain table."""
    rows: int
    """Rows it learned from."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Fit the best configuration for the last test window; writes model.skops and model.json.

    Where the model that serves learns from the rows it is judged on too (train.refit of a plain table), the one that is judged
    instead of it is judged.skops.

    Raises StepError where tune did not run before, DataError for too few cutoffs, ModelError for a model that cannot be saved.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    clock = time_budget.clock(params, problem, layout, "train")
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    data = kind.load(layout.features(problem), section)
    splits = kind.splits(data, section)
    config, limit = load_best_config(layout.tuning(problem), problem), _limit(layout.tuning(problem), clock)
    judged, model, learned = _learn(kind, data, splits, config, section, params.project.seed, problem, limit)
    judged, model = _finished(kind, judged, model, layout.tuning(problem), section, params.project.seed)
    fold = splits.tests[-1]
    rows = kind.rows(data, splits.refit) if splits.refit and model is not judged else learned
    card = describe(kind, model, data, fold, rows, config, section) | {"search": summarise_search(layout.tuning(problem))}
    folder = layout.model(problem)
    with writing(folder) as scratch:
        scratch.mkdir()
        skops_models.save(model, scratch / MODEL)
        if model is not judged:
            skops_models.save(judged, scratch / JUDGED)
        text = json.dumps({"problem": problem, **card}, indent=2, default=str, allow_nan=False)
        (scratch / "model.json").write_text(text + "\n")
    return Result(model=str(folder / MODEL), card=str(folder / "model.json"), cutoff=str(fold.test), rows=rows)


@dataclass(frozen=True)
class Limit:
    """With a budget: how long learning may take, and what it took in the search (seconds and rows of a fold)."""

    clock: Clock
    seconds: float
    rows: float

    def rows_for(self, wanted: int) -> int | None:
        """From how many rows there is time to learn, if not from as many as `wanted`; never fewer than in the search."""
        expected = SLACK * self.seconds * wanted / max(self.rows, 1.0)
        left = max(self.clock.left(), LEAST * (self.clock.seconds or 0.0))
        return None if expected <= left else int(max(self.rows, wanted * left / expected))


def _limit(folder: Path, clock: Clock) -> Limit | None:
    """None without a budget, or where the search did not measure."""
    summary = read_json(folder / "best.json")
    known, cost = summary.get("budget"), summary.get("cost") or {}
    if clock.seconds is None or not known or not cost.get("fit_rows"):
        return None
    return Limit(Clock(clock.seconds - known["evaluation"], clock.began), cost["fit_seconds"] or 0.0, cost["fit_rows"])


def _learn(
    kind: Kind, data: Data, splits: Splits, config: Config, section: Problem, seed: int, problem: str, limit: Limit | None
) -> tuple[Model, Model, int]:
    """The model that is judged, the one that serves (the same where there is no other), and the rows the first learned from.

    Without the time for it the first learns from fewer rows, and there is no other.
    """
    fold, seen = splits.tests[-1], data
    wanted = kind.rows(data, fold.train)
    limit = limit if config["model"] != kind.baseline else None
    fewer = limit.rows_for(wanted) if limit else None
    while True:
        if fewer is not None and fewer < wanted:
            seen = _part(data, fewer, seed)
            log.info("%s: train: %s on %d of %d rows, for which there is time", problem, config["model"], fewer, wanted)
        else:
            seen = data
            log.info("%s: train: %s on %s", problem, config["model"], said(fold))
        began = time.monotonic()
        judged = kind.fit(seen, fold.train, config, section, seed)
        took = time.monotonic() - began
        if limit is None or seen is data:
            break
        limit = replace(limit, seconds=took, rows=kind.rows(seen, fold.train))
        before, fewer = fewer or wanted, limit.rows_for(wanted)
        if limit.clock.left() <= 0 or (fewer is not None and fewer < MORE * before):
            break
    learned = kind.rows(seen, fold.train)
    if not splits.refit:
        return judged, judged, learned
    more = kind.rows(data, splits.refit) / max(learned, 1)
    if limit and (seen is not data or took * more > limit.clock.left()):
        log.info("%s: train: no time is left to learn from the rows it is judged on too; the judged one serves", problem)
        return judged, judged, learned
    log.info("%s: train: %s on all rows, to serve", problem, config["model"])
    return judged, kind.fit(data, splits.refit, config, section, seed), learned


def _part(data: Data, rows: int, seed: int) -> Data:
    from evergreen.tasks.problems.tabular.subsample import thin

    return thin(data, rows, seed)


def _finished(kind: Kind, judged: Model, model: Model, folder: Path, section: Problem, seed: int) -> tuple[Model, Model]:
    """Both models with what the held-out rows of the search say of them, for kinds that make use of it."""
    path = folder / HELD_OUT
    if not (isinstance(kind, Finishing) and kind.finishes(section) and path.exists()):
        return judged, model
    held_out = pl.read_parquet(path)
    finished = kind.finish(judged, held_out, section, seed)
    return finished, finished if model is judged else kind.finish(model, held_out, section, seed)


def said(fold: Fold) -> str:
    """What a fold learns from, in words."""
    return (
        f"{len(fold.train)} cutoffs up to {fold.train[-1]}" if isinstance(fold.test, date) else ", ".join(map(str, fold.train))
    )


def describe(kind: Kind, model: Model, data: Data, fold: Fold, rows: int, config: Config, section: Problem) -> dict[str, Any]:
    """What model.json says: where the model comes from (`rows`: how many it learned from), what it takes and leans on."""
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


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: no NumPy types, null for what is not a finite number."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
