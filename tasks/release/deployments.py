"""The record of champions: one row per decision, with author, time and reason; rows never change.

Rollouts are rows too (begin, step, pause, resume, abort, promote; folded by release.rollout_state). Each move of the champion
ends a rollout, so one table is enough.

Each decision that changes what serves names the one before it (`after`), and no two name the same: of several processes that
act on one state, one succeeds and the others see the new state. A decision is one transaction, so a kill leaves it whole or
absent. The registry's alias `champion` follows the record, and `update_alias` moves it there after a kill, a restored backup or
a move by another tool.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.tasks.config.params import Section
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ModelError

if TYPE_CHECKING:
    from evergreen.tasks.release.mlflow_store import Version
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.promotion_gate import Verdict

log = logging.getLogger(__name__)

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
    sa.Column("after", sa.Integer),
    sa.Column("sha256", sa.String(64)),
    sa.UniqueConstraint("problem", "after"),
)
"""`after`: number of the decision before it on what serves, 0 for the first; null for a refusal.
`sha256`: of the model file, where the decision made a version champion."""
FIELDS = [column for column in TABLE.columns if column.name not in ("id", "after")]
Action = Literal["deploy", "refuse", "rollback", "begin", "step", "pause", "resume", "promote", "abort"]
MOVES = ("deploy", "rollback", "promote")
"""Actions that make a version champion."""
LATE = timedelta(minutes=1)
"""A process that moves the alias to a champion which others replace meanwhile is at most so late."""
SHAPING = (*MOVES, "begin", "step", "pause", "resume", "abort")
"""Actions that change what serves; a refusal does not."""


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
    sha256: str | None = None
    """Of the model file that became champion, by which a registry from another backup is recognised; None: not recorded."""


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
        self.update_alias(registry, problem)
        while True:
            rows = self.numbered(problem)
            champion = _champion(rows)
            if champion == version:
                return _arrival(rows)
            made = make_decision(
                problem, version, "deploy", by, verdict.reason, champion, json.loads(verdict.model_dump_json())
            )
            if not verdict.promote:
                return self._refuse(made, verdict.reason)
            if reason := self.barred(problem, version):
                return self._refuse(made, reason)
            if moved := self._try_move(registry, made, _newest(rows)):
                return moved

    def try_promote(
        self, registry: "Registry", problem: str, version: int, after: int, by: str, reason: str, evidence: Mapping[str, Any]
    ) -> Deployment | None:
        """End a rollout whose newest row is `after` by making `version` champion; None if another process acted on it first."""
        made = make_decision(problem, version, "promote", by, reason, self.champion(problem), evidence)
        return self._try_move(registry, made, after)

    def try_append(self, made: Sequence[Deployment], after: int) -> bool:
        """Write decisions of one problem, all or none, if `after` is still its newest that changes what serves (0: none yet).

        False, with nothing written, if it is not. Raises ProjectError where the database refuses the rows for another reason.
        """
        problem, newest = made[0].problem, after
        try:
            with self._transaction() as link:
                for each in made:
                    done = link.execute(sa.insert(TABLE).values(**each.model_dump(), after=after))
                    assert done.inserted_primary_key is not None
                    after = done.inserted_primary_key[0]
            return True
        except IntegrityError as error:
            if _newest(self.numbered(problem)) == newest:  # nobody was faster: the same rows would be refused for ever
                raise database.unusable(self._engine, "deployments", error) from error
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

        A rollback to the present champion changes nothing, and neither does the same call after a kill. Raises ModelError where
        there is no such version.
        """
        begun = self.unfollowed(registry, problem)
        self.update_alias(registry, problem)
        if begun and begun.action == "rollback" and to in (None, begun.version):
            return begun
        while True:
            rows = self.numbered(problem)
            champion = _champion(rows)
            if champion is None:
                raise ModelError(f"{problem}: nothing is deployed to roll back; run evergreen train {problem}")
            target = rollback_target([row for _, row in rows], partial(_is_registered, registry, problem)) if to is None else to
            if target is None:
                raise ModelError(
                    f"{problem}: v{champion} is champion and nothing was deployed before it; name a version with --to"
                )
            if target == champion:
                return _arrival(rows)
            made = make_decision(problem, target, "rollback", by, reason, champion)
            if moved := self._try_move(registry, made, _newest(rows)):
                return moved

    def update_alias(self, registry: "Registry", problem: str) -> None:
        """Move the registry's alias to the champion of the record. An empty record adopts the alias that it finds.

        A champion that the registry does not have is logged, and the alias stays.
        """
        while True:
            moves, named = self._read_both(registry, problem)
            champion = moves[-1].version if moves else None
            if champion is None:
                if named:
                    reason = f"no decision was recorded, and the registry's alias champion stood at v{named.version}"
                    self.try_append([make_decision(problem, named.version, "deploy", "unknown", reason, None)], 0)
                return
            if named is None or named.version != champion:
                if named and not _was_champion(moves, named.version):
                    log.warning(
                        "%s: the alias champion stood at v%d, moved by another tool; it goes back to v%d, which serves. "
                        "evergreen rollback %s --to %d deploys v%d",
                        *(problem, named.version, champion, problem, named.version, named.version),
                    )
                self._set_alias(registry, problem, champion)
            if self.champion(problem) == champion:  # else another process moved it meanwhile
                return

    def unfollowed(self, registry: "Registry", problem: str) -> Deployment | None:
        """The newest move of the champion, if the registry's alias does not stand where it led; else None."""
        moves, named = self._read_both(registry, problem)
        return moves[-1] if moves and (named is None or named.version != moves[-1].version) else None

    def _read_both(self, registry: "Registry", problem: str) -> "tuple[list[Deployment], Version | None]":
        """The moves of the record and the version that the alias champion names, as they were at one moment.

        Other processes move both, the record first: the alias is read between two equal readings of the record.
        """
        moves = _moves(self.history(problem))
        while True:
            named = registry.version(problem, "champion")
            before, moves = moves, _moves(self.history(problem))
            if len(moves) == len(before):
                return moves, named

    def replaced(self, registry: "Registry", problem: str) -> str | None:
        """How the champion's entry in the registry differs from the model that was deployed; None: it does not."""
        moves = _moves(self.history(problem))
        return describe_replaced(registry, moves[-1]) if moves else None

    def history(self, problem: str, at: datetime | None = None) -> list[Deployment]:
        """Every decision up to `at` (inclusive; a naive moment counts as UTC), oldest first."""
        wanted = [TABLE.c.problem == problem]
        if at is not None:
            wanted.append(TABLE.c.at <= as_utc(at))
        with self._transaction() as link:
            rows = link.execute(sa.select(*FIELDS).where(*wanted).order_by(TABLE.c.id)).mappings()
            return [_read(row) for row in rows]

    def champion(self, problem: str, at: datetime | None = None) -> int | None:
        """The champion at `at` (None: now); None before the first one."""
        moves = _moves(self.history(problem, at))
        return moves[-1].version if moves else None

    def _try_move(self, registry: "Registry", made: Deployment, after: int) -> Deployment | None:
        """Write a move of the champion, then move the alias; None if another process acted on `after` first."""
        moved = made.model_copy(update={"sha256": registry.require(made.problem, made.version).tags.get("sha256")})
        if not self.try_append([moved], after):
            return None
        self.update_alias(registry, made.problem)
        return moved

    def _set_alias(self, registry: "Registry", problem: str, champion: int) -> None:
        """Move the alias champion; the version loses the alias challenger."""
        found = registry.version(problem, champion)
        if found is None:
            log.warning("%s: v%d is champion and is not in the registry; the alias champion stays", problem, champion)
            return
        if "challenger" in found.aliases:
            registry.drop_alias(problem, "challenger")
        registry.set_alias(problem, "champion", champion)

    def _refuse(self, made: Deployment, reason: str) -> Deployment:
        """Write a refusal, unless the newest decision is the same."""
        made = made.model_copy(update={"action": "refuse", "reason": reason})
        known = self.history(made.problem)
        if known and _same(known[-1], made):
            return known[-1]
        with self._transaction() as link:
            link.execute(sa.insert(TABLE).values(**made.model_dump()))
        return made

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

    def _transaction(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "deployments", (IntegrityError,))


