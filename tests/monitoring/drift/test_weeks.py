"""Week effects, slopes, trends and past windows: what weeks show without drift, and what they show with it."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.drift import detection, past_windows, trends, week_effects
from evergreen.monitoring.drift.histograms import Histogram
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Part, PastPart, of
from evergreen.monitoring.drift.week_effects import Series
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.tasks.config.operations import Monitor

POLICY = Monitor(resamples=100)
START = date(2024, 1, 1)


def width(times: np.ndarray, y: np.ndarray, noise: float) -> float:
    """Median standard deviation of the next week's effect less the mean of the weeks."""
    (found,) = week_effects.pool([Series(y, np.full(len(y), noise), times, 1.0)])
    share = np.full(len(y), 1 / len(y))
    far = [v * week_effects.apart(times, share, times[-1] + 1, phi) for phi, v in zip(found.phi, found.variance, strict=True)]
    order = np.argsort(far)
    return float(np.sqrt(far[order[np.searchsorted(np.cumsum(found.probability[order]), 0.5)]]))


def test_the_next_week_is_expected_as_far_as_weeks_lay_apart_and_farther_where_they_hang_together():
    draw, times = np.random.default_rng(0), np.arange(30.0)
    apart = draw.normal(size=30)
    assert width(times, apart, 1e-6) == pytest.approx(1.0, rel=0.4)
    smooth = np.repeat(draw.normal(size=6), 5)
    assert width(times, smooth, 1e-6) > 0.3
    assert width(times, 0.1 * apart, 0.01) < 0.12  # noise explains it


def sd(found: week_effects.Posterior) -> float:
    """Of week effects, root mean square."""
    return float(np.sqrt(found.probability @ found.variance))


def test_calm_columns_make_a_calm_column_surer_and_hide_none_that_differs():
    draw, times = np.random.default_rng(1), np.arange(10.0)
    calm = [Series(0.05 * draw.normal(size=10), np.full(10, 0.0025), times, 1.0) for _ in range(20)]
    moving = Series(0.5 * draw.normal(size=10), np.full(10, 0.0025), times, 1.0)
    alone, together = week_effects.pool(calm[:1]), week_effects.pool([*calm, moving])
    assert sd(together[0]) < 0.5 * sd(alone[0])
    assert 0.3 < sd(together[-1]) < 1.0


def test_copies_of_a_column_know_no_more_than_it():
    draw, times = np.random.default_rng(2), np.arange(10.0)
    one = Series(0.05 * draw.normal(size=10), np.full(10, 0.0025), times, 1.0)
    assert sd(week_effects.pool([one] * 20)[0]) > 0.6 * sd(week_effects.pool([one])[0])


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_few_series_without_slope_have_a_small_p_of_one(phi):
    times = np.arange(20.0)
    small = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        effects = np.zeros(20)
        for week in range(20):
            effects[week] = (phi * effects[week - 1] if week else 0.0) + draw.normal() * (1 - phi**2) ** 0.5
        series = Series(effects, np.full(20, 0.01), times, 1.0, np.maximum(times - 11, 0))
        small += week_effects.slope_p(series, week_effects.pool([series])[0])[1] < 0.05
    assert small <= 9  # of 60 with a chance of 0.05: more in 1 of 1,000


