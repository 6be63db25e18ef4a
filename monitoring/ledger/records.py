"""Results of monitoring one window of predictions, and the decision on it. Numbers and text only: no frames, no I/O.

A window holds the predictions of one version from `since` (exclusive) to `until` (inclusive). Undefined numbers are None.
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from evergreen.tasks.config.base import Section

Aspect = Literal[
    "feature",
    "missing",
    "unseen",
    "filled",
    "range",
    "moved",
    "trend",
    "prediction",
    "label",
    "ranking",
    "segments",
    "purchases",
]


class Change(Section):
    """The distance of one column, or of another aspect of the problem, from the reference data."""

    column: str
    """A feature, or what else is compared, such as prediction, label, popularity, coverage, repeats or share of group 2."""
    aspect: Aspect
    """feature: its values. missing, unseen: its share of missing values, of categories absent from the training data.
    filled: one value in many rows. range: some values in other units. moved: most values far outside. trend: a column that
    moves with time by nature. purchases: of a shop, with its shoppers and its catalogue."""
    statistic: str
    """Evidently's name, such as wasserstein or jensenshannon; share for a difference of shares."""
    value: float | None
    """None: it could not be computed; `reason` gives the cause."""
    threshold: float | None
    """Upper bound of the statistic without drift, at this number of rows, in all but few draws of the null distribution."""
    p: float | None
    """Share of the null distribution at or beyond `value`."""
    effect: float | None
    """Effect size: standard deviations for a number, share of rows in another category."""
    importance: float | None = None
    """Share of the model's importance, 0 to 1. None: not a feature, or unknown."""
    significant: bool
    """Whether it differs beyond chance, all columns considered together."""
    alarm: bool
    """Whether it is significant, large enough, and about something important."""
    reason: str
    """The change with its values, or the reason why it raises no alarm."""
    fault: bool = False
    """A fault of the data rather than drift: it is found without knowing how much weeks differ."""

    @property
    def needs_repair(self) -> bool:
        """Whether a retraining would learn a fault. New categories, and a column that moved as a whole, may be real."""
        return self.fault and self.aspect not in ("unseen", "moved")


class Drift(Section):
    changes: tuple[Change, ...]
    """Alarms first, then by p."""
    reference_rows: int
    alarm: bool
    skipped: str | None = None
    """Why this window was not tested, such as too few rows."""
    unknown: str | None = None
    """Why drift could not be judged, though data faults were: too few weeks are known."""
    report: str | None = None
    """Path of the Evidently report, relative to the project."""

    @property
    def alarms(self) -> tuple[Change, ...]:
        return tuple(each for each in self.changes if each.alarm)

    @property
    def faults(self) -> tuple[Change, ...]:
        """Alarms that ask for a repair of the data."""
        return tuple(each for each in self.alarms if each.needs_repair)

    @property
    def drifts(self) -> tuple[Change, ...]:
        """Alarms that a retraining can answer: all but `faults`."""
        return tuple(each for each in self.alarms if not each.needs_repair)


class Figure(Section):
    """A further figure beside a score, with its confidence interval."""

    score: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    """Why there is none, or no interval."""


class Estimate(Section):
    """A score with its confidence interval."""

    score: float | None
    low: float | None
    high: float | None
    rows: int
    """Predictions that it covers."""
    reason: str | None = None
    """Why there is no score, such as a single class."""
    left_out: str | None = None
    """Labels that it leaves out because they cannot be read, with their predictions."""
    more: dict[str, Figure] = Field(default_factory=dict)
    """Name -> further realised figures of the same predictions, such as the hit rate of lists."""

    def describe(self, metric: str) -> str:
        """The score and the further figures, each with its interval; why there is no score.

        >>> Estimate(score=0.41, low=0.4, high=0.42, rows=900).describe("ndcg")
        'ndcg 0.41 [0.4, 0.42]'
        """
        if self.score is None:
            return self.reason or ""
        told = [(metric, self), *((name, each) for name, each in self.more.items() if each.score is not None)]
        return ", ".join(f"{name} {each.score:.4g}{_interval(each)}" for name, each in told)


def _interval(found: Figure | Estimate) -> str:
    return "" if found.low is None or found.high is None else f" [{found.low:.4g}, {found.high:.4g}]"


class Performance(Section):
    metric: str
    """The kind's primary metric."""
    greater_is_better: bool
    expected: Estimate
    """Of the version when it was evaluated."""
    realised: Estimate
    """Of the newest window with mature labels (it may lie before this one)."""
    realised_until: datetime | None
    """End of that window."""
    estimated: Estimate
    """Of this window, before its labels arrive; it cannot detect concept drift."""
    matured: float
    """Share of this window's predictions with a label, 0 to 1."""

    @property
    def newest(self) -> Estimate:
        """Realised where there is such a score, else estimated."""
        return self.realised if self.realised.score is not None else self.estimated

    def degradation(self) -> tuple[float, float] | None:
        """How much worse the newest score is than expected, and the lower end of its interval (both intervals as normal);
        None where one of them is unknown."""
        was, now = self.expected, self.newest
        if was.score is None or now.score is None or now.low is None or now.high is None:
            return None
        sign = 1 if self.greater_is_better else -1
        own = 0.0 if was.low is None or was.high is None else (was.high - was.low) / 2
        half = (own**2 + ((now.high - now.low) / 2) ** 2) ** 0.5
        loss = sign * (was.score - now.score)
        return loss, loss - half


class Window(Section):
    """Everything that one monitoring run measured."""

    problem: str
    version: int
    """Version of the monitored predictions: the champion."""
    since: datetime
    """UTC, exclusive."""
    until: datetime
    """UTC, inclusive."""
    rows: int
    new_labels: int
    """Labels known at `until`, of any time, that were not in the training data of this version."""
    drift: Drift
    performance: Performance | None
    """None for kinds without a score, such as clustering."""


class Retraining(Section):
    """A retraining that ran or was decided."""

    at: datetime
    """UTC."""
    trigger: str
    """age, drift, loss, labels, or a person's reason."""
    cpu_minutes: float | None
    promoted: bool | None = None
    """The gate's verdict; None: unknown (so far)."""


class Decision(Section):
    problem: str
    at: datetime
    """UTC: the `until` of its window."""
    retrain: bool
    trigger: Literal["age", "drift", "performance", "labels"] | None
    """The condition that was met; also where cool-down, budget or too few labels prevented the retraining."""
    reason: str
    """One sentence for a person, with the numbers."""
    window: Window
    """The evidence."""
