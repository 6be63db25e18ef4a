"""Labels of predictions: uploaded in a file, or read from the project's data once the horizon has passed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl

from evergreen.monitoring.ledger.label_matching import Label, LabelCounts, RejectedLabel
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.prediction_type import Labelled, PredictionType

RECHECK = timedelta(days=28)
"""Labels known for less than this are read again: rows arrive late, and rows are corrected."""

ID = ("id", "prediction_id")
LABEL = ("label", "target", "truth", "value")
TIME = ("cutoff", "at", "time")
KNOWN = ("known_at",)
"""Usual column names in a file of labels, where neither params nor the caller names one."""


def collect(params: Params, problem: str, layout: Layout, ledger: Ledger, as_of: date) -> int:
    """Write the labels of predictions in `ledger` whose horizon had passed at the end of `as_of`.

    Returns the number of new and changed labels. A label covers the days 1 to `horizon_days` after the cutoff, or after the day
    of the request. Targets come from data/tables, so predictions may be of any day; purchases of a recommender's users come
    from its features. A label is known at the end of its last day, or after monitor.label_delay_days. A problem of a plain
    table, and one without target, has no labels here.
    """
    section, kind = params.section(problem), problems.predictions(params.kind(problem))
    horizon = section.features.label_horizon_days
    if horizon is None or not isinstance(kind, Labelled):
        return 0
    after = timedelta(days=max(horizon, section.monitor.label_delay_days or 0))
    asked = ledger.unlabelled(problem, until=as_of - after, recheck_after=as_of - after - RECHECK)
    if asked.is_empty():
        return 0
    tables = {name: layout.table(name) for name in section.features.tables}
    times = {name: params.ingest[name].time for name in tables}
    with problems.naming(problem):
        found = kind.find_labels(asked, section, tables, times, layout.features(problem), as_of)
    counts = ledger.add_labels(
        problem,
        [
            Label(value, entity=entity, at=day, known_at=datetime.combine(day + after, time.max, UTC))
            for entity, day, value in found
        ],
    )
    return counts.matched + counts.pending + counts.changed


# Of a file


@dataclass(frozen=True)
class Columns:
    """The columns of a file of labels. None: by their usual names and by those in params."""

    label: str | None = None
    id: str | None = None
    entity: str | None = None
    time: str | None = None
    known: str | None = None


def label(
    ledger: Ledger, problem: str, kind: PredictionType, section: Problem, rows: pl.DataFrame, columns: Columns = Columns()
) -> LabelCounts:
    """Write the labels of a file: each row names its prediction by id, or by entity and time, and holds its label.

    Invalid rows are rejected one by one, by their place from 0. Raises DataError where a needed column is missing, ParamsError
    for a kind without labels.
    """
    if not isinstance(kind, Labelled):
        raise ParamsError(f"{problem}: is a problem of {kind.name}, which has no labels; name another problem")
    chosen = _choose(rows, section, columns)
    found, places, rejected = list[Label](), list[int](), list[RejectedLabel]()
    for place, row in enumerate(rows.select(pl.col(each).alias(name) for name, each in chosen.items()).iter_rows(named=True)):
        try:
            found.append(_parse(row, kind))
            places.append(place)
        except ValueError as error:
            rejected.append(RejectedLabel(place, str(error)))
    counts = ledger.add_labels(problem, found)
    rejected += [RejectedLabel(places[each.index], each.reason) for each in counts.rejected]
    return replace(counts, rejected=tuple(sorted(rejected, key=lambda each: each.index)))


def _choose(rows: pl.DataFrame, section: Problem, asked: Columns) -> dict[str, str]:
    """label, id, entity, time and known -> the column of `rows`. Raises DataError where one is missing."""
    features, entity = section.features, section.features.entity
    usual = {
        "label": (*LABEL, features.target_column),
        "id": ID,
        "entity": (entity,),
        "time": (*TIME, features.time_column),
        "known": KNOWN,
    }
    found = dict[str, str]()
    for role, names in usual.items():
        if (named := getattr(asked, role)) is not None:
            if named not in rows.columns:
                raise DataError(f"--{role} {named}: no such column{nearest(named, rows.columns)}")
            found[role] = named
        elif there := [name for name in names if name in rows.columns]:
            found[role] = there[0]
    shown = ", ".join(rows.columns) or "(none)"
    if "label" not in found:
        raise DataError(f"columns {shown}: none is called {', '.join(filter(None, usual['label']))}; name it with --label")
    if "id" not in found and not {"entity", "time"} <= found.keys():
        raise DataError(
            f"columns {shown}: which prediction is a row about? It needs id, or {entity or 'an entity (--entity)'} and cutoff "
            "or at; name them with --id, or --entity and --time"
        )
    return found


def _parse(row: Mapping[str, Any], kind: Labelled) -> Label:
    """Raises ValueError with the reason for an invalid row."""
    named = {name: _key(row.get(name)) for name in ("id", "entity")}
    known = _moment("known_at", row.get("known"))
    if known is not None and not isinstance(known, datetime):
        known = datetime.combine(known, time.max)
    return Label(kind.parse_label(row["label"]), **named, at=_moment("time", row.get("time")), known_at=known)


def _key(given: Any) -> str | None:
    """7 and 7.0 are the same one."""
    whole = isinstance(given, float) and given.is_integer()
    return None if given is None else str(int(given) if whole else given).strip()


def _moment(name: str, given: Any) -> datetime | date | None:
    if given is None or isinstance(given, date):
        return given
    text = str(given).strip()
    try:
        return date.fromisoformat(text) if len(text) == len("YYYY-MM-DD") else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name} = {text:.40}: is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM:SS)") from None
