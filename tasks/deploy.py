"""Who is champion, since when, by whom and why. The one home of rollout state.

The registry's alias `champion` is the truth for now; the rows here are the truth for what was and why. A move is written in
three steps: the row, not yet in force; the alias; the row in force. `settle`, with which every move begins, mends what a kill
left between them: where the alias moved, the row comes into force with its reason and evidence; where it did not, the row goes,
and the same call made again does the whole of it. An alias that somebody moved by other means gets a row that says so.
"""

import json
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import SQLAlchemyError

from tasks import database
from tasks.errors import ModelError, ProjectError
from tasks.params import Section

if TYPE_CHECKING:
    from tasks.gate import Verdict
    from tasks.registry import Registry

TABLE = sa.Table(
    "deployments",
    sa.MetaData(),
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
FIELDS = [column for column in TABLE.columns if column.name not in ("id", "in_force")]
_ONE_AT_A_TIME = threading.RLock()


class Deployment(Section):
    """One decision about what answers for a problem."""

    problem: str
    version: int
    action: Literal["deploy", "refuse", "rollback"]
    by: str
    """Who or what decided."""
    at: datetime
    """UTC."""
    reason: str
    evidence: dict[str, Any]
    """The verdict's fields; empty for a person's decision. Undefined numbers are None."""
    previous: int | None
    """The champion before; for a refusal, the champion that stays."""


class Deployments:
    """The decisions, in a table at the SQLAlchemy `address`; a missing table, or folder of an SQLite file, is made.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        try:
            self._engine = sa.create_engine(address, poolclass=sa.NullPool)
        except (SQLAlchemyError, ImportError) as error:
            raise ProjectError(f"the address of the database of deployments: {str(error).splitlines()[0]}") from error
        try:
            if self._engine.dialect.name == "sqlite":
                sqlalchemy.event.listen(self._engine, "connect", _prepare)
                Path(self._engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
            TABLE.metadata.create_all(self._engine)
        except (SQLAlchemyError, OSError) as error:
            raise database.unusable(self._engine, "deployments", error) from error

    def deploy(self, registry: "Registry", problem: str, version: int, verdict: "Verdict", by: str) -> Deployment:
        """Act on the gate's verdict: make `version` champion, or note the refusal and leave the champion.

        The same call again changes nothing and returns what stands; so does any verdict on the champion itself. A version
        that was rolled back is refused: what a person took away only a person brings back, by `rollback`. Raises ModelError
        for a version that is not registered.
        """
        with _ONE_AT_A_TIME:
            champion = self._settled(registry, problem)
            if champion == version:
                return self._arrival(problem, version)
            made = _decision(problem, version, "deploy", by, verdict.reason, champion, verdict)
            if not verdict.promote:
                return self._note(made.model_copy(update={"action": "refuse"}))
            if gone := self._taken_away(problem, version):
                reason = (
                    f"not promoted: v{version} was rolled back by {gone.by} on {gone.at:%Y-%m-%d} ({gone.reason}); "
                    f"evergreen rollback {problem} --to {version} brings it back"
                )
                return self._note(made.model_copy(update={"action": "refuse", "reason": reason}))
            return self._move(registry, made)

    def rollback(self, registry: "Registry", problem: str, to: int | None, by: str, reason: str) -> Deployment:
        """Make `to` champion; None: the version that was champion before the present one came, itself not rolled back since.

        A rollback to the present champion changes nothing. Raises ModelError where there is no such version.
        """
        with _ONE_AT_A_TIME:
            begun = self._pending(problem)
            champion = self._settled(registry, problem)
            if begun and begun.action == "rollback" and begun.version == champion and to in (None, champion):
                return begun  # the same call, killed before its end: not one step further back
            if champion is None:
                raise ModelError(
                    f"{problem}: nothing is deployed, so nothing can be rolled back; run evergreen train {problem}"
                )
            target = self._before(problem) if to is None else to
            if target is None:
                raise ModelError(
                    f"{problem}: v{champion} is champion and nothing was deployed before it; name a version with --to"
                )
            if target == champion:
                return self._arrival(problem, champion)
            return self._move(registry, _decision(problem, target, "rollback", by, reason, champion))

    def settle(self, registry: "Registry", problem: str) -> None:
        """Bring the rows in line with the registry's alias, as the head of this file says."""
        with _ONE_AT_A_TIME:
            self._settled(registry, problem)

    def history(self, problem: str, at: datetime | None = None) -> list[Deployment]:
        """Every decision up to `at` (inclusive; a naive moment counts as UTC), oldest first."""
        wanted = [TABLE.c.problem == problem, TABLE.c.in_force]
        if at is not None:
            wanted.append(TABLE.c.at <= _utc(at))
        with self._link() as link:
            rows = link.execute(sa.select(*FIELDS).where(*wanted).order_by(TABLE.c.id)).mappings()
            return [_read(row) for row in rows]

    def champion(self, problem: str, at: datetime | None = None) -> int | None:
        """The version in charge at `at` (now for None, as the rows say: `settle` first), or None before the first."""
        moves = _moves(self.history(problem, at))
        return moves[-1].version if moves else None

    def _settled(self, registry: "Registry", problem: str) -> int | None:
        """Settle; the champion as the registry says."""
        named = registry.version(problem, "champion")
        champion = named.version if named else None
        with self._link() as link:
            link.execute(sa.update(TABLE).where(_pending(problem), TABLE.c.version == champion).values(in_force=True))
            link.execute(sa.delete(TABLE).where(_pending(problem)))
        recorded = self.champion(problem)
        if champion is not None and champion != recorded:
            reason = f"the alias champion was found at v{champion}, moved by other means than Evergreen"
            self._write(_decision(problem, champion, "deploy", "unknown", reason, recorded), in_force=True)
        return champion

    def _move(self, registry: "Registry", made: Deployment) -> Deployment:
        """Row, alias, row in force. A champion is no challenger any more."""
        found = registry.require(made.problem, made.version)
        row = self._write(made, in_force=False)
        if "challenger" in found.aliases:
            registry.drop_alias(made.problem, "challenger")
        registry.set_alias(made.problem, "champion", made.version)
        with self._link() as link:
            stands = link.execute(sa.update(TABLE).where(TABLE.c.id == row).values(in_force=True)).rowcount
        if not stands:  # another process settled in between and took the row for a dead one
            self._write(made, in_force=True)
        return made

    def _note(self, made: Deployment) -> Deployment:
        """Write a refusal, unless it is the newest decision already."""
        known = self.history(made.problem)
        if known and _same(known[-1], made):
            return known[-1]
        self._write(made, in_force=True)
        return made

    def _write(self, made: Deployment, in_force: bool) -> int:
        with self._link() as link:
            done = link.execute(sa.insert(TABLE).values(**made.model_dump(), in_force=in_force))
            assert done.inserted_primary_key is not None
            return int(done.inserted_primary_key[0])

    def _arrival(self, problem: str, version: int) -> Deployment:
        """The decision that put the present champion, `version`, in charge."""
        return next(each for each in reversed(_moves(self.history(problem))) if each.version == version)

    def _before(self, problem: str) -> int | None:
        """The champion below the present one, with what was rolled back taken off the pile."""
        pile: list[int] = []
        for each in _moves(self.history(problem)):
            if each.action == "rollback" and each.version in pile:
                del pile[pile.index(each.version) :]
            pile.append(each.version)
        return pile[-2] if len(pile) > 1 else None

    def _taken_away(self, problem: str, version: int) -> Deployment | None:
        """The rollback that ended the last reign of `version`, if one did."""
        ends = [each for each in _moves(self.history(problem)) if version in (each.previous, each.version)]
        last = ends[-1] if ends else None
        return last if last and last.action == "rollback" and last.previous == version else None

    def _pending(self, problem: str) -> Deployment | None:
        """The move that was begun and not ended, if there is one."""
        with self._link() as link:
            row = link.execute(sa.select(*FIELDS).where(_pending(problem))).mappings().first()
        return _read(row) if row else None

    def _link(self) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "deployments")


