"""The decision log: what every monitoring run measured and decided, and the retrainings that followed, each recorded once.

A monitoring run is identified by its problem and the end of its window: the same run again overwrites its row, unless it
decided to retrain; then the row stays. A run that was withdrawn counts for nothing, until the same run is made again. A
retraining is identified by an id that is claimed before any work: the same event twice runs once, and a retraining that a kill
left unfinished is found by the next caller.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from uuid import UUID, uuid5

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from evergreen.monitoring.ledger.records import Decision, Retraining, Window
from evergreen.tasks.config.base import Section
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.release.deployments import as_utc

METADATA = sa.MetaData()
RUNS = sa.Table(
    "monitoring_runs",
    METADATA,
    sa.Column("problem", sa.String(64), primary_key=True),
    sa.Column("until", sa.DateTime(timezone=True), primary_key=True),
    sa.Column("retrain", sa.Boolean, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
    sa.Column("withdrawn", sa.Text),  # who withdrew it, and why
)
RETRAININGS = sa.Table(
    "retrainings",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("problem", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("as_of", sa.Date),
    sa.Column("trigger", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("started", sa.DateTime(timezone=True), nullable=False),
    sa.Column("ended", sa.DateTime(timezone=True)),
    sa.Column("version", sa.Integer),
    sa.Column("promoted", sa.Boolean),
    sa.Column("cpu_minutes", sa.Float),
    sa.Column("outcome", sa.Text),
)
NAMESPACE = UUID("6c1d5e52-9a0e-4b0e-8f4f-2f6a4f9a7c11")
"""Of the ids of monitoring runs."""
CANCELLED = "cancelled by"
"""How the outcome of a cancelled retraining begins."""
WRITE_ATTEMPTS = 5
"""To write a run that another monitor writes at the same moment."""


class RetrainingRecord(Section):
    """A retraining that was claimed, and its outcome; None: not known yet."""

    id: str
    problem: str
    at: datetime
    """UTC: the end of the window it was decided on; of a person's request, the end of project.as_of, or now."""
    as_of: date | None
    """The last day that its training may use, where params.yaml sets project.as_of; None: all data."""
    trigger: str
    """age, drift, loss, labels, or person."""
    reason: str
    by: str
    started: datetime
    ended: datetime | None = None
    version: int | None = None
    """The challenger."""
    promoted: bool | None = None
    cpu_minutes: float | None = None
    outcome: str | None = None
    """The gate's reason, why there is no challenger, or who cancelled it."""

    @property
    def cancelled(self) -> bool:
        return (self.outcome or "").startswith(CANCELLED)

    def summary(self) -> Retraining:
        return Retraining(at=self.at, trigger=self.trigger, cpu_minutes=self.cpu_minutes, promoted=self.promoted)


class MonitoringRun(Section):
    """A decision, and when it was recorded."""

    decision: Decision
    recorded: datetime
    """UTC, by the clock of the recording process."""


def end_of_day(day: date) -> datetime:
    """The last moment of a day, UTC: the end of its window."""
    return datetime.combine(day, time.max, UTC)


def is_to_come(moment: datetime) -> bool:
    """Whether `moment` lies after the present day in every time zone."""
    return moment > datetime.now(UTC) + timedelta(days=2)


def run_id(project: str, problem: str, until: datetime) -> str:
    """The id of a monitoring run's event and of the retraining that follows: the same wherever the run is made."""
    return str(uuid5(NAMESPACE, f"{project}/{problem}/{until.astimezone(UTC).isoformat()}"))


