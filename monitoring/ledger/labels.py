"""Labels of predictions: uploaded in a file, or read from the project's data once the horizon has passed."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, cast

import polars as pl

from evergreen.monitoring.ledger.label_matching import Label, LabelCounts, RejectedLabel
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.schema import EPOCH, to_utc
from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data import received_events
from evergreen.tasks.problems.prediction_type import Labelled, PredictionType

RECHECK = timedelta(days=28)
"""Labels known for less than this are read again: rows arrive late, and rows are corrected."""

ID = ("id", "prediction_id")
LABEL = ("label", "target", "truth", "value")
TIME = ("cutoff", "at", "time")
KNOWN = ("known_at",)
"""Usual column names in a file of labels, where neither params nor the caller names one."""
OPTIONS = {"value": "label", "at": "time", "known_at": "known"}
"""Field of a label -> field of Columns, where the name differs."""
FIELDS = ("at", "entity", "id", "known_at", "value")
CLOCK_DIFFERENCE = timedelta(days=1)
"""So far ahead another clock may be."""


def collect(params: Params, problem: str, layout: Layout, ledger: Ledger, as_of: date) -> int:
    """Write the labels of predictions in `ledger` whose horizon had passed at the end of `as_of`.

    Returns the number of new and changed labels. A label covers the days 1 to `horizon_days` after the cutoff, or after the day
    of the request; that of a served list begins with the request. Targets come from data/tables, so predictions may be of any
    day; purchases of a recommender's users come from its features. A label is known at the end of its last day, or after
    monitor.label_delay_days. A problem of a plain table, and one without target, has no labels here.
    """
    section, kind = params.section(problem), problems.predictions(params.kind(problem))
    horizon = section.features.label_horizon_days
    if horizon is None or not isinstance(kind, Labelled):
        return 0
    after = timedelta(days=max(horizon, section.monitor.label_delay_days or 0))
    since = as_of - after - RECHECK
    asked = ledger.unlabelled(problem, until=as_of - after, recheck_after=since, moments=kind.labelled_by_moment)
    if asked.is_empty():
        return 0
    tables = {name: layout.table(name) for name in section.features.tables}
    times = {name: params.ingest[name].time for name in tables}
    if kind.labelled_by_moment:
        asked = _with_local_days(asked, [params.ingest[name].local_timezone for name in tables])
        if (received := layout.table(received_events.table_name(problem))).is_file():
            tables[received_events.RECEIVED] = received
    with problems.naming(problem):
        found = kind.find_labels(asked, section, tables, times, layout.features(problem), as_of)
    counts = ledger.add_labels(
        problem,
        [
            Label(value, entity=entity, at=at, known_at=datetime.combine(_day(at) + after, time.max, UTC))
            for entity, at, value in found
        ],
    )
    return counts.matched + counts.pending + counts.changed


def _with_local_days(asked: pl.DataFrame, zones: Iterable[str | None]) -> pl.DataFrame:
    """The day of each moment is that of the first zone, as in the tables."""
    zone = next((each for each in zones if each), "UTC")
    return asked.with_columns(day=pl.coalesce(pl.col("at").dt.convert_time_zone(zone).dt.date(), "day"))


def _day(at: date) -> date:
    return at.date() if isinstance(at, datetime) else at


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

    See `write`. Raises DataError where a needed column is missing.
    """
    _require_labels(problem, kind)
    chosen = _choose(rows, section, columns)
    return write(
        ledger, problem, kind, rows.select(pl.col(each).alias(name) for name, each in chosen.items()).iter_rows(named=True)
    )


def _choose(rows: pl.DataFrame, section: Problem, asked: Columns) -> dict[str, str]:
    """label, id, entity, time and known -> the column of `rows`. Raises DataError where one is missing."""
    features, entity = section.features, section.features.entity
    usual = {
        "value": (*LABEL, features.target_column),
        "id": ID,
        "entity": (entity,),
        "at": (*TIME, features.time_column),
        "known_at": KNOWN,
    }
    found = dict[str, str]()
    for role, names in usual.items():
        option = OPTIONS.get(role, role)
        if (named := getattr(asked, option)) is not None:
            if named not in rows.columns:
                raise DataError(f"--{option} {named}: no such column{nearest(named, rows.columns)}")
            found[role] = named
        elif there := [name for name in names if name in rows.columns]:
            found[role] = there[0]
    shown = ", ".join(rows.columns) or "(none)"
    if "value" not in found:
        raise DataError(f"columns {shown}: none is called {', '.join(filter(None, usual['value']))}; name it with --label")
    if "id" not in found and not {"entity", "at"} <= found.keys():
        raise DataError(
            f"columns {shown}: which prediction is a row about? It needs id, or {entity or 'an entity (--entity)'} and cutoff "
            "or at; name them with --id, or --entity and --time"
        )
    return found


# Of any source


