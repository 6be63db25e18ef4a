"""The record of champions: one row per decision, with author, time and reason; rows never change.

Rollouts are rows too (begin, step, pause, resume, abort, promote; folded by release.rollout_state). Each move of the champion
ends a rollout, so one table is enough.

The registry's alias `champion` names the current champion; the rows hold the history. A move has three steps: write a pending
row; move the alias; confirm the row. Each move begins with `reconcile`, which repairs interrupted moves: if the alias moved,
the row is confirmed with its reason and evidence; if not, the row is deleted, and a repeated call does the whole move. An alias
that other tools moved gets a row that says so.

Rows that move no alias are written in one transaction. Of several processes that act on one state, one succeeds (CLAIMS).
"""

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.tasks.config.params import Section
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ModelError

if TYPE_CHECKING:
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.promotion_gate import Verdict

METADATA = sa.MetaData()
TABLE = sa.Table(
    "deployments",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(255), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("previous", sa.Integer),
    sa.Column("in_force", sa.Boolean, nullable=False),
)
CLAIMS = sa.Table(
    "deployment_claims",
    METADATA,
    sa.Column("problem", sa.String(255), primary_key=True),
    sa.Column("after", sa.Integer, primary_key=True, autoincrement=False),
)
"""Row `after` was the newest in force and a process acted on it: no other may."""
FIELDS = [column for column in TABLE.columns if column.name not in ("id", "in_force")]
Action = Literal["deploy", "refuse", "rollback", "begin", "step", "pause", "resume", "promote", "abort"]
MOVES = ("deploy", "rollback", "promote")
"""Actions that make a version champion."""
SHAPING = (*MOVES, "begin", "step", "pause", "resume", "abort")
"""Actions that change what serves; a refusal does not."""
_LOCK = threading.RLock()


class Deployment(Section):
    """One decision about the served version of a problem."""

    problem: str
    version: int
    action: Action
    by: str
    """Author: a person or a flow."""
    at: datetime
    """UTC."""
    reason: str
    evidence: dict[str, Any]
    """The verdict's fields, and what a rollout was judged on; empty for a person's decision. Undefined numbers are None."""
    previous: int | None
    """The champion before; for an action that moves none, the present champion."""


