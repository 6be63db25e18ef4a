"""Splits in time: properties that hold for any cutoffs, horizon and number of windows."""

from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.splits import before_tests, recent, split_by_time

START = date(2020, 1, 1)


@st.composite
def splits(draw):
    """Cutoffs, horizon and number of windows for which there is a split."""
    horizon, folds = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    needed = (folds + 1) * horizon
    inside = draw(st.sets(st.integers(0, needed + 60), max_size=30))
    whole = {window * horizon for window in range(folds + 1)}
    return [START + timedelta(days=day) for day in sorted(inside | whole)], horizon, folds


@given(splits())
def test_no_label_of_a_training_row_reaches_past_the_test_cutoff(case):
    cutoffs, horizon, folds = case
    for fold in split_by_time(cutoffs, horizon, folds):
        assert fold.train
        assert all(each + timedelta(days=horizon) <= fold.test for each in fold.train)


@given(splits())
def test_training_uses_every_cutoff_that_it_may(case):
    cutoffs, horizon, folds = case
    for fold in split_by_time(cutoffs, horizon, folds):
        assert set(cutoffs) - set(fold.train) == {each for each in cutoffs if each + timedelta(days=horizon) > fold.test}


@given(splits())
def test_test_windows_do_not_overlap_and_end_with_the_newest(case):
    cutoffs, horizon, folds = case
    tests = [fold.test for fold in split_by_time(cutoffs, horizon, folds)]
    assert len(tests) == folds
    assert tests[-1] == cutoffs[-1]
    assert all(later - earlier >= timedelta(days=horizon) for earlier, later in pairwise(tests))


@given(splits())
def test_tuning_never_sees_a_label_of_a_test_window(case):
    cutoffs, horizon, windows = case
    first = split_by_time(cutoffs, horizon, windows)[0].test
    seen = before_tests(cutoffs, horizon, windows)
    assert seen
    assert max(seen) + timedelta(days=horizon) <= first


@given(splits(), st.integers(1, 100))
def test_recent_keeps_the_newest_cutoffs_and_no_older_one(case, history):
    cutoffs, _, _ = case
    kept = recent(cutoffs, history)
    assert kept == tuple(cutoffs[len(cutoffs) - len(kept) :])
    assert all((cutoffs[-1] - each).days < history for each in kept)
    assert all((cutoffs[-1] - each).days >= history for each in cutoffs[: len(cutoffs) - len(kept)])


def test_no_limit_to_history_keeps_all():
    assert recent([START], None) == (START,)
    assert recent([], 7) == ()


def test_weekly_cutoffs_with_a_horizon_of_two_weeks():
    weeks = [START + timedelta(days=7 * week) for week in range(6)]
    older, newer = split_by_time(weeks, 14, 2)
    assert (older.train, older.test) == (tuple(weeks[:2]), weeks[3])
    assert (newer.train, newer.test) == (tuple(weeks[:4]), weeks[5])
    assert before_tests(weeks, 14, 2) == tuple(weeks[:2])


@pytest.mark.parametrize("days", [[], [0], [0, 13], [0, 7, 13]])
def test_too_little_history_says_what_to_do(days):
    cutoffs = [START + timedelta(days=day) for day in days]
    with pytest.raises(DataError, match=rf"{len(days)} labelled cutoffs give 0 of 1 windows of 14 days .* Give more history"):
        split_by_time(cutoffs, 14, 1)
