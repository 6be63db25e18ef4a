"""Rollouts from the command line: what stands is judged and told, by the same function that running servers call."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from evergreen.flows import settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.tasks.release.rollouts import Rollouts
    from evergreen.tasks.release.server_reports import ServerReport


def advance(layout: Layout, problems: Iterable[str]) -> dict[str, str]:
    """Judge the rollouts of `problems` that are under way, with the truths that came, and act on it.

    Problem -> what was found, in a sentence; those without a rollout are not in it.
    """
    from evergreen.monitoring.rollout import controller

    rollouts, params = settings.rollouts(layout), load(layout.params)
    standing = [problem for problem in problems if rollouts.current(problem)]
    if not standing:
        return {}
    registry, ledger = settings.registry(layout), settings.ledger(layout)
    found = {problem: controller.advance(params, registry, rollouts, problem, ledger) for problem in standing}
    return {problem: f"{each.decision}: {each.reason}" for problem, each in found.items() if each}


def told(layout: Layout, problem: str) -> dict[str, Any]:
    """What stands, what the servers that run say, and how many answers both versions gave at this step."""
    rollouts = settings.rollouts(layout)
    stands, servers = rollouts.current(problem), rollouts.reports.servers(problem)
    found: dict[str, Any] = {"problem": problem, "rollout": None, "servers": [each.model_dump() for each in servers]}
    if stands:
        counts = dict(zip(("champion", "candidate"), rollouts.reports.counts(stands.id, stands.step), strict=True))
        answers = {name: {"requests": each.requests, "errors": each.errors} for name, each in counts.items()}
        found["rollout"] = stands.model_dump() | {"share": stands.share, "answers": answers}
    return found


def words(rollouts: "Rollouts", problem: str) -> str | None:
    """The rollout under way in one sentence, with what the servers say; None where nothing is to be said."""
    stands = rollouts.current(problem)
    said = troubles(rollouts.reports.servers(problem))
    return "; ".join([*([stands.describe()] if stands else []), *said]) or None


def troubles(servers: "Iterable[ServerReport]") -> list[str]:
    """What keeps servers from serving what they should, each once."""
    return list(dict.fromkeys(f"a server reports: {each.error}" for each in servers if each.error))
