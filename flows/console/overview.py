"""Now: each problem with its champion, rollout, traffic and monitoring; what runs, and what comes next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from starlette.responses import Response

from evergreen.flows import running_steps, settings
from evergreen.flows.console import commands
from evergreen.flows.console.commands import Command
from evergreen.flows.console.kept import Kept
from evergreen.flows.console.traffic import Traffic, TrafficMeter
from evergreen.flows.console.visits import Visit
from evergreen.flows.operations import suggestions
from evergreen.flows.running_steps import RunningStep
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.decisions import MonitoringRun
    from evergreen.monitoring.rollout.sequential_tests import Judgement, Test
    from evergreen.tasks.release.deployments import Deployment
    from evergreen.tasks.release.off_policy_value import OffPolicyValue
    from evergreen.tasks.release.rollout_state import RolloutState

METER = TrafficMeter()
"""Of this process: it serves one project."""


MOST_ROWS = 10_000
"""Of more predictions a page neither counts labels nor compares losses."""
JUDGEMENTS: "Kept[Judgement]" = Kept(seconds=10, most=100)
"""The overview asks every three seconds, and a judgement reads the labels of all predictions of its rollout."""


@dataclass(frozen=True)
class RolloutNow:
    state: "RolloutState"
    sentence: str
    champion_requests: int
    candidate_requests: int
    champion_errors: int
    candidate_errors: int
    judgement: str | None
    """What is known so far, as `evergreen rollout status` prints it."""
    tests: "tuple[Test, ...]"
    """The comparisons behind it."""
    uncounted: int
    """Predictions of both versions that are too many for a page; 0: their labels are in the judgement."""
    hours_left: float
    off_policy: "OffPolicyValue | None" = None
    """What a shadow's lists would have earned."""


@dataclass(frozen=True)
class GateUnseen:
    """The gate's newest verdict that judged lists which nobody saw."""

    version: int
    at: datetime
    found: "OffPolicyValue"


@dataclass(frozen=True)
class ProblemNow:
    name: str
    kind: str
    question: str
    champion: int | None
    arrival: "Deployment | None"
    """The decision that made it champion."""
    rollout: RolloutNow | None
    traffic: Traffic | None
    run: "MonitoringRun | None"
    """The newest monitoring run."""
    suggestion: "MonitoringRun | None"
    server_errors: tuple[str, ...]
    gate_unseen: GateUnseen | None = None


@dataclass(frozen=True)
class Planned:
    """The next run of a schedule."""

    flow: str
    problem: str
    at: datetime
    cron: str


@dataclass(frozen=True)
class Now:
    problems: list[ProblemNow]
    steps: list[RunningStep]
    commands: list[Command]
    """Started here, running or ended a short while ago."""
    planned: list[Planned]
    at: datetime


def show(visit: Visit) -> Response:
    now = read(visit.layout, visit.params, visit.problems)
    return visit.render("now.html" if visit.partial else "overview.html", now=now)


def read(layout: Layout, params: Params, names: list[str]) -> Now:
    traffic = METER.read(layout)
    return Now(
        problems=[problem(layout, params, name, traffic.get(name)) for name in names],
        steps=[each for each in running_steps.read(layout) if each.problem is None or each.problem in names],
        commands=[each for each in commands.recent(layout) if each.problem in names],
        planned=sorted((each for name in names for each in _planned(params, name)), key=lambda each: each.at),
        at=datetime.now(UTC),
    )


def problem(layout: Layout, params: Params, name: str, traffic: Traffic | None = None) -> ProblemNow:
    """The state of one problem, from the database alone. A rollout with few predictions is judged by their labels too."""
    from evergreen.flows.operations.rollouts import server_errors
    from evergreen.tasks.release.deployments import MOVES

    rollouts = settings.rollouts(layout)
    decisions = rollouts.deployments.history(name)
    champion = rollouts.deployments.champion(name)
    moves = [each for each in decisions if each.action in MOVES and each.version == champion]
    runs = settings.decision_log(layout).runs(name, last=1)
    section = params.section(name)
    return ProblemNow(
        name=name,
        kind=params.kind(name),
        question=section.question,
        champion=champion,
        arrival=max(moves, key=lambda each: each.at, default=None),
        rollout=_rollout(layout, params, name),
        traffic=traffic,
        run=runs[-1] if runs else None,
        suggestion=suggestions.pending(layout, params, name),
        server_errors=tuple(server_errors(rollouts.reports.servers(name))),
        gate_unseen=_gate_unseen(decisions),
    )


def _gate_unseen(decisions: "Sequence[Deployment]") -> GateUnseen | None:
    from evergreen.tasks.release.off_policy_value import OffPolicyValue

    for each in sorted(decisions, key=lambda one: one.at, reverse=True):
        if (found := each.evidence.get("off_policy")) and each.action in ("deploy", "refuse", "begin"):
            return GateUnseen(each.version, each.at, OffPolicyValue.model_validate(found))
    return None


def _rollout(layout: Layout, params: Params, name: str) -> RolloutNow | None:
    """The rollout with the judgement on it so far; nothing is done about it."""
    from evergreen.monitoring.ledger import lookup
    from evergreen.monitoring.rollout import controller

    rollouts = settings.rollouts(layout)
    state = rollouts.current(name)
    if state is None:
        return None
    now, ledger = datetime.now(UTC), settings.ledger(layout)
    champion, candidate = rollouts.reports.counts(state.id, state.step)
    rows = lookup.count(ledger, name, state.begun, now)
    judged = JUDGEMENTS.get(
        (layout, name, state.id, state.step, state.state, state.policy.model_dump_json()),
        lambda: controller.judge_state(params, rollouts, state, ledger if rows <= MOST_ROWS else None, now),
    )
    judgement = judged.value
    return RolloutNow(
        state,
        state.describe(),
        champion.requests,
        candidate.requests,
        champion.errors,
        candidate.errors,
        f"{judgement.decision}: {judgement.reason}",
        judgement.tests,
        rows if rows > MOST_ROWS else 0,
        max(0.0, (state.ends - now).total_seconds() / 3600),
        judgement.off_policy,
    )


def _planned(params: Params, name: str) -> Iterator[Planned]:
    from cronsim import CronSim

    schedule = params.section(name).schedule
    now = datetime.now(ZoneInfo(schedule.timezone))
    for flow, cron in (("train", schedule.train), ("score", schedule.score), ("monitor", schedule.monitor)):
        if cron:
            yield Planned(flow, name, next(CronSim(cron, now)).astimezone(UTC), cron)
