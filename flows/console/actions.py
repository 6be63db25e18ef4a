"""What a visitor decides: each action asks for a reason and calls what the command line calls."""

from typing import TypeVar, get_args

from starlette.responses import Response

from evergreen.flows.console import commands
from evergreen.flows.console.visits import Visit, back_to, whole_number
from evergreen.flows.operations import rollouts, suggestions
from evergreen.monitoring.ledger.suggestions import Action
from evergreen.tasks.core.errors import ParamsError

T = TypeVar("T", bound=str)


def answer_suggestion(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    action = _choice(visit, "action", get_args(Action))
    days = whole_number("days", visit.form.get("days", "")) if action == "snooze" else 0
    if action == "approve":
        suggestions.require(visit.layout, visit.params, problem)
        commands.start_once(visit.layout, problem, visit.visitor.name, ["suggestion", "approve", problem, f"--reason={reason}"])
    else:
        suggestions.answer(visit.layout, visit.params, problem, action, visit.visitor.name, reason, days or 0)
    return back_to(f"/problems/{problem}")


def steer_rollout(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    act = _choice(visit, "action", get_args(rollouts.Act))
    rollouts.steer(visit.layout, problem, act, visit.visitor.name, reason)
    return back_to(f"/problems/{problem}")


def roll_back(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    rollouts.roll_back(visit.layout, problem, whole_number("to", visit.form.get("to", "")), visit.visitor.name, reason)
    return back_to(f"/problems/{problem}")


def retrain(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    if _choice(visit, "action", ("start", "cancel")) == "cancel":
        commands.start(visit.layout, problem, visit.visitor.name, ["retrain", problem, "--cancel", f"--reason={reason}"])
    else:
        commands.start_once(visit.layout, problem, visit.visitor.name, ["retrain", problem, f"--reason={reason}"])
    return back_to(f"/problems/{problem}")


def _reason(visit: Visit) -> str:
    """One line of printable text. Raises ParamsError without one."""
    words = ("".join(each for each in word if each.isprintable()) for word in visit.form.get("reason", "").split())
    reason = " ".join(filter(None, words))
    if not reason:
        raise ParamsError("reason: empty; say why, for the history")
    return reason[:2_000]


def _choice(visit: Visit, name: str, allowed: tuple[T, ...]) -> T:
    given = visit.form.get(name, "")
    for each in allowed:
        if each == given:
            return each
    raise ParamsError(f"{name} = {given[:40]!r}: must be one of {', '.join(allowed)}")
