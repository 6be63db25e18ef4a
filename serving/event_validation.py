"""Validation of purchase events, from a file or a request: each event is accepted, or rejected with its reason."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from evergreen.serving.event_log import Event, RejectedEvent
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.recommender.interactions import InteractionData
from evergreen.tasks.problems.recommender.online_histories import as_id
from evergreen.tasks.problems.recommender.user_histories import codes, to_ids

CLOCK_SKEW = timedelta(minutes=5)
"""An event may be this far in the future: clocks differ."""
MAX_ID_LENGTH = 255
FIRST_DAY = date(1970, 1, 2)
"""No event is older where the tables have no purchase: a time of 0 is a fault of the sender."""


class EventValidator:
    """Reads the events of one problem by its params and its known users and items.

    An event names user, item, basket, time and place by the column names in params, or as `user`, `item`, `basket`, `time`
    and `place`; also `id` (or `event_id`) and `quantity`. Defaults: basket: one per user and day; time: today
    (project.as_of if params set it); quantity: 1; id: derived from user, basket and item.
    """

    def __init__(self, params: Params, problem: str, data: InteractionData) -> None:
        section = params.section(problem)
        assert section.predicts == "lists"
        self._features, self._source, self._data = section.features, params.ingest[section.features.table], data
        self._today = params.project.as_of or (data.as_of if self._features.order else None)
        columns = {"user": self._features.user, "item": self._features.item, "basket": self._features.basket}
        columns |= {"time": self._source.time, "place": self._features.place, "id": "event_id", "quantity": "quantity"}
        self._first = _first_day(data)
        self._names = {key: (key, name) for key, name in columns.items() if name}

    def validate(
        self, given: Iterable[Mapping[str, Any]], now: datetime | None = None
    ) -> tuple[list[Event], list[RejectedEvent]]:
        """The accepted and the rejected events, each in the given order. `now`: with a time zone; None: the clock."""
        events, rejected, moment = list[Event](), list[RejectedEvent](), now or datetime.now(UTC)
        for each in given:
            try:
                events.append(self._event(each, moment))
            except InvalidEventError as reason:
                rejected.append(RejectedEvent(each, str(reason)))
        return events, rejected

    def _event(self, given: Mapping[str, Any], now: datetime) -> Event:
        value = {key: self._value(given, names) for key, names in self._names.items()}
        user, item = self._user(value["user"]), self._item(value["item"])
        day, at = self._when(value.get("time"), now)
        basket = str(value.get("basket") or f"{user} {day}")
        event = str(value.get("id") or f"{user} {basket} {item}")
        for name, text in (("basket", basket), ("id", event), ("place", str(value.get("place") or ""))):
            if len(text) > MAX_ID_LENGTH:
                raise InvalidEventError(f"{name} = {text[:20]}…: is longer than {MAX_ID_LENGTH} characters")
            if not is_storable(text):
                raise InvalidEventError(f"{name} = {text[:40]!r}: {STORABLE}")
        place = value.get("place")
        quantity = _quantity(value["quantity"])
        return Event(event, str(user), str(item), basket, day, quantity, None if place is None else str(place), at)

    def _value(self, given: Mapping[str, Any], names: Sequence[str]) -> Any:
        found = next((given[name] for name in reversed(names) if given.get(name) is not None), None)
        return None if isinstance(found, float) and math.isnan(found) else found

    def _user(self, value: Any) -> Any:
        if value is None:
            raise InvalidEventError(f"{self._features.user}: is missing; an event needs a user")
        return self._id(self._features.user, value, self._data.histories.users)

    def _item(self, value: Any) -> Any:
        if value is None:
            raise InvalidEventError(f"{self._features.item}: is missing; an event needs an item")
        found = self._id(self._features.item, value, self._items)
        if self._features.items and codes(np.array([found]), self._items)[0] < 0:
            raise InvalidEventError(
                f"{self._features.item} = {value}: is neither in {self._features.items} nor among the purchases"
            )
        return found

    def _id(self, name: str, value: Any, known: np.ndarray) -> Any:
        found = as_id(value, known) if len(known) else value
        if found is None or len(str(found)) > MAX_ID_LENGTH or not is_storable(str(found)):
            example = known[0] if len(known) else "text"
            raise InvalidEventError(f"{name} = {str(value)[:40]}: is not a valid id; ids look like {example}")
        return found

    @cached_property
    def _items(self) -> np.ndarray:
        """Sorted ids of all items: those bought and those of the catalogue."""
        bought = self._data.histories.items
        kind = pl.Int64 if bought.dtype.kind in "iu" else pl.String
        return np.union1d(bought, to_ids(self._data.items_table["item"].cast(kind, strict=False).drop_nulls()))

    def _when(self, value: Any, now: datetime) -> tuple[date, datetime | None]:
        """The local day, like the purchases in the tables, and the moment (UTC) where it is known: without a time, now."""
        local = ZoneInfo(self._source.local_timezone) if self._source.local_timezone else None
        if value is None:
            return self._today or now.astimezone(local or UTC).date(), now.astimezone(UTC)
        name = str(self._source.time or "time")
        day, at, late = self._read_time(read_moment(value, name), now, local)
        if late:
            raise InvalidEventError(f"{name} = {value}: is in the future")
        if day < self._first:
            raise InvalidEventError(f"{name} = {value}: is before {self._first}, the first day of the purchases in the tables")
        return day, at

    def _read_time(
        self, moment: "date | datetime", now: datetime, local: ZoneInfo | None
    ) -> tuple[date, datetime | None, bool]:
        """The local day, the moment (None where only the day is known), and whether it lies in the future."""
        if not isinstance(moment, datetime):
            return moment, None, moment > (now + CLOCK_SKEW).astimezone(local or UTC).date()
        if moment.tzinfo is None:
            stored = ZoneInfo(self._source.stored_timezone) if self._source.stored_timezone else local
            moment = moment.replace(tzinfo=stored or UTC)
        try:
            return moment.astimezone(local or moment.tzinfo).date(), moment.astimezone(UTC), moment > now + CLOCK_SKEW
        except OverflowError:  # at an edge of the calendar
            return moment.date(), None, moment.year > now.year


def _first_day(data: InteractionData) -> date:
    days = data.histories.day
    return date.fromordinal(date(1970, 1, 1).toordinal() + int(days.min())) if len(days) else FIRST_DAY


class InvalidEventError(DataError):
    """Becomes a RejectedEvent."""


STORABLE = "holds NUL or half a character, which a database cannot store"


def is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def read_moment(value: Any, name: str) -> date | datetime:
    """A day, or a time with or without a zone. Raises InvalidEventError for anything else."""
    if isinstance(value, date):
        return value
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidEventError(f"{name} = {str(value)[:40]}: is neither a day (YYYY-MM-DD) nor a time") from None
    return found.date() if len(str(value)) == len("YYYY-MM-DD") and found.time() == time() else found


def _quantity(value: Any) -> float:
    if value is None:
        return 1.0
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InvalidEventError(f"quantity = {str(value)[:40]}: is not a finite number")
    if found < 0:
        raise InvalidEventError(f"quantity = {value}: is below 0; a return is not a purchase")
    return found
