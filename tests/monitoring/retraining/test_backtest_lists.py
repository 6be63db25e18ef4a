"""Backtest of recommenders: lists of each window from what was known, judged by purchases that came later."""

import json
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import backtest as operation
from evergreen.monitoring.retraining.backtest_lists import PurchaseWindows
from evergreen.monitoring.retraining.policy import named
from evergreen.tasks import features, problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout

PROBLEM = "recommend"
USERS, ITEMS, WEEKS = 60, 30, 30
START = date(2017, 1, 2)
TURN = START + timedelta(weeks=15)
"""From here on all items are new ones."""
PARAMS = """
project: {seed: 7, name: turning, as_of: "AS_OF"}
ingest: {visits: {parquet: visits.parquet, time: day}}
problems: {recommend: recommendation}
recommend:
  question: What next?
  features: {table: visits, user: user, item: item, basket: day, horizon_days: 14, min_users: 2}
  pipeline: {k: 5}
  tune: {n_trials: 1, folds: 1}
  evaluate: {windows: 1, resamples: 50}
"""


def visits() -> pl.DataFrame:
    """Each user buys a popular item each week, of a catalogue that is replaced on TURN."""
    draw = np.random.default_rng(0)
    chances = 1 / np.arange(1, ITEMS + 1)
    rows = []
    for week in range(WEEKS):
        for user in range(USERS):
            day = START + timedelta(days=7 * week + int(draw.integers(7)))
            item = int(draw.choice(ITEMS, p=chances / chances.sum()))
            rows.append((user, item + (ITEMS if day >= TURN else 0), day))
    return pl.DataFrame(rows, schema=["user", "item", "day"], orient="row").unique(maintain_order=True)


def project(root, table: pl.DataFrame, model: str = "popularity") -> Layout:
    """A project with the features and the tuned configuration of a training."""
    layout = Layout(root)
    root.mkdir(exist_ok=True)
    last = START + timedelta(days=7 * WEEKS - 1)
    layout.params.write_text(PARAMS.replace("AS_OF", str(last)))
    layout.table("visits").parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(layout.table("visits"))
    known = loading.load(layout.params)
    features.run(known, PROBLEM, layout)
    config = problems.kind("recommendation").defaults(model, known.section(PROBLEM))
    layout.tuning(PROBLEM).mkdir(parents=True, exist_ok=True)
    (layout.tuning(PROBLEM) / "best.json").write_text(json.dumps({"config": config}))
    return layout


def run(layout: Layout, *policies: str) -> operation.BacktestReport:
    return operation.run(layout, loading.load(layout.params), PROBLEM, list(policies))


@pytest.fixture(scope="module")
def turning(tmp_path_factory):
    return project(tmp_path_factory.mktemp("turning"), visits())


@pytest.fixture(scope="module")
def report(turning):
    return run(turning, "monthly", "performance")


def test_a_model_that_never_learns_the_new_catalogue_loses_and_retraining_pays(report):
    found = {each.policy: each for each in report.outcomes}
    never, monthly = found["never"], found["monthly"]
    after = [each for each in never.points if each.day > TURN and each.score is not None]
    assert len(after) > 5
    assert max(each.score for each in after) < 0.05
    assert monthly.gain.low > 0.05
    assert monthly.promoted >= 1
    assert monthly.retrainings >= monthly.promoted
    assert found["performance"].alarms > 0
    assert report.recommendation.policy != "never"
    assert "realised ndcg" in " ".join(each.reason for each in found["performance"].steps)


def test_the_hit_rate_of_each_window_and_policy_is_told_with_its_interval(report):
    for outcome in report.outcomes:
        known = [each for each in outcome.points if each.score is not None]
        assert len(known) == outcome.quality.rows == outcome.more["hit_rate"].rows
        assert all(each.more["hit_rate"].score >= each.score for each in known)
        assert outcome.more["hit_rate"].low < outcome.more["hit_rate"].score < outcome.more["hit_rate"].high
    assert all(each.more["hit_rate"].score is None for each in report.outcomes[0].points if each.score is None)


def test_lists_follow_purchases_up_to_the_day_and_models_those_of_their_training(tmp_path):
    """Each user takes another item from week 15 on: a model of before needs no retraining to see it."""
    draw = np.random.default_rng(1)
    rows = [
        (user, (user + (7 if week >= 15 else 0)) % ITEMS, START + timedelta(days=7 * week + int(draw.integers(7))))
        for week in range(WEEKS)
        for user in range(USERS)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "day"], orient="row")
    found = run(project(tmp_path / "own", table, "frequency"), "monthly").outcomes[0]
    last = [each.score for each in found.points if each.score is not None][-1]
    assert last > 0.5


def test_purchases_of_later_days_change_no_earlier_decision(turning, report, tmp_path):
    last = report.last - timedelta(days=28)
    table = pl.read_parquet(turning.table("visits"))
    later = pl.col("day") > last
    moved = table.with_columns(item=pl.when(later).then(pl.col("item") + 1000).otherwise("item"))
    changed = run(project(tmp_path / "moved", moved), "monthly", "performance")
    for old, new in zip(report.outcomes, changed.outcomes, strict=True):
        before, after = (
            [(each.day, each.champion, each.alarm, each.retrained, each.promoted) for each in side.steps if each.day <= last]
            for side in (old, new)
        )
        assert before == after
    assert report.outcomes[1].points != changed.outcomes[1].points


def test_a_window_needs_a_cutoff_to_learn_from(turning):
    known = loading.load(turning.params)
    with pytest.raises(ParamsError, match="--from 2017-01-02: purchases of recommend are enough to learn from"):
        operation.run(turning, known, PROBLEM, ["weekly"], first=START)


def test_training_ends_where_its_labels_are_complete(turning):
    section = loading.load(turning.params).section(PROBLEM)
    data = problems.kind("recommendation").load(turning.features(PROBLEM), section)
    day = START + timedelta(days=100)
    past = PurchaseWindows(data, section, [day, day + timedelta(days=7)], 7)
    found = past.training_set(day, named("weekly"))
    horizon = timedelta(days=14)
    assert found.test == day - horizon
    assert max(found.train) == found.test - horizon
    assert found.known_until == found.test
    assert past.first().train[-1] == day - timedelta(days=7) - horizon
    assert past.training_set(START + timedelta(days=20), named("weekly")) is None
