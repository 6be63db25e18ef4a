"""Cohorts of predictions in the ledger: those that changed since they were scored are scored again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Protocol

import polars as pl

from evergreen.monitoring.ledger import cohorts, label_matching, upkeep
from evergreen.monitoring.ledger.cohorts import Cohort, Stored, Week, monday
from evergreen.monitoring.ledger.pieces import Connect
from evergreen.monitoring.ledger.prediction_rows import Predictions
from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.ledger.schema import to_micros

MAX_EARLIER = 8
"""Most cohorts before one that its estimate learns from."""
MOMENT = timedelta(microseconds=1)


class Scorer(Protocol):
    """How good the predictions of one version in one week are."""

    def realised(self, found: Predictions) -> Estimate: ...

    def estimated(self, found: Predictions, until: datetime, earlier: Sequence[Predictions]) -> Estimate:
        """As it could be estimated at `until`, with the labels of `earlier` weeks that were known by then."""
        ...


def refresh(
    connect: Connect,
    read: Callable[[Week], Predictions],
    problem: str,
    scorer: Scorer | None,
    since: date | None = None,
    before: date | None = None,
    most_rows: int | None = None,
) -> list[Cohort]:
    """The cohorts of the predictions in the ledger, by week. See Ledger.cohorts; `since`, `before`: Mondays.

    `read`: the predictions of a week, and their labels.
    """
    if most_rows is None:  # who limits the work only looks
        upkeep.find_days(connect, problem)
    with connect() as connection:
        weeks = cohorts.count_weeks(connection, problem, None, before)
        stored = cohorts.read_stored(connection, problem)
        newest = label_matching.newest_numbers(connection, problem, (day for each in weeks for day in each.days))
    asked = [each for each in weeks if since is None or each.week >= since]
    numbers = {each: max(newest[day] for day in each.days) for each in asked}
    changed = [each for each in asked if _is_changed(each, stored.get(each.key), numbers[each], scorer)]
    left = changed if most_rows is not None and sum(each.predictions for each in changed) > most_rows else []
    found = dict[Week, Cohort]()
    for each in sorted(asked, key=lambda week: (week.version, week.week)):
        old = stored.get(each.key)
        if each not in changed or left:
            found[each] = _unscored(each, old, each in left)
            continue
        fresh = _score(each, old, numbers[each], scorer, read, _earlier(each, weeks))
        found[each] = fresh.cohort
        if scorer:
            with connect() as connection:
                label_matching.lock_labels(connection, problem)
                cohorts.store(connection, problem, fresh)
    return [found[each] for each in asked]


def _is_changed(week: Week, old: Stored | None, number: int, scorer: Scorer | None) -> bool:
    if scorer is None and number == 0:
        return False  # no label to count
    return old is None or not old.is_of(week, number)


def _unscored(week: Week, old: Stored | None, changed: bool) -> Cohort:
    cohort = old.cohort if old else Cohort(week.week, week.version, week.predictions, 0)
    return replace(cohort, predictions=week.predictions, changed=changed)


def _earlier(week: Week, weeks: Sequence[Week]) -> list[Week]:
    return [each for each in weeks if each.version == week.version and each.week < week.week][-MAX_EARLIER:]


def _score(
    week: Week,
    old: Stored | None,
    number: int,
    scorer: Scorer | None,
    read: Callable[[Week], Predictions],
    earlier: Sequence[Week],
) -> Stored:
    """The same predictions keep their estimate, which later labels cannot change."""
    found = read(week)
    labelled = found.rows.filter(pl.col("label").is_not_null())
    score, estimated = (old.cohort.score, old.cohort.estimated) if old else (None, None)
    if scorer:
        score = scorer.realised(found)
        if old is None or estimated is None or old.cohort.predictions != week.predictions:
            estimated = scorer.estimated(found, week.bounds[1], [read(each) for each in earlier])
    known = labelled["label_at"].max()
    return Stored(
        Cohort(week.week, week.version, found.rows.height, labelled.height, score, estimated),
        labelled.filter(pl.col("variant") != "shadow").height,
        number,
        to_micros(known) if isinstance(known, datetime) else None,
    )


def count_labelled(
    connect: Connect,
    count: Callable[[int, datetime, datetime], int],
    problem: str,
    since: datetime,
    until: datetime,
    known_at: datetime,
) -> int:
    """See Ledger.count_labelled. `count`: the same for a version, within a week; weeks that did not change are not counted
    again."""
    with connect() as connection:
        weeks = cohorts.count_weeks(connection, problem, monday(since.date()))
        stored = cohorts.read_stored(connection, problem)
        newest = label_matching.newest_numbers(connection, problem, (day for each in weeks for day in each.days))
    total = 0
    for each in weeks:
        begin, end = each.bounds
        old, number = stored.get(each.key), max(newest[day] for day in each.days)
        whole = since < begin and end <= until and old is not None and old.is_of(each, number)
        if whole and old and (old.label_at is None or old.label_at <= to_micros(known_at)):
            total += old.labelled
        elif begin <= until:
            total += count(each.version, max(since, begin - MOMENT), min(until, end))
    return total
