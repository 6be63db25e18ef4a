"""A retraining on the small store: killed at each step, request for twice, refused, and what it learns from."""

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.flows import retraining, settings, steps
from evergreen.flows.operations.status import Outcome
from evergreen.flows.prefect_runtime import cancellation
from evergreen.flows.retraining import RetrainRequest
from evergreen.monitoring.ledger.decisions import RetrainingRecord, end_of_day
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import LockedError, ParamsError, StepError
from evergreen.tasks.core.paths import Layout, locking, read_json, write_json
from evergreen.tasks.data.snapshot import facts_file
from evergreen.tasks.release.promotion_gate import Verdict
from tests import projects
from tests.e2e.shop import Shop
from tests.flows import in_process
from tests.flows.in_process import Plain, Watch, train
from tests.kills import KilledError

pytestmark = pytest.mark.slow

DAY, BEFORE = projects.DAY, projects.BEFORE


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return in_process.replace_tasks(monkeypatch)


@pytest.fixture
def layout(trained: Layout, tmp_path: Path) -> Layout:
    """A copy of this test's own; its champion was trained as of BEFORE."""
    return projects.copy(trained, tmp_path / "a shop")


def request(id: str = "run", **more: Any) -> RetrainRequest:
    return RetrainRequest("spend", "drift in recency", "policy (drift)", "drift", id, end_of_day(DAY), DAY, **more)


MOMENTS = [
    (when, name)
    for name in ("ingest", "features", "tune", "train", "evaluate", "explain", "gate", "register", "deploy")
    for when in ("before", "after")
]


def test_after_a_kill_at_each_step_the_champion_serves_and_the_next_run_completes_it(layout: Layout, watch: Watch) -> None:
    decisions = settings.decision_log(layout)
    watch.kills = [*MOMENTS]
    for when, name in MOMENTS:
        with pytest.raises(KilledError, match=f"{when} {name}"):
            retraining.run(layout, request(), train)
        number = settings.deployments(layout).champion("spend")
        assert number == 1 or (when, name) == ("after", "deploy")
        assert settings.registry(layout).load("spend", number or 0) is not None
        assert [each.id for each in decisions.unfinished(["spend"])] == ["run"]
    (done,) = retraining.complete(layout, ["spend"], train)
    assert (done.id, done.version, decisions.unfinished(["spend"])) == ("run", 2, [])
    assert done.outcome is not None
    assert done.outcome.startswith(("promoted: ", "not promoted: "))
    assert settings.deployments(layout).champion("spend") == (2 if done.promoted else 1)
    assert [each.version for each in settings.registry(layout).versions("spend")] == [1, 2]
    assert watch.ran.count("ingest") == 2  # the one that was killed after it read the tables did not record them


def test_a_worse_challenger_changes_nothing_and_the_same_event_again_trains_nothing(
    layout: Layout, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: str, problem: str) -> dict[str, Any]:
        found = Verdict.model_validate(steps.judge(root, problem))
        return found.model_copy(update={"promote": False, "decision": "worse", "reason": "not promoted: worse"}).model_dump()

    monkeypatch.setattr(steps, "gate", Plain("gate", refuse, watch))
    done = retraining.run(layout, request(), train)
    assert (done.version, done.promoted, done.outcome) == (2, False, "not promoted: worse")
    deployments = settings.deployments(layout)
    assert deployments.champion("spend") == 1
    assert [(each.action, each.by) for each in deployments.history("spend")][-1] == ("refuse", "policy (drift)")
    assert settings.registry(layout).version("spend", 2) is not None
    assert load(layout.params).project.as_of == DAY
    assert (done.cpu_minutes or 0) > 0
    count = len(watch.ran)
    assert retraining.run(layout, request(), train) == done
    assert len(watch.ran) == count


def test_a_failed_training_is_recorded_and_the_champion_stays(layout: Layout) -> None:
    with pytest.raises(StepError, match=r"^spend: train: too few rows$"):
        retraining.run(layout, request(), lambda *_: Outcome("spend", error="spend: train: too few rows"))
    (record,) = settings.decision_log(layout).retrainings("spend")
    assert (record.outcome, record.promoted, settings.deployments(layout).champion("spend")) == (
        "failed: spend: train: too few rows", None, 1,
    )  # fmt: skip


def test_what_did_not_fit_the_contract_of_a_table_stands_in_the_decision(layout: Layout) -> None:
    path, table = facts_file(layout), load(layout.params).section("spend").features.tables[0]
    facts = read_json(path)
    facts["tables"][table]["notes"] = ["amount: 2 values do not fit ('n/k')"]
    write_json(path, facts)
    with pytest.raises(StepError, match=r"^spend: tune: out of time$"):
        retraining.run(layout, request(), lambda *_: Outcome("spend", error="spend: tune: out of time"))
    (record,) = settings.decision_log(layout).retrainings("spend")
    assert record.outcome == "failed: spend: tune: out of time; amount: 2 values do not fit ('n/k')"


def test_a_persons_request_completes_an_unfinished_retraining_first(layout: Layout) -> None:
    trained_for: list[str] = []

    def note(layout: Layout, problem: str, refresh: bool, by: str) -> Outcome:
        trained_for.append(by)
        return Outcome(problem)

    def kill(*_: Any) -> Outcome:
        raise KilledError("at once")

    with pytest.raises(KilledError, match="at once"):
        retraining.run(layout, request(), kill)
    done = retraining.run(layout, RetrainRequest("spend", "I want it", "ada"), note)
    assert (done.id, done.by, trained_for) == ("run", "policy (drift)", ["policy (drift)"])
    assert retraining.run(layout, RetrainRequest("spend", "I want it", "ada"), note).by == "ada"