def dated(values: np.ndarray, weeks: int, entities: int) -> Part:
    """A row for each entity in each week."""
    week = pl.Series([START + timedelta(weeks=place // entities) for place in range(len(values))])
    entity = pl.Series([str(place % entities) for place in range(len(values))])
    return Part(pl.DataFrame({"x": values}).with_columns(week.alias(WEEK), entity.alias(ENTITY)), {"x": "number"})


def test_days_since_a_first_event_are_a_trend_and_weeks_that_wander_are_none():
    draw = np.random.default_rng(1)
    first = draw.integers(0, 300, 200)
    since = np.concatenate([first + 7 * week for week in range(4)]).astype(float)
    assert "nearly every entity" in trends.find_trends(dated(since, 4, 200))["x"]
    rising = np.concatenate([draw.normal(0.2 * week, 1, 200) for week in range(6)])
    assert "rises from week to week" in trends.find_trends(dated(rising, 6, 200))["x"]
    still = np.concatenate([draw.normal(size=200) for _ in range(6)])
    assert not trends.find_trends(dated(still, 6, 200))


def window(values: np.ndarray, week: int) -> Predictions:
    count = len(values)
    about = {"entity": [f"{week}/{place}" for place in range(count)], "cutoff": [START + timedelta(weeks=week)] * count}
    return Predictions(pl.DataFrame(about), pl.DataFrame({"x": values}))


@pytest.mark.parametrize("later", [1, 50])
def test_a_trend_is_told_and_not_compared_however_far_it_has_gone(later: int):
    draw = np.random.default_rng(2)
    rising = dated(np.concatenate([draw.normal(0.3 * week, 1, 200) for week in range(8)]), 8, 200)
    reference = of("p", 1, "regression", {"features": rising.rows})
    drift = detection.compare(reference, window(draw.normal(0.3 * (8 + later), 1, 400), 8 + later), POLICY, 0)
    assert not drift.alarm
    assert [(each.column, each.aspect) for each in drift.changes if each.aspect == "trend"] == [("x", "trend")]


def test_a_slope_is_found_by_all_windows_together():
    draw = np.random.default_rng(3)
    known = dated(np.concatenate([draw.normal(size=400) for _ in range(12)]), 12, 400)
    bins = known.bins["x"]
    seen: list[PastPart] = []
    slopes = []
    for week in range(1, 9):
        now: Histogram = bins.histogram(pl.Series(draw.normal(0.05 * week, 1, 400)))
        time = float(known.times[-1] + week)
        slopes.append(trends.find_slopes(known, ["x"], seen, {"x": now}, time).get("x"))
        seen.append(PastPart(time, {"x": now}, frozenset(["x"]), frozenset()))
    assert slopes[:3] == [None, None, None]
    last = slopes[-1]
    assert last is not None
    assert last.p < 0.001
    assert last.per_week == pytest.approx(0.05 * detection.RANKS_PER_SD, rel=0.4)


def test_without_time_drift_is_judged_once_four_weeks_are_known():
    draw = np.random.default_rng(4)
    bare = pl.DataFrame({"x": draw.normal(size=2000)}).with_columns(
        pl.lit(None, pl.String).alias(ENTITY), pl.lit(None, pl.Date).alias(WEEK)
    )
    reference = of("p", 1, "regression", {"features": bare})
    past = []
    for week in range(5):
        drift, seen = detection.examine(reference, window(draw.normal(size=300), week), POLICY, 0, past)
        assert (drift.unknown is None) == (week >= 3)
        assert not drift.alarm
        past.append(seen)
    moved, _ = detection.examine(reference, window(draw.normal(1.5, 1, 300), 5), POLICY, 0, past)
    assert [each.column for each in moved.drifts] == ["x"]


def test_past_windows_are_read_as_written_and_none_overlaps(tmp_path):
    until = datetime(2024, 3, 31, 23, 59, 59, 999999, tzinfo=UTC)
    histogram = Histogram(5.0, 1, np.array([2.0, 2.5]), np.array([0.1, 0.2]))
    for day in range(30):
        part = PastPart(float(day), {"x": histogram}, frozenset(["x"]), frozenset())
        past_windows.save({"features": part}, tmp_path, until - timedelta(days=day))
    found = past_windows.load(tmp_path, until, 7)
    assert [each["features"].time for each in found] == [28.0, 21.0, 14.0, 7.0]
    kept = found[0]["features"]
    assert (kept.columns["x"].rows, kept.columns["x"].counts.tolist(), kept.calm) == (5.0, [2.0, 2.5], frozenset(["x"]))
    next((tmp_path / "windows").glob("*0324*.parquet")).write_bytes(b"torn")
    assert [each["features"].time for each in past_windows.load(tmp_path, until, 7)][-1] == 8.0
