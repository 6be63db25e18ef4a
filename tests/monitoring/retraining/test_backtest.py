"""Replay: only what was known then counts, what policies share is worked out once, and the cheapest of equals is taken."""

import json
import shutil
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from evergreen.flows.operations import backtest as operation
from evergreen.monitoring.ledger.records import Drift, Window
from evergreen.monitoring.retraining import backtest, backtest_models
from evergreen.monitoring.retraining.backtest import Learned, moment
from evergreen.monitoring.retraining.backtest_windows import Lines, windows
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


class World:
    """Ten weeks in which whatever was trained from week `change` on is better by `gain`; drift alarms on the days `alarms`."""

    def __init__(self, change=4, gain=0.2, alarms=(), minutes=1.0, metric=AUC):
        self.days = windows(date(2024, 1, 7), date(2024, 3, 10), 7)
        self.metric, self.change, self.gain, self.minutes = metric, self.days[change], gain, minutes
        self.alarms = {self.days[place] for place in alarms}
        self.asked = []

    def first(self):
        return Learned("first", self.days[0] - timedelta(days=7), 0.0)

    def challenger(self, day, policy):
        return Learned(str(day), day, self.minutes)

    def promotes(self, champion, challenger):
        better = self._level(challenger) > self._level(champion)
        return better, "promoted" if better else "not promoted"

    def look(self, champion, version, day, policy):
        self.asked.append(day)
        drift = Drift(changes=(), reference_rows=100, alarm=day in self.alarms)
        since, until = moment(day - timedelta(days=7)), moment(day)
        return Window(
            problem="p", version=version, since=since, until=until, rows=50, new_labels=500, drift=drift, performance=None
        )

    def scores(self, model, day):
        noise = np.random.default_rng(day.toordinal()).normal(0, 0.01, 51)
        noise[0] = 0
        sign = 1 if self.metric.greater_is_better else -1
        return 0.5 + sign * (self._level(model) if day > self.change else 0.0) + noise

    def _level(self, model):
        return self.gain if model.day >= self.change else 0.0


def lived(world, *names):
    lives = {name: backtest.live(world, named(name), ahead=4) for name in names}
    return {each.policy: each for each in backtest.outcomes(world, lives)}


def test_a_policy_pays_for_each_retraining_and_serves_what_was_promoted_from_the_next_window_on():
    found = lived(World(), "never", "weekly")
    assert found["never"].retrainings == 0
    assert found["weekly"].retrainings == len(World().days)
    assert found["weekly"].promoted == 1
    assert found["weekly"].cpu_minutes == pytest.approx(len(World().days))
    champions = [each.champion for each in found["weekly"].steps]
    assert champions == ["first"] * 5 + [str(World().days[4])] * 5
    assert found["weekly"].gain.score == pytest.approx(0.2 * 5 / 10)
    assert found["weekly"].per_cpu_minute == pytest.approx(0.01)


def test_where_less_is_better_a_gain_is_still_positive():
    world = World(metric=Metric("rmse", greater_is_better=False))
    found = lived(world, "never", "weekly")
    assert found["weekly"].quality.score < found["never"].quality.score
    assert found["weekly"].gain.score == pytest.approx(0.1)
    assert backtest.recommend(list(found.values())).best == "weekly"


def test_an_alarm_is_false_where_a_model_of_that_day_would_not_surely_have_been_better():
    found = lived(World(alarms=(1, 5)), "never", "drift")["drift"]
    told = {place: each.false_alarm for place, each in enumerate(found.steps) if each.alarm}
    assert told == {1: True, 5: False}
    assert (found.alarms, found.false_alarms, found.retrainings, found.promoted) == (2, 1, 2, 1)


def test_the_cheapest_of_those_that_cannot_be_told_from_the_best_is_taken():
    worth = lived(World(alarms=(5,)), "never", "weekly", "drift")
    assert backtest.recommend(list(worth.values())).policy == "weekly"  # drift came a week later and surely lost by it
    same = lived(World(gain=0.0), "never", "weekly")
    verdict = backtest.recommend(list(same.values()))
    assert verdict.policy == "never"
    once = lived(World(alarms=(4,)), "never", "weekly", "drift")
    verdict = backtest.recommend(list(once.values()))
    assert (verdict.policy, once["drift"].cpu_minutes) == ("drift", 1.0)


def test_without_a_truth_nothing_is_recommended():
    world = World()
    world.scores = lambda model, day: None
    found = lived(world, "never", "weekly")
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


def again(shop, folder):
    """The same project elsewhere, nothing replayed in it."""
    shutil.copytree(shop.root, folder, ignore=shutil.ignore_patterns("replay", "reports"))
    return Layout(folder)


POLICIES = ["weekly", "drift", "performance"]


def steps(found):
    return {each.policy: each.steps for each in found.outcomes}


@pytest.fixture(scope="module")
def replayed(shop):
    return operation.run(shop, loading.load(shop.params), PROBLEM, POLICIES)