def _pending(problem: str) -> sa.ColumnElement[bool]:
    return sa.and_(TABLE.c.problem == problem, sa.not_(TABLE.c.in_force))


def _decision(
    problem: str, version: int, action: Any, by: str, reason: str, previous: int | None, verdict: "Verdict | None" = None
) -> Deployment:
    return Deployment(
        problem=problem,
        version=version,
        action=action,
        by=by,
        at=datetime.now(UTC),
        reason=reason,
        evidence=json.loads(verdict.model_dump_json()) if verdict else {},
        previous=previous,
    )


def _moves(rows: Sequence[Deployment]) -> list[Deployment]:
    return [each for each in rows if each.action != "refuse"]


def _same(one: Deployment, two: Deployment) -> bool:
    """Whether two decisions are the same but for their time and author."""
    return one.model_dump(exclude={"at", "by"}) == two.model_dump(exclude={"at", "by"})


def _read(row: Any) -> Deployment:
    return Deployment(**{**row, "at": _utc(row["at"])})


def _utc(moment: datetime) -> datetime:
    """`moment` in UTC; SQLite gives times back without a zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _prepare(link: Any, _record: Any) -> None:
    """Readers and a writer at once, and patience with another writer."""
    for setting in ("busy_timeout = 30000", "journal_mode = WAL"):
        link.execute(f"PRAGMA {setting}")
