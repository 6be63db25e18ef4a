"""Backtest: only data known at the time, shared results computed once, and the cheapest of equal policies recommended."""

import json
import shutil
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import backtest as operation
from evergreen.flows.operations import backtest_data
from evergreen.monitoring.ledger.records import Change, Drift, Window
from evergreen.monitoring.retraining import backtest, backtest_models
from evergreen.monitoring.retraining.backtest import TrainedModel, to_moment
from evergreen.monitoring.retraining.backtest_windows import TableWindows, windows
from evergreen.monitoring.retraining.policy import named
from evergreen.tasks import ingest, problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.base import Metric
from tests import store

AUC = Metric("roc_auc")

ALARM = Change(
    column="x", aspect="feature", statistic="ks", value=0.5, threshold=0.1, p=0.0, effect=0.5, significant=True, alarm=True,
    reason="moved",
)  # fmt: skip


class World:
    """Ten weeks in which a model trained from week `change` on is better by `gain`; drift alarms on the days `alarms`."""

    def __init__(self, change=4, gain=0.2, alarms=(), minutes=1.0, metric=AUC):
        self.days = windows(date(2024, 1, 7), date(2024, 3, 10), 7)
        self.further = ()
        self.metric, self.change, self.gain, self.minutes = metric, self.days[change], gain, minutes
        self.alarms = {self.days[place] for place in alarms}
        self.monitored = []

    def first(self):
        return TrainedModel("first", self.days[0] - timedelta(days=7), 0.0)

    def challenger(self, day, policy):
        return TrainedModel(str(day), day, self.minutes)

    def promotes(self, champion, challenger):
        better = self._level(challenger) > self._level(champion)
        return better, "promoted" if better else "not promoted"

    def monitor(self, champion, version, day, policy):
        self.monitored.append(day)
        alarm = day in self.alarms
        drift = Drift(changes=(ALARM,) if alarm else (), reference_rows=100, alarm=alarm)
        since, until = to_moment(day - timedelta(days=7)), to_moment(day)
        return Window(
            problem="p", version=version, since=since, until=until, rows=50, new_labels=500, drift=drift, performance=None
        )

    def scores(self, model, day, metric=None):
        noise = np.random.default_rng(day.toordinal()).normal(0, 0.01, 51)
        noise[0] = 0
        sign = 1 if self.metric.greater_is_better else -1
        return 0.5 + sign * (self._level(model) if day > self.change else 0.0) + noise

    def _level(self, model):
        return self.gain if model.day >= self.change else 0.0


def outcomes(world, *names):
    runs = {name: backtest.run_policy(world, named(name), ahead=4) for name in names}
    return {each.policy: each for each in backtest.compare_policies(world, runs)}


def test_each_retraining_costs_and_a_promoted_challenger_serves_from_the_next_window():
    found = outcomes(World(), "never", "weekly")
    assert found["never"].retrainings == 0
    assert found["weekly"].retrainings == len(World().days)
    assert found["weekly"].promoted == 1
    assert found["weekly"].cpu_minutes == pytest.approx(len(World().days))
    champions = [each.champion for each in found["weekly"].steps]
    assert champions == ["first"] * 5 + [str(World().days[4])] * 5
    assert found["weekly"].gain.score == pytest.approx(0.2 * 5 / 10)
    assert found["weekly"].gain_per_cpu_minute == pytest.approx(0.01)


def test_a_gain_is_positive_for_a_metric_to_minimise_too():
    world = World(metric=Metric("rmse", greater_is_better=False))
    found = outcomes(world, "never", "weekly")
    assert found["weekly"].quality.score < found["never"].quality.score
    assert found["weekly"].gain.score == pytest.approx(0.1)
    assert backtest.recommend(list(found.values())).best == "weekly"


def test_an_alarm_is_false_if_a_model_of_that_day_would_not_have_been_significantly_better():
    found = outcomes(World(alarms=(1, 5)), "never", "drift")["drift"]
    false_alarms = {place: each.false_alarm for place, each in enumerate(found.steps) if each.alarm}
    assert false_alarms == {1: True, 5: False}
    assert (found.alarms, found.false_alarms, found.retrainings, found.promoted) == (2, 1, 2, 1)