class Deployments:
    """The decisions, in a table at the SQLAlchemy `address`; a missing table, or folder of an SQLite file, is created.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "deployments", METADATA)

    def deploy(self, registry: "Registry", problem: str, version: int, verdict: "Verdict", by: str) -> Deployment:
        """Act on the gate's verdict: make `version` champion, or record the refusal and keep the champion.

        Idempotent; a verdict on the champion itself changes nothing either. A version that was rolled back is refused: only a
        person brings it back, with `rollback`. Raises ModelError for a version that is not registered.
        """
        with _LOCK:
            champion = self._reconciled(registry, problem)
            if champion == version:
                return self._arrival(problem, version)
            made = make_decision(
                problem, version, "deploy", by, verdict.reason, champion, json.loads(verdict.model_dump_json())
            )
            if not verdict.promote:
                return self._note(made.model_copy(update={"action": "refuse"}))
            if reason := self.barred(problem, version):
                return self._note(made.model_copy(update={"action": "refuse", "reason": reason}))
            return self._move(registry, made)

    def try_promote(
        self, registry: "Registry", problem: str, version: int, after: int, by: str, reason: str, evidence: Mapping[str, Any]
    ) -> Deployment | None:
        """End a rollout whose newest row is `after` by making `version` champion; None if another process acted on it first."""
        with _LOCK:
            champion = self.champion(problem)
            made = make_decision(problem, version, "promote", by, reason, champion, evidence)
            return self._move(registry, made, after)

    def try_append(self, made: Sequence[Deployment], after: int) -> bool:
        """Write rows that move no champion, all or none, if `after` is still the newest row of their problem in force.

        False, with nothing written, if it is not or if another process acted on it first.
        """
        with _LOCK:
            try:
                with self._transaction() as link:
                    _claim(link, made[0].problem, after)
                    for each in made:
                        link.execute(sa.insert(TABLE).values(**each.model_dump(), in_force=True))
                return True
            except (IntegrityError, _StaleError):
                return False

    def numbered(self, problem: str) -> list[tuple[int, Deployment]]:
        """The numbered decisions that change what serves, oldest first."""
        wanted = sa.select(TABLE.c.id, *FIELDS).where(TABLE.c.problem == problem, *_SHAPING).order_by(TABLE.c.id)
        with self._transaction() as link:
            rows = [dict(row) for row in link.execute(wanted).mappings()]
        return [(row.pop("id"), _read(row)) for row in rows]

    def newest(self) -> dict[str, int]:
        """Problem -> number of the newest decision that changes what serves: one small query, for servers that poll."""
        wanted = sa.select(TABLE.c.problem, sa.func.max(TABLE.c.id)).where(*_SHAPING).group_by(TABLE.c.problem)
        with self._transaction() as link:
            return {problem: number for problem, number in link.execute(wanted)}  # noqa: C416  # a result is no mapping

    def barred(self, problem: str, version: int) -> str | None:
        """Why a verdict may not promote `version`: it was rolled back, by a rollback or in its rollout; else None."""
        ended = self._rolled_back(problem, version)
        if ended is None:
            return None
        how = "rolled back" if ended.action == "rollback" else "rolled back in its rollout"
        return (
            f"not promoted: v{version} was {how} by {ended.by} on {ended.at:%Y-%m-%d} ({ended.reason}); "
            f"evergreen rollback {problem} --to {version} brings it back"
        )

    def rollback(self, registry: "Registry", problem: str, to: int | None, by: str, reason: str) -> Deployment:
        """Make `to` champion; None: the previous champion that was not rolled back since.

        A rollback to the present champion changes nothing. Raises ModelError where there is no such version.
        """
        with _LOCK:
            begun = self.pending(problem)
            champion = self._reconciled(registry, problem)
            if begun and begun.action == "rollback" and begun.version == champion and to in (None, champion):
                return begun  # the same call after a kill: do not go one version further back
            if champion is None:
                raise ModelError(f"{problem}: nothing is deployed to roll back; run evergreen train {problem}")
            target = rollback_target(self.history(problem)) if to is None else to
            if target is None:
                raise ModelError(
                    f"{problem}: v{champion} is champion and nothing was deployed before it; name a version with --to"
                )
            if target == champion:
                return self._arrival(problem, champion)
            return self._move(registry, make_decision(problem, target, "rollback", by, reason, champion))

    def reconcile(self, registry: "Registry", problem: str) -> None:
        """Bring the rows in line with the registry's alias: see the head of this file."""
        with _LOCK:
            self._reconciled(registry, problem)

    def history(self, problem: str, at: datetime | None = None) -> list[Deployment]:
        """Every decision up to `at` (inclusive; a naive moment counts as UTC), oldest first."""
        wanted = [TABLE.c.problem == problem, TABLE.c.in_force]
        if at is not None:
            wanted.append(TABLE.c.at <= as_utc(at))
        with self._transaction() as link:
            rows = link.execute(sa.select(*FIELDS).where(*wanted).order_by(TABLE.c.id)).mappings()
            return [_read(row) for row in rows]

    def champion(self, problem: str, at: datetime | None = None) -> int | None:
        """The champion at `at` (None: now) according to the rows, so `reconcile` first; None before the first one."""
        moves = _moves(self.history(problem, at))
        return moves[-1].version if moves else None

    def _reconciled(self, registry: "Registry", problem: str) -> int | None:
        """Reconcile; the champion according to the registry."""
        named = registry.version(problem, "champion")
        champion = named.version if named else None
        with self._transaction() as link:
            link.execute(sa.update(TABLE).where(_pending(problem), TABLE.c.version == champion).values(in_force=True))
            if link.execute(sa.delete(TABLE).where(_pending(problem))).rowcount:
                link.execute(sa.delete(CLAIMS).where(CLAIMS.c.problem == problem, CLAIMS.c.after == _newest(link, problem)))
        recorded = self.champion(problem)
        if champion is not None and champion != recorded:
            reason = f"the alias champion was found at v{champion}, moved by other means than Evergreen"
            self._write(make_decision(problem, champion, "deploy", "unknown", reason, recorded), in_force=True)
        return champion

    def _move(self, registry: "Registry", made: Deployment, after: int | None = None) -> Any:
        """Row, alias, row in force. The champion loses the alias challenger. None if another process acted on `after` first."""
        found = registry.require(made.problem, made.version)
        row = self._write(made, in_force=False, after=after)
        if row is None:
            return None
        if after is not None and self.pending(made.problem) is None:  # another process took the row for a dead one's
            return None
        if "challenger" in found.aliases:
            registry.drop_alias(made.problem, "challenger")
        registry.set_alias(made.problem, "champion", made.version)
        with self._transaction() as link:
            updated = link.execute(sa.update(TABLE).where(TABLE.c.id == row).values(in_force=True)).rowcount
        if not updated and (after is None or self.champion(made.problem) != made.version):
            self._write(made, in_force=True)  # another process took the row for a dead one's
        return made

    def _note(self, made: Deployment) -> Deployment:
        """Write a refusal, unless the newest decision is the same."""
        known = self.history(made.problem)
        if known and _same(known[-1], made):
            return known[-1]
        self._write(made, in_force=True)
        return made

    def _write(self, made: Deployment, in_force: bool, after: int | None = None) -> int | None:
        """Number of the new row; None if another process acted on `after` first."""
        try:
            with self._transaction() as link:
                if after is not None:
                    _claim(link, made.problem, after)
                done = link.execute(sa.insert(TABLE).values(**made.model_dump(), in_force=in_force))
                assert done.inserted_primary_key is not None
                return int(done.inserted_primary_key[0])
        except (IntegrityError, _StaleError):
            return None

    def _arrival(self, problem: str, version: int) -> Deployment:
        """The decision that made the present champion, `version`."""
        return next(each for each in reversed(_moves(self.history(problem))) if each.version == version)

    def _rolled_back(self, problem: str, version: int) -> Deployment | None:
        """The rollback or abort that took `version` out of service last, if one did."""
        rows = [each for each in self.history(problem) if each.action in (*MOVES, "begin", "abort")]
        ends = [each for each in rows if each.version == version or (each.action in MOVES and each.previous == version)]
        last = ends[-1] if ends else None
        if last is None:
            return None
        replaced = last.action == "abort" and "replaced" in last.evidence
        rolled = last.action == "rollback" and last.previous == version
        return last if rolled or (last.action == "abort" and not replaced) else None

    def pending(self, problem: str) -> Deployment | None:
        """The move that has begun and not ended, if any."""
        with self._transaction() as link:
            row = link.execute(sa.select(*FIELDS).where(_pending(problem))).mappings().first()
        return _read(row) if row else None

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "deployments", (IntegrityError,))


