"""What every look at production found and decided, and the retrainings that followed: in a database, each once.

A look is known by its problem and the moment its window ends: the same look again writes the same row again, unless a
retraining was decided on it, which stays. A retraining is known by an id, claimed before any work: the same event twice works
once, and what a kill left unfinished is found by whoever claims next.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, time
from typing import Any, Literal
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.monitoring.ledger.records import Decision, Retraining, Window
from evergreen.tasks.config.base import Section
from evergreen.tasks.core import database

METADATA = sa.MetaData()
LOOKS = sa.Table(
    "looks",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("until", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("retrain", sa.Boolean, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
)
RETRAININGS = sa.Table(
    "retrainings",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("problem", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("as_of", sa.Date),
    sa.Column("ground", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("begun", sa.DateTime(timezone=True), nullable=False),
    sa.Column("ended", sa.DateTime(timezone=True)),
    sa.Column("version", sa.Integer),
    sa.Column("promoted", sa.Boolean),
    sa.Column("cpu_minutes", sa.Float),
    sa.Column("outcome", sa.Text),
)
OURS = UUID("6c1d5e52-9a0e-4b0e-8f4f-2f6a4f9a7c11")
"""The namespace of ids of looks."""
ATTEMPTS = 5
"""To write a look that another monitor writes at the same moment."""


class Begun(Section):
    """A retraining that was claimed, and what became of it; None: not yet."""

    id: str
    problem: str
    at: datetime
    """UTC: the end of the window that it was decided on; of a person's, the end of the day that it lives on."""
    as_of: date | None
    """The last day that its training may know, where the project lives on a day; None: all there is."""
    ground: str
    """age, drift, loss, labels, or person."""
    reason: str
    by: str
    begun: datetime
    ended: datetime | None = None
    version: int | None = None
    """The challenger."""
    promoted: bool | None = None
    cpu_minutes: float | None = None
    outcome: str | None = None
    """What the gate said, or why there is no challenger."""

    def past(self) -> Retraining:
        return Retraining(at=self.at, ground=self.ground, cpu_minutes=self.cpu_minutes, promoted=self.promoted)


class Look(Section):
    """A decision, and when it was written down."""

    decision: Decision
    recorded: datetime
    """UTC, by the clock of whoever looked."""


def end_of(day: date) -> datetime:
    """The last moment of a day, in UTC: when it is looked back on."""
    return datetime.combine(day, time.max, UTC)


def look_id(project: str, problem: str, until: datetime) -> str:
    """The id of a look's event and of the retraining that follows: the same for the same look, wherever it is made."""
    return str(uuid5(OURS, f"{project}/{problem}/{until.astimezone(UTC).isoformat()}"))


class Looks:
    """The looks and retrainings in the database at the SQLAlchemy `address`; missing tables are made.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "looks", METADATA)

    def keep(self, decision: Decision) -> Decision:
        """Write a look's decision. Returns what stands: an earlier decision on the same look where that was to retrain."""
        key = {"problem": decision.problem, "until": decision.at.astimezone(UTC)}
        row = {"retrain": decision.retrain, "decision": decision.model_dump_json(), "recorded": datetime.now(UTC)}
        same = sa.and_(LOOKS.c.problem == key["problem"], LOOKS.c.until == key["until"])
        for attempt in range(ATTEMPTS):
            try:
                with self._link(IntegrityError) as link:
                    if link.execute(sa.update(LOOKS).where(same, sa.not_(LOOKS.c.retrain)).values(**row)).rowcount == 0:
                        stands = link.execute(sa.select(LOOKS.c.decision).where(same)).scalar()
                        if stands is not None:
                            return Decision.model_validate_json(stands)
                        link.execute(sa.insert(LOOKS).values(**key, **row))
                return decision
            except IntegrityError as error:  # another monitor was faster; now it is seen
                if attempt == ATTEMPTS - 1:
                    raise database.unusable(self._engine, "looks", error) from error
        raise AssertionError

    def looks(self, problem: str, last: int = 100) -> list[Look]:
        """The `last` looks at a problem, by the end of their windows, oldest first."""
        wanted = sa.select(LOOKS).where(LOOKS.c.problem == problem).order_by(LOOKS.c.until.desc()).limit(last)
        with self._link() as link:
            rows = list(link.execute(wanted).mappings())
        return [
            Look(decision=Decision.model_validate_json(row["decision"]), recorded=_utc(row["recorded"]))
            for row in reversed(rows)
        ]

    def before(self, window: Window) -> list[Window]:
        """The windows of the other looks at its problem, oldest first, and `window` as the last."""
        others = [each.decision.window for each in self.looks(window.problem) if each.decision.at != window.until]
        return [*others, window]

    def claim(self, wanted: Begun) -> tuple[Literal["new", "unfinished", "done"], Begun]:
        """Claim a retraining before work on it begins. Returns what stands under its id, and whether there is work left.

        Hold the project's lock: whoever claimed and did not finish is then known to be gone.
        """
        try:
            with self._link(IntegrityError) as link:
                link.execute(sa.insert(RETRAININGS).values(**wanted.model_dump()))
            return "new", wanted
        except IntegrityError:
            stands = self.retraining(wanted.id)
            assert stands is not None
            return ("unfinished" if stands.ended is None else "done"), stands

    def finish(self, done: Begun) -> None:
        """Write what became of a retraining."""
        with self._link() as link:
            link.execute(sa.update(RETRAININGS).where(RETRAININGS.c.id == done.id).values(**done.model_dump(exclude={"id"})))

    def retraining(self, id: str) -> Begun | None:
        with self._link() as link:
            row = link.execute(sa.select(RETRAININGS).where(RETRAININGS.c.id == id)).mappings().first()
        return _begun(row) if row else None

    def retrainings(self, problem: str) -> list[Begun]:
        """Every retraining of a problem that began, in that order."""
        wanted = sa.select(RETRAININGS).where(RETRAININGS.c.problem == problem).order_by(RETRAININGS.c.begun)
        with self._link() as link:
            return [_begun(row) for row in link.execute(wanted).mappings()]

    def unfinished(self, problems: Sequence[str]) -> list[Begun]:
        """Those that were claimed and not finished, the first that began first."""
        wanted = sa.select(RETRAININGS).where(RETRAININGS.c.ended.is_(None), RETRAININGS.c.problem.in_(problems))
        with self._link() as link:
            return [_begun(row) for row in link.execute(wanted.order_by(RETRAININGS.c.begun)).mappings()]

    def _link(self, *through: Any) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "looks", through)


def _begun(row: Any) -> Begun:
    moments = {name: _utc(row[name]) for name in ("at", "begun", "ended") if row[name] is not None}
    return Begun(**{**row, **moments})


def _utc(moment: datetime) -> datetime:
    """`moment` in UTC; SQLite gives times back without a zone."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def evidence(decision: Decision) -> dict[str, Any]:
    """A decision as an event carries it: short, in JSON's own types."""
    window = decision.window
    told = json.loads(decision.model_dump_json(include={"problem", "at", "retrain", "ground", "reason"}))
    score = window.performance.newest.score if window.performance else None
    alarms = [each.column for each in window.drift.alarms]
    return {**told, "version": window.version, "rows": window.rows, "alarms": alarms, "score": score}
