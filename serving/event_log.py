"""Purchase events received since the tables were read, in a database. Each event is stored once.

Rejected events are stored with their reason. Histories survive a restart because every process reads this log.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.tasks.core import database

METADATA = sa.MetaData()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("id", sa.String(255), nullable=False),
    sa.Column("user", sa.String(255), nullable=False),
    sa.Column("item", sa.String(255), nullable=False),
    sa.Column("basket", sa.String(255), nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("quantity", sa.Float, nullable=False),
    sa.Column("place", sa.String(255)),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("problem", "id"),
)
REJECTED = sa.Table(
    "rejected_events",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False, index=True),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
)
STATEMENT_ROWS = 500
"""Rows per statement: databases limit the number of bound values."""
ATTEMPTS = 20
"""Attempts to insert when concurrent writers insert the same events."""
OVERLAP = 1_000
"""A reader reads this many numbers again: of two concurrent writers, the one with the later number may commit first."""
SCHEMA = {"user": pl.String, "basket": pl.String, "item": pl.String, "day": pl.Date}

Position = tuple[int, int]
"""Progress of a reader: the highest number read, and the count of events within OVERLAP before it."""
START: Position = (0, 0)


@dataclass(frozen=True)
class Event:
    """One line of a basket."""

    id: str
    """Idempotency key: a second event with the same id changes nothing."""
    user: str
    item: str
    basket: str
    day: date
    quantity: float
    place: str | None


@dataclass(frozen=True)
class RejectedEvent:
    """An event as it was received, and why it was rejected."""

    event: Mapping[str, Any]
    reason: str


class EventLog:
    """The events, in tables at the SQLAlchemy `address`. Creates missing tables, and the folder of an SQLite file.

    Raises ProjectError if the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "events", METADATA)

    def append(self, problem: str, events: Sequence[Event], rejected: Sequence[RejectedEvent] = ()) -> list[Event]:
        """Insert all or none. Returns the events that were new; of two with the same id the first wins."""
        first = {event.id: event for event in reversed(events)}
        distinct = [event for event in events if first[event.id] is event]
        for attempt in range(ATTEMPTS):
            try:
                return self._append(problem, distinct, rejected)
            except IntegrityError as error:  # a concurrent writer inserted one of them; the next attempt sees it
                if attempt == ATTEMPTS - 1:
                    raise database.unusable(self._engine, "events", error) from error
        raise AssertionError

    def _append(self, problem: str, events: Sequence[Event], rejected: Sequence[RejectedEvent]) -> list[Event]:
        common = {"problem": problem, "recorded": datetime.now(UTC)}
        with self._transaction() as connection:
            known = set[str]()
            for part in _parts([event.id for event in events]):
                query = sa.select(EVENTS.c.id).where(EVENTS.c.problem == problem, EVENTS.c.id.in_(part))
                known |= set(connection.execute(query).scalars())
            new = [event for event in events if event.id not in known]
            ordered = sorted(new, key=lambda event: event.id)  # one lock order for all writers: no deadlock
            for part in _parts([{**asdict(event), **common} for event in ordered]):
                connection.execute(sa.insert(EVENTS), part)
            rows = [{"event": json.dumps(dict(each.event), default=str), "reason": each.reason, **common} for each in rejected]
            for part in _parts(rows):
                connection.execute(sa.insert(REJECTED), part)
        return new

    def since(self, problem: str, position: Position = START) -> tuple[pl.DataFrame, Position]:
        """Events after `position`, one row per event (user, basket, item, day), and the new position.

        The frame may repeat up to OVERLAP earlier events; readers skip those they know.
        """
        columns = [EVENTS.c[name] for name in SCHEMA]
        query = sa.select(EVENTS.c.number, *columns).where(*_after(problem, position)).order_by("number")
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        newest = max(position[0], rows[-1][0]) if rows else position[0]
        near = sum(row[0] > newest - OVERLAP for row in rows)
        return pl.DataFrame([tuple(row[1:]) for row in rows], schema=SCHEMA, orient="row"), (newest, near)

    def position(self, problem: str, position: Position = START) -> Position:
        """The position that `since` would return: it differs from `position` if there are new events. One cheap query."""
        query = sa.select(sa.func.max(EVENTS.c.number), sa.func.count()).where(*_after(problem, position))
        with self._transaction() as connection:
            newest, near = connection.execute(query).one()
        return newest or position[0], near

    def received(self, problem: str) -> pl.DataFrame:
        """All events, one row each: user, basket, item, day, place."""
        columns = {**SCHEMA, "place": pl.String}
        query = sa.select(*(EVENTS.c[name] for name in columns)).where(EVENTS.c.problem == problem)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return pl.DataFrame([tuple(row) for row in rows], schema=columns, orient="row")

    def rejected(self, problem: str) -> list[RejectedEvent]:
        """All rejected events, oldest first."""
        query = sa.select(REJECTED.c.event, REJECTED.c.reason).where(REJECTED.c.problem == problem).order_by(REJECTED.c.number)
        with self._transaction() as connection:
            return [RejectedEvent(json.loads(event), reason) for event, reason in connection.execute(query)]

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return database.transaction(self._engine, "events", (IntegrityError,))


def _after(problem: str, position: Position) -> list[sa.ColumnElement[bool]]:
    return [EVENTS.c.problem == problem, EVENTS.c.number > position[0] - OVERLAP]


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[first : first + STATEMENT_ROWS] for first in range(0, len(rows), STATEMENT_ROWS))