def test_a_replay_covers_every_window_and_leaves_its_table_and_its_curves(shop, replayed):
    assert [each.policy for each in replayed.outcomes] == ["never", *POLICIES]
    assert len({len(each.steps) for each in replayed.outcomes}) == 1
    assert replayed.last == loading.load(shop.params).project.as_of
    weekly = replayed.outcomes[1]
    assert weekly.retrainings > 5
    assert weekly.cpu_minutes > 0
    assert all(each.score is None for each in weekly.points[-4:])  # their truth has not come
    assert sum(each.score is not None for each in weekly.points) == weekly.quality.rows > 5
    folder = operation.folder(shop, PROBLEM)
    assert json.loads((folder / "replay.json").read_text()) == replayed.model_dump(mode="json")
    assert "<svg" in (folder / operation.CURVES).read_text()


def test_no_decision_changes_when_what_comes_after_it_does(shop, replayed, tmp_path):
    moved = again(shop, tmp_path / "moved")
    last = replayed.last - timedelta(days=21)
    for table, column in (("transactions", "transaction_timestamp"), ("coupon_redemptions", "redemption_date")):
        rows = pl.read_parquet(moved.table(table))
        later = pl.col(column).cast(pl.Date) > last
        kept = pl.concat([rows.filter(~later), rows.filter(later).sample(fraction=0.3, seed=1)])
        kept.write_parquet(moved.table(table))
    changed = operation.run(moved, loading.load(moved.params), PROBLEM, POLICIES)
    before, after = steps(replayed), steps(changed)
    for name in before:
        told, anew = (
            [
                (each.day, each.champion, each.alarm, each.retrained, each.promoted, each.reason)
                for each in side
                if each.day <= last
            ]
            for side in (before[name], after[name])
        )
        assert told == anew, name
    assert [each.points for each in replayed.outcomes] != [each.points for each in changed.outcomes]


def test_a_replay_that_was_killed_goes_on_where_it_was_and_ends_the_same(shop, replayed, tmp_path, monkeypatch):
    killed = again(shop, tmp_path / "killed")
    known, learn, learned = loading.load(killed.params), backtest_models.Past._learn, []

    def counted(self, name, lesson):
        if len(learned) == 4:
            raise RuntimeError("killed")
        learned.append(name)
        learn(self, name, lesson)

    monkeypatch.setattr(backtest_models.Past, "_learn", counted)
    with pytest.raises(RuntimeError, match="killed"):
        operation.run(killed, known, PROBLEM, POLICIES)
    first = list(learned)
    monkeypatch.setattr(
        backtest_models.Past, "_learn", lambda self, name, lesson: (learned.append(name), learn(self, name, lesson))[1]
    )
    found = operation.run(killed, known, PROBLEM, POLICIES)
    assert len(learned) == len(set(learned)) > len(first)
    assert steps(found) == steps(replayed)
    learned.clear()
    operation.run(killed, known, PROBLEM, [*POLICIES, "labels"])
    assert learned == []


def test_what_cannot_be_replayed_is_refused_by_name(shop, tmp_path):
    known = loading.load(shop.params)
    with pytest.raises(ParamsError, match="--policy wekly: no such policy; did you mean weekly"):
        operation.run(shop, known, PROBLEM, ["wekly"])
    with pytest.raises(ParamsError, match="recommend: a problem of recommendation cannot be replayed"):
        operation.run(shop, known, "recommend", ["weekly"])
    with pytest.raises(ParamsError, match="--from 2017-01-01: labels of redeem are first complete"):
        operation.run(shop, known, PROBLEM, ["weekly"], first=date(2017, 1, 1))
    with pytest.raises(ParamsError, match="1 windows from"):
        operation.run(shop, known, PROBLEM, ["weekly"], first=operation.snapshot.resolve_as_of(known, shop))
    bare = again(shop, tmp_path / "bare")
    shutil.rmtree(bare.tuning(PROBLEM))
    with pytest.raises(StepError, match="Run tune first"):
        operation.run(bare, known, PROBLEM, ["weekly"])


def test_a_plain_table_learns_from_rows_before_those_that_judge_and_only_from_labels_that_had_come(tmp_path):
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
    timeline = Lines(rows, section, windows(date(2024, 3, 1), last, 7), 7, days.astype("datetime64[D]"), 14)
    day = timeline.days[8]
    lesson = timeline.lesson(day, Retrain())
    masks = lesson.rows.parts.masks
    known = timeline.dates <= np.datetime64(day) - np.timedelta64(14, "D")
    assert (masks["known"] == known).all()
    assert timeline.dates[masks["train"]].max() < timeline.dates[masks["test"]].min()
    assert lesson.seen == timeline.dates[masks["test"]].min().astype(date) - timedelta(days=1)
    sliding = timeline.lesson(day, Retrain(window="sliding", window_days=30)).rows.parts.masks["known"]
    assert timeline.dates[sliding].min() > np.datetime64(day) - np.timedelta64(30, "D")
    inside = timeline.window(day)[0].parts.masks["window"]
    assert set(timeline.dates[inside]) <= set(np.datetime64(day) - np.arange(7).astype("timedelta64[D]"))
