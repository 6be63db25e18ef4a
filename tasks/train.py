"""Learn with the chosen configuration on all rows whose labels are complete before the last test window, and save the model."""

import json
import logging
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from tasks import models, problems
from tasks.errors import StepError
from tasks.layout import JUDGED, MODEL, Layout, read_json, writing
from tasks.params import Params, Problem, Section
from tasks.problems.base import Config, Data, Fold, Kind, Model, Part

log = logging.getLogger(__name__)


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
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    data = kind.load(layout.features(problem), section)
    splits = kind.splits(data, section)
    fold, config, seed = splits.tests[-1], best(layout.tuning(problem), problem), params.project.seed
    log.info("%s: train: %s on %s", problem, config["model"], said(fold))
    judged = kind.fit(data, fold.train, config, section, seed)
    model = judged
    if splits.refit:
        log.info("%s: train: %s on all rows, to serve", problem, config["model"])
        model = kind.fit(data, splits.refit, config, section, seed)
    card = describe(kind, model, data, fold, splits.refit or fold.train, config, section)
    folder = layout.model(problem)
    with writing(folder) as scratch:
        scratch.mkdir()
        models.save(model, scratch / MODEL)
        if splits.refit:
            models.save(judged, scratch / JUDGED)
        text = json.dumps({"problem": problem, **card}, indent=2, default=str, allow_nan=False)
        (scratch / "model.json").write_text(text + "\n")
    return Result(model=str(folder / MODEL), card=str(folder / "model.json"), cutoff=str(fold.test), rows=int(card["rows"]))


def said(fold: Fold) -> str:
    """What a fold learns from, in words."""
    return (
        f"{len(fold.train)} cutoffs up to {fold.train[-1]}" if isinstance(fold.test, date) else ", ".join(map(str, fold.train))
    )


def windows(kind: Kind, data: Data, section: Problem) -> list[Fold]:
    """The test windows, oldest first, each with the cutoffs its model learns from (train.history_days applied)."""
    return list(kind.splits(data, section).tests)


def best(folder: Path, problem: str) -> Config:
    """The configuration that tuning chose. Raises StepError where there is none."""
    path = folder / "best.json"
    if not path.exists():
        raise StepError(f"{path}: is missing. Run tune first: python -m tasks tune {problem}")
    return read_json(path)["config"]


def describe(
    kind: Kind, model: Model, data: Data, fold: Fold, learned: Sequence[Part], config: Config, section: Problem
) -> dict[str, Any]:
    """What model.json says: where the model comes from, what it takes and what it leans on."""
    example = kind.example(data, section)
    return {
        "kind": kind.name,
        "config": config,
        "cutoff": fold.test,
        "begins": kind.begins(data, fold.test),
        "trained_on": fold.train,
        "rows": kind.rows(data, learned),
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
