"""Backtest of retraining policies: past windows are replayed under each policy, and their outcomes are compared. Pure.

At the end of each window a policy sees only what was known then; a `Counterfactual` supplies models, monitoring results and
scores. A promoted challenger serves from the next window on. Every policy is treated as automatic: `mode: suggest` would change
nothing.

An alarm (drift or performance) is *false* if training at once would not have helped: in the next windows, by the labels that
arrived later, the challenger would not have been significantly better than the champion. Only runs whose policy asks for
alarms can raise one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Protocol

import numpy as np
from pydantic import Field

from evergreen.monitoring.ledger.records import Decision, Estimate, Figure, Retraining, Window
from evergreen.monitoring.retraining.policy import decide
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.core import intervals
from evergreen.tasks.problems.base import Metric

REFERENCE = "never"
"""Gains and the gain per CPU minute are relative to this policy."""

Scores = np.ndarray
"""A score, and then those without each group of entities; the same place is the same group in all arrays."""


@dataclass(frozen=True)
class TrainedModel:
    """One model of the past."""

    name: str
    """Unique; the same model has the same name under every policy."""
    day: date
    """The run after which it was trained; of the first model, the day before the first window."""
    cpu_minutes: float
    """Cost of its training."""


class Counterfactual(Protocol):
    """Past data, models and costs. Equal questions have equal results under every policy."""

    @property
    def days(self) -> Sequence[date]:
        """The last day of each window, ascending."""
        ...

    @property
    def metric(self) -> Metric:
        """The metric of quality."""
        ...

    @property
    def further(self) -> Sequence[Metric]:
        """Metrics that are reported beside it."""
        ...

    def first(self) -> TrainedModel:
        """The model that serves in the first window."""
        ...

    def challenger(self, day: date, policy: Retrain) -> TrainedModel | None:
        """The model of a retraining at the end of `day`; None where too few labels were known."""
        ...

    def promotes(self, champion: TrainedModel, challenger: TrainedModel) -> tuple[bool, str]:
        """The gate's verdict on the challenger's day, and its reason."""
        ...

    def monitor(self, champion: TrainedModel, version: int, day: date, policy: Retrain) -> Window:
        """The monitoring run at the end of `day`, limited to the needs of the policy."""
        ...

    def scores(self, model: TrainedModel, day: date, metric: str | None = None) -> Scores | None:
        """The scores of its predictions in the window that ends on `day`; None where no label has arrived.

        `metric`: the name of a further one; None: that of quality."""
        ...


class Step(Section):
    """One monitoring run under one policy."""

    day: date
    champion: str
    """The model that served in the window."""
    alarm: bool
    """Drift or performance, where the policy asks for it."""
    false_alarm: bool | None
    """None: no alarm, or the labels to tell have not arrived."""
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
    more: dict[str, Figure] = Field(default_factory=dict)
    """Further metrics by name."""


class Outcome(Section):
    """The result of one policy."""

    policy: str
    quality: Estimate
    """Mean over the windows with labels; `rows` counts the windows."""
    gain: Estimate
    """Improvement over never retraining: positive is better."""
    deficit: Estimate
    """How much worse than the best policy, on the same entities: positive is worse."""
    retrainings: int
    promoted: int
    cpu_minutes: float
    alarms: int
    false_alarms: int
    gain_per_cpu_minute: float | None
    """None where no CPU time was spent."""
    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    more: dict[str, Estimate] = Field(default_factory=dict)
    """Further metrics by name, as `quality`."""


class Recommendation(Section):
    """The policy to choose."""

    policy: str
    best: str
    """The policy with the best mean."""
    reason: str


@dataclass
class PolicyRun:
    """One policy on its way through the windows."""

    policy: Retrain
    champion: TrainedModel
    version: int = 1
    windows: list[Window] = field(default_factory=list)
    past: list[Retraining] = field(default_factory=list)
    champions: list[TrainedModel] = field(default_factory=list)
    """Of each window."""
    steps: list[Step] = field(default_factory=list)


def to_moment(day: date) -> datetime:
    """The end of a day, when its monitoring run takes place."""
    return datetime.combine(day, time(23, 59, 59), UTC)


def run_policy(world: Counterfactual, policy: Retrain, ahead: int) -> PolicyRun:
    """Apply `policy` to every window of `world`. `ahead`: windows in which an alarm must prove right."""
    run = PolicyRun(policy, world.first())
    for place, day in enumerate(world.days):
        run.champions.append(run.champion)
        window = world.monitor(run.champion, run.version, day, policy)
        run.windows.append(window)
        decision = decide(policy, run.windows, run.past, to_moment(run.champion.day), to_moment(day))
        alarm = _is_alarmed(policy, window)
        false_alarm = _is_false_alarm(world, run, world.days[place + 1 : place + 1 + ahead], day) if alarm else None
        run.steps.append(_act(world, run, decision, day, alarm, false_alarm))
    return run


def _is_alarmed(policy: Retrain, window: Window) -> bool:
    loss = window.performance.degradation() if window.performance else None
    dropped = policy.on_performance_drop is not None and loss is not None and loss[1] > policy.on_performance_drop
    return dropped or (policy.on_drift and bool(window.drift.drifts))


def _is_false_alarm(world: Counterfactual, run: PolicyRun, days: Sequence[date], day: date) -> bool | None:
    """Whether a model trained on `day` would not have been significantly better on `days` than the champion."""
    challenger = world.challenger(day, run.policy)
    if challenger is None:
        return True
    pairs = [(world.scores(challenger, each), world.scores(run.champion, each)) for each in days]
    gains = [_gain(world, new, old) for new, old in pairs if new is not None and old is not None]
    if not gains:
        return None
    _, low, _ = _with_interval(_mean(gains))
    return not (low is not None and low > 0)


def _act(world: Counterfactual, run: PolicyRun, decision: Decision, day: date, alarm: bool, false_alarm: bool | None) -> Step:
    """Carry out the decision, and record it."""
    champion, reason, promoted = run.champion.name, decision.reason, None
    challenger = world.challenger(day, run.policy) if decision.retrain else None
    if challenger:
        promoted, why = world.promotes(run.champion, challenger)
        reason = f"{reason}. The gate: {why}"
        trigger, cpu_minutes = decision.trigger or "", challenger.cpu_minutes
        run.past.append(Retraining(at=to_moment(day), trigger=trigger, cpu_minutes=cpu_minutes, promoted=promoted))
        if promoted:
            run.champion, run.version = challenger, len(run.past) + 1
    elif decision.retrain:
        reason = f"{reason}. Too few labels are known to train and evaluate"
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


def compare_policies(world: Counterfactual, runs: Mapping[str, PolicyRun]) -> list[Outcome]:
    """The outcome of each policy, beside `REFERENCE` (which must be among them) and the best."""
    curves = {name: _score_windows(world, run) for name, run in runs.items()}
    means = {name: _mean(_known(curve)) for name, curve in curves.items()}
    best = max(means, key=lambda name: _first(_gain(world, means[name], means[REFERENCE])))
    return [_outcome(world, name, runs[name], curves[name], means, best) for name in runs]


def _gain(world: Counterfactual, mine: Scores, theirs: Scores) -> Scores:
    """Improvement of `mine` over `theirs`, place by place: positive is better."""
    return mine - theirs if world.metric.greater_is_better else theirs - mine


def _first(scores: Scores) -> float:
    return float(scores[0]) if len(scores) and np.isfinite(scores[0]) else -np.inf


def _score_windows(world: Counterfactual, run: PolicyRun, metric: str | None = None) -> list[Scores | None]:
    return [world.scores(model, day, metric) for model, day in zip(run.champions, world.days, strict=True)]


def _known(scores: Sequence[Scores | None]) -> list[Scores]:
    return [each for each in scores if each is not None]


def _to_point(day: date, scores: Scores | None, further: Mapping[str, Scores | None]) -> Point:
    found = _to_figure(scores)
    more = {metric: _to_figure(each) for metric, each in further.items()}
    return Point(day=day, score=found.score, low=found.low, high=found.high, more=more)


def _to_figure(scores: Scores | None) -> Figure:
    score, low, high = _with_interval(scores) if scores is not None else (None, None, None)
    return Figure(score=score, low=low, high=high)


def _mean(scores: Sequence[Scores]) -> Scores:
    """Over windows, place by place; a window in which the metric is undefined is left out."""
    if not scores:
        return np.empty(0)
    stacked = np.vstack(scores)
    defined = np.isfinite(stacked)
    count = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _with_interval(scores: Scores) -> tuple[float | None, float | None, float | None]:
    """The score and its 95 % interval."""
    if not len(scores) or not np.isfinite(scores[0]):
        return None, None, None
    low, high, _ = intervals.interval(float(scores[0]), scores[1:].tolist(), 0.95)
    known = np.isfinite(low)
    return float(scores[0]), low if known else None, high if known else None


def _to_estimate(scores: Scores, windows: int) -> Estimate:
    score, low, high = _with_interval(scores)
    return Estimate(score=score, low=low, high=high, rows=windows, reason=None if score is not None else "no label is known")


def _outcome(
    world: Counterfactual,
    name: str,
    run: PolicyRun,
    curve: Sequence[Scores | None],
    means: Mapping[str, Scores],
    best: str,
) -> Outcome:
    windows = sum(each is not None for each in curve)
    gain = _to_estimate(_gain(world, means[name], means[REFERENCE]), windows)
    cpu = sum(each.cpu_minutes or 0.0 for each in run.past)
    further = {each.name: _score_windows(world, run, each.name) for each in world.further}
    points = [
        _to_point(day, each, {metric: scores[place] for metric, scores in further.items()})
        for place, (day, each) in enumerate(zip(world.days, curve, strict=True))
    ]
    return Outcome(
        policy=name,
        quality=_to_estimate(means[name], windows),
        gain=gain,
        deficit=_to_estimate(_gain(world, means[best], means[name]), windows),
        retrainings=len(run.past),
        promoted=sum(bool(each.promoted) for each in run.past),
        cpu_minutes=cpu,
        alarms=sum(each.alarm for each in run.steps),
        false_alarms=sum(bool(each.false_alarm) for each in run.steps),
        gain_per_cpu_minute=gain.score / cpu if gain.score is not None and cpu > 0 else None,
        points=tuple(points),
        steps=tuple(run.steps),
        more={metric: _to_estimate(_mean(_known(scores)), windows) for metric, scores in further.items()},
    )


def recommend(outcomes: Sequence[Outcome]) -> Recommendation | None:
    """The cheapest policy that does not differ significantly from the best: CPU minutes, then retrainings, then order.

    None where no quality is known.
    """
    if any(each.deficit.score is None for each in outcomes):
        return None
    best = min(outcomes, key=lambda each: each.deficit.score or 0.0)
    equal = [each for each in outcomes if each is best or each.deficit.low is None or each.deficit.low <= 0]
    chosen = min(equal, key=lambda each: (each.cpu_minutes, each.retrainings))
    return Recommendation(policy=chosen.policy, best=best.policy, reason=_explain(chosen, best, outcomes))


def _explain(chosen: Outcome, best: Outcome, outcomes: Sequence[Outcome]) -> str:
    windows = f"{chosen.quality.rows} windows"
    cost = f"{chosen.retrainings} retrainings, {chosen.cpu_minutes:.1f} CPU minutes"
    if len(outcomes) == 1:
        return f"no other policy was tried ({cost} in {windows})"
    if chosen is not best:
        deficit = chosen.deficit
        interval = f"[{deficit.low:.3g}, {deficit.high:.3g}]" if deficit.low is not None else "no interval"
        return (
            f"the cheapest ({cost}) of those that do not differ significantly from the best: {best.policy} is "
            f"{deficit.score:.3g} {interval} better over {windows}, for {best.cpu_minutes:.1f} CPU minutes"
        )
    cheaper = [each.policy for each in outcomes if each.cpu_minutes < best.cpu_minutes]
    rest = f"; cheaper ones ({', '.join(cheaper)}) are significantly worse" if cheaper else "; none is cheaper"
    return f"the best over {windows} ({cost}){rest}"
