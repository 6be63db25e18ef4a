"""What a step may spend of tune.budget_seconds."""

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from evergreen.tasks import problems, train
from evergreen.tasks.core.paths import write_json
from evergreen.tasks.search import time_budget
from evergreen.tasks.search.time_budget import Clock, Estimate
from evergreen.tasks.search.trials import Cost
from tests import plain_kind
from tests.tasks.problems.tabular.test_tabular_kind import houses, loaded, section

FOLD = Cost(fit_seconds=2.0, fit_rows=1_000, score_seconds=0.01, score_rows=500)


def estimate(seconds: float = 1000.0, rows: float = 10_000) -> Estimate:
    return Estimate(seconds=seconds, loading=3.0, training_rows=rows, all_rows=1.25 * rows, test_rows=rows / 4)


def test_without_a_budget_there_is_no_end() -> None:
    assert Clock(None).left() == float("inf")
    assert Clock(None).part(0, 3).left() == float("inf")


def test_parts_of_a_clock_end_one_after_the_other_and_the_last_with_it() -> None:
    clock = Clock(90.0)
    ends = [clock.part(place, 3).left() for place in range(3)]
    assert ends == pytest.approx([30.0, 60.0, 90.0], abs=0.5)


def test_a_step_has_what_the_steps_before_it_left(tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 60})
    write_json(layout.cost("tune", "pay"), {"wall_seconds": 42.0, "start_seconds": 2.0})
    write_json(layout.cost("train", "pay"), {"wall_seconds": 7.5})
    left = [time_budget.clock(params, "pay", layout, step).left() for step in time_budget.MEASURED]
    assert left == pytest.approx([60.0, 20.0, 12.5], abs=0.5)


@pytest.fixture
def commanded(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command that began at second 1,000, and a clock that stands still at second 1,020."""
    clock = SimpleNamespace(now=1_020.0)
    fake = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now - 900)
    monkeypatch.setattr(time_budget, "time", fake)
    monkeypatch.setenv(time_budget.BEGAN, "1000")
    return clock


def test_the_budget_of_a_command_is_its_wall_time_and_each_step_leaves_the_later_ones_theirs(
    tmp_path: Path, commanded: SimpleNamespace
) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 100})
    assert time_budget.clock(params, "pay", layout, "tune").left() == pytest.approx(100 - 20 - 2 - 5 - 6 - 8)
    commanded.now = 1_080.0
    assert time_budget.clock(params, "pay", layout, "evaluate").left() == pytest.approx(100 - 80 - 1 - 5 - 6 - 8)
    assert time_budget.clock(params, "pay", layout, "explain").left() == pytest.approx(100 - 80 - 5)


def test_a_machine_that_was_busy_in_the_first_steps_gets_more_time_for_the_last_ones(
    tmp_path: Path, commanded: SimpleNamespace
) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 100})
    write_json(layout.cost("validate", None), {"wall_seconds": 8.0, "cpu_seconds": 4.0})
    assert time_budget.clock(params, "pay", layout, "explain").left() == pytest.approx(100 - 20 - 2 * 5)
    time_budget.note_release(layout, "pay", 3.0)
    assert time_budget.clock(params, "pay", layout, "explain").left() == pytest.approx(100 - 20 - 3 - time_budget.PAGE_SECONDS)


def test_a_budget_below_the_other_steps_leaves_the_search_two_fifths(tmp_path: Path, commanded: SimpleNamespace) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 15})
    assert time_budget.clock(params, "pay", layout, "tune").left() == pytest.approx(6.0)
    assert time_budget.clock(params, "pay", layout, "evaluate").left() < 0


def test_counting_from_a_command_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with time_budget.counting_from(12.0):
        assert time_budget.commanded()
    assert not time_budget.commanded()


def test_the_clock_of_a_step_starts_when_its_libraries_are_loaded_and_the_next_one_starts_now(tmp_path: Path) -> None:
    params, layout = plain_kind.project(tmp_path, tune={"budget_seconds": 60})
    time_budget.begin()
    began = time_budget._begun[0]
    assert time_budget.clock(params, "pay", layout, "tune").began == began
    assert time_budget.clock(params, "pay", layout, "tune").began > began


def test_a_refit_takes_more_than_in_proportion_to_the_rows_of_a_fold() -> None:
    assert estimate().refit(FOLD) == pytest.approx(time_budget.SLACK * 20.0)
    assert estimate().refit(FOLD, 500) == pytest.approx(time_budget.SLACK)


def test_the_time_reserved_for_refit_and_evaluation_is_limited_to_shares_of_the_budget() -> None:
    assert estimate().reserve(FOLD) == pytest.approx(3 + 50 + 26 * 2.25 + 3 + 1.3 * 50 * 4 * 0.05)
    assert estimate(10.0, 1e7).reserve(FOLD) == pytest.approx(3 + 0.5 + 3.0 + 2.5)


def fitted(folder: Path, left: float) -> tuple[int, bool]:
    """Training rows of the evaluated model, and whether it was refitted; 100 rows of a fold took 50 seconds in the search."""
    kind, chosen = problems.kind("classification"), section("dear")
    data = loaded(folder, kind, chosen, houses(1500))
    config, limit = kind.defaults("logistic", chosen), train.Limit(Clock(left), 50.0, 100)
    evaluated, served, rows = train._fit(kind, data, kind.splits(data, chosen), config, chosen, 0, "houses", limit)
    return rows, served is not evaluated


def test_a_model_that_fits_faster_than_expected_is_fitted_again_on_all_rows(tmp_path: Path) -> None:
    rows, another = fitted(tmp_path, 200.0)
    kept = pl.read_parquet(tmp_path / "rows.parquet")["_test"]
    assert (rows, another) == ((~kept).sum(), True)


def test_without_time_a_model_is_fitted_on_as_many_rows_as_in_the_search_and_not_refitted(tmp_path: Path) -> None:
    rows, another = fitted(tmp_path, -1.0)
    assert 100 <= rows < 200
    assert not another
