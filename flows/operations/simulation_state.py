"""The state of a project's simulation (flows.simulation): what is due, in progress, or finished. No prefect here."""

from pathlib import Path

from evergreen.flows import settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout


def due(layout: Layout) -> list[str]:
    """The problems to simulate: those that retrain automatically and were never trained, or whose simulation is unfinished."""
    backup = params_backup(layout)
    params = load(backup if backup.exists() else layout.params)
    if params.project.as_of is None or result_file(layout).exists():
        return []
    suitable = [name for name in params.problems if _is_suitable(params, name)]
    if not suitable or backup.exists() or not settings.has_registry(layout):
        return suitable
    registry = settings.registry(layout)
    return [name for name in suitable if not registry.versions(name)]


def _is_suitable(params: Params, problem: str) -> bool:
    section = params.section(problem)
    return section.predicts == "rows" and section.features.by_cutoff and section.retrain.mode == "automatic"


def params_backup(layout: Layout) -> Path:
    """The original params.yaml; exists while a simulation is unfinished."""
    return layout.var / "simulation" / "params.yaml"


def result_file(layout: Layout) -> Path:
    """Exists once the simulation is finished."""
    return layout.var / "simulation" / "result.json"


def summary_lines(layout: Layout) -> list[str]:
    """One line for each problem with monitoring runs."""
    decisions, lines = settings.decision_log(layout), []
    for problem in load(layout.params).problems:
        runs, retrainings = decisions.runs(problem), decisions.retrainings(problem)
        alarms = sum(each.decision.window.drift.alarm for each in runs)
        retrained = "; ".join(f"retrained {each.at:%Y-%m-%d} ({each.trigger}): {each.outcome}" for each in retrainings)
        if runs:
            lines.append(f"{problem}: {len(runs)} monitoring runs, {alarms} with a drift alarm; {retrained or 'not retrained'}")
    return lines
