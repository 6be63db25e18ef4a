"""Validation of rows of tables received as events: each is accepted, or rejected with its reason."""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, tzinfo
from typing import Any, cast
from zoneinfo import ZoneInfo

import polars as pl

from evergreen.serving import column_rules
from evergreen.serving.event_log import RejectedEvent
from evergreen.serving.event_validation import CLOCK_SKEW, MAX_ID_LENGTH, InvalidEventError, is_storable, read_moment
from evergreen.serving.row_log import ReceivedRow
from evergreen.tasks.config.params import Params, Source
from evergreen.tasks.core.errors import RequestError
from evergreen.tasks.core.suggestions import nearest

KEYS = ("table", "id", "row")


class RowValidator:
    """Reads events {table, id, row} by the contracts of `tables`: table -> its columns. `entity`: a column of each. `zone`: of
    the days.

    `row` has the columns of the table; one that it lacks is missing, and its time is by default now. `table` may be left out
    where there is one. `id` is by default made of the columns that `validate.TABLE.unique` names.
    """

    def __init__(self, params: Params, entity: str, tables: Mapping[str, pl.Schema], zone: tzinfo) -> None:
        self._params, self._entity, self._tables, self._zone = params, entity, tables, zone
        self._rules = {name: column_rules.of_table(params, name) for name in tables}

    def validate(self, given: Iterable[Mapping[str, Any]], now: datetime) -> tuple[list[ReceivedRow], list[RejectedEvent]]:
        """The accepted and the rejected events, each in the given order. `now`: with a time zone."""
        rows, rejected = list[ReceivedRow](), list[RejectedEvent]()
        for each in given:
            try:
                rows.append(self._read(each, now))
            except (InvalidEventError, RequestError) as reason:
                rejected.append(RejectedEvent(each, str(reason)))
        return rows, rejected

    def _read(self, given: Mapping[str, Any], now: datetime) -> ReceivedRow:
        if unknown := [name for name in given if name not in KEYS]:
            raise InvalidEventError(f"{unknown[0]}: unknown key; an event has {', '.join(KEYS)}")
        table, row = self._table(given.get("table")), given.get("row")
        if not isinstance(row, dict):
            raise InvalidEventError(f"row: must be an object with the columns of {table}")
        found = self._columns(table, cast("dict[str, Any]", row), now)
        unique = self._params.validate_[table].unique
        for name in (self._entity, *unique):
            if found[name] is None:
                raise InvalidEventError(f"{name}: is missing; a row of {table} needs it")
        for name, rules in self._rules[table].items():
            for rule in rules:
                if name in found and not rule.holds(found[name]):
                    raise RequestError(name, rule.text, found[name])
        own = " ".join([table, *(str(found[name]) for name in unique)])
        id_ = own if given.get("id") is None else given["id"]
        if not isinstance(id_, str) or not 0 < len(id_) <= MAX_ID_LENGTH or not is_storable(id_):
            raise InvalidEventError(f"id = {str(id_)[:40]!r}: must be a text of 1 to {MAX_ID_LENGTH} characters")
        return ReceivedRow(id_, table, json.dumps(found))

    def _table(self, name: Any) -> str:
        if name is None and len(self._tables) == 1:
            return next(iter(self._tables))
        if not isinstance(name, str) or name not in self._tables:
            raise InvalidEventError(f"table = {str(name)[:40]}: must be one of {', '.join(self._tables)}")
        return name

    def _columns(self, table: str, row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
        """Each column of the table with its value, as JSON."""
        schema, source, as_of = self._tables[table], self._params.ingest[table], self._params.project.as_of
        if unknown := [name for name in row if name not in schema]:
            raise InvalidEventError(f"{unknown[0]}: unknown column of {table}{nearest(unknown[0], schema)}")
        if source.time and row.get(source.time) is None:
            row = {**row, source.time: str(as_of or now.astimezone(self._zone).replace(tzinfo=None).isoformat())}
            source = source.model_copy(update={"stored_timezone": None})  # it is local
        found = {name: _as_json(name, row.get(name), kind, source) for name, kind in schema.items()}
        if source.time and found[source.time][:10] > str(as_of or (now + CLOCK_SKEW).astimezone(self._zone).date()):
            rule = f"is after project.as_of, {as_of}" if as_of else "is in the future"
            raise InvalidEventError(f"{source.time} = {row[source.time]}: {rule}")
        return found


def _as_json(name: str, value: Any, kind: pl.DataType, source: Source) -> Any:
    """The value if the column's type takes it; a time as local time without a zone, as the tables have it."""
    if value is None:
        return None
    if kind.is_temporal():
        wanted, fits = "a day or a time", type(value) is str
        if fits:
            moment = _to_local(read_moment(value, name), source)
            return (moment.date() if kind == pl.Date else moment).isoformat()
    elif kind.is_integer():
        wanted, fits = "a whole number", type(value) is int and abs(value) < 2**63
    elif kind.is_float():
        wanted, fits = "a finite number", type(value) in (int, float) and math.isfinite(value)
    elif kind == pl.Boolean:
        wanted, fits = "true or false", type(value) is bool
    else:
        wanted, fits = "a text without NUL", type(value) is str and is_storable(value)
    if not fits:
        raise InvalidEventError(f"{name} = {str(value)[:40]}: must be {wanted}")
    return value


def _to_local(moment: date | datetime, source: Source) -> datetime:
    if not isinstance(moment, datetime):
        return datetime.combine(moment, time())
    if moment.tzinfo is None and source.stored_timezone:
        moment = moment.replace(tzinfo=ZoneInfo(source.stored_timezone))
    if moment.tzinfo is not None and source.local_timezone:
        moment = moment.astimezone(ZoneInfo(source.local_timezone))
    return moment.replace(tzinfo=None)
