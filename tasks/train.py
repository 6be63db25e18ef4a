"""Learn with the chosen configuration on all rows whose labels are complete before the last test window, and save the model."""

import json
import logging
import math
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from tasks import models, problems, split
from tasks.errors import StepError
from tasks.layout import Layout, read_json, writing
from tasks.params import Params, Problem, Section
from tasks.problems.base import Config, Data, Fold, Kind, Model

log = logging.getLogger(__name__)


class Result(Section):
    model: str
    """Path of model.skops."""
    card: str
    """Path of model.json."""
    cutoff: date
    """The test cutoff of the last window: the model knows nothing of the days after it."""
    rows: int
    """Rows it learned from."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Fit the best configuration for the last test window; writes model.skops and model.json.

    Raises StepError where tune did not run before, DataError for too few cutoffs, ModelError for a model that cannot be saved.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, kind = params.section(problem), problems.kind(params.kind(problem))
    data = kind.load(layout.features(problem), section)
    fold = windows(kind, data, section)[-1]
    config = best(layout.tuning(problem), problem)
    log.info("%s: train: %s on %d cutoffs up to %s", problem, config["model"], len(fold.train), fold.train[-1])
    model = kind.fit(data, fold.train, config, section, params.project.seed)
    card = describe(kind, model, data, fold, config, section)
    folder = layout.model(problem)
    with writing(folder) as scratch:
        scratch.mkdir()
        models.save(model, scratch / "model.skops")
        text = json.dumps({"problem": problem, **card}, indent=2, default=str, allow_nan=False)
        (scratch / "model.json").write_text(text + "\n")
    return Result(model=str(folder / "model.skops"), card=str(folder / "model.json"), cutoff=fold.test, rows=int(card["rows"]))


def windows(kind: Kind, data: Data, section: Problem) -> list[Fold]:
    """The test windows, oldest first, each with the cutoffs its model learns from (train.history_days applied)."""
    folds = split.split_by_time(kind.cutoffs(data), section.features.horizon_days, section.evaluate.windows)
    return [Fold(split.recent(fold.train, section.train.history_days), fold.test) for fold in folds]


def best(folder: Path, problem: str) -> Config:
    """The configuration that tuning chose. Raises StepError where there is none."""
    path = folder / "best.json"
    if not path.exists():
        raise StepError(f"{path}: is missing. Run tune first: python -m tasks tune {problem}")
    return read_json(path)["config"]


def describe(kind: Kind, model: Model, data: Data, fold: Fold, config: Config, section: Problem) -> dict[str, Any]:
    """What model.json says: where the model comes from, what it takes and what it leans on."""
    example = kind.example(data, section)
    return {
        "kind": kind.name,
        "config": config,
        "cutoff": fold.test,
        "trained_on": fold.train,
        "rows": kind.rows(data, fold.train),
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
