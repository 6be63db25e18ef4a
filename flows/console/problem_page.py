"""One problem: what serves, what is suggested, the rollout in progress, the actions, and its months in production."""

from dataclasses import dataclass, replace
from functools import lru_cache

from starlette.responses import Response

from evergreen.flows import running_steps, settings
from evergreen.flows.console import commands, overview
from evergreen.flows.console.overview import MOST_ROWS
from evergreen.flows.console.visits import Visit
from evergreen.flows.operations import status
from evergreen.monitoring.report import problem_section, vega
from evergreen.monitoring.report.problem_section import Answer
from evergreen.monitoring.report.production_section import Production
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

KEPT = 8
"""Evaluations that are kept as drawn."""
REPORTS = 12
"""Most links to Evidently's reports, the newest."""


@dataclass(frozen=True)
class Section:
    """What the report's template of a problem in production reads."""

    production: Production | None
    left_out: dict[str, str]


def show(visit: Visit) -> Response:
    problem = visit.problem
    traffic = overview.METER.read(visit.layout).get(problem)
    now = overview.problem(visit.layout, visit.params, problem, traffic)
    with vega.with_values():
        production = problem_section.production(
            visit.layout, problem, status.production_records(visit.layout, problem, MOST_ROWS)
        )
    if production and production.drift and production.drift.report:
        address = f"/reports/{production.drift.report}?view=frame"
        production = replace(production, drift=replace(production.drift, report=address))
    drift = visit.layout.report(problem) / "drift"
    return visit.render(
        "problem.html",
        each=now,
        answer=Section(production, {}),
        past=[each for each in _champions(visit, problem) if each != now.champion],
        steps=[each for each in running_steps.read(visit.layout) if each.problem in (None, problem)],
        commands=[each for each in commands.recent(visit.layout) if each.problem == problem],
        reports=sorted((path.name for path in drift.glob("*.html")), reverse=True)[:REPORTS],
        unfinished=settings.decision_log(visit.layout).unfinished([problem]),
    )


def show_evaluation(visit: Visit) -> Response:
    """The report page's section about the newest training, with charts that answer to the pointer."""
    problem = visit.problem
    written = visit.layout.report(problem) / "evaluation" / "evaluation.json"
    champion = settings.deployments(visit.layout).champion(problem)
    answer = _answer(visit.layout, problem, champion, written.stat().st_mtime if written.exists() else 0.0)
    return visit.render("evaluation.html", problem=problem, answer=answer)


@lru_cache(KEPT)
def _answer(layout: Layout, problem: str, _champion: int | None, _written: float) -> Answer:
    """Drawn once for a champion and an evaluation."""
    with vega.with_values():
        return problem_section.answer(problem, load(layout.params), layout, status.champion(layout, problem), None)


def _champions(visit: Visit, problem: str) -> list[int]:
    """The versions that were ever champion, the newest first."""
    from evergreen.tasks.release.deployments import MOVES

    decisions = settings.deployments(visit.layout).history(problem)
    return sorted({each.version for each in decisions if each.action in MOVES}, reverse=True)
