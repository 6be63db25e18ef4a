"""Diagnose why the model is not better, and recommend the ONE next step that promises most.

See diagnosis.experiments and diagnosis.recommendation.
"""

import json
import logging
import math
from typing import TYPE_CHECKING, Any

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Tabular
from evergreen.tasks.core.paths import Layout, writing
from evergreen.tasks.search import time_budget

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

MIN_SECONDS = 1.0
"""A shorter diagnosis finds nothing."""


class Result(Section):
    diagnosis: str
    """Path of diagnosis.json."""
    step: str | None
    """leak, longer diagnosis, stop, longer search, simpler model, richer model, more data or better features; null: no
    diagnosis."""
    recommendation: str
    """The step in words, or the reason why there is none."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Diagnose the chosen configuration of `problem`; writes the folder diagnosis.

    Without a target, or with evaluate.diagnose_seconds 0, the diagnosis says so. Raises StepError where tune did not run.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, name = params.section(problem), params.kind(problem)
    scale = problems.predictions(name).skill
    tables: dict[str, pl.DataFrame] = {}
    if scale is None or section.predicts == "lists":
        found = _no_diagnosis(f"A {name} problem cannot be diagnosed: it has no target.")
    elif not section.evaluate.diagnose_seconds:
        found = _no_diagnosis("evaluate.diagnose_seconds is 0.")
    elif (seconds := allowed_seconds(params, problem, layout)) < MIN_SECONDS:
        found = _no_diagnosis("The time budget left no time for it; a longer tune.budget_seconds leaves some.")
    else:
        found, tables = _diagnose(params, problem, section, layout, seconds)
    folder = layout.report(problem) / "diagnosis"
    with writing(folder) as scratch:
        scratch.mkdir()
        text = json.dumps({"problem": problem, **found}, indent=2, allow_nan=False)
        (scratch / "diagnosis.json").write_text(text + "\n")
        for each, table in tables.items():
            table.write_csv(scratch / f"{each}.csv")
    log.info("%s: diagnose: %s", problem, found["recommendation"])
    return Result(diagnosis=str(folder / "diagnosis.json"), step=found["step"], recommendation=found["recommendation"])


def _diagnose(
    params: Params, problem: str, section: Tabular, layout: Layout, seconds: float
) -> "tuple[dict[str, Any], dict[str, pl.DataFrame]]":
    """The diagnosis and its tables; the libraries of the experiments are imported only here."""
    import polars as pl

    from evergreen.tasks.diagnosis.experiments import diagnose
    from evergreen.tasks.search.best_config import load_best_config

    kind, config = problems.kind(params.kind(problem)), load_best_config(layout.tuning(problem), problem)
    data, path = kind.load(layout.features(problem), section), layout.tuning(problem) / "trials.parquet"
    trials = pl.read_parquet(path) if path.exists() else None
    found, tables = diagnose(kind, data, section, config, params.project.seed, seconds, trials)
    return (found, tables) if found.get("step") else (_no_diagnosis(found["recommendation"]), {})


def allowed_seconds(params: Params, problem: str, layout: Layout) -> float:
    """CPU seconds of the diagnosis: at most a quarter of a time budget, and what the command's wall time leaves."""
    section = params.section(problem)
    seconds, budget = section.evaluate.diagnose_seconds, section.tune.budget_seconds
    if budget is None:
        return seconds
    left = time_budget.clock(params, problem, layout, "diagnose").left() if time_budget.commanded() else math.inf
    return min(seconds, budget / 4, left / time_budget.slowness(layout, problem))


def _no_diagnosis(reason: str) -> dict[str, Any]:
    return {"step": None, "title": "No diagnosis", "recommendation": reason, "evidence": [], "left_out": []}
