"""Purchase events received since the tables were read, in a database. Each event is stored once, until it is withdrawn.

Rejected events are stored with their reason. Histories survive a restart because every process reads this log.

Readers skip no event, whatever commits late. On PostgreSQL a reader's position is a snapshot: it reads the rows whose
transaction was not visible in it (https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT). SQLite
has one writer at a time, so its transactions commit in the order of their numbers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import Any, TypeVar

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
    sa.Column("moment", sa.DateTime(timezone=True)),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"),  # the last transaction that wrote the row
    sa.Column("withdrawn", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("problem", "id"),
    sa.Index("events_by_change", "problem", "changed"),
)
ROWS = sa.Table(
    "received_rows",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False),
    sa.Column("id", sa.String(255), nullable=False),
    sa.Column("table", sa.String(64), nullable=False),
    sa.Column("row", sa.Text, nullable=False),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("withdrawn", sa.DateTime(timezone=True)),
    sa.UniqueConstraint("problem", "id"),
    sa.Index("received_rows_by_change", "problem", "changed"),
)
"""Rows of tables, as JSON: see serving.row_log."""
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
SCHEMA = {"user": pl.String, "basket": pl.String, "item": pl.String, "day": pl.Date}

START = ""
"""The position of a reader that has read nothing."""
UNSEEN = sa.text(
    "changed >= CAST(CAST(pg_snapshot_xmin(CAST(:position AS pg_snapshot)) AS text) AS bigint) "
    "AND NOT pg_visible_in_snapshot(CAST(CAST(changed AS text) AS xid8), CAST(:position AS pg_snapshot))"
)
"""Rows of transactions that committed after the snapshot `position`."""
TRANSACTION = sa.text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)")
SNAPSHOT = sa.text(
    "SELECT CAST(pg_current_snapshot() AS text), CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"
)


@dataclass(frozen=True)
class Identified:
    """What a log stores: a field for each column of its table."""

    id: str
    """Idempotency key: a second event with the same id changes nothing."""


E = TypeVar("E", bound=Identified)


@dataclass(frozen=True)
class Event(Identified):
    """One line of a basket."""

    user: str
    item: str
    basket: str
    day: date
    quantity: float
    place: str | None
    moment: datetime | None = None
    """When it happened, UTC; None: only its day is known."""


@dataclass(frozen=True)
class Changes:
    """What happened to the events of a problem since a reader's position."""

    lines: pl.DataFrame
    """One row per new event: user, basket, item, day."""
    withdrawn: bool
    """Events were withdrawn: a reader that may have them begins again at START, which leaves them out."""
    position: str
    """Where the reader is now."""


@dataclass(frozen=True)
class Withdrawal:
    """The outcome of a withdrawal, by the ids that it named."""

    withdrawn: int
    duplicate: int
    """Withdrawn before."""
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class RejectedEvent:
    """An event as it was received, and why it was rejected."""

    event: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class KeptEvent:
    """A rejected event of the log."""

    at: datetime
    """When it was sent, UTC."""
    event: str
    """As JSON."""
    reason: str


@dataclass(frozen=True)
class EventCounts:
    """The outcome of a batch of events."""

    accepted: int
    duplicate: int
    """Events whose id was stored before; nothing changed."""
    rejected: tuple[RejectedEvent, ...]


