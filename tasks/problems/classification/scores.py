"""Scores of predicted probabilities, from rows of `Classification.predict`."""

from typing import Any

import numpy as np
import polars as pl

PREFIX = "probability_"
"""Columns of predicted probabilities: this, then the name of the class."""
SMALLEST = 1e-15
"""Probabilities stay this far from 0 and 1 in the logarithmic loss."""


def arrays(predictions: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of `predict` with a known label: the place of the true class, probabilities (row x class), the threshold.

    A true class that the model never saw has the place -1.
    """
    names = [name for name in predictions.columns if name.startswith(PREFIX)]
    if predictions["label"].null_count():
        predictions = predictions.filter(pl.col("label").is_not_null())
    label = predictions["label"]
    chances = np.column_stack([predictions[name].to_numpy() for name in names])
    classes: Any = np.asarray([name.removeprefix(PREFIX) for name in names])
    if label.dtype.is_numeric():
        classes = classes.astype(float)
    true_class = np.full(len(label), -1)
    for place, value in enumerate(classes):
        true_class[label.to_numpy() == value] = place
    threshold = predictions["threshold"][0] if len(predictions) and predictions["threshold"][0] is not None else 0.5
    return true_class, chances, threshold


def decisions(predictions: pl.DataFrame) -> np.ndarray:
    """The names of the predicted classes, of rows of `predict` with a known label."""
    _, chances, threshold = arrays(predictions)
    names = [name.removeprefix(PREFIX) for name in predictions.columns if name.startswith(PREFIX)]
    two = len(names) == 2
    return np.asarray(names)[(chances[:, 1] >= threshold).astype(int) if two else chances.argmax(axis=1)]


def of_two(true_class: np.ndarray, chance: np.ndarray, threshold: float) -> tuple[float, ...]:
    positive = true_class == 1
    predicted = chance >= threshold
    hits, calls, positives = np.count_nonzero(positive & predicted), np.count_nonzero(predicted), np.count_nonzero(positive)
    auc, precision_curve = ranking(positive, chance)
    return (
        auc,
        precision_curve,
        float(np.mean(positive == predicted)),
        _ratio(hits, calls),
        _ratio(hits, positives),
        _ratio(2 * hits, calls + positives),
        _log_loss(np.where(positive, chance, 1 - chance)),
        float(np.mean((chance - positive) ** 2)),
    )


def of_several(true_class: np.ndarray, chances: np.ndarray) -> tuple[float, ...]:
    classes = np.arange(chances.shape[1])
    curves = np.array([ranking(true_class == each, chances[:, each]) for each in classes])
    predicted = chances.argmax(axis=1)
    hits = np.bincount(predicted[predicted == true_class], minlength=len(classes))
    calls = np.bincount(predicted, minlength=len(classes))
    positives = np.bincount(true_class[true_class >= 0], minlength=len(classes))
    certain = np.where(true_class >= 0, chances[np.arange(len(true_class)), true_class], 0.0)
    return (
        _mean(curves[:, 0]),
        _mean(curves[:, 1]),
        float(np.mean(predicted == true_class)),
        _mean(_share(hits, calls)),
        _mean(_share(hits, positives)),
        _mean(_share(2 * hits, calls + positives)),
        _log_loss(certain),
        float(np.mean(((chances - (true_class[:, None] == classes)) ** 2).sum(axis=1))),
    )


def ranking(positive: np.ndarray, chance: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision; equal scores count as one step. NaN without both classes.

    Average precision is the step-wise sum of precision over the gains in recall.
    """
    hits, calls = steps(positive, chance)
    positives, negatives = hits[-1], calls[-1] - hits[-1]
    if not positives:
        return np.nan, np.nan
    precision = float(np.sum(np.diff(hits, prepend=0) * hits / calls) / positives)
    if not negatives:
        return np.nan, precision
    misses = calls - hits
    area = np.sum(np.diff(misses, prepend=0) * (hits + np.concatenate(([0], hits[:-1]))) / 2)
    return float(area / (positives * negatives)), precision


def steps(positive: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Going down the scores, one step per distinct score: positives found so far, rows called so far."""
    order = np.argsort(-chance)
    ends = np.append(np.flatnonzero(np.diff(chance[order])), len(order) - 1)
    return np.cumsum(positive[order])[ends], ends + 1


def _log_loss(certainty: np.ndarray) -> float:
    """Mean loss, from the predicted probability of the true class."""
    return float(-np.mean(np.log(np.clip(certainty, SMALLEST, 1 - SMALLEST))))


def _ratio(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part / whole) if whole else np.nan


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan
