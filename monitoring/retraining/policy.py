"""When to retrain: the policy of params.yaml applied to the windows, without any I/O.

Triggers request a retraining; cool-down, budget and too few labels prevent it. Days are rounded to whole days: a weekly run
that is a second early, or an hour early with daylight saving, is still a week after the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import comb
from typing import Literal

from evergreen.monitoring.ledger.records import Decision, Performance, Retraining, Window
from evergreen.tasks.config.operations import Monitor, Retrain
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest

Trigger = Literal["age", "drift", "performance", "labels"]
BUDGET_DAYS = 30
"""Period of max_cpu_minutes."""
DAYS_OF_YEAR = 365.25
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMED_CHANGES = 3
"""Drifting columns that are named in a reason."""

POLICIES: dict[str, Retrain] = {
    "never": Retrain(),
    "weekly": Retrain(every_days=7),
    "monthly": Retrain(every_days=30),
    "drift": Retrain(on_drift=True),
    "performance": Retrain(on_performance_drop=0.0),
    "labels": Retrain(on_labels=1000),
}
"""Named policies; all other settings as in Retrain."""


@dataclass(frozen=True)
class Condition:
    """One configured condition, evaluated on the windows."""

    trigger: Trigger
    is_met: bool
    text: str
    """The measured numbers and the threshold."""


@dataclass(frozen=True)
class Evidence:
    """One run's alarm or absence of it for one trigger; runs that repeat an earlier measurement are one."""

    known: datetime
    """When it was first measured."""
    alarm: bool
    unknown: bool
    """Nothing could be measured: neither an alarm nor its absence."""
    text: str


def named(name: str) -> Retrain:
    """The policy of that name. Raises ParamsError for an unknown one.

    >>> named("weekly").every_days
    7
    """
    if name not in POLICIES:
        raise ParamsError(f"--policy {name}: no such policy{nearest(name, POLICIES)}")
    return POLICIES[name]


def decide(
    policy: Retrain, windows: Sequence[Window], past: Sequence[Retraining], trained: datetime, now: datetime
) -> Decision:
    """Whether to retrain after the last of `windows`.

    `windows`: one or more, oldest first; those of other versions than the last one's are ignored. `past`: every retraining of
    the problem that started, in any order. `trained`: last moment of the champion's training data. All times have a zone. If
    any of these is after `now`, the clock went back or the run is of an earlier day: nothing is decided. Raises ValueError
    without windows.
    """
    if not windows:
        raise ValueError("a decision needs a window")
    window = windows[-1]
    later = _find_later(windows, past, trained, now)
    if later:
        return _decision(window, False, None, f"no retraining: {later}")
    same_version = [each for each in windows if each.version == window.version]
    last = max(past, key=lambda each: each.at, default=None)
    conditions = list(_evaluate(policy, same_version, past, last, trained, now))
    met = [each for each in conditions if each.is_met]
    if not conditions:
        return _decision(window, False, None, "no retraining: the params name no condition for a retraining")
    if not met:
        return _decision(window, False, None, f"no retraining: {_join(conditions)}")
    trigger, why = met[0].trigger, _join(met)
    obstacles = list(_find_obstacles(policy, window, past, last, now))
    if obstacles:
        return _decision(window, False, trigger, f"no retraining, though {why}: {'; '.join(obstacles)}")
    return _decision(window, True, trigger, f"retrain: {why}")


def _decision(window: Window, retrain: bool, trigger: Trigger | None, reason: str) -> Decision:
    return Decision(problem=window.problem, at=window.until, retrain=retrain, trigger=trigger, reason=reason, window=window)


def _join(conditions: Sequence[Condition]) -> str:
    return "; ".join(each.text for each in conditions)


def _find_later(windows: Sequence[Window], past: Sequence[Retraining], trained: datetime, now: datetime) -> str | None:
    """What is later than the run, which then is one of an earlier day."""
    if (newest := max(each.until for each in windows)) > windows[-1].until:
        return f"this run ends {windows[-1].until:%Y-%m-%d %H:%M}, before an earlier one ({newest:%Y-%m-%d %H:%M})"
    if newest > now:
        return f"the window ends {newest:%Y-%m-%d %H:%M}, after the present ({now:%Y-%m-%d %H:%M}): the clock went back"
    if past and (last := max(each.at for each in past)) > now:
        return f"the last retraining is of {last:%Y-%m-%d %H:%M}, after this run ({now:%Y-%m-%d %H:%M})"
    if trained > now:
        return f"the champion was trained on days up to {trained:%Y-%m-%d}, after this run ({now:%Y-%m-%d %H:%M})"
    return None


def _evaluate(
    policy: Retrain,
    windows: Sequence[Window],
    past: Sequence[Retraining],
    last: Retraining | None,
    trained: datetime,
    now: datetime,
) -> Iterator[Condition]:
    """Each configured condition, the strongest trigger first."""
    since = last.at if last else None
    if policy.on_performance_drop is not None:
        yield _count_alarms("performance", policy, _performance(policy.on_performance_drop, windows), past, since)
    if policy.on_drift:
        yield _count_alarms("drift", policy, _drift(windows), past, since)
    if policy.on_labels is not None:
        yield _count_labels(policy.on_labels, windows, since)
    if policy.every_days is not None:
        newest = max(trained, since) if since else trained
        age = _days(now - newest)
        yield Condition("age", age >= policy.every_days, f"the last training is {age} days old, of every {policy.every_days}")


def _count_alarms(
    trigger: Trigger, policy: Retrain, evidence: Sequence[Evidence], past: Sequence[Retraining], since: datetime | None
) -> Condition:
    """k of the last n and the latest, of the evidence after the last retraining. Hysteresis: after a retraining by this
    trigger, a number of consecutive windows without alarm is required first."""
    fresh = [each for each in evidence if since is None or each.known > since]
    recent = fresh[-policy.of_last :]
    count = sum(each.alarm for each in recent)
    latest = bool(recent) and recent[-1].alarm
    shown = f" ({recent[-1].text})" if recent else ""
    text = f"{trigger} in {count} of the last {policy.of_last} windows{' and in the latest' if latest else ''}{shown}"
    if not (latest and count >= policy.alarms):
        return Condition(trigger, False, f"{text}; required: {policy.alarms} and the latest")
    before = max((each.at for each in past if each.trigger == trigger), default=None)
    required = policy.hysteresis_windows
    if before is not None and (row := _longest_row([each for each in evidence if each.known > before])) < required:
        held = f"only {row} windows in a row without alarm since the retraining on {trigger} of {before:%Y-%m-%d}"
        return Condition(trigger, False, f"{text}, but {held}; hysteresis_windows is {required}")
    return Condition(trigger, True, text)


def _longest_row(evidence: Sequence[Evidence]) -> int:
    """The longest row of windows without alarm; an unknown one neither ends nor lengthens it."""
    longest = row = 0
    for each in evidence:
        row = 0 if each.alarm else row + (not each.unknown)
        longest = max(longest, row)
    return longest


def _drift(windows: Sequence[Window]) -> list[Evidence]:
    """One for each window that overlaps with no earlier one of these: the first run of each period as long as a window.

    Daily runs of weekly windows share six sevenths of their rows, and are no further evidence.
    """
    found: list[Evidence] = []
    period: int | None = None
    for window in windows:
        mine = _period(window)
        if mine != period and (not found or window.since >= found[-1].known):
            found.append(_evidence_of_drift(window))
            period = mine
    return found


def _period(window: Window) -> int:
    """Number of the period in which the window ends; periods are as long as a window."""
    return (window.until.astimezone(UTC) - EPOCH) // (window.until - window.since)


def _evidence_of_drift(window: Window) -> Evidence:
    """Data faults are no drift: a retraining would learn them."""
    drift = window.drift
    columns = ", ".join(f"{each.column}: {each.reason}" for each in drift.drifts[:NAMED_CHANGES])
    more = f" and {len(drift.drifts) - NAMED_CHANGES} more" if len(drift.drifts) > NAMED_CHANGES else ""
    faults = ", ".join(f"{each.column}: {each.reason}" for each in drift.faults[:NAMED_CHANGES])
    none = f"data faults to repair: {faults}" if faults else drift.skipped or drift.unknown or "none in the latest"
    text = f"{columns}{more}" if drift.drifts else none
    return Evidence(window.until, bool(drift.drifts), drift.skipped is not None or drift.unknown is not None, text)


def count_calm_requests(policy: Retrain, monitor: Monitor) -> float:
    """Retrainings a year that on_drift asks for without drift, at most, where the windows of a year are independent.

    >>> round(count_calm_requests(Retrain(alarms=2, of_last=3), Monitor()), 2)
    0.25
    """
    rate, others = monitor.false_alarm_rate, policy.of_last - 1
    enough = sum(comb(others, k) * rate**k * (1 - rate) ** (others - k) for k in range(policy.alarms - 1, others + 1))
    return DAYS_OF_YEAR / monitor.window_days * rate * enough


def _performance(limit: float, windows: Sequence[Window]) -> list[Evidence]:
    """One for each score: runs with the same matured window are one, known since the first, with the text of the last."""
    known: dict[datetime, datetime] = {}
    scores: dict[datetime, Evidence] = {}
    for window in windows:
        end = _end_of_score(window)
        known.setdefault(end, window.until)
        scores.pop(end, None)
        scores[end] = _degradation(limit, window, known[end])
    return list(scores.values())


def _end_of_score(window: Window) -> datetime:
    """The end of the window that the newest score covers."""
    found = window.performance
    return found.realised_until if found and found.realised_until and found.realised.score is not None else window.until


def _degradation(limit: float, window: Window, known: datetime) -> Evidence:
    found = window.performance
    loss = found.degradation() if found else None
    if found is None or loss is None:
        return Evidence(known, False, True, "no score of the latest")
    return Evidence(known, loss[1] > limit, False, _describe(found, loss, limit))


def _describe(found: Performance, loss: tuple[float, float], limit: float) -> str:
    source = "realised" if found.realised.score is not None else "estimated"
    return (
        f"{source} {found.metric} {found.newest.score:.4g}, expected {found.expected.score:.4g}, "
        f"worse by {loss[0]:.4g}, at least {loss[1]:.4g}, limit {limit:g}"
    )


def _count_labels(needed: int, windows: Sequence[Window], since: datetime | None) -> Condition:
    """Labels since the champion's training, less those that a later challenger was trained on."""
    used = [each.new_labels for each in windows if since is not None and each.until <= since]
    new = windows[-1].new_labels - (used[-1] if used else 0)
    return Condition("labels", new >= needed, f"{new:,} new labels since the last training, of {needed:,}")


def _find_obstacles(
    policy: Retrain, window: Window, past: Sequence[Retraining], last: Retraining | None, now: datetime
) -> Iterator[str]:
    """Each thing that prevents a retraining."""
    if last and (age := _days(now - last.at)) < policy.cool_down_days:
        yield f"the last retraining was {age} days ago, and cool_down_days is {policy.cool_down_days}"
    if window.performance is not None and window.new_labels < policy.min_labels:
        yield f"{window.new_labels:,} rows have a new label, and min_labels is {policy.min_labels:,}"
    if policy.max_cpu_minutes is not None:
        known = sorted((each for each in past if each.cpu_minutes is not None), key=lambda each: each.at)
        expected = known[-1].cpu_minutes or 0.0 if known else 0.0
        recent = [each for each in past if now - each.at < timedelta(days=BUDGET_DAYS)]
        spent = sum(expected if each.cpu_minutes is None else each.cpu_minutes for each in recent)
        if spent + expected > policy.max_cpu_minutes:
            yield (
                f"{spent:.1f} CPU minutes were spent in {BUDGET_DAYS} days and {expected:.1f} more are expected, "
                f"and max_cpu_minutes is {policy.max_cpu_minutes:g}"
            )


def _days(span: timedelta) -> int:
    return round(span / timedelta(days=1))
