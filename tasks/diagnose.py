"""Why the model is not better, and the ONE next step that promises most: see diagnosis.experiments and
diagnosis.recommendation."""

import json
import logging
from typing import TYPE_CHECKING, Any

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Section, Tabular
from evergreen.tasks.core.paths import Layout, writing

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

EXAMINED = ("classification", "regression")
"""Kinds with a target that a model can miss."""


class Result(Section):
    diagnosis: str
    """Path of diagnosis.json."""
    step: str | None
    """leak, stop, simpler model, richer model, more data, better features; null: nothing to diagnose."""
    said: str
    """The step in one sentence."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Examine the chosen configuration of `problem`; writes the folder diagnosis.

    Where there is no target to miss, or no time to look, the diagnosis says that. Raises StepError where tune did not run.
    """
    with problems.naming(problem):
        return _run(params, problem, layout)


def _run(params: Params, problem: str, layout: Layout) -> Result:
    section, name = params.section(problem), params.kind(problem)
    tables: dict[str, pl.DataFrame] = {}
    if name not in EXAMINED or not isinstance(section, Tabular):
        found = _nothing(f"The doctor examines {' and '.join(EXAMINED)}; {name} has no target that it could miss.")
    elif not section.evaluate.diagnose_seconds:
        found = _nothing("evaluate.diagnose_seconds is 0: no diagnosis was asked for.")
    else:
        found, tables = _examined(params, problem, section, layout)
    folder = layout.report(problem) / "diagnosis"
    with writing(folder) as scratch:
        scratch.mkdir()
        text = json.dumps({"problem": problem, **found}, indent=2, allow_nan=False)
        (scratch / "diagnosis.json").write_text(text + "\n")
        for each, table in tables.items():
            table.write_csv(scratch / f"{each}.csv")
    log.info("%s: diagnose: %s", problem, found["said"])
    return Result(diagnosis=str(folder / "diagnosis.json"), step=found["step"], said=found["said"])


def _examined(
    params: Params, problem: str, section: Tabular, layout: Layout
) -> "tuple[dict[str, Any], dict[str, pl.DataFrame]]":
    """What an examination finds; its libraries are loaded here alone."""
    import polars as pl

    from evergreen.tasks.diagnosis.experiments import examine
    from evergreen.tasks.search.best_config import load_best_config

    kind, config = problems.kind(params.kind(problem)), load_best_config(layout.tuning(problem), problem)
    data, trials = kind.load(layout.features(problem), section), layout.tuning(problem) / "trials.parquet"
    seconds = allowed(section.evaluate.diagnose_seconds, section.tune.budget_seconds)
    tried = pl.read_parquet(trials) if trials.exists() else None
    found, tables = examine(kind, data, section, config, params.project.seed, seconds, tried)
    return (found, tables) if found.get("step") else (_nothing(found["said"]), {})


def allowed(seconds: float, budget_seconds: float | None) -> float:
    """CPU seconds for the diagnosis: a search on a budget is not followed by an examination that takes longer."""
    return seconds if budget_seconds is None else min(seconds, budget_seconds / 4)


def _nothing(why: str) -> dict[str, Any]:
    return {"step": None, "title": "No diagnosis", "said": why, "evidence": [], "left_out": []}