_SHAPING = (TABLE.c.action.in_(SHAPING),)


def _newest(rows: Sequence[tuple[int, Deployment]]) -> int:
    return rows[-1][0] if rows else 0


def _champion(rows: Sequence[tuple[int, Deployment]]) -> int | None:
    moves = _moves([row for _, row in rows])
    return moves[-1].version if moves else None


def _was_champion(moves: Sequence[Deployment], version: int) -> bool:
    """Whether the record left `version` last, or a moment ago: its alias then stands where a process of ours left it."""
    lately = datetime.now(UTC) - LATE
    return any(each.previous == version for each in moves if each is moves[-1] or each.at > lately)


def _arrival(rows: Sequence[tuple[int, Deployment]]) -> Deployment:
    """The decision that made the present champion."""
    return _moves([row for _, row in rows])[-1]


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


def describe_replaced(registry: "Registry", move: Deployment) -> str | None:
    """How the registry's entry of a version differs from the one that `move` deployed; None: it does not."""
    found = registry.version(move.problem, move.version) if move.sha256 else None
    named = found.tags.get("sha256") if found else None
    if named is None or move.sha256 is None or named == move.sha256:
        return None
    return (
        f"v{move.version} in the registry is another model than v{move.version} that was deployed on {move.at:%Y-%m-%d} "
        f"(sha256 {named[:12]}, not {move.sha256[:12]}): one of both comes from another backup"
    )


def rollback_target(rows: Sequence[Deployment], registered: Callable[[int], bool] = lambda _: True) -> int | None:
    """The champion that a rollback returns to: the previous one on a stack from which each rollback removes versions.

    `registered`: whether a version is still there.
    """
    stack: list[int] = []
    for each in _moves(rows):
        if each.action == "rollback" and each.version in stack:
            del stack[stack.index(each.version) :]
        stack.append(each.version)
    earlier = [each for each in stack[:-1] if registered(each)]
    return earlier[-1] if earlier else None


def _is_registered(registry: "Registry", problem: str, version: int) -> bool:
    return registry.version(problem, version) is not None


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
