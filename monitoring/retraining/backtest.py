"""A year lived again under several policies of retraining: pure decisions over a timeline, and what became of them.

At each look a policy sees what was known then and nothing else; what to learn and how good it was, the `World` says. A look's
retraining serves from the next window on. Whoever lives through the past is automatic: `mode: suggest` would change nothing.

An alarm (of drift, or of loss) is *false* where training at once would not have helped: the challenger of that moment would not
surely have been better than the standing champion in the next windows, as the truth that came later tells. Only looks at which
the policy asks for alarms can raise one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Protocol

import numpy as np

from evergreen.monitoring.ledger.records import Decision, Estimate, Retraining, Window
from evergreen.monitoring.retraining.policy import decide
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.core import bootstrap
from evergreen.tasks.problems.base import Metric

REFERENCE = "never"
"""What a CPU minute buys is told beside the policy that spends none."""

Scores = np.ndarray
"""A score as it is, and after it those of the resamples; the same place is the same resample in all of them."""


@dataclass(frozen=True)
class Learned:
    """One model of the past."""

    name: str
    """Tells it from the others; the same name is the same model in every policy."""
    day: date
    """The look at which it was trained; of the first one, the day before the first window."""
    cpu_minutes: float
    """What training it would cost."""


class World(Protocol):
    """What the past would have answered. Same question, same answer, whichever policy asks."""

    @property
    def days(self) -> Sequence[date]:
        """The last day of each window, ascending."""
        ...

    @property
    def metric(self) -> Metric:
        """What quality is."""
        ...

    def first(self) -> Learned:
        """The model that serves in the first window."""
        ...

    def challenger(self, day: date, policy: Retrain) -> Learned | None:
        """What a retraining at the end of `day` would have made; None where too little was known."""
        ...

    def promotes(self, champion: Learned, challenger: Learned) -> tuple[bool, str]:
        """What the gate would have said at the challenger's day, and why."""
        ...

    def look(self, champion: Learned, version: int, day: date, policy: Retrain) -> Window:
        """What monitoring would have found at the end of `day`, of what the policy asks for."""
        ...

    def scores(self, model: Learned, day: date) -> Scores | None:
        """How good its predictions in the window that ends on `day` were; None where the truth has not come at all."""
        ...


class Step(Section):
    """One look of one policy."""

    day: date
    champion: str
    """Whose predictions the window holds."""
    alarm: bool
    """Of drift or of loss, where the policy asks for one."""
    false_alarm: bool | None
    """None: no alarm, or the truth that would tell has not come."""
    retrained: bool
    trigger: str | None
    promoted: bool | None
    """None: not retrained."""
    reason: str
    """The decision's, and the gate's."""


class Point(Section):
    """The quality in one window."""

    day: date
    score: float | None
    low: float | None
    high: float | None


class Outcome(Section):
    """What became of one policy."""

    policy: str
    quality: Estimate
    """Mean over the windows whose truth is known; `rows` counts the windows."""
    gain: Estimate
    """How much better than never retraining: positive is better."""
    behind: Estimate
    """How much worse than the best policy, in the same resamples: positive is worse."""
    retrainings: int
    promoted: int
    cpu_minutes: float
    alarms: int
    false_alarms: int
    per_cpu_minute: float | None
    """What each CPU minute gained over never retraining; None where none was spent."""
    points: tuple[Point, ...]
    steps: tuple[Step, ...]


class Verdict(Section):
    """Which policy to take."""

    policy: str
    best: str
    """The one of the best mean."""
    reason: str


@dataclass
class Life:
    """One policy on its way through the windows."""

    policy: Retrain
    champion: Learned
    version: int = 1
    windows: list[Window] = field(default_factory=list)
    past: list[Retraining] = field(default_factory=list)
    served: list[Learned] = field(default_factory=list)
    """Who answered in each window."""
    steps: list[Step] = field(default_factory=list)


def moment(day: date) -> datetime:
    """The end of a day, at which it is looked back on."""
    return datetime.combine(day, time(23, 59, 59), UTC)


def live(world: World, policy: Retrain, ahead: int) -> Life:
    """Live through every window of `world` under `policy`. `ahead`: windows in which an alarm has to prove right."""
    life = Life(policy, world.first())
    for place, day in enumerate(world.days):
        life.served.append(life.champion)
        window = world.look(life.champion, life.version, day, policy)
        life.windows.append(window)
        decision = decide(policy, life.windows, life.past, moment(life.champion.day), moment(day))
        alarm = _alarmed(policy, window)
        false_alarm = _in_vain(world, life, world.days[place + 1 : place + 1 + ahead], day) if alarm else None
        life.steps.append(_step(world, life, decision, day, alarm, false_alarm))
    return life


def _alarmed(policy: Retrain, window: Window) -> bool:
    loss = window.performance.degradation() if window.performance else None
    lost = policy.on_performance_drop is not None and loss is not None and loss[1] > policy.on_performance_drop
    return lost or (policy.on_drift and window.drift.alarm)


def _in_vain(world: World, life: Life, days: Sequence[date], day: date) -> bool | None:
    """Whether a model of `day` would not surely have been better on `days` than the one that stands."""
    other = world.challenger(day, life.policy)
    if other is None:
        return True
    pairs = [(world.scores(other, each), world.scores(life.champion, each)) for each in days]
    gains = [_gain(world, theirs, mine) for theirs, mine in pairs if theirs is not None and mine is not None]
    if not gains:
        return None
    _, low, _ = _estimated(_mean(gains))
    return not (low is not None and low > 0)


