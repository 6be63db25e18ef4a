"""Data faults are found in the first window, whatever is known of weeks; a week that moves all rows a little is none."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.drift import data_faults
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Part

ROWS = 1000


def part(values: np.ndarray | list[str], weeks: int = 0) -> Part:
    week = [date(2024, 1, 1) + timedelta(weeks=place % weeks) if weeks else None for place in range(len(values))]
    rows = pl.DataFrame({"x": values, WEEK: pl.Series(week, dtype=pl.Date)}).with_columns(pl.lit(None, pl.String).alias(ENTITY))
    return Part(rows, {"x": "number" if rows["x"].dtype.is_numeric() else "category"})


def p_values(known: Part, now: pl.Series) -> dict[str, float]:
    """Aspect -> the smallest p."""
    weight = np.ones(len(now))
    found: dict[str, float] = {}
    for fault in data_faults.find(known, "x", now, weight, known.bins["x"].histogram(now, weight)):
        found[fault.aspect] = min(fault.p, found.get(fault.aspect, 1.0))
    return found


@pytest.fixture(scope="module")
def numbers() -> Part:
    return part(np.random.default_rng(0).normal(size=4000))


@pytest.fixture(scope="module")
def amounts() -> Part:
    return part(np.exp(np.random.default_rng(1).normal(3, 1, 4000)))


@pytest.mark.parametrize("weeks", [0, 3, 8])
def test_a_constant_and_a_join_that_fills_zeros_are_found_whatever_weeks_are_known(weeks):
    draw = np.random.default_rng(2)
    known = part(draw.normal(size=4000), weeks)
    assert p_values(known, pl.Series(np.full(ROWS, 0.3)))["filled"] < 1e-9
    zeros = np.where(draw.random(ROWS) < 0.3, 0.0, draw.normal(size=ROWS))
    assert p_values(known, pl.Series(zeros))["filled"] < 1e-9


def test_a_column_with_one_value_a_week_is_constant_by_nature():
    known = part(np.arange(4000) % 8 + 0.5, weeks=8)
    assert p_values(known, pl.Series(np.full(ROWS, 9.5))).get("filled", 1.0) > 0.5


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_other_units_in_a_twentieth_of_the_rows_are_found(amounts, factor):
    draw = np.random.default_rng(3)
    values = np.exp(draw.normal(3, 1, ROWS))
    assert p_values(amounts, pl.Series(values))["range"] > 0.001
    mixed = np.where(draw.random(ROWS) < 0.05, values * factor, values)
    assert p_values(amounts, pl.Series(mixed))["range"] < 1e-6
    assert p_values(amounts, pl.Series(values * 1000))["moved"] < 1e-6  # all rows


@pytest.mark.parametrize("moved", [-0.4, 0.4])
def test_a_week_that_moves_all_rows_is_no_fault(numbers, amounts, moved):
    draw = np.random.default_rng(4)
    assert min(p_values(numbers, pl.Series(draw.normal(moved, 1, ROWS))).values()) > 0.001
    assert min(p_values(amounts, pl.Series(np.exp(draw.normal(3 + moved, 1, ROWS)))).values()) > 0.001


def test_missing_values_and_unknown_categories_are_found_beyond_four_times_their_odds():
    draw = np.random.default_rng(5)
    known = part(draw.choice(["a", "b", "c"], 4000).tolist())
    now = pl.Series(draw.choice(["a", "b", "new"], ROWS))
    assert p_values(known, now)["unseen"] < 1e-9
    gaps = pl.Series(np.where(draw.random(4000) < 0.1, np.nan, draw.normal(size=4000)), nan_to_null=True)
    rare = part(gaps.to_numpy())
    assert p_values(rare, pl.Series([None] * 200 + [0.5 * place for place in range(800)]))["missing"] > 0.5
    assert p_values(rare, pl.Series([None] * 500 + [0.5 * place for place in range(500)]))["missing"] < 1e-9
