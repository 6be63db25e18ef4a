"""What of a project's last weeks was lived through, and what is to be: see flows.simulation. No prefect here."""

from pathlib import Path

from evergreen.flows import settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout


def due(layout: Layout) -> list[str]:
    """The problems to live through: those that retrain by themselves and were never trained, or are in the middle of it."""
    params = load(kept(layout) if kept(layout).exists() else layout.params)
    if params.project.as_of is None or told(layout).exists():
        return []
    fitting = [name for name in params.problems if _fits(params, name)]
    if not fitting or kept(layout).exists():
        return fitting
    registry = settings.registry(layout)
    return [name for name in fitting if not registry.versions(name)]


def _fits(params: Params, problem: str) -> bool:
    section = params.section(problem)
    return section.predicts == "rows" and section.features.by_cutoff and section.retrain.mode == "automatic"


def kept(layout: Layout) -> Path:
    """params.yaml as it was before; there while a life is under way."""
    return layout.var / "living" / "params.yaml"


def told(layout: Layout) -> Path:
    """What was lived through; there once it is over."""
    return layout.var / "living" / "lived.json"


def lines(layout: Layout) -> list[str]:
    """What the weeks brought, in a line for each problem that was looked at."""
    looks, found = settings.decision_log(layout), []
    for problem in load(layout.params).problems:
        made, past = looks.runs(problem), looks.retrainings(problem)
        alarms = [each.decision for each in made if each.decision.window.drift.alarm]
        retrained = "; ".join(f"retrained {each.at:%Y-%m-%d} ({each.trigger}): {each.outcome}" for each in past)
        if made:
            found.append(
                f"{problem}: {len(made)} weeks watched, {len(alarms)} with an alarm of drift; {retrained or 'not retrained'}"
            )
    return found
