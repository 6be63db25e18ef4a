"""Servers write how many requests they answered with each version of a rollout, how fast, and which versions they serve."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from evergreen.tasks.config.base import Section
from evergreen.tasks.core import database
from evergreen.tasks.release.deployments import as_utc

METADATA = sa.MetaData()
COUNTS = sa.Table(
    "rollout_counts",
    METADATA,
    sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("candidate", sa.Boolean, primary_key=True),
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("latency", sa.JSON, nullable=False),
)
SIDE_BY_SIDE = sa.Table(
    "rollout_side_by_side",
    METADATA,
    sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("growth", sa.JSON, nullable=False),
    sa.Column("excess", sa.Float, nullable=False),
    sa.Column("pairs", sa.BigInteger, nullable=False),
    sa.Column("slower", sa.BigInteger, nullable=False),
)
SERVERS = sa.Table(
    "servers",
    METADATA,
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("problem", sa.String(255), primary_key=True),
    sa.Column("champion", sa.Integer),
    sa.Column("candidate", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("journal", sa.Text),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)
SERVER_TIMEOUT = timedelta(seconds=60)
"""A server without a report for so long counts as dead."""
KEPT = timedelta(days=1)
"""How long the reports of a dead server are kept at least."""

FINEST = 1e-5
"""Seconds: the first bucket of a latency histogram holds what took no longer."""
BUCKETS_PER_DOUBLING = 8
"""Buckets from a latency to twice as much."""
BUCKETS = 23 * BUCKETS_PER_DOUBLING
"""The last one holds what took 84 s or more."""
EDGES = tuple(FINEST * 2 ** (number / BUCKETS_PER_DOUBLING) for number in range(BUCKETS))
"""Upper edge of each bucket but the last, in seconds: of bucket i, EDGES[i]."""


@dataclass(frozen=True)
class RequestCounts:
    """How many requests were answered, how many failed, and how long probes took."""

    requests: int = 0
    errors: int = 0
    """Failed requests."""
    latency: Mapping[int, int] = field(default_factory=dict)
    """Bucket of the latency -> probes; see EDGES."""

    def __add__(self, other: "RequestCounts") -> "RequestCounts":
        buckets = {*self.latency, *other.latency}
        latency = {each: self.latency.get(each, 0) + other.latency.get(each, 0) for each in buckets}
        return RequestCounts(self.requests + other.requests, self.errors + other.errors, latency)


@dataclass(frozen=True)
class SideBySide:
    """Both versions at the same time and load, in one step."""

    growth: tuple[float, ...] = ()
    """Errors: logarithm of the growth of a bet at each of rollout.bets.STAKES; empty: no slice of time is complete."""
    excess: float = 0.0
    """Errors: sum over slices of rollout.sequential_tests.error_excess."""
    pairs: int = 0
    """Latency: rows that both versions predicted, one right after the other."""
    slower: int = 0
    """Those on which the candidate took more than max_latency_ratio times as long as the champion."""

    def __add__(self, other: "SideBySide") -> "SideBySide":
        growth = self.growth or other.growth
        if self.growth and other.growth:
            growth = tuple(mine + theirs for mine, theirs in zip(self.growth, other.growth, strict=True))
        counts = (self.excess + other.excess, self.pairs + other.pairs, self.slower + other.slower)
        return SideBySide(growth, *counts)


class ServerReport(Section):
    """The versions of one problem that one server serves."""

    server: str
    problem: str
    champion: int | None
    """The version that it serves as champion; None: none."""
    candidate: int | None
    """The rollout's candidate that it has loaded."""
    error: str | None
    """Why it does not serve the expected version."""
    journal: str | None = None
    """Since when predictions wait in its memory (ISO format, UTC), because its disk takes none; None: it takes them."""
    at: datetime
    """UTC."""


class ServerReports:
    """The reports at the SQLAlchemy `address`; missing tables are created. Each row has one writer, its server.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "rollouts", METADATA)

    def write_counts(self, rollout: int, step: int, candidate: bool, server: str, counts: RequestCounts) -> None:
        """Write all requests that `server` answered at this step, with the `candidate` or the champion."""
        latency = {str(bucket): number for bucket, number in counts.latency.items()}
        values = {"requests": counts.requests, "errors": counts.errors, "latency": latency}
        self._put(COUNTS, {"rollout": rollout, "step": step, "candidate": candidate, "server": server}, values)

    def counts(self, rollout: int, step: int) -> tuple[RequestCounts, RequestCounts]:
        """The sums over all servers at this step: the champion's, and the candidate's."""
        wanted = sa.select(COUNTS).where(COUNTS.c.rollout == rollout, COUNTS.c.step == step)
        found = {False: RequestCounts(), True: RequestCounts()}
        with self._transaction() as link:
            for row in link.execute(wanted).mappings():
                latency = {int(bucket): number for bucket, number in row["latency"].items()}
                found[row["candidate"]] += RequestCounts(row["requests"], row["errors"], latency)
        return found[False], found[True]

    def write_side_by_side(self, rollout: int, step: int, server: str, found: SideBySide) -> None:
        """Write all that `server` compared at this step."""
        values = {"growth": list(found.growth), "excess": found.excess, "pairs": found.pairs, "slower": found.slower}
        self._put(SIDE_BY_SIDE, {"rollout": rollout, "step": step, "server": server}, values)

    def side_by_side(self, rollout: int, step: int) -> SideBySide:
        """The sum over all servers at this step."""
        wanted = sa.select(SIDE_BY_SIDE).where(SIDE_BY_SIDE.c.rollout == rollout, SIDE_BY_SIDE.c.step == step)
        found = SideBySide()
        with self._transaction() as link:
            for row in link.execute(wanted).mappings():
                found += SideBySide(tuple(row["growth"]), row["excess"], row["pairs"], row["slower"])
        return found

    def write(self, report: ServerReport) -> None:
        values = report.model_dump()
        self._put(SERVERS, {key: values.pop(key) for key in ("server", "problem")}, values)

    def remove(self, server: str, now: datetime | None = None) -> None:
        """Remove the reports of a server that stops, and those of servers that were killed a day ago or earlier."""
        old = SERVERS.c.at < (now or datetime.now(UTC)) - KEPT
        with self._transaction() as link:
            link.execute(sa.delete(SERVERS).where(sa.or_(SERVERS.c.server == server, old)))

    def servers(self, problem: str, now: datetime | None = None) -> list[ServerReport]:
        """The newest report on `problem` of each server that is alive."""
        wanted = sa.select(SERVERS).where(SERVERS.c.problem == problem).order_by(SERVERS.c.server)
        with self._transaction() as link:
            found = [ServerReport(**{**row, "at": as_utc(row["at"])}) for row in link.execute(wanted).mappings()]
        return [each for each in found if each.at > (now or datetime.now(UTC)) - SERVER_TIMEOUT]

    def _put(self, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        own = [table.c[name] == value for name, value in key.items()]
        with self._transaction() as link:
            if not link.execute(sa.update(table).where(*own).values(**values)).rowcount:
                link.execute(sa.insert(table).values(**key, **values))

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "rollouts")
