"""Confidence intervals by leaving entities out."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evergreen.tasks.core import intervals
from evergreen.tasks.core.intervals import Scale, group_of, interval, leave_out

FEW = settings(max_examples=60, deadline=None)
SCORES = st.lists(st.floats(0.05, 0.95), min_size=intervals.MIN_ENTITIES, max_size=30)


def means_without(values: np.ndarray) -> np.ndarray:
    return (values.sum() - values) / (len(values) - 1)


def of_mean(values: np.ndarray, scale: Scale = "linear", confidence: float = 0.95) -> intervals.Interval:
    return interval(float(values.mean()), means_without(values).tolist(), confidence, scale)


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high, why = of_mean(values)
    textbook = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert why == ""
    assert (low, high) == pytest.approx(textbook, rel=0.003)


def test_the_interval_of_a_share_of_independent_rows_is_that_of_wilson() -> None:
    right = np.repeat([1.0, 0.0], [180, 20])
    textbook = stats.binomtest(180, 200).proportion_ci(0.95, "wilson")
    assert of_mean(right, "proportion")[:2] == pytest.approx((textbook.low, textbook.high), abs=0.002)


@FEW
@given(SCORES, st.sampled_from(["linear", "positive", "share", "proportion", "explained"]))
def test_an_interval_lies_around_its_score_and_within_what_the_score_can_be(values: list[float], scale: Scale) -> None:
    score = float(np.mean(values))
    low, high, why = of_mean(np.array(values), scale)
    if why:
        assert why.startswith("too few ")
        assert math.isnan(low)
        assert math.isnan(high)
        return
    assert low <= score <= high
    lowest, highest = {"linear": (-math.inf, math.inf), "positive": (0, math.inf), "explained": (-math.inf, 1)}.get(
        scale, (0, 1)
    )
    assert lowest <= low
    assert high <= highest


@FEW
@given(SCORES)
def test_more_confidence_never_narrows(values: list[float]) -> None:
    one, two = (of_mean(np.array(values), "share", confidence) for confidence in (0.8, 0.99))
    if not one.why:
        assert two.low <= one.low <= one.high <= two.high


@FEW
@given(SCORES, st.floats(-3, 3))
def test_the_interval_of_a_difference_moves_with_it_and_turns_with_its_sign(values: list[float], by: float) -> None:
    plain, moved, turned = (of_mean(each) for each in (np.array(values), np.array(values) + by, -np.array(values)))
    if not plain.why:
        assert moved[:2] == pytest.approx((plain.low + by, plain.high + by), abs=1e-6)
        assert turned[:2] == pytest.approx((-plain.high, -plain.low), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "scale", "why"),
    [
        ([0.5, 0.6, 0.5, 0.6], "share", "too few entities for an interval: 4"),
        ([0.55] * 40, "share", "too few rows that differ for an interval"),
        ([1.0] * 40, "proportion", "too few rows that differ for an interval"),
        ([math.nan] * 40, "linear", "too few rows of one class, or with a label, for an interval"),
        ([1.0] * 200 + [1e4], "positive", "too few entities for an interval: one of them carries the score"),
    ],
)
def test_where_there_is_too_little_the_reason_says_of_what(values: list[float], scale: Scale, why: str) -> None:
    found = of_mean(np.array(values), scale)
    assert found.why == why
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_share_in_few_entities_has_no_interval() -> None:
    """Of 100 entities four hold a positive: the others say nothing about recall."""
    hits, positives = np.array([1.0, 0, 1, 1] + [0] * 96), np.array([1.0] * 4 + [0] * 96)
    without = (hits.sum() - hits) / (positives.sum() - positives)
    assert interval(0.75, without.tolist(), 0.95, "proportion").why == "too few entities that count in it for an interval: 4"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.lists(st.integers(0, 30), max_size=60), st.integers(2, 12))
def test_each_entity_is_left_out_once_with_all_its_rows_from_every_frame(one: list[int], two: list[int], groups: int) -> None:
    frames = [pl.DataFrame({"entity": pl.Series(each, dtype=pl.Int64)}) for each in (one, two)]
    parts = list(leave_out(frames, seed=0, groups=groups))
    everybody = set(one) | set(two)
    gone = [everybody - {*left["entity"], *right["entity"]} for left, right in parts]
    assert sorted(entity for group in gone for entity in group) == sorted(everybody)
    assert len(parts) <= groups or len(parts) == len(everybody) <= groups
    for frame, kept in zip(frames, zip(*parts, strict=True), strict=True):
        for group, rows in zip(gone, kept, strict=True):
            assert rows["entity"].to_list() == [each for each in frame["entity"] if each not in group]


@given(st.integers(1, 5000), st.integers(2, 400))
def test_groups_are_of_nearly_the_same_size(entities: int, groups: int) -> None:
    sizes = np.bincount(group_of(entities, 0, groups))
    assert len(sizes) <= max(groups, 1)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


def test_repeated_rows_of_an_entity_do_not_narrow_the_interval() -> None:
    draw = np.random.default_rng(0).normal(size=100)
    rows = pl.DataFrame({"entity": list(range(100)) * 25, "value": np.tile(draw, 25)})
    without = [part["value"].to_numpy().mean() for (part,) in leave_out([rows], 0)]
    low, high, _ = interval(float(draw.mean()), without, 0.95)
    assert high - low == pytest.approx(2 * 1.98 * draw.std() / 10, rel=0.03)


def test_groups_of_entities_give_nearly_the_interval_of_single_ones() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=2000)
    rows = pl.DataFrame({"entity": range(2000), "value": values})
    single = of_mean(values, "positive")
    grouped = interval(
        float(values.mean()), [part["value"].to_numpy().mean() for (part,) in leave_out([rows], 0)], 0.95, "positive"
    )
    assert grouped[:2] == pytest.approx(single[:2], rel=0.01)


def test_the_rmse_of_heavy_tails_is_covered() -> None:
    """RMSE of errors with few degrees of freedom: the middle of the resamples contained it in 73 of 100 runs."""
    random = np.random.default_rng(5)
    hits = []
    for _ in range(300):
        squares = random.standard_t(3, 100) ** 2
        without = np.sqrt(means_without(squares))
        low, high, _ = interval(math.sqrt(squares.mean()), without.tolist(), 0.95, "positive")
        if math.isfinite(low):
            hits.append(low <= math.sqrt(3) <= high)
    assert len(hits) > 240
    assert np.mean(hits) > 0.91
