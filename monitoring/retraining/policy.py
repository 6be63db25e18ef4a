"""When to train again: what the params ask for and what the windows show, weighed without any I/O.

Grounds call for a retraining; cool-down, budget and too few labels hold it back. Days are counted whole, to the nearest: a
weekly look that comes a second early, or an hour with daylight saving, is still a week after the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from evergreen.monitoring.ledger.records import Decision, Performance, Retraining, Window
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest

Ground = Literal["age", "drift", "performance", "labels"]
BUDGET_DAYS = 30
"""cpu_minutes are counted over so many days."""
NAMED_CHANGES = 3
"""So many drifting columns are named in a reason."""

POLICIES: dict[str, Retrain] = {
    "never": Retrain(),
    "weekly": Retrain(every_days=7),
    "monthly": Retrain(every_days=30),
    "drift": Retrain(on_drift=True),
    "performance": Retrain(on_performance_drop=0.0),
    "labels": Retrain(on_labels=1000),
}
"""What a policy's name stands for; everything else as in Retrain."""


@dataclass(frozen=True)
class Finding:
    """What one condition says of the windows."""

    trigger: Ground
    calls: bool
    words: str
    """With the numbers: what is, and what it would take."""


@dataclass(frozen=True)
class Evidence:
    """One look's alarm or quiet on one trigger; looks that only repeat what an earlier one knew are one."""

    known: datetime
    """When it was first seen."""
    alarm: bool
    silent: bool
    """Nothing could be said: neither alarm nor quiet."""
    words: str


def named(name: str) -> Retrain:
    """The policy that `name` stands for. Raises ParamsError for one that is not there.

    >>> named("weekly").every_days
    7
    """
    if name not in POLICIES:
        raise ParamsError(f"--policy {name}: no such policy{nearest(name, POLICIES)}")
    return POLICIES[name]


def decide(
    policy: Retrain, windows: Sequence[Window], past: Sequence[Retraining], trained: datetime, now: datetime
) -> Decision:
    """Whether to train again after the last of `windows`.

    `windows`: one or more, oldest first; those of other versions than the last one's say nothing about it. `past`: every
    retraining of the problem that began, in any order. `trained`: last moment that the champion's training knew. All times have
    a zone. Anything of these after `now` means that the clock went back, or that somebody looks back: nothing is decided.
    Raises ValueError without windows.
    """
    if not windows:
        raise ValueError("a decision needs a window")
    window = windows[-1]
    later = _later(windows, past, trained, now)
    if later:
        return _decision(window, False, None, f"no retraining: {later}")
    mine = [each for each in windows if each.version == window.version]
    last = max(past, key=lambda each: each.at, default=None)
    findings = list(_findings(policy, mine, past, last, trained, now))
    calling = [each for each in findings if each.calls]
    if not findings:
        return _decision(window, False, None, "no retraining: the params name no condition for one")
    if not calling:
        return _decision(window, False, None, f"no retraining: {_joined(findings)}")
    trigger, why = calling[0].trigger, _joined(calling)
    held = list(_holding(policy, window, past, last, now))
    if held:
        return _decision(window, False, trigger, f"no retraining, though {why}: {'; '.join(held)}")
    return _decision(window, True, trigger, f"retrain: {why}")


def _decision(window: Window, retrain: bool, trigger: Ground | None, reason: str) -> Decision:
    return Decision(problem=window.problem, at=window.until, retrain=retrain, trigger=trigger, reason=reason, window=window)


def _joined(findings: Sequence[Finding]) -> str:
    return "; ".join(each.words for each in findings)


def _later(windows: Sequence[Window], past: Sequence[Retraining], trained: datetime, now: datetime) -> str | None:
    """What lies after the look, which makes it one into the past."""
    if (newest := max(each.until for each in windows)) > windows[-1].until:
        return f"this look ends {windows[-1].until:%Y-%m-%d %H:%M}, before an earlier one ({newest:%Y-%m-%d %H:%M})"
    if newest > now:
        return f"the window ends {newest:%Y-%m-%d %H:%M}, after the present ({now:%Y-%m-%d %H:%M}): the clock went back"
    if past and (last := max(each.at for each in past)) > now:
        return f"the last retraining is of {last:%Y-%m-%d %H:%M}, after this look ({now:%Y-%m-%d %H:%M})"
    if trained > now:
        return f"the champion learned from days up to {trained:%Y-%m-%d}, after this look ({now:%Y-%m-%d %H:%M})"
    return None


