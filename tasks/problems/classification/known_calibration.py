"""What earlier rows with label say of the calibration of probabilities, and how surely: for estimates of a score.

The log-odds of each class are mapped by a line (Platt 1999). Slope and intercept have a prior around "change nothing", so few
labels change little and leave much uncertain. Their covariance is robust for rows of an entity that depend on each other. Where
earlier windows were off in different directions, the next one may be too: their spread widens the intercept.

Sources: Huber (1967), Liang and Zeger (1986) for the covariance; DerSimonian and Laird (1986) for the spread between windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

PRIOR = np.array([0.4, 0.5])
"""Standard deviations of the slope around 1 and of the intercept around 0, before any label is known."""
SMALLEST = 1e-6
"""Probabilities stay this far from 0 and 1."""
MIN_WINDOWS = 3
"""Fewest windows whose spread is measured."""


@dataclass(frozen=True)
class Window:
    """Earlier rows with label."""

    true_class: np.ndarray
    """Place of the true class; -1 for one that the model does not know."""
    chances: np.ndarray
    """Row x class."""
    entity: np.ndarray


@dataclass(frozen=True)
class Line:
    """Slope and intercept of the log-odds of one class, and their covariance."""

    mean: np.ndarray
    covariance: np.ndarray

    def draw(self, random: np.random.Generator) -> np.ndarray:
        return random.multivariate_normal(self.mean, self.covariance, method="eigh")


class KnownCalibration:
    def __init__(self, windows: Sequence[Window], classes: int) -> None:
        """`windows`: may be empty; then the prior is all that is known."""
        self._places = [1] if classes == 2 else range(classes)
        self._lines = [_learn(windows, place) for place in self._places]

    def draw(self, chances: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """`chances` (row x class) as they may be once calibrated, each row with sum 1."""
        drawn = [line.draw(random) for line in self._lines]
        pairs = zip(drawn, self._places, strict=True)
        columns = [_sigmoid(slope * _log_odds(chances[:, place]) + intercept) for (slope, intercept), place in pairs]
        if len(columns) == 1:
            return np.column_stack([1 - columns[0], columns[0]])
        found = np.column_stack(columns)
        return found / found.sum(axis=1, keepdims=True)


def _learn(windows: Sequence[Window], place: int) -> Line:
    from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

    precision = np.diag(1 / PRIOR**2)
    if not windows:
        return Line(np.array([1.0, 0.0]), np.diag(PRIOR**2))
    happened = np.concatenate([each.true_class == place for each in windows]).astype(float)
    odds = np.concatenate([_log_odds(each.chances[:, place]) for each in windows])
    design = np.column_stack([odds, np.ones(len(odds))])
    start = np.array([1.0, 0.0])

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        scores, off = design @ line, line - start
        value = np.logaddexp(0, scores).sum() - happened @ scores + off @ precision @ off / 2
        return float(value), design.T @ (_sigmoid(scores) - happened) + precision @ off

    minimize: Any = cast("Any", optimize).minimize
    line = np.asarray(minimize(loss, start, jac=True, method="BFGS").x, dtype=float)
    chance = _sigmoid(design @ line)
    curvature = (design * (chance * (1 - chance))[:, None]).T @ design + precision
    _, code = np.unique(np.concatenate([each.entity for each in windows]).astype(str), return_inverse=True)
    error = happened - chance
    scores = np.column_stack([np.bincount(code, error * column) for column in design.T])
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ (scores.T @ scores + precision) @ inverse
    covariance[1, 1] += _spread_between(windows, error, chance * (1 - chance))
    return Line(line, covariance)


def _spread_between(windows: Sequence[Window], error: np.ndarray, weight: np.ndarray) -> float:
    """The variance of the intercept between windows, beyond that of chance."""
    ends = np.cumsum([len(each.true_class) for each in windows])[:-1]
    weights = np.array([each.sum() for each in np.split(weight, ends)])
    if len(windows) < MIN_WINDOWS or not (weights > 0).all():
        return 0.0
    offsets = np.array([each.sum() for each in np.split(error, ends)]) / weights
    middle = (weights * offsets).sum() / weights.sum()
    excess = (weights * (offsets - middle) ** 2).sum() - (len(windows) - 1)
    return float(max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum())))


def _log_odds(chance: np.ndarray) -> np.ndarray:
    inside = np.clip(chance, SMALLEST, 1 - SMALLEST)
    return np.log(inside / (1 - inside))


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
