"""Cohorts: the predictions of one version in one week, counted and scored. They outlive the predictions (retention).

A cohort is stored when it was scored, with what it was made of: the number of its predictions, and the number of the newest
label for one of its days. It is scored again once one of the two has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.ledger.schema import BLOCKS, COHORTS, EPOCH, LIVE_COHORTS, to_days

MONDAY_OFFSET = 3
"""Days: 1970 began on a Thursday."""


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
    changed: bool = False
    """Whether predictions or labels were added since it was scored; then `matured` and scores are those of that time."""

    @property
    def estimation_error(self) -> float | None:
        """The estimated score minus the realised one."""
        one, two = self.estimated, self.score
        return None if not one or not two or one.score is None or two.score is None else one.score - two.score


def merge(one: Cohort, two: Cohort) -> Cohort:
    """Both parts of a cohort; its scores are those of the larger part."""
    larger = one if one.predictions >= two.predictions else two
    return replace(larger, predictions=one.predictions + two.predictions, matured=one.matured + two.matured)


@dataclass(frozen=True, slots=True)
class Week:
    """The predictions of one version in one week that are in the ledger."""

    week: date
    version: int
    predictions: int
    first_day: int
    last_day: int
    """Days that labels of them may refer to, since 1970."""

    @property
    def key(self) -> tuple[date, int]:
        return self.week, self.version

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """The first and the last moment."""
        return midnight(self.week), midnight(self.week + timedelta(days=7)) - timedelta(microseconds=1)

    @property
    def dates(self) -> tuple[int, int]:
        """Its Monday and its Sunday, in days since 1970."""
        return dates(self.week)

    @property
    def days(self) -> range:
        return range(self.first_day, self.last_day + 1)


@dataclass(frozen=True, slots=True)
class Stored:
    """A cohort as it was scored last."""

    cohort: Cohort
    labelled: int
    """Matured, without predictions in shadow mode."""
    label_number: int
    """Of the newest label for one of its days."""
    label_at: int | None
    """When the newest of its labels was known; None: it has none."""

    def is_of(self, week: Week, label_number: int) -> bool:
        """Whether neither predictions nor labels were added since."""
        return self.cohort.predictions == week.predictions and self.label_number == label_number


def count_weeks(
    connection: sa.Connection, problem: str, since: date | None = None, before: date | None = None
) -> Sequence[Week]:
    """The weeks of all versions, oldest first. `since` (inclusive), `before` (exclusive): Mondays."""
    week, first, last = (BLOCKS.c.date + MONDAY_OFFSET) // 7, sa.func.min(BLOCKS.c.first_day), sa.func.max(BLOCKS.c.last_day)
    query = sa.select(week, BLOCKS.c.version, sa.func.sum(BLOCKS.c.rows), first, last).where(BLOCKS.c.problem == problem)
    query = query.where(BLOCKS.c.date >= to_days(since)) if since else query
    query = query.where(BLOCKS.c.date < to_days(before)) if before else query
    rows = connection.execute(query.group_by(week, BLOCKS.c.version).order_by(week, BLOCKS.c.version))
    return [Week(_monday_of(number), *rest) for number, *rest in rows]


def _monday_of(week: int) -> date:
    return (EPOCH + timedelta(days=week * 7 - MONDAY_OFFSET)).date()


def read_deleted(connection: sa.Connection, problem: str) -> list[Cohort]:
    """Cohorts of predictions that were deleted."""
    rows = connection.execute(sa.select(COHORTS).where(COHORTS.c.problem == problem)).mappings().all()
    return [_to_cohort(row) for row in rows]


def read_stored(connection: sa.Connection, problem: str) -> dict[tuple[date, int], Stored]:
    """Cohorts of predictions in the ledger as they were scored last, by week and version."""
    rows = connection.execute(sa.select(LIVE_COHORTS).where(LIVE_COHORTS.c.problem == problem)).mappings().all()
    found = [Stored(_to_cohort(row), row["labelled"], row["label_number"], row["label_at"]) for row in rows]
    return {(each.cohort.week, each.cohort.version): each for each in found}


def _to_cohort(row: Any) -> Cohort:
    return Cohort(
        row["week"], row["version"], row["predictions"], row["matured"], _parse(row["score"]), _parse(row["estimated"])
    )


def _parse(text: str | None) -> Estimate | None:
    return Estimate.model_validate_json(text) if text else None


def store(connection: sa.Connection, problem: str, stored: Stored) -> None:
    """Write a cohort of predictions in the ledger over the one before."""
    rest = {"labelled": stored.labelled, "label_number": stored.label_number, "label_at": stored.label_at}
    _replace(connection, LIVE_COHORTS, problem, stored.cohort, rest)


def add_deleted(connection: sa.Connection, problem: str, cohort: Cohort) -> None:
    """Add predictions that are deleted in this transaction to the cohort of those that were before."""
    for each in read_deleted(connection, problem):
        if (each.week, each.version) == (cohort.week, cohort.version):
            cohort = merge(each, cohort)
    _replace(connection, COHORTS, problem, cohort, {})


def remove_stored(connection: sa.Connection, problem: str, before: date) -> None:
    """Remove the cohorts of weeks before the Monday `before`; their predictions were deleted."""
    connection.execute(sa.delete(LIVE_COHORTS).where(LIVE_COHORTS.c.problem == problem, LIVE_COHORTS.c.week < before))


def _replace(connection: sa.Connection, table: sa.Table, problem: str, cohort: Cohort, rest: dict[str, Any]) -> None:
    key: dict[str, Any] = {"problem": problem, "week": cohort.week, "version": cohort.version}
    row = {**key, "predictions": cohort.predictions, "matured": cohort.matured, **rest}
    for name, estimate in (("score", cohort.score), ("estimated", cohort.estimated)):
        row[name] = estimate and estimate.model_dump_json()
    connection.execute(sa.delete(table).where(*(table.c[name] == value for name, value in key.items())))
    connection.execute(sa.insert(table).values(**row))


def dates(week: date) -> tuple[int, int]:
    """The Monday and the Sunday of a week, in days since 1970."""
    monday = (week - EPOCH.date()).days
    return monday, monday + 6


def monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
