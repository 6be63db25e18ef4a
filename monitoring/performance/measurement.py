"""The performance of a version in a window, and of one cohort after the other: realised and estimated side by side."""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Estimate, Performance
from evergreen.monitoring.performance.estimated import estimated
from evergreen.monitoring.performance.realised import realised
from evergreen.monitoring.performance.scoring import MIN_ROWS, to_scorable, unreadable
from evergreen.tasks.config.params import Problem
from evergreen.tasks.problems.prediction_type import Labelled, PredictionType

MATURE = 0.8
"""The labels of a window are known where its labelled share is at least this, times that of the window with the largest."""

Seen = tuple[datetime, Predictions]
"""A window of one version's predictions, and its end."""


def measure(
    kind: PredictionType,
    section: Problem,
    expected: Estimate,
    windows: Sequence[Seen],
    known: pl.DataFrame | None = None,
    seed: int = 0,
) -> Performance | None:
    """The performance of one version at the end of the last of `windows` (oldest first). None for a kind without labels.

    `expected`: its score when it was evaluated. `known`: rows of `Kind.predict` that it did not learn from, with their label,
    such as those of its evaluation; the estimate learns from them and from the windows before the last. The same seed gives
    the same intervals.
    """
    if not isinstance(kind, Labelled):
        return None
    metric, now = kind.realised_metric(section), windows[-1][1]
    frames = [to_scorable(kind, section, predicted) for _, predicted in windows]
    newest = _newest_mature(frames)
    earlier = [*([known] if known is not None else []), *frames[:-1]]
    return Performance(
        metric=metric.name,
        greater_is_better=metric.greater_is_better,
        expected=expected,
        realised=realised(kind, section, frames[newest], seed, unreadable(kind, section, windows[newest][1])),
        realised_until=windows[newest][0] if _labelled_share(frames[newest]) else None,
        estimated=estimated(kind, section, frames[-1], earlier, seed),
        matured=_labelled_share(frames[-1]) if now.rows.height else 0.0,
    )


def _newest_mature(frames: Sequence[pl.DataFrame]) -> int:
    """Place of the newest of `frames` whose labels are known; else of the newest with a label, else the last."""
    shares = [_labelled_share(frame) if _labels(frame) >= MIN_ROWS else 0.0 for frame in frames]
    mature = [place for place, share in enumerate(shares) if share and share >= MATURE * max(shares)]
    some = [place for place, frame in enumerate(frames) if _labels(frame)]
    return (mature or some or [len(frames) - 1])[-1]


def _labels(frame: pl.DataFrame) -> int:
    return frame.height - frame["label"].null_count()


def _labelled_share(frame: pl.DataFrame) -> float:
    return _labels(frame) / frame.height if frame.height else 0.0


class CohortScorer:
    """Scores cohorts of one problem for the ledger."""

    def __init__(self, kind: Labelled, section: Problem, seed: int = 0) -> None:
        self._kind, self._section, self._seed = kind, section, seed

    def realised(self, found: Predictions) -> Estimate:
        left_out = unreadable(self._kind, self._section, found)
        return realised(self._kind, self._section, to_scorable(self._kind, self._section, found), self._seed, left_out)

    def estimated(self, found: Predictions, until: datetime, earlier: Sequence[Predictions]) -> Estimate:
        """From earlier cohorts of the version, by the labels that were known at `until`."""
        frames = [to_scorable(self._kind, self._section, each) for each in (*earlier, found)]
        known = [each.filter(pl.col("label_at") <= until) for each in frames[:-1]]
        return estimated(self._kind, self._section, frames[-1], known, self._seed)


def cohort_scorer(kind: PredictionType, section: Problem, seed: int = 0) -> CohortScorer | None:
    """None for a kind without labels."""
    return CohortScorer(kind, section, seed) if isinstance(kind, Labelled) else None
