"""Drift: silent where nothing drifts, whatever the size; loud where something does that matters."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.drift import detection, null_distribution, reference_data
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Reference
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Change, Drift
from evergreen.tasks.config.operations import Monitor
from evergreen.tasks.core.paths import Layout

POLICY = Monitor(resamples=200)
LEVELS = [f"level {place}" for place in range(50)]
SHARES = 1 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()


def features(draw: np.random.Generator, rows: int) -> pl.DataFrame:
    """Twenty columns of all sorts."""
    gaps = np.where(draw.random(rows) < 0.1, np.nan, draw.normal(size=rows))
    return pl.DataFrame(
        {
            **{f"number {place}": draw.normal(size=rows) for place in range(8)},
            **{f"amount {place}": np.exp(2 * draw.normal(size=rows)) for place in range(3)},
            "heavy": draw.standard_t(2, rows),
            "rare": np.where(draw.random(rows) < 0.9, 0.0, draw.exponential(size=rows)),
            "count": draw.poisson(0.3, rows),
            "gaps": pl.Series(gaps, nan_to_null=True),
            **{f"many {place}": draw.choice(LEVELS, rows, p=SHARES) for place in range(3)},
            **{f"few {place}": draw.choice(LEVELS[:5], rows) for place in range(2)},
        }
    )


def weeks(rows: int) -> pl.Series:
    """Rows take turns in 26 weeks."""
    return pl.Series([date(2024, 1, 1) + timedelta(weeks=place % 26) for place in range(rows)])


def bare(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.lit(None, pl.Int64).alias(ENTITY), weeks(frame.height).alias(WEEK))


def referring(frame: pl.DataFrame, **options) -> Reference:
    return reference_data.of("sold", 1, "regression", {"features": bare(frame)}, **options)


def window(frame: pl.DataFrame, **rows) -> Predictions:
    """A week after those of `weeks`."""
    week = [date(2024, 1, 1) + timedelta(weeks=26)] * frame.height
    about = {"entity": pl.Series([None] * frame.height, dtype=pl.String), "cutoff": week, **rows}
    return Predictions(pl.DataFrame(about), frame)


def of(found: Drift, column: str, what: str = "feature") -> Change:
    return next(each for each in found.changes if (each.column, each.aspect) == (column, what))


@pytest.fixture(scope="module")
def usual() -> Reference:
    return referring(features(np.random.default_rng(0), 4000))


@pytest.mark.parametrize("rows", [50, 500, 5000])
def test_at_most_a_few_of_many_undrifted_windows_raise_an_alarm(rows):
    alarms = 0
    for seed in range(5):
        draw = np.random.default_rng([seed, rows])
        known = referring(features(draw, 2000))
        alarms += sum(detection.compare(known, window(features(draw, rows)), POLICY, 0).alarm for _ in range(6))
    assert alarms <= 5  # of 30 with a chance of 0.05 each: more than that in 1 of 300


def test_a_shift_of_0_08_standard_deviations_is_seen_in_20000_rows_and_nothing_else_is():
    draw = np.random.default_rng(5)
    known = referring(features(draw, 20_000))
    now = features(draw, 20_000).with_columns(pl.col("number 3") + 0.08)
    found = detection.compare(known, window(now), POLICY, 0)
    assert [each.column for each in found.alarms] == ["number 3"]
    assert of(found, "number 3").effect == pytest.approx(0.08, abs=0.02)


def test_a_category_of_50_levels_is_silent_in_200_rows_and_speaks_where_half_of_them_change(usual):
    draw = np.random.default_rng(6)
    same = features(draw, 200)
    assert not of(detection.compare(usual, window(same), POLICY, 0), "many 0").significant
    other = same.with_columns(pl.Series("many 0", np.where(draw.random(200) < 0.5, LEVELS[30], same["many 0"])))
    changed = of(detection.compare(usual, window(other), POLICY, 0), "many 0")
    assert changed.alarm
    assert "level 30" in changed.reason


def test_a_drift_that_the_model_hardly_uses_is_told_and_raises_no_alarm():
    draw = np.random.default_rng(7)
    known = referring(features(draw, 3000), importance={"number 0": 0.6, "number 1": 0.01})
    now = features(draw, 1000).with_columns(pl.col("number 1", "number 2") + 1)
    found = detection.compare(known, window(now), POLICY, 0)
    assert not found.alarm
    assert of(found, "number 1").significant
    assert "hardly uses" in of(found, "number 1").reason
    assert of(found, "number 2").importance == 0.0
    moved = detection.compare(known, window(now.with_columns(pl.col("number 0") + 1)), POLICY, 0)
    assert [each.column for each in moved.alarms] == ["number 0"]


def test_a_sure_but_tiny_change_is_told_and_raises_no_alarm():
    draw = np.random.default_rng(8)
    known = referring(pl.DataFrame({"x": draw.normal(size=20_000)}))
    found = detection.compare(known, window(pl.DataFrame({"x": draw.normal(0.08, 1, 50_000)})), Monitor(min_effect=0.2), 0)
    assert of(found, "x").significant
    assert not found.alarm
    assert "min_effect 0.2" in of(found, "x").reason


def test_more_missing_values_and_unseen_categories_are_changes_of_their_own(usual):
    draw = np.random.default_rng(9)
    now = features(draw, 600).with_columns(
        pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise("number 5").alias("number 5"),
        pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.lit("brand new")).otherwise("few 1").alias("few 1"),
    )
    found = detection.compare(usual, window(now), POLICY, 0)
    missing, unseen = of(found, "number 5", "missing"), of(found, "few 1", "unseen")
    assert (missing.alarm, missing.value) == (True, pytest.approx(1 / 3))
    assert (unseen.alarm, unseen.value) == (True, pytest.approx(0.25))
    assert not of(found, "number 5").significant


def test_a_column_that_is_gone_is_an_alarm_and_a_new_one_is_none(usual):
    now = features(np.random.default_rng(10), 300).drop("count").with_columns(fresh=pl.lit(1))
    found = detection.compare(usual, window(now), POLICY, 0)
    assert [(each.column, each.reason) for each in found.alarms] == [("count", "the column is gone")]
    assert "does not know" in of(found, "fresh").reason


def test_columns_of_another_type_all_missing_infinite_or_constant_are_told_and_break_nothing(usual):
    now = features(np.random.default_rng(11), 300).with_columns(
        pl.col("number 0").cast(pl.String),
        pl.lit("n/a").alias("number 1"),
        pl.lit(None).alias("number 2"),
        pl.lit(float("inf")).alias("number 3"),
        pl.lit(7.0).alias("number 4"),
        pl.lit(None, pl.String).alias("few 0"),
    )
    found = detection.compare(usual, window(now), POLICY, 0)
    assert not of(found, "number 0").significant
    assert "not finite numbers" in of(found, "number 1", "missing").reason
    assert {each.column for each in found.alarms} == {"number 1", "number 2", "number 3", "number 4", "few 0"}


def test_a_reference_that_is_constant_or_empty_still_tells_what_is_new():
    known = referring(
        pl.DataFrame({"same": [1.0] * 500, "none": pl.Series([None] * 500, dtype=pl.Float64), "x": np.arange(500.0)})
    )
    calm = pl.DataFrame({"same": [1.0] * 100, "none": pl.Series([None] * 100, dtype=pl.Float64), "x": np.arange(0, 500.0, 5)})
    assert not detection.compare(known, window(calm), POLICY, 0).alarm
    now = calm.with_columns(pl.lit(2.0).alias("same"), pl.lit(3.0).alias("none"))
    found = detection.compare(known, window(now), POLICY, 0)
    assert {(each.column, each.aspect) for each in found.alarms if each.fault} == {("same", "moved"), ("none", "missing")}


@pytest.mark.parametrize("rows", [0, 3, 29])
def test_of_too_few_rows_nothing_is_said(usual, rows):
    found = detection.compare(usual, window(features(np.random.default_rng(12), rows)), POLICY, 0)
    assert not found.changes
    assert not found.alarm
    assert found.skipped == f"{rows} predictions; min_rows = 30 are needed"


def test_the_same_window_is_judged_the_same(usual):
    now = window(features(np.random.default_rng(13), 400))
    assert detection.compare(usual, now, POLICY, 0) == detection.compare(usual, now, POLICY, 0)


def weekly(draw: np.random.Generator, people: np.ndarray, week: int, moved: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """People who keep their own level, in a week that is `moved` as a whole."""
    own = np.random.default_rng(99).normal(size=10_000)[people]
    frame = pl.DataFrame({f"x{place}": own + moved + 0.3 * draw.normal(size=len(people)) for place in range(5)})
    day = date(2024, 1, 1) + timedelta(days=7 * week)
    return pl.DataFrame({"entity": people.astype(str), "cutoff": [day] * len(people)}), frame


def test_a_week_that_differs_as_weeks_do_is_no_drift_and_one_that_differs_more_is():
    draw = np.random.default_rng(14)
    moves = [*draw.normal(0, 0.3, 12)]
    weeks = [weekly(draw, np.arange(400), place, move) for place, move in enumerate(moves)]
    rows, frames = zip(*weeks, strict=True)
    known = reference_data.of_predicted("sold", 1, "regression", Predictions(pl.concat(rows), pl.concat(frames)))
    as_ever = detection.compare(known, Predictions(*weekly(draw, np.arange(400), 20, 0.35)), POLICY, 0)
    assert not as_ever.alarm
    assert detection.compare(known, Predictions(*weekly(draw, np.arange(400), 20, 3.0)), POLICY, 0).alarm
    still = [weekly(draw, np.arange(400), place, 0.0) for place in range(12)]
    rows, frames = zip(*still, strict=True)
    calm = reference_data.of_predicted("sold", 1, "regression", Predictions(pl.concat(rows), pl.concat(frames)))
    assert detection.compare(calm, Predictions(*weekly(draw, np.arange(400), 20, 0.35)), POLICY, 0).alarm


def test_rows_of_few_people_count_as_few():
    draw = np.random.default_rng(15)
    asked = [weekly(draw, np.repeat(np.arange(300 * week, 300 * week + 300), 2), week, 0.0) for week in range(8)]
    rows, frames = zip(*asked, strict=True)
    known = reference_data.of_predicted("sold", 1, "regression", Predictions(pl.concat(rows), pl.concat(frames)))
    few = np.repeat(np.random.default_rng(16).integers(5000, 9000, 40), 25)
    assert not detection.compare(known, Predictions(*weekly(draw, few, 8, 0.0)), POLICY, 0).alarm
    anonymous = Predictions(
        weekly(draw, few, 8, 0.0)[0].with_columns(entity=pl.lit(None, pl.String)), weekly(draw, few, 8, 0.0)[1]
    )
    assert detection.compare(known, anonymous, POLICY, 0).alarm  # the same rows, were each about another one


def test_predictions_and_labels_drift_too():
    draw = np.random.default_rng(17)
    risk = draw.beta(2, 20, 3000)
    frame = pl.DataFrame({"x": draw.normal(size=3000)})
    about = {"probability_0": 1 - risk, "probability_1": risk, "label": (draw.random(3000) < risk).astype(float)}
    known = reference_data.of_predicted("redeem", 1, "classification", window(frame, **about, cutoff=weeks(3000)))
    calm = {name: values[:1000] for name, values in about.items()}
    assert not detection.compare(known, window(frame.head(1000), **calm), POLICY, 0).alarm
    higher = draw.beta(4, 20, 1000)
    label = pl.Series(["1" if each else "0" for each in draw.random(1000) < 0.3]).set(pl.Series(np.arange(1000) % 2 == 0), None)
    now = window(frame.head(1000), probability_0=1 - higher, probability_1=higher, label=label)
    found = detection.compare(known, now, POLICY, 0)
    assert {(each.column, each.aspect) for each in found.alarms} == {("probability_1", "prediction"), ("label", "label")}


def test_groups_drift_by_their_shares_and_by_how_far_rows_lie_from_their_centres():
    draw = np.random.default_rng(18)

    def rows(count: int, share: float, spread: float) -> Predictions:
        group = (draw.random(count) < share).astype(int)
        points = pl.DataFrame({"a": 10.0 + 80 * group + spread * draw.normal(size=count), "b": draw.normal(size=count)})
        return window(points, prediction=group)

    learned = rows(3000, 0.3, 3)
    learned = Predictions(learned.rows.with_columns(weeks(3000).alias("cutoff")), learned.features)
    known = reference_data.of_predicted("segments", 1, "clustering", learned)
    assert not detection.compare(known, rows(800, 0.3, 3), POLICY, 0).alarm
    found = detection.compare(known, rows(800, 0.5, 3), POLICY, 0)
    assert ("group", "segments") in {(each.column, each.aspect) for each in found.alarms}
    found = detection.compare(known, rows(800, 0.3, 9), POLICY, 0)
    assert "distance" in {each.column for each in found.alarms}


def test_lists_drift_by_popularity_coverage_and_repeats():
    draw = np.random.default_rng(19)

    def rows(users: int, most: int) -> pl.DataFrame:
        lists = [
            draw.choice(most, 5, replace=False, p=np.arange(most, 0, -1) / np.arange(most, 0, -1).sum()) for _ in range(users)
        ]
        return pl.DataFrame({"entity": [f"{each}" for each in range(users)], "items": [each.tolist() for each in lists]})

    bits = {str(item): float(np.log2(2 + item)) for item in range(100)}
    again = pl.Series(draw.integers(0, 6, 1000) / 5)
    learned = rows(1000, 100).with_columns(again.alias("repeats"), weeks(1000).alias("cutoff"))
    context = {"bits": bits, "rarest": 10.0}
    known = reference_data.of_predicted("recommend", 1, "recommendation", Predictions(learned, pl.DataFrame()), context=context)
    calm = rows(400, 100).with_columns(pl.Series("repeats", draw.integers(0, 6, 400) / 5))
    assert not detection.compare(known, Predictions(calm, pl.DataFrame()), POLICY, 0).alarm
    narrow = rows(400, 12).with_columns(repeats=pl.lit(1.0))
    found = detection.compare(known, Predictions(narrow, pl.DataFrame()), POLICY, 0)
    assert {each.column for each in found.alarms} == {"popularity", "coverage", "repeats"}


def test_the_level_of_columns_that_move_together_lets_through_as_many_draws_as_wanted():
    draw = np.random.default_rng(20)
    p = np.repeat(draw.random((10, 4000)), 4, axis=0)
    at = null_distribution.level(p, 0.05)
    found = [any(null_distribution.discoveries(each, at)[0]) for each in p.T]
    assert 0.03 < np.mean(found) <= 0.051


def test_p_goes_on_beyond_the_draws_and_a_threshold_is_what_reaches_it():
    drawn = np.abs(np.random.default_rng(21).normal(size=400))
    far = null_distribution.p_values(drawn, np.array([4.0, 8.0]))
    assert far[1] < far[0] < 1 / 401
    for p in (0.2, 0.01, 1e-4):
        at = null_distribution.threshold(drawn, p)
        assert null_distribution.p_values(drawn, np.array([at * 1.001]))[0] <= p * 1.2


def test_sizes_are_rounded_down_to_a_coarse_grid():
    for size in range(1, 3000):
        assert null_distribution.rounded(size) <= size <= null_distribution.rounded(size) * null_distribution.STEP + 1
    assert len({null_distribution.rounded(size) for size in range(1, 100_000)}) < 70


def test_the_report_for_people_needs_nothing_beside_it_and_minds_no_empty_column(tmp_path, usual):
    from evergreen.monitoring.drift import evidently_report  # here: it takes seconds, and one worker of the suite needs it

    now = features(np.random.default_rng(22), 300).with_columns(pl.lit(None).alias("number 2")).drop("number 4")
    predicted = window(now, at=[datetime(2024, 1, 1, tzinfo=UTC)] * 300)
    found = detection.compare(usual, predicted, POLICY, 0)
    path = detection.report(usual, predicted, found, tmp_path / "report.html", 0)
    text = path.read_text()
    assert "number 3" in text
    assert "many 2" in text
    assert 'src="http' not in text
    assert path.stat().st_size < 8_000_000
    nothing = evidently_report.write(pl.DataFrame(), pl.DataFrame(), {}, {}, tmp_path / "none.html", 0)
    assert "No column" in nothing.read_text()


def test_what_a_list_repeats_is_what_its_user_had_bought_by_then(tmp_path):
    layout = Layout(tmp_path)
    days = [date(2024, 5, 1), date(2024, 5, 9), date(2024, 5, 1)]
    bought = pl.DataFrame({"user": [1, 1, 2], "item": [10, 11, 10], "day": days})
    rows = pl.DataFrame(
        {"entity": ["1", "2", "3"], "cutoff": [date(2024, 5, 5)] * 3, "items": [[10, 11], [10, 11, 12, 13], [10]]}
    )
    predicted = Predictions(rows, pl.DataFrame())
    reference = reference_data.of_predicted("recommend", 1, "recommendation", predicted)
    assert detection.completed(layout, reference, predicted).rows is rows
    layout.features("recommend").mkdir(parents=True)
    bought.write_parquet(layout.features("recommend") / "lines.parquet")
    assert detection.completed(layout, reference, predicted).rows["repeats"].to_list() == [0.5, 0.25, 0.0]
