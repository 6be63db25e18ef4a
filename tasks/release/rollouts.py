"""Rollouts: how a version that the gate promotes becomes champion, from the first share of the traffic to the last.

Every change is a decision beside the others (release.deployments), written whole or not at all; what stands is read from
them. A
rollout keeps the policy it began with. Any move of the champion ends it: its own promotion, a rollback, a direct deployment. A
newer version that the gate promotes replaces the one on trial, which is then aborted with that reason.

Servers write here, for all to judge on, how many answers they gave with each of the two versions, and what they are serving.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.release.deployments import MOVES, Action, Deployment, Deployments, as_utc

if TYPE_CHECKING:
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.promotion_gate import Verdict

METADATA = sa.MetaData()
COUNTS = sa.Table(
    "rollout_counts",
    METADATA,
    sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("new", sa.Boolean, primary_key=True),
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("latency", sa.JSON, nullable=False),
)
SERVERS = sa.Table(
    "servers",
    METADATA,
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("problem", sa.String(255), primary_key=True),
    sa.Column("champion", sa.Integer),
    sa.Column("candidate", sa.Integer),
    sa.Column("trouble", sa.Text),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
)
GONE = timedelta(seconds=60)
"""A server that said nothing for so long is taken for dead."""
DEAD = timedelta(seconds=60)
"""A move of the champion that began so long ago and did not end was killed."""

FINEST = 1e-5
"""Seconds: answers up to here share the first bucket of a latency histogram."""
PER_DOUBLING = 8
"""Buckets from a latency to twice as much."""
BUCKETS = 23 * PER_DOUBLING
"""The last one holds what took 84 s or more."""
EDGES = tuple(FINEST * 2 ** (number / PER_DOUBLING) for number in range(BUCKETS))
"""Upper edge of each bucket but the last, in seconds: of bucket i, EDGES[i]."""


@dataclass(frozen=True)
class Count:
    """What became of requests."""

    requests: int = 0
    errors: int = 0
    """Requests without a proper answer."""
    latency: Mapping[int, int] = field(default_factory=dict)
    """Bucket of the time to the answer -> requests; see EDGES."""

    def __add__(self, other: "Count") -> "Count":
        buckets = {*self.latency, *other.latency}
        latency = {each: self.latency.get(each, 0) + other.latency.get(each, 0) for each in buckets}
        return Count(self.requests + other.requests, self.errors + other.errors, latency)


SHADOW = ".shadow"
"""An answer that only the ledger sees has the id of the champion's answer to the same request, with this behind it."""


