"""A search that has little time."""

from dataclasses import replace

import pytest

from evergreen.tasks.search import probing
from evergreen.tasks.search.probing import affordable_folds, probes_as_trials
from evergreen.tasks.search.selection import select_trial
from evergreen.tasks.search.trials import Outcome
from tests.tasks.search.toy_search import DEFAULTS, folded, searching


def test_without_time_for_a_trial_the_best_probe_is_chosen() -> None:
    probes = {"none": Outcome([9.0]), "line": Outcome([0.3]), "curve": Outcome([5.0])}
    search, only = replace(searching(), probes=probes), [folded(0, "none", 9.0, 9.0)]
    found = [*only, *probes_as_trials(search, only)]
    assert [each.model for each in found] == ["none", "line", "curve"]
    assert select_trial(search, found).config == DEFAULTS["line"]
    assert probes_as_trials(search, [*only, folded(1, "line", 1.0, 1.0)]) == []


def test_a_cross_validation_is_repeated_where_there_is_time_for_many_trials() -> None:
    assert affordable_folds(15, 5, fold_seconds=0.01, seconds=100.0) == 15
    assert affordable_folds(15, 5, fold_seconds=1.0, seconds=100.0) == 5
    assert affordable_folds(3, 3, fold_seconds=9.0, seconds=1.0) == 3


def test_however_short_the_time_ten_thousand_rows_are_searched_or_all() -> None:
    assert probing.affordable_rows(seconds=0.1, seconds_per_row=1.0, available=50_000) == probing.FEWEST_ROWS
    assert probing.affordable_rows(seconds=0.1, seconds_per_row=1.0, available=700) == 700
    assert probing.affordable_rows(seconds=600.0, seconds_per_row=0.008, available=50_000) == 20_000


@pytest.mark.parametrize(
    ("rows", "folds", "available", "found"),
    [
        (10_000, 5, 50_000, (25_000, 2)),
        (10_000, 5, 11_000, (11_000, 4)),
        (20_000, 5, 30_000, (30_000, 3)),
        (700, 5, 700, (700, 5)),
        (10_000, 2, 50_000, (10_000, 2)),
        (10_000, 1, 50_000, (10_000, 1)),
    ],
)
def test_a_part_of_the_rows_is_searched_with_fewer_folds_and_more_rows(
    rows: int, folds: int, available: int, found: tuple[int, int]
) -> None:
    assert probing.more_rows_of_fewer_folds(rows, folds, available) == found
