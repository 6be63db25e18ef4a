"""Looks at production: what is found in odd windows, that nothing is done twice, and who is told."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.flows import monitoring as watching
from evergreen.flows import settings
from evergreen.flows.monitoring import Means, Seen
from evergreen.flows.operations import notifications, status
from evergreen.flows.operations.status import Outcome
from evergreen.monitoring.drift import reference_data
from evergreen.monitoring.ledger.decisions import end_of_day
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Prediction
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release.mlflow_store import Version

pytestmark = pytest.mark.xdist_group("watching")
DAY = date(2024, 3, 10)
POLICY = {"mode": "automatic", "on_drift": True, "min_labels": 0}


class World:
    """What a monitor does beside looking: noted, not done."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.refreshed: list[date | None] = []
        self.sent: list[Decision] = []
        self.answers = False
        self.trouble: str | None = None

    def refresh(self, layout: Layout, problems: Sequence[str], as_of: date | None) -> None:
        self.refreshed.append(as_of)
        if self.trouble:
            raise StepError(self.trouble)

    def emit(self, layout: Layout, params: Params, decision: Decision) -> bool:
        self.sent.append(decision)
        return self.answers

    def train(self, layout: Layout, problem: str, refresh: bool, by: str) -> Outcome:
        self.trained.append(problem)
        return Outcome(problem)

    def look(self, layout: Layout, day: date = DAY) -> Seen:
        return watching.run(layout, ["late"], day, Means(self.refresh, self.emit, self.train))[0]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def mill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Layout]:
    """A project with a plain table whose version 1 is champion and has a reference; `policy` as in params."""

    def build(**policy: Any) -> Layout:
        layout = Layout(tmp_path)
        section = {
            "question": "Will it be late?",
            "features": {"table": "jobs", "target": "late", "columns": {"size": "number", "shop": "category"}},
            "retrain": {**POLICY, **policy},
            "monitor": {"evidently_report": False, "resamples": 100},
        }
        whole = {
            "project": {"name": "mill"}, "problems": {"late": "classification"},
            "ingest": {"jobs": {"csv": "jobs.csv"}}, "late": section,
        }  # fmt: skip
        layout.params.write_text(json.dumps(whole))
        version = Version(
            problem="late", version=1, run_id="run", created=end_of_day(DAY - timedelta(days=60)), aliases=("champion",),
            tags={"metric": "roc_auc", "verdict.rows": "500"},
            metrics={"roc_auc": 0.8, "roc_auc_low": 0.75, "roc_auc_high": 0.85},
        )  # fmt: skip
        deployments = SimpleNamespace(champion=lambda problem: 1, history=lambda problem: [])
        monkeypatch.setattr(settings, "deployments", lambda layout: deployments)
        monkeypatch.setattr(settings, "registry", lambda layout: SimpleNamespace(version=lambda problem, number: version))
        monkeypatch.setattr(status, "page", lambda layout: layout.page)
        monkeypatch.setattr(status, "standing", lambda layout, problem: (1, True))
        draw = np.random.default_rng(0)
        features = rows(2000, draw).with_columns(
            pl.Series(reference_data.ENTITY, [str(each) for each in range(2000)]),
            pl.lit(None, pl.Date).alias(reference_data.WEEK),
        )
        made = reference_data.of("late", 1, "classification", {"features": features}, importance={"size": 0.7, "shop": 0.3})
        made.save(reference_data.place(layout, "late", 1))
        return layout

    return build


def rows(count: int, draw: np.random.Generator, shift: float = 0.0) -> pl.DataFrame:
    return pl.DataFrame({"size": draw.normal(shift, 1, count), "shop": draw.choice(["a", "b", "c"], count)})


def serve(
    layout: Layout, count: int, shift: float = 0.0, day: date = DAY, truth: bool | None = None, drop: Sequence[str] = ()
) -> None:
    """`count` answers on the morning of `day`, with the same truth for all where one is given."""
    draw = np.random.default_rng(1)
    chance = draw.random(count)
    at = datetime(day.year, day.month, day.day, 8, tzinfo=UTC)
    made = [
        Prediction(
            id=f"{day} {place}", problem="late", version=1, variant="champion", at=at + timedelta(seconds=place),
            entity=None, cutoff=None, features={name: value for name, value in row.items() if name not in drop},
            outputs={"prediction": "yes" if p > 0.5 else "no", "probability_no": 1 - p, "probability_yes": p},
        )
        for place, (row, p) in enumerate(zip(rows(count, draw, shift).to_dicts(), chance.tolist(), strict=True))
    ]  # fmt: skip
    ledger = settings.ledger(layout)
    ledger.append(made)
    if truth is not None:
        ledger.add_labels("late", [Label("yes" if truth else "no", id=each.id, known_at=at) for each in made])