def _findings(
    policy: Retrain,
    windows: Sequence[Window],
    past: Sequence[Retraining],
    last: Retraining | None,
    trained: datetime,
    now: datetime,
) -> Iterator[Finding]:
    """What each condition that is set finds, the strongest trigger first."""
    since = last.at if last else None
    if policy.on_performance_drop is not None:
        yield _alarmed("performance", policy, _losses(policy.on_performance_drop, windows), past, since)
    if policy.on_drift:
        yield _alarmed("drift", policy, [_drift(each) for each in windows], past, since)
    if policy.on_labels is not None:
        yield _labels(policy.on_labels, windows, since)
    if policy.every_days is not None:
        begun = max(trained, since) if since else trained
        age = _days(now - begun)
        words = f"the last training is {age} days old, of every {policy.every_days}"
        yield Finding("age", age >= policy.every_days, words)


def _alarmed(
    trigger: Ground, policy: Retrain, evidence: Sequence[Evidence], past: Sequence[Retraining], since: datetime | None
) -> Finding:
    """k of the last n and the latest, of what came to be known after the last retraining; and, with `quiet`, only after a row
    of windows without alarm since the last one on this trigger."""
    fresh = [each for each in evidence if since is None or each.known > since]
    recent = fresh[-policy.of_last :]
    count = sum(each.alarm for each in recent)
    latest = bool(recent) and recent[-1].alarm
    shown = f" ({recent[-1].words})" if recent else ""
    words = f"{trigger} in {count} of the last {policy.of_last} windows{' and in the latest' if latest else ''}{shown}"
    if not (latest and count >= policy.alarms):
        return Finding(trigger, False, f"{words}, where it takes {policy.alarms} and the latest")
    before = max((each.at for each in past if each.trigger == trigger), default=None)
    if before is not None and (row := _quiet([each for each in evidence if each.known > before])) < policy.hysteresis_windows:
        held = f"only {row} quiet windows in a row since the retraining on {trigger} of {before:%Y-%m-%d}"
        return Finding(trigger, False, f"{words}, but {held}, where it takes {policy.hysteresis_windows}")
    return Finding(trigger, True, words)


def _quiet(evidence: Sequence[Evidence]) -> int:
    """The longest row of windows without alarm; one that says nothing neither ends nor lengthens it."""
    longest = row = 0
    for each in evidence:
        row = 0 if each.alarm else row + (not each.silent)
        longest = max(longest, row)
    return longest


def _drift(window: Window) -> Evidence:
    drift = window.drift
    named = ", ".join(f"{each.column}: {each.reason}" for each in drift.alarms[:NAMED_CHANGES])
    more = f" and {len(drift.alarms) - NAMED_CHANGES} more" if len(drift.alarms) > NAMED_CHANGES else ""
    words = f"{named}{more}" if drift.alarm else (drift.skipped or "none in the latest")
    return Evidence(window.until, drift.alarm, drift.skipped is not None, words)


def _losses(limit: float, windows: Sequence[Window]) -> list[Evidence]:
    """One for each score: looks at the same matured window are one, known since the first, worth what the last one says."""
    known: dict[datetime, datetime] = {}
    scores: dict[datetime, Evidence] = {}
    for window in windows:
        about = _scored(window)
        known.setdefault(about, window.until)
        scores.pop(about, None)
        scores[about] = _loss(limit, window, known[about])
    return list(scores.values())


def _scored(window: Window) -> datetime:
    """The end of the window that the newest score is of."""
    found = window.performance
    return found.realised_until if found and found.realised_until and found.realised.score is not None else window.until


def _loss(limit: float, window: Window, known: datetime) -> Evidence:
    found = window.performance
    loss = found.degradation() if found else None
    if found is None or loss is None:
        return Evidence(known, False, True, "no score of the latest")
    return Evidence(known, loss[1] > limit, False, _told(found, loss, limit))


def _told(found: Performance, loss: tuple[float, float], limit: float) -> str:
    kind = "realised" if found.realised.score is not None else "estimated"
    return (
        f"{kind} {found.metric} {found.newest.score:.4g} where {found.expected.score:.4g} was expected, "
        f"worse by {loss[0]:.4g}, surely by {loss[1]:.4g}, limit {limit:g}"
    )


def _labels(needed: int, windows: Sequence[Window], since: datetime | None) -> Finding:
    """Truths since the champion's training, less those that a later challenger already learned from."""
    learned = [each.new_labels for each in windows if since is not None and each.until <= since]
    new = windows[-1].new_labels - (learned[-1] if learned else 0)
    return Finding("labels", new >= needed, f"{new:,} new truths since the last training, of {needed:,}")


def _holding(
    policy: Retrain, window: Window, past: Sequence[Retraining], last: Retraining | None, now: datetime
) -> Iterator[str]:
    """Each thing that holds a retraining back."""
    if last and (age := _days(now - last.at)) < policy.cool_down_days:
        yield f"the last retraining was {age} days ago, and cool_down_days is {policy.cool_down_days}"
    if window.performance is not None and window.new_labels < policy.min_labels:
        yield f"{window.new_labels:,} rows with truth are new, and min_labels is {policy.min_labels:,}"
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