class Standing(Section):
    """A rollout under way."""

    id: int
    """Number of the decision that began it; it also decides which entities come first."""
    mark: int
    """Number of the newest decision about it: whoever acts on it names this."""
    problem: str
    champion: int
    candidate: int
    policy: Rollout
    """As it was at the beginning."""
    step: int
    """0 is the first."""
    begun: datetime
    """UTC."""
    since: datetime
    """Beginning of the step, or when it was resumed. UTC."""
    state: Literal["running", "paused"]
    by: str
    reason: str
    """Of the newest decision about it."""
    verdict: dict[str, Any]
    """The gate's, on the candidate."""

    @property
    def strategy(self) -> str:
        return self.policy.strategy

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the traffic that the candidate answers, step by step."""
        return {"canary": self.policy.steps, "shadow": (0.0,)}.get(self.strategy, (1.0,))

    @property
    def share(self) -> float:
        return self.shares[self.step]

    @property
    def last(self) -> bool:
        """Whether the next step is the promotion."""
        return self.step + 1 >= len(self.shares)

    def words(self) -> str:
        """One sentence for a person."""
        how = {
            "canary": f"answers {self.share:.0%} of the traffic (step {self.step + 1} of {len(self.shares)})",
            "shadow": "answers beside the champion, unseen",
            "blue_green": "answers all traffic on trial",
        }[self.strategy]
        halt = f"; paused by {self.by}: {self.reason}" if self.state == "paused" else ""
        return (
            f"{self.strategy.replace('_', '/')}: v{self.candidate} {how} since {self.since:%Y-%m-%d %H:%M} UTC, "
            f"v{self.champion} is champion{halt}"
        )


class Server(Section):
    """What one server said of one problem."""

    server: str
    problem: str
    champion: int | None
    """The version that answers as champion; None: none."""
    candidate: int | None
    """The version on trial that it has loaded."""
    trouble: str | None
    """Why it does not serve what it should."""
    at: datetime
    """UTC."""


def fold(rows: Iterable[tuple[int, Deployment]]) -> Standing | None:
    """What stands after these numbered decisions of one problem, oldest first."""
    found: Standing | None = None
    for number, row in rows:
        if row.action in MOVES:
            found = None
        elif row.action == "begin":
            found = _begun(number, row)
        elif found and row.version == found.candidate:
            found = _changed(found, number, row)
    return found


def _begun(number: int, row: Deployment) -> Standing:
    verdict = {key: value for key, value in row.evidence.items() if key != "policy"}
    return Standing(
        id=number,
        mark=number,
        problem=row.problem,
        champion=row.previous or 0,
        candidate=row.version,
        policy=Rollout.model_validate(row.evidence["policy"]),
        step=0,
        begun=row.at,
        since=row.at,
        state="running",
        by=row.by,
        reason=row.reason,
        verdict=verdict,
    )


def _changed(found: Standing, number: int, row: Deployment) -> Standing | None:
    if row.action == "abort":
        return None
    told: dict[str, Any] = {"mark": number, "by": row.by, "reason": row.reason}
    if row.action == "step":
        told |= {"step": min(found.step + 1, len(found.shares) - 1), "since": row.at}
    elif row.action == "pause":
        told |= {"state": "paused"}
    elif row.action == "resume":
        told |= {"state": "running", "since": row.at}
    return found.model_copy(update=told)


class Rollouts:
    """The rollouts, beside the decisions at the SQLAlchemy `address`; missing tables are made.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self.deployments = Deployments(address)
        self._engine = database.connect(address, "rollouts", METADATA)

    def enter(
        self, registry: "Registry", problem: str, version: int, verdict: "Verdict", by: str, policy: Rollout
    ) -> Deployment:
        """Act on the gate's verdict as `policy` says: `Deployments.deploy`, or the beginning of a rollout.

        The first champion comes at once. The same call again changes nothing and returns what stands; a newer version takes
        the place of the one on trial. A refusal of the very version on trial takes it back. Raises ModelError for a version
        that is not registered.
        """
        self.deployments.settle(registry, problem)
        stands, champion = self.standing(problem), self.deployments.champion(problem)
        if not verdict.promote:
            if stands and stands.candidate == version:
                self.withdraw(stands, by, verdict.reason, {})
            return self.deployments.deploy(registry, problem, version, verdict, by)
        direct = policy.strategy == "direct" or champion in (None, version) or self.deployments.barred(problem, version)
        if direct:
            return self.deployments.deploy(registry, problem, version, verdict, by)
        registry.require(problem, version)
        evidence = json.loads(verdict.model_dump_json())
        return self.begin(problem, version, policy, by, verdict.reason, evidence)

    def begin(
        self, problem: str, version: int, policy: Rollout, by: str, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> Deployment:
        """Put `version` on trial beside the champion. `evidence`: the gate's verdict on it.

        Nothing changes where it is on trial already. Raises ModelError where nothing is deployed that could be replaced.
        """
        told = {**(evidence or {}), "policy": policy.model_dump(mode="json")}
        while True:
            rows = self.deployments.numbered(problem)
            stands, champion = fold(rows), self.deployments.champion(problem)
            if champion is None:
                raise ModelError(f"{problem}: nothing is deployed that v{version} could be tried beside; deploy it directly")
            if stands and stands.candidate == version:
                return next(row for number, row in rows if number == stands.id)
            made = _decision(problem, version, "begin", by, reason, champion, told)
            ended = [_replaced(stands, made)] if stands else []
            if self.deployments.append([*ended, made], rows[-1][0]):
                return made

    def standing(self, problem: str) -> Standing | None:
        """The rollout of `problem` that is under way, if one is."""
        return fold(self.deployments.numbered(problem))

    def step(self, stands: Standing, by: str, reason: str, evidence: Mapping[str, Any]) -> bool:
        """Go on to the next share; False where somebody else acted on `stands` already."""
        return self._write(stands, "step", by, reason, evidence)

    def withdraw(self, stands: Standing, by: str, reason: str, evidence: Mapping[str, Any]) -> bool:
        """Take the candidate back; False where somebody else acted on `stands` already."""
        return self._write(stands, "abort", by, reason, evidence)

    def pause(self, problem: str, by: str, reason: str) -> Standing:
        """Keep the share as it is until `resume`; only what is surely worse is taken back meanwhile.

        This and what follows raise ModelError where no rollout of `problem` is under way.
        """
        return self._ask(problem, "pause", by, reason)

    def resume(self, problem: str, by: str, reason: str) -> Standing:
        """Go on; the time of the step counts anew."""
        return self._ask(problem, "resume", by, reason)

    def abort(self, problem: str, by: str, reason: str, evidence: Mapping[str, Any] | None = None) -> Standing:
        """Take the candidate back: the champion answers everything. Returns what stood."""
        return self._ask(problem, "abort", by, reason, evidence)

    def promote(
        self, registry: "Registry", stands: Standing, by: str, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> Deployment | None:
        """Make the candidate champion, which ends the rollout; None where somebody else acted on `stands` already."""
        told = {**stands.verdict, "rollout": dict(evidence or {})}
        return self.deployments.promote(registry, stands.problem, stands.candidate, stands.mark, by, reason, told)

    def finish(self, registry: "Registry", problem: str, by: str, reason: str) -> Deployment:
        """Promote whatever is on trial, at once. The same call again, after a kill, does the rest.

        Raises ModelError where no rollout is under way.
        """
        while True:
            begun = self.deployments.pending(problem)
            self.deployments.settle(registry, problem)
            if begun and begun.action == "promote" and self.deployments.champion(problem) == begun.version:
                return begun
            if made := self.promote(registry, self.require(problem), by, reason):
                return made

    def rollback(self, registry: "Registry", problem: str, to: int | None, by: str, reason: str) -> Deployment:
        """`Deployments.rollback`; while a rollout is under way, back from the version on trial to the champion."""
        stands = self.standing(problem)
        if stands and to in (None, stands.champion):
            self.abort(problem, by, reason)
            return self.deployments.history(problem)[-1]
        return self.deployments.rollback(registry, problem, to, by, reason)

    def require(self, problem: str) -> Standing:
        """The rollout under way. Raises ModelError where there is none."""
        if stands := self.standing(problem):
            return stands
        raise ModelError(f"{problem}: no rollout is under way; evergreen history {problem} says what was decided")

    def _ask(self, problem: str, action: Action, by: str, reason: str, evidence: Mapping[str, Any] | None = None) -> Standing:
        """Write what was asked for, on whatever stands when it is written."""
        while True:
            stands = self.require(problem)
            if (action, stands.state) in (("pause", "paused"), ("resume", "running")):
                return stands
            if self._write(stands, action, by, reason, evidence):
                return stands if action == "abort" else self.require(problem)

    def _write(self, stands: Standing, action: Action, by: str, reason: str, evidence: Mapping[str, Any] | None = None) -> bool:
        made = _decision(stands.problem, stands.candidate, action, by, reason, stands.champion, evidence or {})
        return self.deployments.append([made], stands.mark)

    def count(self, stands: int, step: int, new: bool, server: str, count: Count) -> None:
        """Write all that `server` answered at this step of rollout number `stands`, with the new version or the old one."""
        told = {"requests": count.requests, "errors": count.errors, "latency": {str(k): v for k, v in count.latency.items()}}
        self._put(COUNTS, {"rollout": stands, "step": step, "new": new, "server": server}, told)

    def counts(self, stands: int, step: int) -> tuple[Count, Count]:
        """Of all servers at this step of rollout number `stands`: the old version's, and the new one's."""
        wanted = sa.select(COUNTS).where(COUNTS.c.rollout == stands, COUNTS.c.step == step)
        found = {False: Count(), True: Count()}
        with self._link() as link:
            for row in link.execute(wanted).mappings():
                latency = {int(bucket): number for bucket, number in row["latency"].items()}
                found[row["new"]] += Count(row["requests"], row["errors"], latency)
        return found[False], found[True]

    def report(self, said: Server) -> None:
        """Write what a server serves now."""
        told = said.model_dump()
        self._put(SERVERS, {key: told.pop(key) for key in ("server", "problem")}, told)

    def leave(self, server: str) -> None:
        """A server that ends serves nothing any more."""
        with self._link() as link:
            link.execute(sa.delete(SERVERS).where(SERVERS.c.server == server))

    def servers(self, problem: str, now: datetime | None = None) -> list[Server]:
        """What the servers that live said last of `problem`."""
        wanted = sa.select(SERVERS).where(SERVERS.c.problem == problem).order_by(SERVERS.c.server)
        with self._link() as link:
            found = [Server(**{**row, "at": as_utc(row["at"])}) for row in link.execute(wanted).mappings()]
        return [each for each in found if each.at > (now or datetime.now(UTC)) - GONE]

    def _put(self, table: sa.Table, key: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Write a row that has one writer."""
        mine = [table.c[name] == value for name, value in key.items()]
        with self._link() as link:
            if not link.execute(sa.update(table).where(*mine).values(**told)).rowcount:
                link.execute(sa.insert(table).values(**key, **told))

    def _link(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "rollouts")


def _replaced(stands: Standing, by: Deployment) -> Deployment:
    why = f"v{by.version}, which is newer, takes its place"
    return _decision(stands.problem, stands.candidate, "abort", by.by, why, stands.champion, {"replaced": by.version})


def _decision(
    problem: str, version: int, action: Action, by: str, reason: str, champion: int, evidence: Mapping[str, Any]
) -> Deployment:
    return Deployment(
        problem=problem,
        version=version,
        action=action,
        by=by,
        at=datetime.now(UTC),
        reason=reason,
        evidence=dict(evidence),
        previous=champion,
    )
