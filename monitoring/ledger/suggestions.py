"""Suggested retrainings (`retrain.mode: suggest`) and what people answered: approve, decline or snooze."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from evergreen.monitoring.ledger.decisions import MonitoringRun, RetrainingRecord
from evergreen.tasks.config.base import Section
from evergreen.tasks.core import database
from evergreen.tasks.release.deployments import as_utc

METADATA = sa.MetaData()
ANSWERS = sa.Table(
    "suggestion_answers",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(64), nullable=False, index=True),
    sa.Column("decided", sa.DateTime(timezone=True), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("until", sa.DateTime(timezone=True)),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
Action = Literal["approve", "decline", "snooze"]


class Answer(Section):
    problem: str
    decided: datetime
    """UTC: the end of the window of the monitoring run that suggested the retraining."""
    action: Action
    until: datetime | None
    """UTC: no suggestion of the problem is shown before; of a snooze alone."""
    by: str
    at: datetime
    """UTC."""
    reason: str


class Suggestions:
    """The answers, in a table at the SQLAlchemy `address`. Raises ProjectError where the database cannot be used."""

    def __init__(self, address: str) -> None:
        self._engine = database.connect(address, "suggestions", METADATA)

    def add(self, answer: Answer, is_awaited: Callable[[Sequence[Answer]], bool]) -> bool:
        """Write it if `is_awaited`, given the answers so far, oldest first; of two answers at the same instant one comes first.

        Returns whether it was written.
        """
        with self._connect() as connection:
            database.lock(connection, f"suggestions {answer.problem}")
            if not is_awaited(_answers(connection, answer.problem)):
                return False
            connection.execute(sa.insert(ANSWERS).values(**answer.model_dump()))
            return True

    def answers(self, problem: str) -> list[Answer]:
        """All answers about a problem, oldest first."""
        with self._connect() as connection:
            return _answers(connection, problem)

    def _connect(self) -> AbstractContextManager[sa.Connection]:
        return database.transaction(self._engine, "suggestions")


def pending(
    run: MonitoringRun | None, retrainings: Sequence[RetrainingRecord], answers: Sequence[Answer], now: datetime
) -> MonitoringRun | None:
    """`run`, the newest monitoring run of a problem, if it suggests a retraining that nobody answered; else None.

    A retraining since then answers it, whoever began it. A snooze hides later suggestions of the problem, too.
    """
    if run is None or not run.decision.retrain or any(each.started >= run.recorded for each in retrainings):
        return None
    if any(each.decided == run.decision.at and each.action != "snooze" for each in answers):
        return None
    newest = answers[-1] if answers else None
    snoozed = newest is not None and newest.until is not None and newest.until > now
    return None if snoozed else run


def _answers(connection: sa.Connection, problem: str) -> list[Answer]:
    query = sa.select(ANSWERS).where(ANSWERS.c.problem == problem).order_by(ANSWERS.c.id)
    return [_to_answer(row) for row in connection.execute(query).mappings()]


def _to_answer(row: Any) -> Answer:
    moments = {name: as_utc(row[name]) for name in ("decided", "until", "at") if row[name] is not None}
    return Answer.model_validate({**{name: row[name] for name in Answer.model_fields}, **moments})
