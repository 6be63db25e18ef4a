"""One problem: what serves, what is suggested, the rollout under way, the actions, and its months in production."""

from dataclasses import dataclass

from starlette.responses import Response

from evergreen.flows import running_steps, settings
from evergreen.flows.console import commands, overview
from evergreen.flows.console.visits import Visit
from evergreen.flows.operations import status
from evergreen.monitoring.report import production_section
from evergreen.monitoring.report.production_section import Production
from evergreen.tasks.core.paths import read_json


@dataclass(frozen=True)
class Section:
    """What the report's template of a problem in production reads."""

    production: Production | None
    left_out: dict[str, str]


def show(visit: Visit) -> Response:
    problem = visit.problem
    now = overview.problem(visit.layout, visit.params, problem, overview.METER.read(visit.layout).get(problem))
    backtested = visit.layout.report(problem) / "backtest.json"
    production = production_section.build(
        problem, status.production_records(visit.layout, problem), read_json(backtested) if backtested.exists() else None
    )
    past = [each for each in _champions(visit, problem) if each != now.champion]
    drift = visit.layout.report(problem) / "drift"
    return visit.render(
        "problem.html",
        each=now,
        answer=Section(production, {}),
        past=past,
        steps=[each for each in running_steps.read(visit.layout) if each.problem in (None, problem)],
        commands=[each for each in commands.recent(visit.layout) if each.problem == problem],
        reports=sorted((path.name for path in drift.glob("*.html")), reverse=True)[:12],
        unfinished=settings.decision_log(visit.layout).unfinished([problem]),
    )


def _champions(visit: Visit, problem: str) -> list[int]:
    """The versions that were ever champion, the newest first."""
    from evergreen.tasks.release.deployments import MOVES

    decisions = settings.deployments(visit.layout).history(problem)
    return sorted({each.version for each in decisions if each.action in MOVES}, reverse=True)
