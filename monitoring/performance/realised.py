"""The score of predictions whose labels are known."""

import logging
import math

import polars as pl

from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.performance import scoring
from evergreen.monitoring.performance.scoring import MIN_ROWS, NO_PREDICTIONS, unscored
from evergreen.tasks.config.params import Problem
from evergreen.tasks.core import intervals
from evergreen.tasks.problems.prediction_type import Labelled

log = logging.getLogger(__name__)

GROUPS = 100
"""Most groups of entities that are left out in turn for an interval."""


def realised(kind: Labelled, section: Problem, frame: pl.DataFrame, seed: int = 0, left_out: str | None = None) -> Estimate:
    """The score of those rows of `to_scorable` that have a label, with its interval over entities.

    `left_out`: labels among them that cannot be read.
    """
    if left_out:
        log.warning("%s", left_out)
    return _score(kind, section, frame, seed).model_copy(update={"left_out": left_out})


def _score(kind: Labelled, section: Problem, frame: pl.DataFrame, seed: int) -> Estimate:
    if frame.is_empty():
        return NO_PREDICTIONS
    frame = frame.filter(pl.col("label").is_not_null())
    rows = frame.height
    if rows < MIN_ROWS:
        return unscored(rows, "no label is known yet" if not rows else f"{rows} labels are known; a score needs {MIN_ROWS}")
    score = kind.primary_score(frame, section)
    if not math.isfinite(score):
        return unscored(rows, kind.why_undefined(frame["label"]))
    some, narrower = scoring.subsample(frame, seed)
    without = [kind.primary_score(part, section) for (part,) in intervals.leave_out([some], seed, GROUPS)]
    own = kind.primary_score(some, section) if narrower < 1 else score
    shrunk = [own + narrower * (each - own) for each in without]
    low, high, why = intervals.interval(score, shrunk, section.evaluate.confidence, kind.metrics[0].scale)
    if why:
        return Estimate(score=score, low=None, high=None, rows=rows, reason=why)
    return Estimate(score=score, low=low, high=high, rows=rows)
