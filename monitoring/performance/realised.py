"""The score of predictions whose labels are known."""

import logging
import math

import polars as pl

from evergreen.monitoring.ledger.records import Estimate, Figure
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
    scores = kind.realised_scores(frame, section)
    if not math.isfinite(scores[kind.realised_metric(section).name]):
        return unscored(rows, kind.why_undefined(frame["label"], section))
    some, narrower = scoring.subsample(frame, seed)
    without = [kind.realised_scores(part, section) for (part,) in intervals.leave_out([some], seed, GROUPS)]
    own = kind.realised_scores(some, section) if narrower < 1 else scores
    found = dict[str, Figure]()
    for name, score in scores.items():
        shrunk = [own[name] + narrower * (each[name] - own[name]) for each in without]
        low, high, why = intervals.interval(score, shrunk, section.evaluate.confidence, kind.scale_of(name))
        known = None if why else low, None if why else high
        found[name] = Figure(score=score if math.isfinite(score) else None, low=known[0], high=known[1], reason=why or None)
    primary = found.pop(kind.realised_metric(section).name)
    return Estimate(**primary.model_dump(), rows=rows, more=found)
