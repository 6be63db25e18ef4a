"""Diagnose why the model is not better, and recommend the ONE next step that promises most.

See diagnosis.experiments and diagnosis.recommendation.
"""

import json
import logging
from typing import TYPE_CHECKING, Any

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Tabular
from evergreen.tasks.core.paths import Layout, writing

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)


class Result(Section):
    diagnosis: str
    """Path of diagnosis.json."""
    step: str | None
    """leak, stop, simpler model, richer model, more data, better features; null: no diagnosis."""
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
    else:
        found, tables = _diagnose(params, problem, section, layout)
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
    params: Params, problem: str, section: Tabular, layout: Layout
) -> "tuple[dict[str, Any], dict[str, pl.DataFrame]]":
    """The diagnosis and its tables; the libraries of the experiments are imported only here."""
    import polars as pl

    from evergreen.tasks.diagnosis.experiments import diagnose
    from evergreen.tasks.search.best_config import load_best_config

    kind, config = problems.kind(params.kind(problem)), load_best_config(layout.tuning(problem), problem)
    data, path = kind.load(layout.features(problem), section), layout.tuning(problem) / "trials.parquet"
    seconds = allowed_seconds(section.evaluate.diagnose_seconds, section.tune.budget_seconds)
    trials = pl.read_parquet(path) if path.exists() else None
    found, tables = diagnose(kind, data, section, config, params.project.seed, seconds, trials)
    return (found, tables) if found.get("step") else (_no_diagnosis(found["recommendation"]), {})


def allowed_seconds(seconds: float, budget_seconds: float | None) -> float:
    """CPU seconds of the diagnosis: at most a quarter of a time budget."""
    return seconds if budget_seconds is None else min(seconds, budget_seconds / 4)


def _no_diagnosis(reason: str) -> dict[str, Any]:
    return {"step": None, "title": "No diagnosis", "recommendation": reason, "evidence": [], "left_out": []}
