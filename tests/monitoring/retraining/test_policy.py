"""When a trigger requests a retraining, and what prevents it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.monitoring.ledger.records import Change, Decision, Drift, Estimate, Performance, Retraining, Window
from evergreen.monitoring.retraining.policy import POLICIES, decide, named
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.core.errors import ParamsError

START = datetime(2017, 6, 1, tzinfo=UTC)
FEW = settings(max_examples=60, deadline=None)
NOTHING = Estimate(score=None, low=None, high=None, rows=0)
ALARM = Change(
    column="recency", aspect="feature", statistic="wasserstein", value=0.4, threshold=0.1, p=0.001, effect=0.3,
    significant=True, alarm=True, reason="mean 4 to 6",
)  # fmt: skip


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def window(
    at: float,
    alarm: bool = False,
    score: float | None = None,
    labels: int = 1000,
    version: int = 1,
    realised: float | None = None,
    skipped: str | None = None,
    scored: bool = True,
) -> Window:
    """One week up to day `at`. The champion was expected to score 0.8; `realised`: the day up to which `score` is realised."""
    found = Estimate(score=score, low=score and score - 0.01, high=score and score + 0.01, rows=500)
    performance = Performance(
        metric="roc_auc",
        greater_is_better=True,
        expected=Estimate(score=0.8, low=0.8, high=0.8, rows=500),
        realised=NOTHING if realised is None else found,
        realised_until=None if realised is None else day(realised),
        estimated=found if realised is None else NOTHING,
        matured=0.0,
    )
    return Window(
        problem="redeem",
        version=version,
        since=day(at - 7),
        until=day(at),
        rows=500,
        new_labels=labels,
        drift=Drift(changes=(ALARM,) if alarm else (), reference_rows=1000, alarm=alarm, skipped=skipped),
        performance=performance if scored else None,
    )


def weeks(alarms: Sequence[bool]) -> list[Window]:
    return [window(7 * (at + 1), alarm) for at, alarm in enumerate(alarms)]


def retrained(at: float, trigger: str = "drift", minutes: float | None = 5.0) -> Retraining:
    return Retraining(at=day(at), trigger=trigger, cpu_minutes=minutes)


def after(
    windows: Sequence[Window], past: Sequence[Retraining] = (), now: float | None = None, trained: float = 0.0, **policy: object
) -> Decision:
    moment = windows[-1].until if now is None else day(now)
    return decide(Retrain.model_validate(policy), windows, past, day(trained), moment)


def test_without_a_condition_nothing_retrains() -> None:
    found = after([window(700, alarm=True, score=0.1, labels=10**6)])
    assert (found.retrain, found.trigger) == (False, None)
    assert found.reason == "no retraining: the params name no condition for a retraining"


def test_two_bad_windows_of_three_and_the_latest_retrain_and_the_reason_names_the_column() -> None:
    found = after(weeks([True, False, True]), on_drift=True, alarms=2, of_last=3)
    assert (found.retrain, found.trigger, found.at) == (True, "drift", day(21))
    assert found.reason == "retrain: drift in 2 of the last 3 windows and in the latest (recency: mean 4 to 6)"


def test_two_bad_windows_of_five_with_a_healthy_latest_do_not_retrain() -> None:
    found = after(weeks([False, True, True, False, False]), on_drift=True, alarms=2, of_last=5)
    assert (found.retrain, found.trigger) == (False, None)
    assert "drift in 2 of the last 5 windows (none in the latest); required: 2 and the latest" in found.reason


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_k_of_the_last_n_and_the_latest(alarms: list[bool], k: int, more: int) -> None:
    n = k + more
    found = after(weeks(alarms), on_drift=True, alarms=k, of_last=n)
    assert found.retrain == (alarms[-1] and sum(alarms[-n:]) >= k)


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=10), st.integers(1, 3), st.integers(0, 9))
def test_an_additional_alarm_never_prevents_a_retraining(alarms: list[bool], k: int, place: int) -> None:
    worse = [*alarms]
    worse[place % len(alarms)] = True
    if after(weeks(alarms), on_drift=True, alarms=k, of_last=3).retrain:
        assert after(weeks(worse), on_drift=True, alarms=k, of_last=3).retrain


@FEW
@given(st.lists(st.booleans(), min_size=2, max_size=12), st.integers(0, 40))
def test_no_two_retrainings_are_closer_than_the_cool_down(alarms: list[bool], cool_down: int) -> None:
    past: list[Retraining] = []
    for at in range(1, len(alarms) + 1):
        found = after(weeks(alarms[:at]), past, on_drift=True, every_days=7, cool_down_days=cool_down)
        if found.retrain:
            past.append(Retraining(at=found.at, trigger=str(found.trigger), cpu_minutes=1.0))
    gaps = [two.at - one.at for one, two in pairwise(past)]
    assert all(gap >= timedelta(days=cool_down) for gap in gaps)


def test_a_prevented_trigger_is_named_with_its_obstacle() -> None:
    found = after(weeks([False, True]), [retrained(10)], on_drift=True)
    assert (found.retrain, found.trigger) == (False, "drift")
    assert found.reason.endswith("the last retraining was 4 days ago, and cool_down_days is 7")


def test_a_weekly_run_a_second_early_is_a_week_after_the_last() -> None:
    late = retrained(7 + 1 / 86400, "age")
    assert after([window(14)], [late], on_drift=False, every_days=7, cool_down_days=7).retrain


def test_age_counts_from_the_last_training_even_of_a_rejected_challenger() -> None:
    assert after([window(30)], every_days=30).trigger == "age"
    assert not after([window(37)], [retrained(30, "age")], every_days=30).retrain
    assert after([window(60)], [retrained(30, "age")], every_days=30).retrain


def test_alarms_that_led_to_a_retraining_do_not_lead_to_the_next() -> None:
    windows = weeks([True, True, True])
    assert not after(windows, [retrained(14)], on_drift=True, alarms=2, of_last=3, cool_down_days=0).retrain
    assert after(
        [*windows, window(28, alarm=True)], [retrained(14)], on_drift=True, alarms=2, of_last=3, cool_down_days=0
    ).retrain


def test_hysteresis_requires_windows_without_alarm_after_a_retraining_on_drift() -> None:
    noisy, settled = weeks([True, True, False, True]), weeks([True, False, False, True])
    assert not after(noisy, [retrained(7)], on_drift=True, hysteresis_windows=2).retrain
    assert after(settled, [retrained(7)], on_drift=True, hysteresis_windows=2).retrain
    assert after(noisy, [retrained(7, "age")], on_drift=True, hysteresis_windows=2).retrain


def test_hysteresis_does_not_apply_to_age_and_labels() -> None:
    found = after(weeks([True, True, True]), [retrained(7)], on_drift=True, hysteresis_windows=2, every_days=14)
    assert (found.retrain, found.trigger) == (True, "age")


def test_an_untested_window_neither_ends_nor_lengthens_a_row_without_alarm() -> None:
    skipped = [window(14, skipped="3 rows"), window(21, skipped="3 rows"), window(28, alarm=True)]
    assert not after([window(7, alarm=True), *skipped], [retrained(7)], on_drift=True, hysteresis_windows=1).retrain
    assert not after(skipped[:2], on_drift=True).retrain


def test_windows_of_another_version_are_ignored() -> None:
    windows = [window(7, alarm=True, version=1), window(14, alarm=True, version=2)]
    assert not after(windows, on_drift=True, alarms=2, of_last=2).retrain


def test_a_performance_drop_counts_only_if_significant() -> None:
    assert after([window(7, score=0.78)], on_performance_drop=0.0).trigger == "performance"
    assert not after([window(7, score=0.795)], on_performance_drop=0.0).retrain
    assert not after([window(7, score=0.78)], on_performance_drop=0.02).retrain
    assert not after([window(7, score=0.9)], on_performance_drop=0.0).retrain


def test_the_same_labels_in_three_runs_are_one_window() -> None:
    repeated = [window(at, score=0.6, realised=0) for at in (7, 14, 21)]
    assert not after(repeated, on_performance_drop=0.0, alarms=2, of_last=3).retrain
    assert after([*repeated, window(28, score=0.6, realised=7)], on_performance_drop=0.0, alarms=2, of_last=3).retrain


def test_labels_that_led_to_a_retraining_do_not_lead_to_the_next() -> None:
    windows = [window(7, score=0.6, realised=0), window(14, score=0.6, realised=0)]
    assert not after(windows, [retrained(7, "performance")], on_performance_drop=0.0).retrain
    assert after([*windows, window(21, score=0.6, realised=1)], [retrained(7, "performance")], on_performance_drop=0.0).retrain


def test_labels_that_a_rejected_challenger_was_trained_on_are_not_new() -> None:
    windows = [window(7, labels=500), window(14, labels=700)]
    assert after(windows[:1], on_labels=500).retrain
    assert not after(windows, [retrained(7, "labels")], on_labels=500).retrain
    assert after([*windows, window(21, labels=1000)], [retrained(7, "labels")], on_labels=500).retrain


def test_too_few_labels_prevent_every_trigger_except_for_kinds_without_labels() -> None:
    found = after([window(7, alarm=True, labels=99)], on_drift=True, min_labels=100)
    assert (found.retrain, found.trigger) == (False, "drift")
    assert found.reason.endswith("99 rows have a new label, and min_labels is 100")
    assert after([window(7, alarm=True, labels=0, scored=False)], on_drift=True, min_labels=100).retrain


@FEW
@given(st.floats(1, 60), st.lists(st.floats(0.5, 20), min_size=5, max_size=5))
def test_the_budget_of_thirty_days_holds_when_costs_do_not_change(limit: float, costs: list[float]) -> None:
    cost, past = costs[0], []
    for at in range(1, 12):
        found = after([window(7 * at)], past, every_days=7, cool_down_days=0, max_cpu_minutes=limit)
        if found.retrain:
            past.append(retrained(7 * at, "age", cost))
    for each in past[1:]:
        spent = sum(cost for other in past if timedelta() <= each.at - other.at < timedelta(days=30))
        assert spent <= limit + 1e-9


def test_a_retraining_of_unknown_cost_is_expected_to_cost_as_much_as_the_last() -> None:
    past = [retrained(1, minutes=4.0), retrained(10, minutes=None)]
    held = after([window(21)], past, every_days=7, max_cpu_minutes=11.0)
    assert held.reason.endswith("8.0 CPU minutes were spent in 30 days and 4.0 more are expected, and max_cpu_minutes is 11")
    assert after([window(21)], past, every_days=7, max_cpu_minutes=12.0).retrain


def test_a_run_of_an_earlier_day_decides_nothing() -> None:
    windows = [window(14, alarm=True), window(7, alarm=True)]
    found = after(windows, on_drift=True)
    assert not found.retrain
    assert found.reason == "no retraining: this run ends 2017-06-08 00:00, before an earlier one (2017-06-15 00:00)"


def test_a_clock_that_goes_back_decides_nothing() -> None:
    assert "the clock went back" in after([window(14, alarm=True)], now=13, on_drift=True).reason
    found = after([window(14, alarm=True)], [retrained(20)], on_drift=True, cool_down_days=0)
    assert found.reason.startswith("no retraining: the last retraining is of 2017-06-21 00:00, after this run")


def test_a_run_within_the_training_data_decides_nothing() -> None:
    found = after([window(14, alarm=True)], trained=20, on_drift=True)
    assert found.reason == "no retraining: the champion was trained on days up to 2017-06-21, after this run (2017-06-15 00:00)"


@FEW
@given(st.floats(-400, 400), st.floats(-400, 400), st.floats(-400, 400), st.sampled_from(sorted(POLICIES)))
def test_any_order_of_times_gives_a_decision_with_a_reason(at: float, past: float, now: float, name: str) -> None:
    found = decide(named(name), [window(at, alarm=True, score=0.5)], [retrained(past)], day(0), day(now))
    assert found.reason
    assert not (found.retrain and (day(past) > day(now) or day(at) > day(now)))


def test_a_decision_needs_a_window() -> None:
    with pytest.raises(ValueError, match="a decision needs a window"):
        after([], now=0)


def test_an_unknown_policy_suggests_the_nearest() -> None:
    with pytest.raises(ParamsError, match="--policy wekly: no such policy; did you mean weekly"):
        named("wekly")


def test_named_policies_follow_their_names() -> None:
    busy = window(40, alarm=True, score=0.5, labels=5000)
    triggers = {name: decide(named(name), [busy], [], day(0), busy.until).trigger for name in POLICIES}
    assert triggers == {
        "never": None, "weekly": "age", "monthly": "age", "drift": "drift", "performance": "performance", "labels": "labels",
    }  # fmt: skip


def test_daily_runs_of_weekly_windows_count_each_seven_days_once():
    daily = [window(at, alarm=14 <= at < 21) for at in range(7, 21)]
    found = after(daily, on_drift=True, alarms=2, of_last=3)
    assert not found.retrain  # seven runs with an alarm share their rows
    twice = [window(at, alarm=14 <= at < 28) for at in range(7, 28)]
    assert after(twice, on_drift=True, alarms=2, of_last=3).retrain


def test_a_data_fault_asks_for_no_retraining_and_new_categories_do():
    def faulty(aspect: str) -> Window:
        change = ALARM.model_copy(update={"fault": True, "aspect": aspect})
        week = window(7)
        return week.model_copy(update={"drift": Drift(changes=(change,), reference_rows=1000, alarm=True)})

    found = after([faulty("filled")], on_drift=True)
    assert (found.retrain, "data faults to repair" in found.reason) == (False, True)
    assert after([faulty("unseen")], on_drift=True).retrain