def test_the_cheapest_policy_not_significantly_worse_than_the_best_is_recommended():
    worth = outcomes(World(alarms=(5,)), "never", "weekly", "drift")
    assert backtest.recommend(list(worth.values())).policy == "weekly"  # drift was a week later
    same = outcomes(World(gain=0.0), "never", "weekly")
    found = backtest.recommend(list(same.values()))
    assert found.policy == "never"
    once = outcomes(World(alarms=(4,)), "never", "weekly", "drift")
    found = backtest.recommend(list(once.values()))
    assert (found.policy, once["drift"].cpu_minutes) == ("drift", 1.0)


def test_without_labels_nothing_is_recommended():
    world = World()
    world.scores = lambda model, day, metric: None
    found = outcomes(world, "never", "weekly")
    assert found["weekly"].quality.score is None
    assert backtest.recommend(list(found.values())) is None


# A small store


PROBLEM = "redeem"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A project whose tables are read, with a configuration as tuning leaves it."""
    root = store.project(tmp_path_factory.mktemp("shop"), households=120, weeks=26)
    layout = Layout(root)
    known = loading.load(layout.params)
    ingest.run(known, None, layout)
    shutil.copytree(root / "data" / "raw", root / "data" / "tables")
    kind = problems.kind("classification")
    layout.tuning(PROBLEM).mkdir(parents=True)
    (layout.tuning(PROBLEM) / "best.json").write_text(json.dumps({"config": kind.defaults("logistic", known.section(PROBLEM))}))
    return layout


def copy_project(shop, folder):
    """A copy of the project without backtest results."""
    shutil.copytree(shop.root, folder, ignore=shutil.ignore_patterns("backtest", "reports"))
    return Layout(folder)


POLICIES = ["weekly", "drift", "performance"]


def steps(found):
    return {each.policy: each.steps for each in found.outcomes}


@pytest.fixture(scope="module")
def report(shop):
    return operation.run(shop, loading.load(shop.params), PROBLEM, POLICIES)


@pytest.mark.slow
def test_a_backtest_covers_every_window_and_writes_its_report_and_curves(shop, report):
    assert [each.policy for each in report.outcomes] == ["never", *POLICIES]
    assert len({len(each.steps) for each in report.outcomes}) == 1
    assert report.last == loading.load(shop.params).project.as_of
    weekly = report.outcomes[1]
    assert weekly.retrainings > 5
    assert weekly.cpu_minutes > 0
    assert all(each.score is None for each in weekly.points[-4:])  # their labels have not arrived
    assert sum(each.score is not None for each in weekly.points) == weekly.quality.rows > 5
    folder = operation.folder(shop, PROBLEM)
    assert json.loads((folder / "backtest.json").read_text()) == report.model_dump(mode="json")
    assert "<svg" in (folder / operation.CURVES).read_text()


@pytest.mark.slow
def test_later_data_change_no_earlier_decision(shop, report, tmp_path):
    moved = copy_project(shop, tmp_path / "moved")
    last = report.last - timedelta(days=21)
    for table, column in (("transactions", "transaction_timestamp"), ("coupon_redemptions", "redemption_date")):
        rows = pl.read_parquet(moved.table(table))
        later = pl.col(column).cast(pl.Date) > last
        kept = pl.concat([rows.filter(~later), rows.filter(later).sample(fraction=0.3, seed=1)])
        shutil.rmtree(moved.table(table))
        kept.write_parquet(moved.table(table))
    changed = operation.run(moved, loading.load(moved.params), PROBLEM, POLICIES)
    before, after = steps(report), steps(changed)
    for name in before:
        old, new = (
            [
                (each.day, each.champion, each.alarm, each.retrained, each.promoted, each.reason)
                for each in side
                if each.day <= last
            ]
            for side in (before[name], after[name])
        )
        assert old == new, name
    assert [each.points for each in report.outcomes] != [each.points for each in changed.outcomes]


@pytest.mark.slow
def test_an_interrupted_backtest_resumes_and_has_the_same_result(shop, report, tmp_path, monkeypatch):
    killed = copy_project(shop, tmp_path / "killed")
    known, train, trained = loading.load(killed.params), backtest_models.CounterfactualModels._train, []

    def counted(self, name, training_set):
        if len(trained) == 4:
            raise RuntimeError("killed")
        trained.append(name)
        train(self, name, training_set)

    monkeypatch.setattr(backtest_models.CounterfactualModels, "_train", counted)
    with pytest.raises(RuntimeError, match="killed"):
        operation.run(killed, known, PROBLEM, POLICIES)
    first = list(trained)

    def count(self, name, training_set):
        trained.append(name)
        train(self, name, training_set)

    monkeypatch.setattr(backtest_models.CounterfactualModels, "_train", count)
    found = operation.run(killed, known, PROBLEM, POLICIES)
    assert len(trained) == len(set(trained)) > len(first)
    assert steps(found) == steps(report)
    trained.clear()
    operation.run(killed, known, PROBLEM, [*POLICIES, "labels"])
    assert trained == []


def test_an_unsuitable_request_is_rejected_with_its_reason(shop, tmp_path):
    known = loading.load(shop.params)
    with pytest.raises(ParamsError, match="--policy wekly: no such policy; did you mean weekly"):
        operation.run(shop, known, PROBLEM, ["wekly"])
    own = known.section("recommend")
    for change, why in (
        ({"judge_by": "last_orders"}, "recommend.features.judge_by = last_orders: judges users by their own last purchases"),
        ({"order": "number"}, "recommend.features.order = number: orders without dates belong to no window"),
    ):
        section = own.model_copy(update={"features": own.features.model_copy(update=change)})
        changed = known.model_copy(update={"sections": {**known.sections, "recommend": section}})
        with pytest.raises(ParamsError, match=why):
            operation.run(shop, changed, "recommend", ["weekly"])
    with pytest.raises(StepError, match="Run tune first"):
        operation.run(shop, known, "recommend", ["weekly"])
    with pytest.raises(ParamsError, match="--from 2017-01-01: labels of redeem are first complete"):
        operation.run(shop, known, PROBLEM, ["weekly"], first=date(2017, 1, 1))
    with pytest.raises(ParamsError, match="1 windows from"):
        operation.run(shop, known, PROBLEM, ["weekly"], first=backtest_data.snapshot.resolve_as_of(known, shop))
    bare = copy_project(shop, tmp_path / "bare")
    shutil.rmtree(bare.tuning(PROBLEM))
    with pytest.raises(StepError, match="Run tune first"):
        operation.run(bare, known, PROBLEM, ["weekly"])


def test_a_plain_table_trains_before_its_test_rows_and_only_on_known_labels(tmp_path):
    draw, count = np.random.default_rng(0), 400
    days = np.datetime64("2024-01-01") + np.sort(draw.integers(0, 200, count)).astype("timedelta64[D]")
    frame = pl.DataFrame({"when": days.astype("datetime64[us]"), "x": draw.normal(size=count)}).with_columns(
        y=pl.when(pl.col("x") > 0).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    features = {"table": "t", "target": "y", "time": "when", "columns": {"x": "number"}}
    section = Tabular.model_validate({"question": "?", "features": features, "train": {"refit": True}})
    kind = problems.kind("classification")
    kind.build({"t": frame.lazy()}, {}, section, None)["rows"].write_parquet(tmp_path / "rows.parquet")
    rows = kind.load(tmp_path, section)
    last = days.max().astype(date)
    past = TableWindows(rows, section, windows(date(2024, 3, 1), last, 7), 7, days.astype("datetime64[D]"), 14)
    day = past.days[8]
    training_set = past.training_set(day, Retrain())
    masks = training_set.rows.parts.masks
    known = past.dates <= np.datetime64(day) - np.timedelta64(14, "D")
    assert (masks["labelled"] == known).all()
    assert past.dates[masks["train"]].max() < past.dates[masks["test"]].min()
    assert training_set.known_until == past.dates[masks["test"]].min().astype(date) - timedelta(days=1)
    sliding = past.training_set(day, Retrain(window="sliding", window_days=30)).rows.parts.masks["labelled"]
    assert past.dates[sliding].min() > np.datetime64(day) - np.timedelta64(30, "D")
    inside = past.window(day)[0].parts.masks["window"]
    assert set(past.dates[inside]) <= set(np.datetime64(day) - np.arange(7).astype("timedelta64[D]"))