def _step(world: World, life: Life, decision: Decision, day: date, alarm: bool, false_alarm: bool | None) -> Step:
    """Do what was decided, and tell it."""
    champion, reason, promoted = life.champion.name, decision.reason, None
    challenger = world.challenger(day, life.policy) if decision.retrain else None
    if challenger:
        promoted, why = world.promotes(life.champion, challenger)
        reason = f"{reason}. The gate: {why}"
        trigger = decision.trigger or ""
        life.past.append(Retraining(at=moment(day), trigger=trigger, cpu_minutes=challenger.cpu_minutes, promoted=promoted))
        if promoted:
            life.champion, life.version = challenger, len(life.past) + 1
    elif decision.retrain:
        reason = f"{reason}. Too little is known yet to learn and to judge"
    return Step(
        day=day,
        champion=champion,
        alarm=alarm,
        false_alarm=false_alarm,
        retrained=challenger is not None,
        trigger=decision.trigger,
        promoted=promoted,
        reason=reason,
    )


def outcomes(world: World, lives: Mapping[str, Life]) -> list[Outcome]:
    """What became of each policy, beside `REFERENCE` (which must be among them) and the best."""
    curves = {name: _curve(world, life) for name, life in lives.items()}
    means = {name: _mean([each for each in curve if each is not None]) for name, curve in curves.items()}
    best = max(means, key=lambda name: _first(_gain(world, means[name], means[REFERENCE])))
    return [_outcome(world, name, lives[name], curves[name], means, best) for name in lives]


def _gain(world: World, mine: Scores, theirs: Scores) -> Scores:
    """How much better `mine` are, place by place: positive is better."""
    return mine - theirs if world.metric.greater_is_better else theirs - mine


def _first(scores: Scores) -> float:
    return float(scores[0]) if len(scores) and np.isfinite(scores[0]) else -np.inf


def _curve(world: World, life: Life) -> list[Scores | None]:
    return [world.scores(model, day) for model, day in zip(life.served, world.days, strict=True)]


def _mean(scores: Sequence[Scores]) -> Scores:
    """Over windows, place by place; a window in which the metric is undefined is left out."""
    if not scores:
        return np.empty(0)
    stacked = np.vstack(scores)
    there = np.isfinite(stacked)
    count = there.sum(axis=0)
    total = np.where(there, stacked, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _estimated(scores: Scores) -> tuple[float | None, float | None, float | None]:
    """The score and the middle 95 % of its resamples."""
    if not len(scores) or not np.isfinite(scores[0]):
        return None, None, None
    low, high = bootstrap.interval(scores[1:].tolist(), 0.95)
    known = np.isfinite(low)
    return float(scores[0]), low if known else None, high if known else None


def _as_estimate(scores: Scores, windows: int) -> Estimate:
    score, low, high = _estimated(scores)
    return Estimate(score=score, low=low, high=high, rows=windows, reason=None if score is not None else "no truth is known")


def _outcome(
    world: World, name: str, life: Life, curve: Sequence[Scores | None], means: Mapping[str, Scores], best: str
) -> Outcome:
    windows = sum(each is not None for each in curve)
    gain = _as_estimate(_gain(world, means[name], means[REFERENCE]), windows)
    cpu = sum(each.cpu_minutes or 0.0 for each in life.past)
    points = []
    for day, each in zip(world.days, curve, strict=True):
        score, low, high = _estimated(each) if each is not None else (None, None, None)
        points.append(Point(day=day, score=score, low=low, high=high))
    return Outcome(
        policy=name,
        quality=_as_estimate(means[name], windows),
        gain=gain,
        behind=_as_estimate(_gain(world, means[best], means[name]), windows),
        retrainings=len(life.past),
        promoted=sum(bool(each.promoted) for each in life.past),
        cpu_minutes=cpu,
        alarms=sum(each.alarm for each in life.steps),
        false_alarms=sum(bool(each.false_alarm) for each in life.steps),
        per_cpu_minute=gain.score / cpu if gain.score is not None and cpu > 0 else None,
        points=tuple(points),
        steps=tuple(life.steps),
    )


def recommend(found: Sequence[Outcome]) -> Verdict | None:
    """The cheapest policy whose quality cannot be told from that of the best: CPU minutes, then retrainings, then order.

    None where no quality is known.
    """
    if any(each.behind.score is None for each in found):
        return None
    best = min(found, key=lambda each: each.behind.score or 0.0)
    equal = [each for each in found if each is best or each.behind.low is None or each.behind.low <= 0]
    chosen = min(equal, key=lambda each: (each.cpu_minutes, each.retrainings))
    return Verdict(policy=chosen.policy, best=best.policy, reason=_why(chosen, best, found))


def _why(chosen: Outcome, best: Outcome, found: Sequence[Outcome]) -> str:
    windows = f"{chosen.quality.rows} windows"
    cost = f"{chosen.retrainings} retrainings, {chosen.cpu_minutes:.1f} CPU minutes"
    if len(found) == 1:
        return f"nothing else was tried ({cost} in {windows})"
    if chosen is not best:
        behind = chosen.behind
        told = f"[{behind.low:.3g}, {behind.high:.3g}]" if behind.low is not None else "no interval"
        return (
            f"the cheapest ({cost}) of those that cannot be told from the best: {best.policy} is {behind.score:.3g} {told} "
            f"better over {windows}, for {best.cpu_minutes:.1f} CPU minutes"
        )
    cheaper = [each.policy for each in found if each.cpu_minutes < best.cpu_minutes]
    rest = f"; cheaper ones ({', '.join(cheaper)}) are surely worse" if cheaper else "; none is cheaper"
    return f"the best over {windows} ({cost}){rest}"
