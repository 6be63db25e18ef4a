"""Monitoring runs and retrainings in a database: each is recorded once, by any number of writers."""

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from evergreen.monitoring.ledger.decisions import DecisionLog, RetrainingRecord, end_of_day, run_id, summarize
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.core.errors import ParamsError, ProjectError
from tests.monitoring.retraining.test_policy import window


def decided(at: float = 7, retrain: bool = False, reason: str = "no retraining: calm", alarm: bool = False) -> Decision:
    found = window(at, alarm)
    return Decision(
        problem="redeem", at=found.until, retrain=retrain, trigger="drift" if retrain else None, reason=reason, window=found
    )


def record(id: str = "one", problem: str = "redeem") -> RetrainingRecord:
    return RetrainingRecord(
        id=id, problem=problem, at=end_of_day(date(2017, 6, 8)), as_of=date(2017, 6, 8), trigger="drift",
        reason="drift in price", by="policy", started=datetime(2026, 1, 2, 3, tzinfo=UTC),
    )  # fmt: skip


def test_the_same_run_twice_is_one_row_with_the_newest_result(address: str) -> None:
    log = DecisionLog(address)
    log.record(decided())
    assert log.record(decided(reason="no retraining: still calm")).reason == "no retraining: still calm"
    assert [each.decision.reason for each in log.runs("redeem")] == ["no retraining: still calm"]
    assert log.runs("spend") == []


def test_a_decision_to_retrain_stays_when_the_same_run_is_made_again(address: str) -> None:
    log = DecisionLog(address)
    log.record(decided(retrain=True, reason="retrain: drift", alarm=True))
    recorded = log.record(decided(reason="no retraining: the last one was 0 days ago"))
    assert (recorded.retrain, recorded.reason) == (True, "retrain: drift")
    assert recorded.window.drift.alarms[0].column == "recency"


def test_windows_come_in_order_with_this_one_last_and_once(address: str) -> None:
    log = DecisionLog(address)
    for at in (21, 7, 14):
        log.record(decided(at))
    assert [each.until.day for each in log.windows_with(window(14))] == [8, 22, 15]


def test_a_run_that_a_wrong_clock_dated_in_the_future_holds_nothing_up(address: str) -> None:
    log = DecisionLog(address)
    log.record(decided(7))
    future = decided(14).model_copy(update={"at": datetime.now(UTC) + timedelta(days=400)})
    log.record(future)
    assert [each.until.day for each in log.windows_with(window(21))] == [8, 22]


def test_a_withdrawn_run_counts_for_nothing_until_it_is_made_again(address: str) -> None:
    log = DecisionLog(address)
    log.record(decided(7))
    wrong = log.record(decided(14, retrain=True, reason="retrain: drift"))
    log.withdraw("redeem", wrong.at, "me", "the clock was wrong")
    assert [each.until.day for each in log.windows_with(window(21))] == [8, 22]
    with pytest.raises(ParamsError, match=r"redeem: no monitoring run of .* counts; the newest are of: "):
        log.withdraw("redeem", wrong.at, "me", "again")
    assert log.record(decided(14, reason="calm")).reason == "calm"
    assert [each.until.day for each in log.windows_with(window(21))] == [8, 15, 22]


def test_two_monitors_at_once_leave_one_row_per_run(address: str) -> None:
    errors: list[BaseException] = []

    def monitor() -> None:
        try:
            log = DecisionLog(address)
            for at in range(1, 6):
                log.record(decided(at))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    _together(monitor, 4)
    assert errors == []
    assert len(DecisionLog(address).runs("redeem")) == 5


def test_concurrent_claims_of_a_retraining_succeed_once(address: str) -> None:
    found: list[str] = []
    _together(lambda: found.append(DecisionLog(address).claim(record())[0]), 6)
    assert sorted(found) == ["new", *["unfinished"] * 5]


def test_a_finished_retraining_is_done_and_an_unfinished_one_is_found(address: str) -> None:
    log = DecisionLog(address)
    log.claim(record("one"))
    log.claim(record("two", "spend"))
    assert [each.id for each in log.unfinished(["redeem", "spend"])] == ["one", "two"]
    done = record("one").model_copy(
        update={
            "ended": datetime(2026, 1, 2, 4, tzinfo=UTC),
            "version": 3,
            "promoted": False,
            "cpu_minutes": 1.5,
            "outcome": "worse",
        }
    )
    log.finish(done)
    assert log.claim(record("one")) == ("done", done)
    assert [each.id for each in log.unfinished(["redeem", "spend"])] == ["two"]
    last = log.retrainings("redeem")[0].summary()
    assert (last.at, last.trigger, last.cpu_minutes, last.promoted) == (end_of_day(date(2017, 6, 8)), "drift", 1.5, False)


def test_a_run_has_the_same_id_on_every_machine() -> None:
    moment = end_of_day(date(2017, 6, 8))
    assert run_id("shop", "redeem", moment) == run_id("shop", "redeem", moment.astimezone())
    assert len({run_id(*each, moment) for each in (("shop", "redeem"), ("shop", "spend"), ("mill", "redeem"))}) == 3


def test_an_event_payload_holds_the_reason_and_the_columns_in_plain_json() -> None:
    payload = summarize(decided(retrain=True, reason="retrain: drift", alarm=True))
    assert payload["alarms"] == ["recency"]
    assert (payload["at"], payload["retrain"], payload["version"], payload["score"]) == ("2017-06-08T00:00:00Z", True, 1, None)


def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a file")
    with pytest.raises(ProjectError, match=r"the database of decisions cannot be used: .*Check the address"):
        DecisionLog(f"sqlite:///{tmp_path / 'here' / 'evergreen.db'}")


def _together(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def test_a_cancelled_retraining_is_finished_claimed_or_not_and_a_finished_one_stays(address: str) -> None:
    log = DecisionLog(address)
    log.claim(record("claimed"))
    assert (log.cancel(record("claimed"), "ann"), log.cancel(record("never begun"), "ann")) == (True, True)
    assert log.unfinished(["redeem"]) == []
    state, found = log.claim(record("never begun"))
    assert (state, found.cancelled, found.outcome) == ("done", True, "cancelled by ann")
    assert found.ended is not None
    log.claim(record("done"))
    log.finish(record("done").model_copy(update={"ended": datetime.now(UTC), "outcome": "promoted: better"}))
    assert log.cancel(record("done"), "ann") is False
    assert [each.outcome for each in log.retrainings("redeem") if each.id == "done"] == ["promoted: better"]
