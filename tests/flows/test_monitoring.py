"""Monitoring runs: results in unusual windows, idempotence, and notifications."""

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

from evergreen.flows import monitoring, settings
from evergreen.flows.monitoring import Actions, MonitoringResult
from evergreen.flows.operations import monitoring_window, notifications, status
from evergreen.flows.operations.status import Outcome
from evergreen.monitoring.drift import reference_data
from evergreen.monitoring.ledger.decisions import end_of_day
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Prediction
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release.mlflow_store import Version

DAY = date(2024, 3, 10)
POLICY = {"mode": "automatic", "on_drift": True, "min_labels": 0}


class World:
    """Records the actions of monitoring runs instead of doing them."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.refreshed: list[date | None] = []
        self.sent: list[Decision] = []
        self.has_automation = False
        self.refresh_error: str | None = None

    def refresh(self, layout: Layout, problems: Sequence[str], as_of: date | None) -> None:
        self.refreshed.append(as_of)
        if self.refresh_error:
            raise StepError(self.refresh_error)

    def emit(self, layout: Layout, params: Params, decision: Decision) -> bool:
        self.sent.append(decision)
        return self.has_automation

    def train(self, layout: Layout, problem: str, refresh: bool, by: str) -> Outcome:
        self.trained.append(problem)
        return Outcome(problem)

    def monitor(self, layout: Layout, day: date = DAY) -> MonitoringResult:
        return monitoring.run(layout, ["late"], day, Actions(self.refresh, self.emit, self.train))[0]


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
            pl.Series(reference_data.WEEK, [DAY - timedelta(weeks=1 + each % 20) for each in range(2000)]),
        )
        made = reference_data.of("late", 1, "classification", {"features": features}, importance={"size": 0.7, "shop": 0.3})
        made.save(reference_data.place(layout, "late", 1))
        return layout

    return build


def rows(count: int, draw: np.random.Generator, shift: float = 0.0) -> pl.DataFrame:
    return pl.DataFrame({"size": draw.normal(shift, 1, count), "shop": draw.choice(["a", "b", "c"], count)})


def serve(
    layout: Layout, count: int, shift: float = 0.0, day: date = DAY, label: bool | None = None, drop: Sequence[str] = ()
) -> None:
    """`count` predictions on the morning of `day`; `label`: the same for all, if given."""
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
    if label is not None:
        ledger.add_labels("late", [Label("yes" if label else "no", id=each.id, known_at=at) for each in made])


def decided(result: MonitoringResult) -> Decision:
    assert result.error is None
    assert result.decision is not None
    return result.decision


def test_a_window_without_drift_retrains_nothing(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 400)
    decision = decided(world.monitor(layout))
    assert (decision.retrain, decision.window.rows, decision.window.drift.alarm) == (False, 400, False)
    assert (world.trained, world.refreshed) == ([], [None])


def test_a_shift_is_an_alarm_and_repeated_runs_start_one_retraining(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 400, shift=1.0)
    first, second = world.monitor(layout), world.monitor(layout)
    assert decided(first).reason.startswith("retrain: drift in 1 of the last 1 windows and in the latest (size:")
    assert decided(second) == decided(first)
    assert (first.retraining is not None, second.retraining, world.trained) == (True, None, ["late"])
    (record,) = settings.decision_log(layout).retrainings("late")
    assert (record.trigger, record.by, record.at) == ("drift", "policy (drift)", end_of_day(DAY))


def test_concurrent_monitors_agree_and_train_once(mill: Callable[..., Layout], world: World) -> None:
    layout, found = mill(), list[MonitoringResult]()
    serve(layout, 400, shift=1.0)
    threads = [threading.Thread(target=lambda: found.append(world.monitor(layout))) for _ in range(3)]
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
    assert decided(world.monitor(layout)).retrain
    assert world.trained == []


def test_with_an_automation_the_retraining_is_delegated(mill: Callable[..., Layout], world: World) -> None:
    layout, world.has_automation = mill(), True
    serve(layout, 400, shift=1.0)
    result = world.monitor(layout)
    assert (result.delegated, result.retraining, world.trained) == (True, None, [])
    assert [each.retrain for each in world.sent] == [True]


def test_no_new_rows_are_no_drift_and_no_decision_to_retrain(mill: Callable[..., Layout], world: World) -> None:
    decision = decided(world.monitor(mill(on_performance_drop=0.0)))
    assert (decision.retrain, decision.window.rows) == (False, 0)
    assert decision.window.drift.skipped == "0 predictions; min_rows = 30 are needed"


def test_three_rows_are_not_tested_for_drift(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 3, shift=9.0)
    assert decided(world.monitor(layout)).window.drift.skipped == "3 predictions; min_rows = 30 are needed"


def test_labels_of_one_class_give_no_score_and_a_reason(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(on_performance_drop=0.0)
    serve(layout, 100, label=True)
    window = decided(world.monitor(layout)).window
    assert window.performance is not None
    assert window.performance.realised.score is None
    assert "so there is no" in (window.performance.realised.reason or "")
    assert window.new_labels == 100


def test_a_missing_column_is_an_alarm_with_its_reason(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 100, drop=["size"])
    alarm = decided(world.monitor(layout)).window.drift.alarms[0]
    assert (alarm.column, alarm.reason) == ("size", "the column is gone")


def test_a_run_of_an_earlier_day_decides_nothing_and_changes_no_later_run(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(on_drift=True)
    serve(layout, 400, day=DAY)
    serve(layout, 400, shift=1.0, day=DAY - timedelta(days=10))
    world.monitor(layout)
    back = decided(world.monitor(layout, DAY - timedelta(days=10)))
    assert back.window.drift.alarm
    assert back.reason.startswith("no retraining: this run ends 2024-02-29")
    assert [each.decision.at.day for each in settings.decision_log(layout).runs("late")] == [29, 10]
    assert world.trained == []


def test_a_day_to_come_is_refused_and_nothing_is_recorded(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(on_drift=True)
    with pytest.raises(ParamsError, match=r"--as-of 2999-01-01: a day to come; .* Correct the day, or this clock"):
        world.monitor(layout, date(2999, 1, 1))
    assert settings.decision_log(layout).runs("late") == []


def test_features_that_cannot_be_built_are_an_error_beside_the_decision(mill: Callable[..., Layout], world: World) -> None:
    layout, world.refresh_error = mill(), "ingest: jobs.csv: no such file"
    serve(layout, 100)
    result = world.monitor(layout)
    assert result.decision is not None
    assert result.error == "no new features: ingest: jobs.csv: no such file"


def test_without_a_deployment_the_note_names_the_command(
    mill: Callable[..., Layout], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = mill()
    monkeypatch.setattr(settings, "deployments", lambda layout: SimpleNamespace(champion=lambda problem: None))
    result = world.monitor(layout)
    assert (result.decision, result.notes) == (None, ["nothing is deployed; run evergreen train late"])


def test_a_killed_retraining_is_completed_by_the_next_run(mill: Callable[..., Layout], world: World) -> None:
    layout = mill()
    serve(layout, 400, shift=1.0)

    def kill(*_: Any) -> Outcome:
        raise KeyboardInterrupt("at once")

    with pytest.raises(KeyboardInterrupt, match="at once"):
        monitoring.run(layout, ["late"], DAY, Actions(world.refresh, world.emit, kill))
    assert len(settings.decision_log(layout).unfinished(["late"])) == 1
    world.monitor(layout)
    assert (world.trained, settings.decision_log(layout).unfinished(["late"])) == (["late"], [])


def test_the_prometheus_text_names_the_problem_and_the_alarm(mill: Callable[..., Layout], world: World) -> None:
    layout = mill(mode="suggest")
    serve(layout, 400, shift=1.0)
    world.monitor(layout)
    text = (layout.var / "metrics.prom").read_text()
    assert 'evergreen_drift_alarm{problem="late"} 1.0\n' in text
    (end,) = [line for line in text.splitlines() if line.startswith('evergreen_window_end_timestamp_seconds{problem="late"}')]
    assert float(end.split()[1]) == end_of_day(DAY).timestamp()
    assert 'evergreen_score{metric="roc_auc",of="expected",problem="late"} 0.8\n' in text
    helped = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert sorted(helped) == sorted(set(helped))


# Notifications


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The messages sent to the webhook of the environment."""
    messages: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    listener = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    monkeypatch.setenv("EVERGREEN_WEBHOOK", f"http://127.0.0.1:{listener.server_port}/secret")
    yield messages
    listener.shutdown()
    listener.server_close()


