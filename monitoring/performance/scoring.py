"""What realised and estimated scores share: the rows that are scored, and the interval of a score."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Estimate
from evergreen.tasks.config.params import Problem
from evergreen.tasks.core import bootstrap
from evergreen.tasks.problems.prediction_type import Labelled

MIN_ROWS = 10
"""Fewest rows of a score."""
DRAWS = 200
MAX_ROWS = 10_000
"""Of more rows so many, whole entities, are resampled; intervals are then as wide as those of all rows would be."""
SHOWN = 5
"""Most predictions that are named."""
NO_PREDICTIONS = Estimate(score=None, low=None, high=None, rows=0, reason="no predictions")


def to_scorable(kind: Labelled, section: Problem, predicted: Predictions) -> pl.DataFrame:
    """The rows as `Kind.predict` gives them, in their order: entity, label and label_at (null where unknown), the prediction.

    For lists: entity, label (items bought) and the metric of each list, null for a user who bought nothing. A row without
    entity counts as an entity of its own. Invalid labels, such as a word for an amount, are null.
    """
    rows = predicted.rows.with_row_index("__row")
    nobody = pl.format("row {}", pl.col("__row"))
    rows = rows.with_columns(pl.coalesce(pl.col("entity").cast(pl.String), nobody).alias("entity"), kind.readable(rows))
    return kind.as_predicted(rows, section)


def unreadable(kind: Labelled, section: Problem, predicted: Predictions) -> str | None:
    """The labels that no score can use, such as a word for an amount, in one line; None: there are none."""
    labelled = predicted.rows.filter(pl.col("label").is_not_null())
    if labelled.is_empty():
        return None
    frame = to_scorable(kind, section, Predictions(labelled, pl.DataFrame()))
    label = frame["label"] if frame.height == labelled.height else kind.readable(labelled)
    ids = labelled.filter(label.is_null())["id"]
    if ids.is_empty():
        return None
    named = ", ".join(ids.head(SHOWN)) + (", …" if len(ids) > SHOWN else "")
    return f"{len(ids):,} of {labelled.height:,} labels are left out, for they are none of {kind.name} (predictions {named})"


def unscored(rows: int, reason: str) -> Estimate:
    return Estimate(score=None, low=None, high=None, rows=rows, reason=reason)


def subsample(frame: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, float]:
    """At most about MAX_ROWS rows, all of those of the entities that are kept; and the factor by which intervals of all rows
    are narrower than those of these."""
    if frame.height <= MAX_ROWS:
        return frame, 1.0
    names = frame["entity"].unique(maintain_order=True)
    share = MAX_ROWS / frame.height
    kept = names.sample(max(1, round(len(names) * share)), seed=seed)
    return frame.filter(pl.col("entity").is_in(kept.implode())), math.sqrt(len(kept) / len(names))


def with_interval(score: float, resampled: Sequence[float], rows: int, narrower: float, confidence: float) -> Estimate:
    """`score` with the bootstrap interval of its `resampled` values, made `narrower`."""
    low, high = bootstrap.interval(resampled, confidence)
    if not math.isfinite(low):
        return Estimate(score=score, low=None, high=None, rows=rows, reason="too few of one class for an interval")
    middle = float(np.nanmedian(resampled))
    low, high = (score + (end - middle) * narrower for end in (low, high))
    return Estimate(score=score, low=low, high=high, rows=rows)