class DecisionLog:
    """Monitoring runs and retrainings in the database at the SQLAlchemy `address`; missing tables are created.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "decisions", METADATA)

    def record(self, decision: Decision) -> Decision:
        """Write the decision of a run. Returns what is recorded: an earlier decision of the same run if that was to retrain."""
        key = {"problem": decision.problem, "until": decision.at.astimezone(UTC)}
        row: dict[str, Any] = {"retrain": decision.retrain, "decision": decision.model_dump_json(), "withdrawn": None}
        row["recorded"] = datetime.now(UTC)
        same = sa.and_(RUNS.c.problem == key["problem"], RUNS.c.until == key["until"])
        for attempt in range(WRITE_ATTEMPTS):
            try:
                with self._connect(IntegrityError) as connection:
                    free = sa.or_(sa.not_(RUNS.c.retrain), RUNS.c.withdrawn.is_not(None))
                    if connection.execute(sa.update(RUNS).where(same, free).values(**row)).rowcount == 0:
                        recorded = connection.execute(sa.select(RUNS.c.decision).where(same)).scalar()
                        if recorded is not None:
                            return Decision.model_validate_json(recorded)
                        connection.execute(sa.insert(RUNS).values(**key, **row))
                return decision
            except IntegrityError as error:  # another monitor was faster: its row is visible now
                if attempt == WRITE_ATTEMPTS - 1:
                    raise database.unusable(self._engine, "decisions", error) from error
        raise AssertionError

    def runs(self, problem: str, last: int = 100) -> list[MonitoringRun]:
        """The `last` monitoring runs of a problem, by the end of their windows, oldest first."""
        valid = sa.and_(RUNS.c.problem == problem, RUNS.c.withdrawn.is_(None))
        query = sa.select(RUNS).where(valid).order_by(RUNS.c.until.desc()).limit(last)
        with self._connect() as connection:
            rows = list(connection.execute(query).mappings())
        return [
            MonitoringRun(decision=Decision.model_validate_json(row["decision"]), recorded=as_utc(row["recorded"]))
            for row in reversed(rows)
        ]

    def withdraw(self, problem: str, until: datetime, by: str, reason: str) -> None:
        """Withdraw a monitoring run, as if it had never been: one of a wrong clock, say. Raises ParamsError without one."""
        same = sa.and_(RUNS.c.problem == problem, RUNS.c.until == until.astimezone(UTC), RUNS.c.withdrawn.is_(None))
        with self._connect() as connection:
            found = connection.execute(sa.update(RUNS).where(same).values(withdrawn=f"{by}: {reason}")).rowcount
        if not found:
            days = ", ".join(str(each.decision.at.date()) for each in self.runs(problem, 5)) or "none"
            raise ParamsError(f"{problem}: no monitoring run of {until.date()} counts; the newest are of: {days}")

    def windows_with(self, window: Window) -> list[Window]:
        """The windows of the other runs of its problem, oldest first, and `window` as the last.

        Runs of days to come are left out: they were made by a wrong clock.
        """
        runs = [each.decision for each in self.runs(window.problem)]
        return [*(each.window for each in runs if each.at != window.until and not is_to_come(each.at)), window]

    def claim(self, wanted: RetrainingRecord) -> tuple[Literal["new", "unfinished", "done"], RetrainingRecord]:
        """Claim a retraining before work on it starts. Returns the record under its id, and whether work is left.

        Hold the project's lock: a claim without an end then belongs to a process that is gone.
        """
        try:
            with self._connect(IntegrityError) as connection:
                connection.execute(sa.insert(RETRAININGS).values(**wanted.model_dump()))
            return "new", wanted
        except IntegrityError:
            recorded = self.retraining(wanted.id)
            assert recorded is not None
            return ("unfinished" if recorded.ended is None else "done"), recorded

    def finish(self, done: RetrainingRecord) -> None:
        """Write the outcome of a retraining."""
        row = done.model_dump(exclude={"id"})
        with self._connect() as connection:
            connection.execute(sa.update(RETRAININGS).where(RETRAININGS.c.id == done.id).values(**row))

    def cancel(self, record: RetrainingRecord, by: str) -> bool:
        """Record that a retraining, claimed or not yet, was cancelled. Returns whether that is new: a finished one stays."""
        ended = {"ended": datetime.now(UTC), "outcome": f"{CANCELLED} {by}"}
        try:
            with self._connect(IntegrityError) as connection:
                connection.execute(sa.insert(RETRAININGS).values(**{**record.model_dump(), **ended}))
            return True
        except IntegrityError:
            with self._connect() as connection:
                open_ = sa.and_(RETRAININGS.c.id == record.id, RETRAININGS.c.ended.is_(None))
                return connection.execute(sa.update(RETRAININGS).where(open_).values(**ended)).rowcount == 1

    def retraining(self, id: str) -> RetrainingRecord | None:
        with self._connect() as connection:
            row = connection.execute(sa.select(RETRAININGS).where(RETRAININGS.c.id == id)).mappings().first()
        return _to_record(row) if row else None

    def retrainings(self, problem: str) -> list[RetrainingRecord]:
        """All retrainings of a problem, by their start."""
        query = sa.select(RETRAININGS).where(RETRAININGS.c.problem == problem).order_by(RETRAININGS.c.started)
        with self._connect() as connection:
            return [_to_record(row) for row in connection.execute(query).mappings()]

    def unfinished(self, problems: Sequence[str]) -> list[RetrainingRecord]:
        """Retrainings that were claimed and not finished, by their start."""
        query = sa.select(RETRAININGS).where(RETRAININGS.c.ended.is_(None), RETRAININGS.c.problem.in_(problems))
        with self._connect() as connection:
            return [_to_record(row) for row in connection.execute(query.order_by(RETRAININGS.c.started)).mappings()]

    def _connect(self, *through: Any) -> AbstractContextManager[sa.Connection]:
        """A transaction; raises ProjectError, in one line, where the database refuses."""
        return database.transaction(self._engine, "decisions", through)


def _to_record(row: Any) -> RetrainingRecord:
    moments = {name: as_utc(row[name]) for name in ("at", "started", "ended") if row[name] is not None}
    return RetrainingRecord(**{**row, **moments})


def summarize(decision: Decision) -> dict[str, Any]:
    """A decision as the payload of an event: short, in JSON types."""
    window = decision.window
    summary = json.loads(decision.model_dump_json(include={"problem", "at", "retrain", "trigger", "reason"}))
    score = window.performance.newest.score if window.performance else None
    alarms = [each.column for each in window.drift.alarms]
    return {**summary, "version": window.version, "rows": window.rows, "alarms": alarms, "score": score}
