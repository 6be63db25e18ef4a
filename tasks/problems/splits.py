"""Splits of cutoffs in time: training rows, labels included, end before test rows begin."""

from collections.abc import Sequence
from datetime import date, timedelta

from evergreen.tasks.config.params import Problem
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.base import Fold, Splits


def by_cutoff(cutoffs: Sequence[date], horizon_days: int, section: Problem) -> Splits:
    """The test windows at the end of `cutoffs`, and before the first of them the windows of the search.

    `cutoffs`: ascending, with complete labels. What is learned from lies within train.history_days.
    Raises DataError where there are too few.
    """
    seen, tests = before_tests(cutoffs, horizon_days, section.evaluate.windows), section.evaluate.windows
    history = section.train.history_days
    folds = split_by_time(seen, horizon_days, section.tune.folds, history)
    return Splits(tuple(folds), tuple(split_by_time(cutoffs, horizon_days, tests, history)))


def split_by_time(cutoffs: Sequence[date], horizon_days: int, folds: int, history_days: int | None = None) -> list[Fold]:
    """The last `folds` windows that do not overlap; what judges one was learned from labels that are complete at its cutoff.

    `cutoffs`: ascending, with complete labels. Test cutoffs lie `horizon_days` or more apart, counted backwards from the
    newest; the training cutoffs of a fold are those at least `horizon_days` before its test, of them the newest `history_days`
    (see recent). Oldest fold first.
    Raises DataError where there are too few cutoffs.

    >>> mondays = [date(2024, 1, day) for day in (1, 8, 15, 22, 29)]
    >>> for fold in split_by_time(mondays, horizon_days=14, folds=1):
    ...     print(*(f"{each:%d}" for each in fold.train), "->", f"{fold.test:%d}")
    01 08 15 -> 29
    """
    return [Fold(recent(train, history_days), test) for train, test in _windows(cutoffs, horizon_days, folds)]


def _windows(cutoffs: Sequence[date], horizon_days: int, folds: int) -> list[tuple[tuple[date, ...], date]]:
    """What each of the folds learns from, and its test cutoff."""
    gap = timedelta(days=horizon_days)
    tests: list[date] = []
    for cutoff in reversed(cutoffs):
        if len(tests) < folds and (not tests or cutoff <= tests[-1] - gap):
            tests.append(cutoff)
    found = [(tuple(each for each in cutoffs if each <= test - gap), test) for test in reversed(tests)]
    found = [(train, test) for train, test in found if train]
    if len(found) < folds:
        raise DataError(
            f"{len(cutoffs)} labelled cutoffs give {len(found)} of {folds} windows of {horizon_days} days with earlier rows to "
            "learn from. Give more history, an earlier features.cutoffs.first, or fewer evaluate.windows and tune.folds."
        )
    return found


def recent(cutoffs: Sequence[date], history_days: int | None) -> tuple[date, ...]:
    """Those of `cutoffs` less than `history_days` before the newest; all of them for None.

    >>> len(recent([date(2024, 1, 1), date(2024, 1, 8), date(2024, 1, 15)], history_days=14))
    2
    """
    if history_days is None or not cutoffs:
        return tuple(cutoffs)
    return tuple(each for each in cutoffs if each > max(cutoffs) - timedelta(days=history_days))


def before_tests(cutoffs: Sequence[date], horizon_days: int, windows: int) -> tuple[date, ...]:
    """The cutoffs that tuning may see: their labels are complete at the first test cutoff."""
    return _windows(cutoffs, horizon_days, windows)[0][0]
