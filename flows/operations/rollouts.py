"""Rollouts from the command line: evaluated by the same function that running servers call."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.flows import settings
from evergreen.flows.operations import status
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import ParamsError, ProjectError, StorageError
from evergreen.tasks.core.paths import Layout, locking, read_json, write_json

if TYPE_CHECKING:
    from evergreen.tasks.release.deployments import Deployment
    from evergreen.tasks.release.rollouts import Rollouts
    from evergreen.tasks.release.server_reports import ServerReport


Act = Literal["pause", "resume", "promote", "abort"]


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


def steer(layout: Layout, problem: str, act: "Act", by: str, reason: str, of: int | None = None) -> None:
    """A person's decision about the rollout in progress; `of`: the id of the rollout that they read, None: any.

    Raises ParamsError without a reason, ModelError where it is not in progress.
    """
    _require_reason(f"rollout {act}", problem, reason)
    rollouts = settings.rollouts(layout)
    if act == "promote":
        rollouts.promote(settings.registry(layout), problem, by, reason, of)
        status.page_after(layout, "the promotion")
    else:
        {"pause": rollouts.pause, "resume": rollouts.resume, "abort": rollouts.abort}[act](problem, by, reason, of)


def roll_back(layout: Layout, problem: str, to: int | None, by: str, reason: str) -> "Deployment":
    """Make an earlier version champion again (`to`; None: the previous champion), or abort the rollout in progress.

    The same call after one that was killed returns its decision and goes no further back. Raises LockedError during a
    training, ParamsError without a reason, ModelError for a version that was never champion.
    """
    _require_reason("rollback", problem, reason)
    with locking(layout.var / "train.lock", "rollback"):
        rollouts, call = settings.rollouts(layout), {"to": to, "by": by, "reason": reason}
        note = layout.var / "rollbacks" / f"{problem}.json"
        decision = _decision_before_kill(rollouts, problem, note, call)
        if decision is None:
            _note_call(rollouts, problem, note, call)
            decision = rollouts.rollback(settings.registry(layout), problem, to, by, reason)
        status.page_after(layout, "the rollback")
        note.unlink(missing_ok=True)
    return decision


def _note_call(rollouts: "Rollouts", problem: str, note: Path, call: dict[str, Any]) -> None:
    """Write down what is about to be done, and after which decision. A full disk does not stop a rollback."""
    rows = rollouts.deployments.numbered(problem)
    with suppress(StorageError, OSError):
        write_json(note, {**call, "after": rows[-1][0] if rows else 0})


def _decision_before_kill(rollouts: "Rollouts", problem: str, note: Path, call: dict[str, Any]) -> "Deployment | None":
    """The decision of the same call, if it was recorded, its process ended before the page was there, and it is the newest."""
    try:
        noted = read_json(note)
    except (OSError, ProjectError):
        return None
    rows = rollouts.deployments.numbered(problem)
    if not rows or noted != {**call, "after": noted.get("after")} or rows[-1][0] <= noted["after"]:
        return None
    newest = rows[-1][1]
    mine = newest.action in ("rollback", "abort") and (newest.by, newest.reason) == (call["by"], call["reason"])
    return newest if mine else None


def _require_reason(what: str, problem: str, reason: str) -> None:
    if not reason.strip():
        raise ParamsError(f"{what} {problem}: needs a reason (--reason), which is kept in the history")


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
