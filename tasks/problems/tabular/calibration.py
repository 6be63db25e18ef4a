"""What is done to probabilities once a model is learned: calibration, and the threshold from which a row counts as positive.

Both are learned on rows that the model they are learned for did not see: the held-out folds of the search.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type
from evergreen.tasks.config.params import Costs
from evergreen.tasks.core import intervals

Method = Literal["sigmoid", "isotonic"]
FOLDS = 5
CONFIDENCE = 0.95
"""One-sided, that a calibration helps."""
ISOTONIC = 1_000
"""Steps are learned from so many entities, at least."""
SMALLEST = 1e-6
"""Probabilities stay this far from 0 and 1."""


class Calibration:
    """One map of probabilities per class, each class against the rest; of two classes, for the second alone."""

    def __init__(self, method: Method) -> None:
        self.method: Method = method

    def fit(self, true_class: np.ndarray, chances: np.ndarray) -> "Calibration":
        """`true_class`: the place of the true class; `chances`: row x class."""
        classes = [1] if chances.shape[1] == 2 else range(chances.shape[1])
        learn = _sigmoid if self.method == "sigmoid" else _steps
        self.maps = [learn(true_class == place, chances[:, place]) for place in classes]
        return self

    def apply(self, chances: np.ndarray) -> np.ndarray:
        return mapped(chances, self.method, self.maps)


@stored_type
class Calibrated(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """A fitted classifier, and maps of its probabilities.

    `maps`, one per class (of two classes: for the second): sigmoid: (slope, intercept) on the log-odds; isotonic: (points,
    values), with lines between.
    """

    def __init__(self, estimator: Any = None, method: Method = "sigmoid", maps: Sequence[Any] = ()) -> None:
        self.estimator = estimator
        self.method: Method = method
        self.maps = maps

    def fit(self, X: Any = None, y: Any = None) -> "Calibrated":
        """Takes over `estimator` as it is; both are learned before."""
        self.estimator_ = self.estimator
        self.classes_ = self.estimator.classes_
        return self

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return mapped(self.estimator_.predict_proba(X), self.method, self.maps)

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def mapped(chances: np.ndarray, method: Method, maps: Sequence[Any]) -> np.ndarray:
    """Probabilities after their maps, each row with sum 1."""
    apply = _bend if method == "sigmoid" else _interpolate
    if chances.shape[1] == 2:
        second = apply(chances[:, 1], maps[0])
        return np.column_stack([1 - second, second])
    found = np.column_stack([apply(column, each) for column, each in zip(chances.T, maps, strict=True)])
    return found / found.sum(axis=1, keepdims=True)


def _odds(chance: np.ndarray) -> np.ndarray:
    return logit(np.clip(chance, SMALLEST, 1 - SMALLEST))


def _bend(chance: np.ndarray, line: Sequence[float]) -> np.ndarray:
    return expit(line[0] * _odds(chance) + line[1])


def _interpolate(chance: np.ndarray, steps: Sequence[np.ndarray]) -> np.ndarray:
    return np.interp(chance, steps[0], steps[1])


def _sigmoid(positive: np.ndarray, chance: np.ndarray) -> list[float]:
    """Platt (1999), on the log-odds: a slope of 1 and an intercept of 0 change nothing."""
    if positive.all() or not positive.any():
        return [1.0, 0.0]
    fitted = LogisticRegression(C=1e6).fit(_odds(chance)[:, None], positive)
    return [float(fitted.coef_[0, 0]), float(fitted.intercept_[0])]


def _steps(positive: np.ndarray, chance: np.ndarray) -> list[np.ndarray]:
    """Zadrozny and Elkan (2002); no step says never or always."""
    edge = 1 / (len(chance) + 2)
    fitted = IsotonicRegression(y_min=edge, y_max=1 - edge).fit(chance, positive)
    return [fitted.X_thresholds_.astype(float), fitted.y_thresholds_.astype(float)]


def helping(
    true_class: np.ndarray, chances: np.ndarray, entity: np.ndarray, methods: Sequence[Method], seed: int
) -> Calibration | None:
    """The calibration that lowers the logarithmic loss, judged on entities that it was not learned from; None where none does.

    Its gain must be above 0 with CONFIDENCE, by entities: all rows of one, and all repeats of a row in repeated
    cross-validation, count as one observation. One that is more elaborate must gain as surely on the simpler one.
    `true_class`: its place, -1 for one that the model does not know. `entity`: of each row.
    """
    known = true_class >= 0
    true_class, chances = true_class[known], chances[known]
    names, code = np.unique(entity[known], return_inverse=True)
    if len(names) < 2 * FOLDS:
        return None
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[code]
    best, losses = None, _losses(true_class, chances)
    for method in methods:
        if method == "isotonic" and len(names) < ISOTONIC:
            continue
        found = np.empty(len(true_class))
        for place in range(FOLDS):
            judged = fold == place
            each = Calibration(method).fit(true_class[~judged], chances[~judged])
            found[judged] = _losses(true_class[judged], each.apply(chances[judged]))
        if _surely_positive(losses - found, code):
            best, losses = method, found
    return Calibration(best).fit(true_class, chances) if best else None


def _surely_positive(gain: np.ndarray, code: np.ndarray) -> bool:
    """Whether the mean of `gain` is above 0, by entities: `code` is the number of each row's."""
    sums, counts = np.bincount(code, gain), np.bincount(code)
    without = (sums.sum() - sums) / (counts.sum() - counts)
    return intervals.interval(float(gain.mean()), without.tolist(), 2 * CONFIDENCE - 1).low > 0


def _losses(true_class: np.ndarray, chances: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(chances[np.arange(len(true_class)), true_class], SMALLEST, 1.0))


def threshold_for(
    aim: Literal["f1", "precision_at_recall", "cost"], positive: np.ndarray, chance: np.ndarray, recall: float, costs: Costs
) -> float:
    """The threshold that serves `aim` best on these rows, half way to the next lower probability.

    f1: the highest F1. precision_at_recall: the highest precision where at least `recall` of the positives are found. cost: the
    lowest sum of `costs`.
    """
    order = np.argsort(-chance, kind="stable")
    scores = chance[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits, calls = np.cumsum(positive[order])[ends], ends + 1
    positives, rows = int(positive.sum()), len(positive)
    wrong, missed = calls - hits, positives - hits
    if aim == "f1":
        worth = 2 * hits / np.maximum(calls + positives, 1)
    elif aim == "precision_at_recall":
        worth = np.where(hits >= recall * positives, hits / calls, -1.0)
    else:
        right = rows - positives - wrong
        worth = -(
            costs.false_positive * wrong
            + costs.false_negative * missed
            + costs.true_positive * hits
            + costs.true_negative * right
        )
        nobody = -(costs.false_negative * positives + costs.true_negative * (rows - positives))
        if nobody > worth.max():
            return float(np.nextafter(1.0, 0))
    at = int(np.argmax(worth))
    below = scores[ends[at + 1]] if at + 1 < len(ends) else 0.0
    return float(np.clip((scores[ends[at]] + below) / 2, SMALLEST, 1 - SMALLEST))