def decided(seen: Seen) -> Decision:
    assert seen.error is None
    assert seen.decision is not None
    return seen.decision


def test_a_calm_window_retrains_nothing_and_says_what_was_looked_at(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 400)
    decision = decided(world.look(layout))
    assert (decision.retrain, decision.window.rows, decision.window.drift.alarm) == (False, 400, False)
    assert (world.trained, world.refreshed) == ([], [None])


def test_a_shift_is_an_alarm_and_starts_one_retraining_however_often_it_is_seen(
    mill: Callable[..., Layout], world: World
) -> None:
    layout = mill()
    serve(layout, 400, shift=1.0)
    first, second = world.look(layout), world.look(layout)
    assert decided(first).reason.startswith("retrain: drift in 1 of the last 1 windows and in the latest (size:")
    assert decided(second) == decided(first)
    assert (first.retraining is not None, second.retraining, world.trained) == (True, None, ["late"])
    (past,) = settings.decision_log(layout).retrainings("late")
    assert (past.trigger, past.by, past.at) == ("drift", "policy (drift)", end_of_day(DAY))


def test_two_monitors_at_once_find_the_same_and_train_once(mill: Callable[..., Layout], world: World) -> None:
    layout, found = mill(), list[Seen]()
    serve(layout, 400, shift=1.0)
    threads = [threading.Thread(target=lambda: found.append(world.look(layout))) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.error for each in found] == [None] * 3
    assert len({decided(each).reason for each in found}) == 1
    assert (len(settings.decision_log(layout).runs("late")), world.trained) == (1, ["late"])


