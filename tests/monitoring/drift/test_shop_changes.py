"""Drift of a shop against planted changes: what is found, what is no change, and what cannot be told."""

from datetime import date, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.flows.operations import monitoring_window
from evergreen.monitoring.drift import reference_data
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK
from evergreen.monitoring.drift.shop_changes import Findings, Purchases, add, examine, predictions_policy
from evergreen.monitoring.ledger.decisions import end_of_day
from evergreen.monitoring.ledger.records import Drift
from evergreen.monitoring.retraining.policy import decide
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.operations import Monitor, Retrain
from evergreen.tasks.core.paths import Layout

START, WEEKS, TRAINED = date(2024, 1, 1), 24, 20
ITEMS = 400


def end(week: int) -> date:
    return START + timedelta(days=7 * week + 6)


def shop(seed: int, *, change=None, weeks: int = WEEKS, level=lambda week: 1.0) -> pl.DataFrame:
    """300 shoppers who come in three of four weeks and take five items; `change(week, user, item, draw)` plants one."""
    draw = np.random.default_rng(seed)
    chance = 1 / np.arange(10, ITEMS + 10)
    rows = []
    for week in range(weeks):
        there = np.flatnonzero(draw.random(300) < 0.75 * level(week) * np.exp(draw.normal(0, 0.05)))
        user = np.repeat(there, 5)
        item = draw.choice(ITEMS, len(user), p=chance / chance.sum())
        if change:
            user, item = change(week, user, item, draw)
        day = np.datetime64(START) + 7 * week + draw.integers(0, 7, len(user))
        rows.append(pl.DataFrame({"user": user, "item": item, "day": day.astype("datetime64[D]")}))
    return pl.concat(rows)


def judge(lines: pl.DataFrame, week: int = TRAINED + 1, policy: Monitor | None = None) -> Findings:
    return examine(lines, end(week), end(week), end(TRAINED - 1), policy or Monitor())


def alarmed(found: Findings) -> list[str]:
    return [each.column for each in found.changes if each.alarm]


def replace_items(week, user, item, draw):
    return user, np.where((item % 3 == 0) & (week > TRAINED), item + ITEMS, item)


def halve(week, user, item, draw):
    kept = (user % 2 == 0) | (week <= TRAINED)
    return user[kept], item[kept]


def unknown(week, user, item, draw):
    new = draw.random(len(item)) < (0.15 if week > TRAINED else 0.01)
    return user, np.where(new, 1000 * week + ITEMS + draw.integers(0, 1000, len(item)), item)


def take_twice(week, user, item, draw):
    more = draw.integers(0, ITEMS, len(item)) if week > TRAINED else item
    return np.concatenate([user, user]), np.concatenate([item, more])


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (replace_items, {"unknown items", "gone items"}),
        (halve, {"shoppers"}),
        (unknown, {"unknown items"}),
        (take_twice, {"purchases per shopper"}),
    ],
)
def test_a_planted_change_is_found_in_its_measure_from_its_first_window_on(change, columns):
    lines = shop(1, change=change)
    assert alarmed(judge(lines, TRAINED)) == []
    assert set(alarmed(judge(lines))) >= columns
    assert set(alarmed(judge(lines, TRAINED + 2))) >= columns


def test_a_calm_shop_raises_few_alarms():
    """bench/statistics/shop.py has the rate."""
    assert sum(bool(alarmed(judge(shop(seed)))) for seed in range(8)) <= 1


def test_growth_and_turnover_as_before_are_no_drift():
    def turn(week, user, item, draw):
        return user, np.where(item % 40 < week, item + ITEMS, item)  # ten items a week are replaced

    lines = shop(3, change=turn, level=lambda week: 0.5 * 1.02**week)
    assert alarmed(judge(lines)) == []


def test_a_declared_season_is_no_drift():
    """Every 13 weeks the shop is half empty for two weeks."""
    level = lambda week: 0.5 if week % 13 in (0, 1) else 1.0  # noqa: E731
    lines = shop(5, weeks=53, level=level)
    at = (end(52), end(52), end(50))
    assert alarmed(examine(lines, *at, Monitor(season_days=91))) == []
    fewer = lines.filter((pl.col("user") % 3 == 0) | (pl.col("day") <= end(51)))
    assert "shoppers" in alarmed(examine(fewer, *at, Monitor(season_days=91)))


