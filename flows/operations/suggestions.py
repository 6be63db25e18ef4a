"""Suggested retrainings: which one waits for an answer, and the answers."""

from datetime import UTC, datetime, timedelta
from typing import Any

from evergreen.flows import settings
from evergreen.monitoring.ledger import suggestions
from evergreen.monitoring.ledger.decisions import MonitoringRun
from evergreen.monitoring.ledger.suggestions import Action, Answer
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout

LONGEST_SNOOZE_DAYS = 365


def pending(layout: Layout, params: Params, problem: str) -> MonitoringRun | None:
    """The monitoring run whose suggestion waits for an answer; None: there is none, or retraining is automatic."""
    if params.section(problem).retrain.mode != "suggest":
        return None
    log = settings.decision_log(layout)
    newest = log.runs(problem, last=1)
    answers = settings.suggestions(layout).answers(problem)
    return suggestions.pending(newest[-1] if newest else None, log.retrainings(problem), answers, datetime.now(UTC))


def require(layout: Layout, params: Params, problem: str, decided: str = "") -> MonitoringRun:
    """The same. `decided`: the moment of the decision that somebody read, as its text; "": any.

    Raises ProjectError where no suggestion waits for an answer, or another one than they read.
    """
    run = pending(layout, params, problem)
    if run is None:
        raise _none_waits(problem)
    if decided not in ("", f"{run.decision.at}"):
        raise ProjectError(f"{problem}: a newer suggestion, of {run.decision.at:%Y-%m-%d %H:%M} UTC, waits: read it first")
    return run


def answer(
    layout: Layout, params: Params, problem: str, action: Action, by: str, reason: str, days: int = 0, decided: str = ""
) -> Answer:
    """Record the answer to the suggestion of a problem.

    `days`: of a snooze, 1 to LONGEST_SNOOZE_DAYS. Raises what `require` raises, and ParamsError for an empty reason or other
    days.
    """
    if not reason.strip():
        raise ParamsError(f"{problem}: {action}: needs a reason, which is kept in the history")
    if action == "snooze" and not 1 <= days <= LONGEST_SNOOZE_DAYS:
        raise ParamsError(f"{problem}: snooze: days = {days}: must be from 1 to {LONGEST_SNOOZE_DAYS}")
    run = require(layout, params, problem, decided)
    now = datetime.now(UTC)
    until = now + timedelta(days=days) if action == "snooze" else None
    made = Answer(problem=problem, decided=run.decision.at, action=action, until=until, by=by, at=now, reason=reason.strip())
    retrainings = settings.decision_log(layout).retrainings(problem)
    if not settings.suggestions(layout).add(made, lambda known: bool(suggestions.pending(run, retrainings, known, now))):
        raise _none_waits(problem)
    return made


def _none_waits(problem: str) -> ProjectError:
    return ProjectError(f"{problem}: no suggestion waits for an answer; evergreen why {problem} shows the newest decision")


def retraining_arguments(params: Params, run: MonitoringRun, by: str, reason: str) -> dict[str, Any]:
    """Arguments of the retraining flow for a suggestion that `by` approved."""
    from evergreen.flows.retraining import request_for

    wanted = request_for(params, run.decision)
    decision = {"id": wanted.id, "at": f"{wanted.at}", "trigger": wanted.trigger, "as_of": wanted.as_of and f"{wanted.as_of}"}
    return {"reason": f"{wanted.reason}; approved: {reason}", "decision": decision, "by": by}
