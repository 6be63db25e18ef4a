"""Cohorts: the predictions of one version in one week, counted and scored. They outlive the predictions (retention)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.ledger.schema import COHORTS, EPOCH, PREDICTIONS, to_micros

WEEK_MICROS = 7 * 86_400 * 1_000_000
MONDAY_OFFSET = 3 * 86_400 * 1_000_000
"""Microseconds: 1970 began on a Thursday."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The predictions of one version in one week."""

    week: date
    """Its Monday (UTC)."""
    version: int
    predictions: int
    matured: int
    """Predictions that have a label."""
    score: Estimate | None = None
    """Realised. None: not computed."""
    estimated: Estimate | None = None
    """Estimated before the labels arrived."""

    @property
    def estimation_error(self) -> float | None:
        """The estimated score minus the realised one."""
        one, two = self.estimated, self.score
        return None if not one or not two or one.score is None or two.score is None else one.score - two.score


def merge(one: Cohort, two: Cohort) -> Cohort:
    """Both parts of a cohort; its scores are those of the larger part."""
    larger = one if one.predictions >= two.predictions else two
    return replace(larger, predictions=one.predictions + two.predictions, matured=one.matured + two.matured)


def count_weeks(
    connection: sa.Connection, problem: str, since: date | None = None, before: date | None = None
) -> Sequence[tuple[date, int, int]]:
    """Monday, version and number of predictions, oldest first. `since` (inclusive), `before` (exclusive): Mondays."""
    week = (PREDICTIONS.c.at + MONDAY_OFFSET) // WEEK_MICROS
    query = sa.select(week, PREDICTIONS.c.version, sa.func.count()).where(PREDICTIONS.c.problem == problem)
    query = query.where(PREDICTIONS.c.at >= to_micros(midnight(since))) if since else query
    query = query.where(PREDICTIONS.c.at < to_micros(midnight(before))) if before else query
    rows = connection.execute(query.group_by(week, PREDICTIONS.c.version).order_by(week, PREDICTIONS.c.version))
    return [(_monday_of(number), version, count) for number, version, count in rows]


def _monday_of(week: int) -> date:
    return (EPOCH + timedelta(microseconds=week * WEEK_MICROS - MONDAY_OFFSET)).date()


def read_stored(connection: sa.Connection, problem: str) -> list[Cohort]:
    """Cohorts of predictions that were deleted."""
    rows = connection.execute(sa.select(COHORTS).where(COHORTS.c.problem == problem)).mappings().all()
    return [
        Cohort(row["week"], row["version"], row["predictions"], row["matured"], _parse(row["score"]), _parse(row["estimated"]))
        for row in rows
    ]


def _parse(text: str | None) -> Estimate | None:
    return Estimate.model_validate_json(text) if text else None


def store(connection: sa.Connection, problem: str, cohorts: Sequence[Cohort]) -> None:
    """Write cohorts; those of a week and version that is stored already are merged with it."""
    stored = {(each.week, each.version): each for each in read_stored(connection, problem)}
    for each in cohorts:
        row: dict[str, Any] = {"problem": problem, "week": each.week, "version": each.version}
        connection.execute(sa.delete(COHORTS).where(*(COHORTS.c[name] == value for name, value in row.items())))
        whole = merge(stored[each.week, each.version], each) if (each.week, each.version) in stored else each
        row |= {"predictions": whole.predictions, "matured": whole.matured}
        for name, estimate in (("score", whole.score), ("estimated", whole.estimated)):
            row[name] = estimate and estimate.model_dump_json()
        connection.execute(sa.insert(COHORTS).values(**row))


def monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
