"""Find a prediction by id, entity or day, and show all that is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console.templates import segment
from evergreen.flows.console.visits import NotFoundError, Visit, back_to
from evergreen.tasks.core.errors import ParamsError

SHOWN = 200
"""Most predictions of a list."""
HEAD = ("id", "version", "variant", "at", "cutoff", "entity", "label", "label_at")


@dataclass(frozen=True)
class Found:
    """One line of the list."""

    id: str
    entity: str | None
    at: datetime
    version: int | None = None
    prediction: Any = None
    label: Any = None


def show(visit: Visit) -> Response:
    problem = visit.problem
    asked = {"newest": "", **{name: visit.query.get(name, "").strip() for name in ("id", "entity", "day")}}
    if asked["id"]:
        return back_to(f"/problems/{problem}/predictions/{segment(asked['id'])}")
    found, total = list[Found](), 0
    if asked["entity"]:
        found = _of_entity(visit, problem, asked["entity"])
        total = len(found)
    elif asked["day"]:
        found, total = _of_day(visit, problem, _day(asked["day"]))
    else:
        newest = settings.ledger(visit.layout).latest(problem)
        asked["newest"] = f"{newest:%Y-%m-%d}" if newest else ""
    return visit.render("find.html", problem=problem, asked=asked, found=found, total=total, shown=SHOWN)


def show_one(visit: Visit) -> Response:
    """A prediction: version, features, outputs, contributions, label, and the monitoring run that covered it."""
    from evergreen.flows.console import trial
    from evergreen.monitoring.ledger import lookup

    problem, ledger = visit.problem, settings.ledger(visit.layout)
    place = lookup.find_by_id(ledger, problem, visit.path["id"])
    found = lookup.read_one(ledger, problem, place) if place else None
    if place is None or found is None or found.rows.is_empty():
        days = visit.params.section(problem).monitor.retention_days
        raise NotFoundError(f"{problem}: no prediction has the id {visit.path['id'][:80]}; the ledger keeps {days} days")
    row = found.rows.row(0, named=True)
    features = found.features.row(0, named=True) if found.features.width else {}
    outputs = {name: value for name, value in row.items() if name not in HEAD and value is not None}
    runs = [each.decision for each in settings.decision_log(visit.layout).runs(problem)]
    covering = [each for each in runs if each.window.since < place.at <= each.window.until]
    reasons = trial.explain(visit, problem, row["version"], features) if "explain" in visit.query else None
    return visit.render(
        "prediction.html", problem=problem, row=row, features=features, outputs=outputs, runs=covering, reasons=reasons
    )


def _of_entity(visit: Visit, problem: str, entity: str) -> list[Found]:
    from evergreen.monitoring.ledger import lookup

    places = lookup.find_by_entity(settings.ledger(visit.layout), problem, entity, SHOWN)
    return [Found(each.id, each.entity, each.at) for each in places]


def _of_day(visit: Visit, problem: str, day: date) -> tuple[list[Found], int]:
    from evergreen.monitoring.ledger import lookup

    found, total = lookup.read_day(settings.ledger(visit.layout), problem, day, SHOWN)
    return [_line(each) for each in reversed(found.rows.rows(named=True))], total


def _line(row: Mapping[str, Any]) -> Found:
    return Found(row["id"], row["entity"], row["at"], row["version"], row.get("prediction", row.get("items")), row["label"])


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ParamsError(f"day = {text[:40]!r}: is no day; write it as {datetime.now(UTC):%Y-%m-%d}") from None