def write(
    ledger: Ledger, problem: str, kind: PredictionType, rows: Iterable[object], now: datetime | None = None
) -> LabelCounts:
    """Write labels as people and programs send them: over HTTP and from files alike.

    `rows`: mappings with FIELDS: `value`, and `id` or `entity` and `at`; `known_at`: since when the label is known, None: now.
    Days and times are dates or ISO 8601 texts. One that cannot be true is rejected by its place from 0, with the rule, and
    hides no other; the newest of these are kept (ledger.rejected_labels). Raises ParamsError for a kind without labels.
    """
    labelled, now = _require_labels(problem, kind), now or datetime.now(UTC)
    outputs = ledger.output_names(problem)
    found, rejected = dict[int, Label](), dict[int, str]()
    rows = list(rows)
    for place, row in enumerate(rows):
        try:
            found[place] = _parse(row, labelled, outputs, now)
        except ValueError as error:
            rejected[place] = str(error)
    rejected |= _contradictions(found)
    rejected |= _known_too_early(ledger, problem, {place: each for place, each in found.items() if place not in rejected})
    places = [place for place in found if place not in rejected]
    counts = ledger.add_labels(problem, [found[place] for place in places])
    rejected |= {places[each.index]: each.reason for each in counts.rejected}
    if rejected:
        ledger.keep_rejected_labels(problem, [(rows[place], rejected[place]) for place in sorted(rejected)])
    return replace(counts, rejected=tuple(RejectedLabel(place, rejected[place]) for place in sorted(rejected)))


def _require_labels(problem: str, kind: PredictionType) -> Labelled:
    if not isinstance(kind, Labelled):
        raise ParamsError(f"{problem}: is a problem of {kind.name}, which has no labels; name another problem")
    return kind


def _parse(row: object, kind: Labelled, outputs: Collection[str], now: datetime) -> Label:
    """Raises ValueError with the rule for an invalid row."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{row!s:.40}: is no label; a label is an object with {', '.join(FIELDS)}")
    given = cast("Mapping[str, Any]", row)
    for name in given:
        if name not in FIELDS:
            raise ValueError(f"{name:.40}: unknown field; a label has {', '.join(FIELDS)}")
    id_, entity = (_key(name, given.get(name)) for name in ("id", "entity"))
    at, known = (_moment(name, given.get(name), now) for name in ("at", "known_at"))
    if id_ is None and (entity is None or at is None):
        raise ValueError("names no prediction: it needs an id, or an entity and a time")
    value = kind.parse_label(given.get("value"), outputs)
    known_at = datetime.combine(known, time.max, UTC) if known is not None and not isinstance(known, datetime) else known
    if at is not None and known_at is not None and known_at < _begin(at):
        raise ValueError(f"known_at = {known}: lies before its prediction, of {at}")
    return Label(value, id=id_, entity=entity, at=at, known_at=known_at)


def _key(name: str, given: Any) -> str | None:
    """7 and 7.0 are the same one."""
    if given is None or given == "":
        return None
    if isinstance(given, bool) or not isinstance(given, str | int | float) or given != given:
        raise ValueError(f"{name} = {given!s:.40}: must be a text or a number")
    whole = isinstance(given, float) and given.is_integer()
    text = str(int(given) if whole else given).strip()
    if "\0" in text or any("\ud800" <= mark <= "\udfff" for mark in text):
        raise ValueError(f"{name} = {text!a:.40}: holds a NUL or half a character, which no database stores")
    return text


def _moment(name: str, given: Any, now: datetime) -> datetime | date | None:
    """A naive moment is UTC."""
    if given is None or given == "":
        return None
    found = given
    if not isinstance(given, date):
        text = str(given).strip()
        try:
            found = date.fromisoformat(text) if len(text) == len("YYYY-MM-DD") else datetime.fromisoformat(text)
        except ValueError:
            rule = "is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM:SS)"
            raise ValueError(f"{name} = {text:.40}: {rule}") from None
    if not EPOCH.year <= found.year <= now.year + 1 or _begin(found) > now + CLOCK_DIFFERENCE:
        raise ValueError(f"{name} = {given!s:.40}: lies in the future or before {EPOCH.year}")
    return found


def _begin(moment: datetime | date) -> datetime:
    return to_utc(moment) if isinstance(moment, datetime) else datetime.combine(moment, time.min, UTC)


def _contradictions(found: Mapping[int, Label]) -> dict[int, str]:
    """Labels of one batch for one prediction, of different values and known at the same time: nothing shows which is true."""
    places = defaultdict[object, list[int]](list)
    for place, each in found.items():
        key = (each.id,) if each.id is not None else (each.entity, str(each.at))
        places[key, each.known_at].append(place)
    rejected = dict[int, str]()
    for same in places.values():
        if any(found[place].value != found[same[0]].value for place in same):
            rule = "another label of this batch contradicts it; send one of them, or known_at with each"
            rejected |= {place: f"value = {found[place].value!s:.40}: {rule}" for place in same}
    return rejected


def _known_too_early(ledger: Ledger, problem: str, found: Mapping[int, Label]) -> dict[int, str]:
    """Labels by id that were known before the prediction was made."""
    dated = {
        place: (each.id, to_utc(each.known_at))
        for place, each in found.items()
        if each.id is not None and each.known_at is not None
    }
    made = ledger.made_at(problem, (id_ for id_, _ in dated.values()))
    return {
        place: f"known_at = {known}: lies before its prediction, of {made[id_]}"
        for place, (id_, known) in dated.items()
        if id_ in made and known < made[id_]
    }