def test_a_suggestion_trains_nothing(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(mode="suggest")
    serve(layout, 400, shift=1.0)
    assert decided(world.look(layout)).retrain
    assert world.trained == []


def test_where_an_automation_answers_nothing_starts_here(mill: Callable[..., Layout], world: World) -> None:
    layout, world.answers = mill(), True
    serve(layout, 400, shift=1.0)
    seen = world.look(layout)
    assert (seen.answered, seen.retraining, world.trained) == (True, None, [])
    assert [each.retrain for each in world.sent] == [True]


def test_no_new_rows_are_no_drift_and_no_decision_to_retrain(mill: Callable[..., Layout], world: World) -> None:
    decision = decided(world.look(mill(on_performance_drop=0.0)))
    assert (decision.retrain, decision.window.rows) == (False, 0)
    assert decision.window.drift.skipped == "0 predictions; min_rows = 30 are needed"


def test_of_three_rows_nothing_is_said(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 3, shift=9.0)
    assert decided(world.look(layout)).window.drift.skipped == "3 predictions; min_rows = 30 are needed"


def test_truths_of_one_class_give_no_score_and_say_why(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(on_performance_drop=0.0)
    serve(layout, 100, truth=True)
    window = decided(world.look(layout)).window
    assert window.performance is not None
    assert window.performance.realised.score is None
    assert "so there is no" in (window.performance.realised.reason or "")
    assert window.new_labels == 100


def test_a_column_that_is_gone_is_an_alarm_that_says_so(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 100, drop=["size"])
    alarm = decided(world.look(layout)).window.drift.alarms[0]
    assert (alarm.column, alarm.reason) == ("size", "the column is gone")


def test_a_look_back_decides_nothing_and_changes_no_later_look(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(on_drift=True)
    serve(layout, 400, day=DAY)
    serve(layout, 400, shift=1.0, day=DAY - timedelta(days=10))
    world.look(layout)
    back = decided(world.look(layout, DAY - timedelta(days=10)))
    assert back.window.drift.alarm
    assert back.reason.startswith("no retraining: this look ends 2024-02-29")
    assert [each.decision.at.day for each in settings.decision_log(layout).runs("late")] == [29, 10]
    assert world.trained == []


def test_features_that_cannot_be_made_are_an_error_beside_the_look(mill: Callable[..., Layout], world: World) -> None:
    layout, world.trouble = mill(), "ingest: jobs.csv: no such file"
    serve(layout, 100)
    seen = world.look(layout)
    assert seen.decision is not None
    assert seen.error == "no new features: ingest: jobs.csv: no such file"


def test_where_nothing_is_deployed_the_note_says_what_to_do(
    mill: Callable[..., Layout], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = mill()
    monkeypatch.setattr(settings, "deployments", lambda layout: SimpleNamespace(champion=lambda problem: None))
    seen = world.look(layout)
    assert (seen.decision, seen.notes) == (None, ["nothing is deployed; run evergreen train late"])


def test_a_retraining_that_was_killed_is_completed_by_the_next_monitor(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 400, shift=1.0)

    def kill(*_: Any) -> Outcome:
        raise KeyboardInterrupt("at once")

    with pytest.raises(KeyboardInterrupt, match="at once"):
        watching.run(layout, ["late"], DAY, Means(world.refresh, world.emit, kill))
    assert len(settings.decision_log(layout).unfinished(["late"])) == 1
    world.look(layout)
    assert (world.trained, settings.decision_log(layout).unfinished(["late"])) == (["late"], [])


def test_what_prometheus_reads_names_the_problem_and_the_alarm(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(mode="suggest")
    serve(layout, 400, shift=1.0)
    world.look(layout)
    text = (layout.var / "metrics.prom").read_text()
    assert 'evergreen_drift_alarm{problem="late"} 1\n' in text
    assert f'evergreen_window_end_seconds{{problem="late"}} {end_of_day(DAY).timestamp():.0f}\n' in text
    assert 'evergreen_score{problem="late",metric="roc_auc",of="expected"} 0.8\n' in text
    helped = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert sorted(helped) == sorted(set(helped))


# Who is told


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a webhook that the environment names was told."""
    told: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    listener = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    monkeypatch.setenv("EVERGREEN_WEBHOOK", f"http://127.0.0.1:{listener.server_port}/secret")
    yield told
    listener.shutdown()
    listener.server_close()


def test_an_alarm_is_told_once_with_the_reason(mill: Callable[..., Layout], world: World, webhook: list) -> None:
    layout = mill(mode="suggest")
    serve(layout, 400, shift=1.0)
    world.look(layout)
    world.look(layout)
    assert [each["subject"] for each in webhook] == ["late: retraining"]
    assert webhook[0]["text"].startswith("late: retraining: retrain: drift in 1 of the last 1")


def test_a_calm_look_tells_nobody_and_a_failed_one_does(
    mill: Callable[..., Layout], world: World, webhook: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = mill()
    serve(layout, 100)
    world.look(layout)
    assert webhook == []
    monkeypatch.setattr(watching, "observe", lambda *_: 1 / 0)
    assert world.look(layout).error == "late: ZeroDivisionError: division by zero"
    assert [each["subject"] for each in webhook] == ["late: monitoring failed"]


def test_a_webhook_that_is_away_fails_nothing_and_its_address_is_no_line_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERGREEN_WEBHOOK", "http://127.0.0.1:9/secret")
    assert notifications.send(Layout(tmp_path), "late", "drift") == []
    assert "the webhook did not take the message" in caplog.text
    assert "secret" not in caplog.text


def test_the_champions_training_is_dated_by_what_it_knew() -> None:
    version = Version(
        problem="late", version=1, run_id="r", created=datetime(2026, 1, 1, tzinfo=UTC), aliases=(), tags={}, metrics={}
    )
    assert watching.trained(version) == version.created
    assert watching.trained(version.model_copy(update={"tags": {"as_of": "2017-12-31"}})) == end_of_day(date(2017, 12, 31))


def test_a_project_that_lives_on_a_day_is_looked_at_there_unless_somebody_was_answered_later(
    mill: Callable[..., Layout],
) -> None:
    layout = mill()
    text = json.loads(layout.params.read_text())
    text["project"]["as_of"] = str(DAY)
    layout.params.write_text(json.dumps(text))
    ledger = settings.ledger(layout)
    assert watching._today(load(layout.params), ledger, "late") == DAY
    serve(layout, 1, day=DAY + timedelta(days=1))
    assert watching._today(load(layout.params), ledger, "late") == datetime.now(UTC).date()