def test_a_change_that_lasts_is_usual_after_some_windows():
    found = [alarmed(judge(shop(1, change=halve, weeks=TRAINED + 9), week)) for week in range(TRAINED, TRAINED + 9)]
    assert [("shoppers" in each) for each in found[:4]] == [False, True, True, True]
    assert "shoppers" not in found[-1]


def test_too_few_windows_and_purchases_that_end_early_are_unknown():
    lines = shop(1)
    assert judge(lines, 8).changes == ()
    assert judge(lines, 8).unknown == "purchases are known for 9 windows of 7 days; 11 show how much they differ"
    late = examine(lines, end(20), end(21), end(19), Monitor())
    assert late == Findings((), f"purchases are known up to {end(20)}, and the window ends with {end(21)}")


def test_later_purchases_change_nothing():
    lines = shop(1, change=replace_items)
    assert judge(lines.filter(pl.col("day") <= end(TRAINED + 1))) == judge(lines)


def test_days_before_the_first_whole_window_are_left_out():
    lines = pl.DataFrame({"user": [1, 2, 1], "item": [1, 1, 2], "day": [date(2024, 1, 5), date(2024, 1, 8), date(2024, 1, 20)]})
    by = Purchases.of(lines, date(2024, 1, 21), 7)
    assert (by.count, by.pairs().tolist()) == (2, [1, 1])
    assert by.unknown(1).tolist() == [1.0, 1.0]
    assert Purchases.of(lines.clear(), date(2024, 1, 21), 7).count == 0


def test_a_small_change_is_told_without_alarm():
    found = judge(shop(1, change=unknown), policy=Monitor(min_effect=0.5))
    change = next(each for each in found.changes if each.column == "unknown items")
    assert (change.significant, change.alarm) == (True, False)
    assert change.reason.endswith("no alarm: smaller than min_effect 0.5")


SHOP = """
project: {seed: 7, name: shop}
ingest: {visits: {parquet: visits.parquet, time: day}}
problems: {recommend: recommendation}
recommend:
  question: What next?
  features: {table: visits, user: user, item: item, basket: day}
"""


def test_a_monitoring_run_of_a_recommender_looks_at_its_purchases(tmp_path):
    """Without a single list served, it sees the new catalogue, and a policy on drift asks for a retraining."""
    layout = Layout(tmp_path)
    layout.params.write_text(SHOP)
    layout.features("recommend").mkdir(parents=True)
    shop(1, change=replace_items).write_parquet(layout.features("recommend") / "lines.parquet")
    pl.DataFrame({"as_of": [end(WEEKS - 1)]}).write_parquet(layout.features("recommend") / "known.parquet")
    lists = pl.DataFrame({"popularity": [-1.0, -2.0], ENTITY: ["a", "b"], WEEK: [end(0)] * 2})
    known = reference_data.of("recommend", 1, "recommendation", {"predictions": lists})
    known.save(reference_data.place(layout, "recommend", 1))
    champion = SimpleNamespace(problem="recommend", version=1, tags={"as_of": str(end(TRAINED - 1))}, metrics={})
    until = end_of_day(end(TRAINED + 1))
    window, _ = monitoring_window.measure_window(layout, load(layout.params), champion, settings.ledger(layout), until)  # pyright: ignore[reportArgumentType]
    assert {"unknown items", "gone items"} <= {each.column for each in window.drift.drifts}
    assert window.drift.unknown.startswith("predictions: 0 predictions")
    decision = decide(Retrain(on_drift=True, min_labels=0), [window], [], end_of_day(end(TRAINED - 1)), until)
    assert decision.retrain
    assert "items" in decision.reason


def test_findings_join_the_drift_of_predictions_and_share_its_false_alarms():
    found = judge(shop(1, change=replace_items))
    skipped = Drift(changes=(), reference_rows=9, alarm=False, skipped="3 predictions; min_rows = 30 are needed")
    both = add(skipped, found)
    assert both.alarm
    assert both.skipped is None
    assert both.unknown == "predictions: 3 predictions; min_rows = 30 are needed"
    assert [each.alarm for each in both.changes] == sorted((each.alarm for each in both.changes), reverse=True)
    neither = add(skipped, Findings((), "purchases are known for 3 windows"))
    assert (neither.skipped, neither.unknown) == (skipped.skipped, "purchases are known for 3 windows")
    assert predictions_policy(Monitor()).false_alarm_rate == pytest.approx(0.025)
