"""What monitoring finds in one window of predictions, and what was decided on it. Numbers and words alone: no frames, no I/O.

A window holds the predictions of one version from `since` (exclusive) to `until` (inclusive). Undefined numbers are None.
"""

from datetime import datetime
from typing import Literal

from evergreen.tasks.config.base import Section

What = Literal["feature", "missing", "unseen", "prediction", "label", "ranking", "segments"]


class Change(Section):
    """How far one column, or another side of the problem, is from the reference."""

    column: str
    """A feature, or what else is compared, such as prediction, label, popularity, coverage, repeats or share of group 2."""
    what: What
    """feature: its values. missing, unseen: its share of missing values, of categories that training did not know."""
    statistic: str
    """As Evidently names it, such as wasserstein or jensenshannon; share for a difference of shares."""
    value: float | None
    """None: it could not be computed; `reason` says why."""
    threshold: float | None
    """What the statistic stays below without drift, at this number of rows, in all but few draws."""
    p: float | None
    """Share of draws without drift that come as far."""
    effect: float | None
    """Size in a unit of its own: standard deviations of a number, share of rows that would have to change."""
    importance: float | None = None
    """Share of the model's importance, 0 to 1. None: not a feature, or unknown."""
    drifts: bool
    """Whether it surely differs, all columns considered together."""
    alarm: bool
    """Whether it differs, by enough, in what matters."""
    reason: str
    """In words: what changed from what to what, or why it is no alarm."""


class Drift(Section):
    changes: tuple[Change, ...]
    """Alarms first, then by p."""
    reference_rows: int
    alarm: bool
    skipped: str | None = None
    """Why nothing could be said of this window, such as too few rows."""
    report: str | None = None
    """Path of the Evidently report, relative to the project."""

    @property
    def alarms(self) -> tuple[Change, ...]:
        return tuple(each for each in self.changes if each.alarm)


class Estimate(Section):
    """A score with its interval."""

    score: float | None
    low: float | None
    high: float | None
    rows: int
    """Predictions it is of."""
    reason: str | None = None
    """Why there is no score, such as one class only."""


class Performance(Section):
    metric: str
    """The kind's primary metric."""
    greater_is_better: bool
    expected: Estimate
    """Of the version when it was judged."""
    realised: Estimate
    """Of the predictions of the newest window whose truths are known (it may lie before this one)."""
    realised_until: datetime | None
    """End of that window."""
    estimated: Estimate
    """Of this window, before its truths are known; it cannot see that what leads to an outcome has changed."""
    matured: float
    """Share of this window's predictions whose truth is known, 0 to 1."""

    @property
    def newest(self) -> Estimate:
        """Realised where there is such a score, else estimated."""
        return self.realised if self.realised.score is not None else self.estimated

    def loss(self) -> tuple[float, float] | None:
        """By how much the newest score is worse than expected, and the lower end of its interval (both intervals as normal);
        None where one of them is not known."""
        was, now = self.expected, self.newest
        if was.score is None or now.score is None or now.low is None or now.high is None:
            return None
        sign = 1 if self.greater_is_better else -1
        own = 0.0 if was.low is None or was.high is None else (was.high - was.low) / 2
        half = (own**2 + ((now.high - now.low) / 2) ** 2) ** 0.5
        loss = sign * (was.score - now.score)
        return loss, loss - half


class Window(Section):
    """All that one look found."""

    problem: str
    version: int
    """Whose predictions are looked at: the champion's."""
    since: datetime
    """UTC, exclusive."""
    until: datetime
    """UTC, inclusive."""
    rows: int
    new_labels: int
    """Truths of all time that this version did not learn from and that are known at `until`."""
    drift: Drift
    performance: Performance | None
    """None where there is no score to speak of, as for groups."""


class Retraining(Section):
    """One that took place, or was decided."""

    at: datetime
    """UTC."""
    ground: str
    """age, drift, loss, labels, or a person's reason."""
    cpu_minutes: float | None
    promoted: bool | None = None
    """What the gate said; None: not known (yet)."""


class Decision(Section):
    problem: str
    at: datetime
    """UTC: the `until` of the window it is about."""
    retrain: bool
    ground: Literal["age", "drift", "loss", "labels"] | None
    """What called for it; also where something else (cool-down, budget, too few labels) held it back."""
    reason: str
    """One sentence for a person, with the numbers."""
    window: Window
    """The evidence."""
