"""Rollouts from the command line: evaluated by the same function that running servers call."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from evergreen.flows import settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.tasks.release.rollouts import Rollouts
    from evergreen.tasks.release.server_reports import ServerReport


def advance(layout: Layout, problems: Iterable[str]) -> dict[str, str]:
    """Evaluate the current rollouts of `problems` with the labels that arrived, and act on the result.

    Problem -> decision and reason; problems without a rollout are absent.
    """
    from evergreen.monitoring.rollout import controller

    rollouts, params = settings.rollouts(layout), load(layout.params)
    current = [problem for problem in problems if rollouts.current(problem)]
    if not current:
        return {}
    registry, ledger = settings.registry(layout), settings.ledger(layout)
    found = {problem: controller.advance(params, registry, rollouts, problem, ledger) for problem in current}
    return {problem: f"{each.decision}: {each.reason}" for problem, each in found.items() if each}


def summarize(layout: Layout, problem: str) -> dict[str, Any]:
    """The current rollout, the servers' reports, and the requests to both versions in this step."""
    rollouts = settings.rollouts(layout)
    current, servers = rollouts.current(problem), rollouts.reports.servers(problem)
    found: dict[str, Any] = {"problem": problem, "rollout": None, "servers": [each.model_dump() for each in servers]}
    if current:
        counts = dict(zip(("champion", "candidate"), rollouts.reports.counts(current.id, current.step), strict=True))
        requests = {name: {"requests": each.requests, "errors": each.errors} for name, each in counts.items()}
        found["rollout"] = current.model_dump() | {"share": current.share, "requests": requests}
    return found


def describe(rollouts: "Rollouts", problem: str) -> str | None:
    """The current rollout and the servers' errors in one sentence; None where there is neither."""
    current = rollouts.current(problem)
    errors = server_errors(rollouts.reports.servers(problem))
    return "; ".join([*([current.describe()] if current else []), *errors]) or None


def server_errors(servers: "Iterable[ServerReport]") -> list[str]:
    """Distinct errors of servers that cannot serve what they should."""
    found = [f"a server reports: {each.error}" for each in servers if each.error]
    found += [
        f"{each.server} reports: predictions wait in memory since {each.journal}, its disk takes none"
        for each in servers
        if each.journal
    ]
    return list(dict.fromkeys(found))