def test_during_a_training_no_retraining_is_completed(layout: Layout) -> None:
    settings.decision_log(layout).claim(_record())
    with locking(layout.var / "train.lock", "train"):
        assert retraining.complete(layout, ["spend"], lambda *_: pytest.fail("it trained")) == []


def test_a_retraining_waits_for_the_lock_until_its_timeout(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retraining, "LOCK_TIMEOUT_SECONDS", 0.0)
    with (
        locking(layout.var / "train.lock", "train"),
        pytest.raises(LockedError, match=r"spend: retrain: process .* holds the lock"),
    ):
        retraining.run(layout, request(), lambda *_: pytest.fail("it trained"))


def test_nothing_new_is_no_challenger(layout: Layout, watch: Watch) -> None:
    here = replace(request(), as_of=BEFORE)
    done = retraining.run(layout, here, train)
    assert (done.version, done.outcome) == (None, "no challenger: nothing is new since v1 was trained")
    assert "gate" not in watch.ran


# Params of the training


def test_the_training_window_and_the_warm_starts_are_written_into_params(layout: Layout) -> None:
    path = layout.tuning("spend") / "trials.parquet"
    trials = pl.read_parquet(path)
    trials.with_columns(default=pl.lit(value=False)).write_parquet(path)
    best = [json.loads(text) for text in trials.sort("score")["config"]]
    starts = retraining.new_params(load(layout.params), "spend", layout)["tune", "warm_starts"]
    assert starts == best[:3]
    for window, key in (("sliding", "history_days"), ("weighted", "half_life_days")):
        text = layout.params.read_text().replace(
            "\nspend:\n", f"\nspend:\n  retrain: {{window: {window}, window_days: 70}}\n", 1
        )
        layout.params.write_text(text)
        retraining.prepare(layout, _record())
        section = load(layout.params).section("spend")
        assert getattr(section.train, key) == 70
        assert [dict(each) for each in section.tune.warm_starts] == starts
        layout.params.write_text(layout.params.read_text().replace(f"  retrain: {{window: {window}, window_days: 70}}\n", ""))


def test_a_completed_search_keeps_its_warm_starts(layout: Layout) -> None:
    record = _record()
    write_json(layout.cost("tune", "spend"), {"started": datetime.now(UTC).isoformat(), "cpu_seconds": 1.0})
    before = layout.params.read_text()
    retraining.prepare(layout, record.model_copy(update={"as_of": None}))
    assert layout.params.read_text() == before


def test_weights_and_windows_are_rejected_for_tables_without_time(tmp_path: Path) -> None:
    plain = {"table": "houses", "target": "price", "columns": {"size": "number"}}
    for more, rule in (
        ({"retrain": {"window": "sliding"}}, "rows of a plain table have no cutoffs"),
        ({"train": {"half_life_days": 30}}, "rows of a plain table have no cutoffs"),
    ):
        text = {
            "project": {"name": "mill"}, "problems": {"price": "regression"}, "ingest": {"houses": {"csv": "h.csv"}},
            "price": {"question": "How much?", "features": plain, **more},
        }  # fmt: skip
        (tmp_path / "params.yaml").write_text(json.dumps(text))
        with pytest.raises(ParamsError, match=rule):
            load(tmp_path / "params.yaml")


def _record() -> RetrainingRecord:
    return RetrainingRecord(
        id="one", problem="spend", at=end_of_day(DAY), as_of=DAY, trigger="drift", reason="r", by="b",
        started=datetime.now(UTC) - timedelta(seconds=1),
    )  # fmt: skip


def test_a_retraining_that_is_cancelled_while_it_works_stops_and_stays_cancelled(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "POLL_SECONDS", 0.02)
    decisions, stopped = settings.decision_log(layout), threading.Event()
    monkeypatch.setattr(steps, "end_all", stopped.set)

    def work(*_: Any) -> Outcome:
        (claimed,) = decisions.unfinished(["spend"])
        decisions.cancel(claimed, "ann")
        assert stopped.wait(60)
        return Outcome("spend", error="spend: tune: stopped")

    done = retraining.run(layout, request(), work)
    assert (done.outcome, done.promoted, done.version) == ("cancelled by ann", None, None)
    assert retraining.complete(layout, ["spend"], work) == []
    assert retraining.run(layout, request(), work) == done


def test_a_retraining_that_is_done_before_its_cancellation_arrives_keeps_its_result(layout: Layout) -> None:
    decisions = settings.decision_log(layout)

    def work(*_: Any) -> Outcome:
        decisions.cancel(decisions.unfinished(["spend"])[0], "ann")
        return Outcome("spend")

    done = retraining.run(layout, request(), work)
    assert done.outcome == "no challenger: nothing is new since v1 was trained"
    assert decisions.retrainings("spend") == [done]


def test_cancel_ends_a_killed_retraining_and_refuses_where_there_is_none(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = settings.decision_log(layout)
    decisions.claim(retraining._to_claim(layout, decisions, request()))
    shop = Shop(layout.root)
    told = shop.run("evergreen", "retrain", "spend", "--cancel").stderr
    assert "spend: cancelled: the retraining of" in told
    assert json.loads(shop.run("evergreen", "why", "spend", "--json").stdout)["retraining"]["outcome"].startswith(
        "cancelled by "
    )
    told = shop.run("evergreen", "retrain", "spend", "--cancel", code=1).stderr
    assert "spend: nothing to cancel: no retraining runs, waits or was left unfinished" in told
    assert "--reason: missing; say why, for the history" in shop.run("evergreen", "retrain", "spend", code=1).stderr
