"""The score that predictions will have, before their labels are known.

Labels are drawn as the model itself expects them, and the predictions are scored against each draw:

    classification   a class by the predicted probabilities (confidence-based performance estimation), each draw with another
                     calibration that earlier labelled rows allow
    regression       the prediction plus the error of an earlier labelled row whose prediction was about as high
    recommendation   none: a list says nothing of how likely its items are bought

An estimate sees changes of the features. It cannot see concept drift: other labels for the same features. The field `off` of a
cohort shows later how far the estimate was from the realised score.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from evergreen.monitoring.ledger.records import Estimate
from evergreen.monitoring.performance import scoring
from evergreen.monitoring.performance.scoring import DRAWS, MIN_ROWS, NO_PREDICTIONS, unscored
from evergreen.tasks.config.params import Problem
from evergreen.tasks.problems.prediction_type import Labelled


def estimated(
    kind: Labelled, section: Problem, frame: pl.DataFrame, known: Sequence[pl.DataFrame] = (), seed: int = 0
) -> Estimate:
    """What the score of rows of `to_scorable` will be, from the predictions alone. `known`: earlier rows; those with a label
    are learned from, of each frame at most about MAX_ROWS."""
    rows = frame.height
    if kind.no_estimate:
        return unscored(rows, kind.no_estimate)
    if frame.is_empty():
        return NO_PREDICTIONS
    if rows < MIN_ROWS:
        return unscored(rows, f"{rows} predictions; a score needs {MIN_ROWS}")
    some, narrower = scoring.subsample(frame, seed)
    learned = [scoring.subsample(each.filter(pl.col("label").is_not_null()), seed)[0] for each in known]
    drawn = kind.draw_labels(some, learned, DRAWS, seed)
    if isinstance(drawn, str):
        return unscored(rows, drawn)
    scores = np.array([kind.primary_score(part, section) for part in drawn])
    if np.isfinite(scores).sum() <= DRAWS / 2:
        return unscored(rows, f"one class is too unlikely on these {rows:,} rows to expect a {kind.headline(section).name}")
    return scoring.with_interval(float(np.nanmean(scores)), scores.tolist(), rows, narrower, section.evaluate.confidence)
