"""The history of a problem: every decision, monitoring run and retraining, and who was champion at a moment."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console.visits import Visit
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.release.deployments import MOVES

LEVELS = {"deploy": "good", "promote": "good", "refuse": "idle", "abort": "watch", "rollback": "watch"}


@dataclass(frozen=True)
class Entry:
    at: datetime
    """UTC."""
    what: str
    version: int | None
    by: str
    reason: str
    level: str


@dataclass(frozen=True)
class Reign:
    """A time during which one version was champion."""

    version: int
    since: datetime
    until: datetime
    left: float
    """Of the timeline, in percent."""
    width: float


def show(visit: Visit) -> Response:
    problem = visit.problem
    entries = sorted(_entries(visit, problem), key=lambda each: each.at, reverse=True)
    moment = _moment(visit.query.get("at", ""))
    deployments = settings.deployments(visit.layout)
    champion = deployments.champion(problem, moment)
    until = moment or datetime.now(UTC)
    arrival = next((each for each in entries if each.at <= until and each.what in MOVES and each.version == champion), None)
    template = "moment.html" if visit.partial else "history.html"
    reigns = _reigns(visit, problem)
    return visit.render(
        template,
        problem=problem,
        entries=[each for each in entries if moment is None or each.at <= moment],
        champion=champion,
        arrival=arrival,
        moment=moment,
        reigns=reigns,
        first=reigns[0].since.date() if reigns else None,
        days=(datetime.now(UTC).date() - reigns[0].since.date()).days if reigns else 0,
    )


def _entries(visit: Visit, problem: str) -> Iterator[Entry]:
    for each in settings.deployments(visit.layout).history(problem):
        yield Entry(each.at, each.action, each.version, each.by, each.reason, LEVELS.get(each.action, "idle"))
    log = settings.decision_log(visit.layout)
    for run in log.runs(problem):
        decision = run.decision
        alarm = decision.retrain or decision.window.drift.alarm
        what = "monitoring: retrain" if decision.retrain else "monitoring: alarm" if alarm else "monitoring"
        yield Entry(decision.at, what, decision.window.version, "monitoring", decision.reason, "watch" if alarm else "good")
    for each in log.retrainings(problem):
        yield Entry(each.started, "retrain", None, each.by, each.reason, "idle")
        if each.ended:
            level = "good" if each.promoted else "idle"
            yield Entry(each.ended, "retrained", each.version, each.by, each.outcome or "", level)
    for answer in settings.suggestions(visit.layout).answers(problem):
        until = f", until {answer.until:%Y-%m-%d}" if answer.until else ""
        yield Entry(answer.at, f"suggestion: {answer.action}{until}", None, answer.by, answer.reason, "idle")


def _reigns(visit: Visit, problem: str) -> list[Reign]:
    decisions = settings.deployments(visit.layout).history(problem)
    moves = sorted((each for each in decisions if each.action in MOVES), key=lambda each: each.at)
    if not moves:
        return []
    ends = [*(each.at for each in moves[1:]), datetime.now(UTC)]
    begin, whole = moves[0].at, max((ends[-1] - moves[0].at).total_seconds(), 1.0)
    return [
        Reign(
            each.version,
            each.at,
            end,
            100 * (each.at - begin).total_seconds() / whole,
            100 * (end - each.at).total_seconds() / whole,
        )
        for each, end in zip(moves, ends, strict=True)
    ]


def _moment(text: str) -> datetime | None:
    """The end of a day, or a moment; None for an empty text."""
    if not text.strip():
        return None
    try:
        if len(text) == len("YYYY-MM-DD"):
            return datetime.combine(date.fromisoformat(text), time.max, UTC)
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        example = f"{datetime.now(UTC) - timedelta(days=7):%Y-%m-%d}"
        raise ParamsError(f"at = {text[:40]!r}: is neither a day nor a time; write {example}") from None