def test_an_alarm_is_sent_once_with_its_reason(mill: Callable[..., Layout], world: World, webhook: list) -> None:
    layout = mill(mode="suggest")
    serve(layout, 400, shift=1.0)
    world.monitor(layout)
    world.monitor(layout)
    assert [each["subject"] for each in webhook] == ["late: retraining"]
    assert webhook[0]["text"].startswith("late: retraining: retrain: drift in 1 of the last 1")


def test_a_run_without_alarm_sends_nothing_and_a_failed_one_does(
    mill: Callable[..., Layout], world: World, webhook: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = mill()
    serve(layout, 100)
    world.monitor(layout)
    assert webhook == []
    monkeypatch.setattr(monitoring_window, "measure_window", lambda *_: 1 / 0)
    assert world.monitor(layout).error == "late: ZeroDivisionError: division by zero"
    assert [each["subject"] for each in webhook] == ["late: monitoring failed"]


def test_an_unavailable_webhook_fails_nothing_and_its_address_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERGREEN_WEBHOOK", "http://127.0.0.1:9/secret")
    assert notifications.send(Layout(tmp_path), "late", "drift") == []
    assert "the webhook did not accept the message" in caplog.text
    assert "secret" not in caplog.text


def test_the_champions_training_is_dated_by_its_data() -> None:
    version = Version(
        problem="late", version=1, run_id="r", created=datetime(2026, 1, 1, tzinfo=UTC), aliases=(), tags={}, metrics={}
    )
    assert monitoring_window.trained_until(version) == version.created
    assert monitoring_window.trained_until(version.model_copy(update={"tags": {"as_of": "2017-12-31"}})) == end_of_day(
        date(2017, 12, 31)
    )


def test_a_project_with_as_of_is_monitored_on_that_day_unless_predictions_are_newer(
    mill: Callable[..., Layout],
) -> None:
    layout = mill()
    text = json.loads(layout.params.read_text())
    text["project"]["as_of"] = str(DAY)
    layout.params.write_text(json.dumps(text))
    ledger = settings.ledger(layout)
    assert monitoring_window.choose_day(load(layout.params), ledger, "late") == DAY
    serve(layout, 1, day=DAY + timedelta(days=1))
    assert monitoring_window.choose_day(load(layout.params), ledger, "late") == datetime.now(UTC).date()
