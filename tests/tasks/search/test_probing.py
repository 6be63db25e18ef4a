"""A search that has little time."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from evergreen.tasks.problems.base import Config
from evergreen.tasks.search import probing
from evergreen.tasks.search.probing import affordable_folds, probes_as_trials
from evergreen.tasks.search.selection import select_trial
from evergreen.tasks.search.trials import Cost, Outcome
from tests.tasks.search.toy_search import DEFAULTS, STAGED, folded, searching


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
    slow, quick = (lambda rows: 1.0 * rows), (lambda rows: 0.0024 * rows)
    assert probing.affordable_rows(0.1, slow, 50_000) == probing.FEWEST_ROWS
    assert probing.affordable_rows(0.1, slow, 700) == 700
    assert probing.affordable_rows(600.0, quick, 50_000) == 20_000
    assert probing.affordable_rows(600.0, lambda rows: quick(rows) ** 0.5, 50_000) == 50_000


@dataclass(frozen=True)
class Timed:
    """An evaluator whose time grows by a power of the rows."""

    power: float
    sample_rows: int = 0
    most_folds: int = 0
    keep_predictions: bool = False

    def __call__(self, config: Config) -> Outcome:
        return Outcome([1.0], cost=Cost(wall_seconds=self.sample_rows**self.power / 1000))


@pytest.mark.parametrize(("power", "found"), [(0.5, 0.5), (0.9, 0.9), (1.4, 1.0), (0.0, probing.LEAST_GROWTH)])
def test_the_growth_of_the_time_is_measured_on_tables_that_are_large_enough(power: float, found: float) -> None:
    search: Any = replace(searching(), stages=STAGED)
    evaluator: Any = Timed(power)
    assert probing.growth(search, evaluator, 50_000) == pytest.approx(found)
    assert probing.growth(search, evaluator, 2 * probing.SECOND_PROBE_ROWS - 1) == 1.0


def test_warm_starts_of_models_that_take_hardly_any_time_come_first() -> None:
    starts: list[Config] = [{"model": "boost"}, {"model": "line", "alpha": 1.0}, {"model": "net"}, {"model": "line"}]
    found = probing.cheap_first(starts, {"boost": 1.0, "line": 0.1}, 0.2)
    assert found == [starts[1], starts[3], starts[0], starts[2]]


def test_warm_starts_of_a_large_table_begin_with_pairs_of_columns_then_the_largest_trees() -> None:
    trees = [{"model": "curve", "num_leaves": leaves} for leaves in (8, 64)]
    starts: list[Config] = [{"model": "line"}, *trees, {**trees[0], "column_pairs": 8}]
    assert probing.pairs_and_largest_trees_first(starts) == [starts[3], starts[2], starts[1], starts[0]]


@pytest.mark.parametrize(
    ("rows", "folds", "available", "found"),
    [
        (4_000, 5, 50_000, (10_000, 2)),
        (4_000, 5, 5_000, (5_000, 4)),
        (700, 5, 700, (700, 5)),
        (10_000, 2, 50_000, (10_000, 2)),
        (10_000, 1, 50_000, (10_000, 1)),
        (10_000, 5, 80_000, (50_000, 1)),
        (10_000, 5, 20_000, (20_000, 2)),
        (15_000, 2, 80_000, (30_000, 1)),
        (30_000, 3, 30_000, (30_000, 3)),
    ],
)
def test_a_part_of_the_rows_is_searched_with_fewer_folds_and_more_rows(
    rows: int, folds: int, available: int, found: tuple[int, int]
) -> None:
    assert probing.more_rows_of_fewer_folds(rows, folds, available) == found