class EventLog:
    """The events, in tables at the SQLAlchemy `address`. Creates missing tables, and the folder of an SQLite file.

    Raises ProjectError if the database cannot be used.
    """

    TABLE = EVENTS
    """Where the events are: number, problem, id, recorded, changed, withdrawn, and what an event holds."""

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "events", METADATA, self._forget_other_server)
        self._serial = self._engine.dialect.name != "postgresql"
        """Whether transactions commit in the order of their numbers."""

    def append(self, problem: str, events: Sequence[E], rejected: Sequence[RejectedEvent] = ()) -> list[E]:
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

    def _append(self, problem: str, events: Sequence[E], rejected: Sequence[RejectedEvent]) -> list[E]:
        common = {"problem": problem, "recorded": datetime.now(UTC)}
        with self._writing(problem) as (connection, number):
            known = set[str]()
            for part in _parts([event.id for event in events]):
                query = sa.select(self.TABLE.c.id).where(self.TABLE.c.problem == problem, self.TABLE.c.id.in_(part))
                known |= set(connection.execute(query).scalars())
            new = [event for event in events if event.id not in known]
            ordered = sorted(new, key=lambda event: event.id)  # one lock order for all writers: no deadlock
            for part in _parts([{**_columns(event), **common, "changed": number} for event in ordered]):
                connection.execute(sa.insert(self.TABLE), part)
            rows = [{"event": json.dumps(dict(each.event), default=str), "reason": each.reason, **common} for each in rejected]
            for part in _parts(rows):
                connection.execute(sa.insert(REJECTED), part)
        return new

    def withdraw(self, problem: str, ids: Sequence[str]) -> Withdrawal:
        """Withdraw events by id: every reader then is as if they had never been, also where one is sent again with its id."""
        wanted, found = list(dict.fromkeys(ids)), dict[str, bool]()
        with self._writing(problem) as (connection, number):
            for part in _parts(sorted(wanted)):
                query = sa.select(self.TABLE.c.id, self.TABLE.c.withdrawn)
                query = query.where(self.TABLE.c.problem == problem, self.TABLE.c.id.in_(part))
                found |= {id_: at is None for id_, at in connection.execute(query.order_by(self.TABLE.c.id).with_for_update())}
            for part in _parts([id_ for id_, live in found.items() if live]):
                change = sa.update(self.TABLE).where(self.TABLE.c.problem == problem, self.TABLE.c.id.in_(part))
                connection.execute(change.values(withdrawn=datetime.now(UTC), changed=number))
        live = sum(found.values())
        return Withdrawal(live, len(found) - live, tuple(each for each in wanted if each not in found))

    def since(self, problem: str, position: str = START) -> Changes:
        """What transactions changed that committed after `position`. One cheap query where none did."""
        new, withdrawn, now = self._changed(problem, position, list(SCHEMA))
        return Changes(pl.DataFrame([tuple(row[:-1]) for row in new], schema=SCHEMA, orient="row"), withdrawn, now)

    def _changed(self, problem: str, position: str, columns: Sequence[str]) -> tuple[list[sa.Row[Any]], bool, str]:
        """These columns of the new events, whether events were withdrawn, and the position now."""
        query = sa.select(*(self.TABLE.c[name] for name in columns), self.TABLE.c.withdrawn)
        query = query.where(self.TABLE.c.problem == problem).order_by(self.TABLE.c.number)
        with self._transaction() as connection:
            now, restarted = self._locate(connection, problem, position)
            if restarted or position == START:
                unseen = self.TABLE.c.withdrawn.is_(None)
            else:
                unseen = self.TABLE.c.changed > int(position) if self._serial else UNSEEN.bindparams(position=position)
            rows = connection.execute(query.where(unseen)).all()
        new = [row for row in rows if row.withdrawn is None]
        return new, restarted or len(new) < len(rows), now

    def _locate(self, connection: sa.Connection, problem: str, position: str) -> tuple[str, bool]:
        """The present position, and whether the database is an older one than `position` saw: restored from a backup."""
        if self._serial:
            newest = self._newest(connection, problem)
            return str(newest), position != START and newest < int(position)
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))  # one snapshot for both statements
        snapshot, end = connection.execute(SNAPSHOT).one()
        return snapshot, position != START and end < int(position.split(":")[1])

    def _forget_other_server(self, connection: sa.Connection) -> None:
        """Mark the rows that a dump brought from another server as old: the numbers of its transactions mean nothing here."""
        if connection.dialect.name != "postgresql":
            return
        _, end = connection.execute(SNAPSHOT).one()
        if connection.execute(sa.select(self.TABLE.c.id).where(self.TABLE.c.changed >= end).limit(1)).first():
            connection.execute(sa.update(self.TABLE).where(self.TABLE.c.changed >= end).values(changed=0))

    def fingerprint(self, problem: str) -> str:
        """A text that changes with each change of the events, and with nothing else."""
        query = sa.select(sa.func.count(), sa.func.max(self.TABLE.c.number), sa.func.count(self.TABLE.c.withdrawn))
        with self._transaction() as connection:
            return " ".join(map(str, connection.execute(query.where(self.TABLE.c.problem == problem)).one()))

    def received(self, problem: str) -> pl.DataFrame:
        """All events that are not withdrawn, one row each: user, basket, item, day, place and moment (UTC)."""
        columns = {**SCHEMA, "place": pl.String, "moment": pl.Datetime("us", "UTC")}
        query = sa.select(*(self.TABLE.c[name] for name in columns))
        query = query.where(self.TABLE.c.problem == problem, self.TABLE.c.withdrawn.is_(None))
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        found = [(*row[:-1], None if row.moment is None else _to_utc(row.moment)) for row in rows]
        return pl.DataFrame(found, schema=columns, orient="row")

    def rejected(self, problem: str, last: int) -> list[KeptEvent]:
        """The `last` rejected events, oldest first."""
        query = sa.select(REJECTED).where(REJECTED.c.problem == problem).order_by(REJECTED.c.number.desc()).limit(last)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [KeptEvent(_to_utc(row.recorded), row.event, row.reason) for row in reversed(rows)]

    @contextmanager
    def _writing(self, problem: str) -> Iterator[tuple[sa.Connection, int]]:
        """A transaction that writes, and its number."""
        with self._transaction() as connection:
            if self._serial:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection, 1 + self._newest(connection, problem)
            else:
                yield connection, connection.execute(TRANSACTION).scalar_one()

    def _newest(self, connection: sa.Connection, problem: str) -> int:
        """The highest number of a transaction that wrote an event of `problem`."""
        query = sa.select(sa.func.max(self.TABLE.c.changed)).where(self.TABLE.c.problem == problem)
        return connection.execute(query).scalar() or 0

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        return database.transaction(self._engine, "events", (IntegrityError,))


def _columns(event: Identified) -> dict[str, Any]:
    return {each.name: getattr(event, each.name) for each in fields(event)}


def _to_utc(moment: datetime) -> datetime:
    """SQLite returns moments without their zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[first : first + STATEMENT_ROWS] for first in range(0, len(rows), STATEMENT_ROWS))
