"""What a visitor decides: each action asks for a reason and calls what the command line calls."""

from typing import TypeVar, get_args

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console import commands
from evergreen.flows.console.visits import Visit, back_to, whole_number
from evergreen.flows.operations import rollouts, suggestions
from evergreen.monitoring.ledger.suggestions import Action
from evergreen.tasks.core.errors import ParamsError, ProjectError

T = TypeVar("T", bound=str)


def answer_suggestion(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    action = _choice(visit, "action", get_args(Action))
    decided = visit.form.get("of", "")
    days = whole_number("days", visit.form.get("days", "")) if action == "snooze" else 0
    if action == "approve":
        suggestions.require(visit.layout, visit.params, problem, decided)
        commands.start_once(visit.layout, problem, visit.visitor.name, ["suggestion", "approve", problem, f"--reason={reason}"])
    else:
        suggestions.answer(visit.layout, visit.params, problem, action, visit.visitor.name, reason, days or 0, decided)
    return back_to(f"/problems/{problem}")


def steer_rollout(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    act = _choice(visit, "action", get_args(rollouts.Act))
    rollouts.steer(visit.layout, problem, act, visit.visitor.name, reason, whole_number("of", visit.form.get("of", "")))
    return back_to(f"/problems/{problem}")


def roll_back(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    rollouts.roll_back(visit.layout, problem, whole_number("to", visit.form.get("to", "")), visit.visitor.name, reason)
    return back_to(f"/problems/{problem}")


def retrain(visit: Visit) -> Response:
    problem, reason = visit.problem, _reason(visit)
    if _choice(visit, "action", ("start", "cancel")) == "cancel":
        _require_unfinished(visit, problem)
        commands.start(visit.layout, problem, visit.visitor.name, ["retrain", problem, "--cancel", f"--reason={reason}"])
    else:
        commands.start_once(visit.layout, problem, visit.visitor.name, ["retrain", problem, f"--reason={reason}"])
    return back_to(f"/problems/{problem}")


def _require_unfinished(visit: Visit, problem: str) -> None:
    """Raises ProjectError where the retraining that the visitor read has ended: what runs now is another one."""
    known = {each.id for each in settings.decision_log(visit.layout).unfinished([problem])}
    if (read := visit.form.get("of", "")) and read not in known:
        raise ProjectError(f"{problem}: that retraining has ended: nothing was cancelled; reload the page to see what runs now")


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