def _pending(problem: str) -> sa.ColumnElement[bool]:
    return sa.and_(TABLE.c.problem == problem, sa.not_(TABLE.c.in_force))


_SHAPING = (TABLE.c.in_force, TABLE.c.action.in_(SHAPING))


def _newest(link: sa.Connection, problem: str) -> int | None:
    return link.execute(sa.select(sa.func.max(TABLE.c.id)).where(TABLE.c.problem == problem, *_SHAPING)).scalar()


class _StaleError(Exception):
    """The state that a process acts on has changed."""


def _claim(link: sa.Connection, problem: str, after: int) -> None:
    """Claim the state after row `after`. Raises IntegrityError or _StaleError if another process acted on it first."""
    link.execute(sa.insert(CLAIMS).values(problem=problem, after=after))
    if _newest(link, problem) != after:
        raise _StaleError


def make_decision(
    problem: str,
    version: int,
    action: Any,
    by: str,
    reason: str,
    previous: int | None,
    evidence: Mapping[str, Any] | None = None,
) -> Deployment:
    """A decision made now. `previous`: the champion before it; `evidence`: values that JSON can hold."""
    return Deployment(
        problem=problem,
        version=version,
        action=action,
        by=by,
        at=datetime.now(UTC),
        reason=reason,
        evidence=dict(evidence or {}),
        previous=previous,
    )


def rollback_target(rows: Sequence[Deployment]) -> int | None:
    """The champion that a rollback returns to: the previous one on a stack from which each rollback removes versions."""
    stack: list[int] = []
    for each in _moves(rows):
        if each.action == "rollback" and each.version in stack:
            del stack[stack.index(each.version) :]
        stack.append(each.version)
    return stack[-2] if len(stack) > 1 else None


def _moves(rows: Sequence[Deployment]) -> list[Deployment]:
    return [each for each in rows if each.action in MOVES]


def _same(one: Deployment, two: Deployment) -> bool:
    """Whether two decisions are the same but for their time and author."""
    return one.model_dump(exclude={"at", "by"}) == two.model_dump(exclude={"at", "by"})


def _read(row: Any) -> Deployment:
    return Deployment(**{**row, "at": as_utc(row["at"])})


def as_utc(moment: datetime) -> datetime:
    """`moment` in UTC; SQLite gives times back without a zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
