"""Sampled Shapley values, for models without exact ones (exact_shapley): the contribution of each column to a row's prediction.

A walk goes from a background row to the explained row: in a random order, one column after the other takes the explained row's
value. The contribution of a column is the mean change of the prediction at its step. Each round walks from every background row
in a new order and in its reverse, so one round is exact for linear models, and where columns interact in pairs at most. Rounds
go on until their mean is stable. Contributions sum to the prediction minus the mean prediction of the background rows, and are
on the scale of predictions: probabilities, or the target's unit.

Source: Štrumbelj and Kononenko, Explaining prediction models and individual predictions with feature contributions, 2014.
The server and its bundle import this module, so it imports NumPy alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BACKGROUND_ROWS = 50
"""Rows that contributions start from."""
STABLE = 0.01
"""Rounds end where the standard error of every contribution is at most this, times the largest contribution of its row."""
MAX_ROUNDS = 100
BATCH = 8192
"""About so many mixed rows are predicted at once."""

Mixed = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""The predictions (row x output) of mixed rows, from three arrays: whether each column (row x column) comes from the explained
row, the place of the explained row, and that of the background row."""


class Contributions(NamedTuple):
    values: np.ndarray
    """Explained row x column x output."""
    base: np.ndarray
    """The mean prediction of the background rows, per output."""
    error: np.ndarray
    """Standard error of the values between rounds; NaN after one round."""


def shapley_values(predict: Mixed, rows: int, backgrounds: int, columns: int, most: int, seed: int) -> Contributions:
    """The contributions of `columns` columns to the predictions of `rows` rows, from `backgrounds` background rows.

    `most`: predictions of mixed rows that may be asked for; one round is always walked, from fewer background rows if need be.
    """
    random = np.random.default_rng(seed)
    steps = max(1, 2 * rows * (columns - 1))
    used = max(1, min(backgrounds, most // steps))
    chosen = random.permutation(backgrounds)[:used]
    own = predict(np.ones((rows, columns), bool), np.arange(rows), np.zeros(rows, int))
    first = predict(np.zeros((used, columns), bool), np.zeros(used, int), chosen)
    rounds: list[np.ndarray] = []
    at_once = max(1, BATCH // steps)
    while not rounds or (len(rounds) < MAX_ROUNDS and (len(rounds) + 1) * used * steps <= most):
        walks = [
            _walk(predict, own, first[start : start + at_once], chosen[start : start + at_once], columns, random)
            for start in range(0, used, at_once)
        ]
        rounds.append(sum(walks[1:], walks[0]) / used)
        if len(rounds) > 1 and _is_stable(rounds):
            break
    return Contributions(np.mean(rounds, axis=0), first.mean(axis=0), _error(rounds))


def _walk(
    predict: Mixed, own: np.ndarray, first: np.ndarray, backgrounds: np.ndarray, columns: int, random: np.random.Generator
) -> np.ndarray:
    """Row x column x output: the steps from each background row to every explained row, in one order and its reverse, added up.

    `first`: the predictions of the background rows.
    """
    rows, outputs = own.shape
    orders = [each for _ in backgrounds for order in [random.permutation(columns)] for each in (order, order[::-1])]
    ranks = np.argsort(np.array(orders), axis=1)
    masks = ranks[:, None, :] < np.arange(1, columns)[None, :, None]
    between = np.empty((len(orders), 0, rows, outputs))
    if masks.size:
        taken = np.repeat(masks.reshape(-1, columns), rows, axis=0)
        place = np.tile(np.arange(rows), len(taken) // rows)
        other = np.repeat(np.repeat(backgrounds, 2), (columns - 1) * rows)
        between = predict(taken, place, other).reshape(len(orders), columns - 1, rows, outputs)
    start = np.broadcast_to(np.repeat(first, 2, axis=0)[:, None, None, :], (len(orders), 1, rows, outputs))
    end = np.broadcast_to(own[None, None], start.shape)
    steps = np.diff(np.concatenate([start, between, end], axis=1), axis=1)
    return np.take_along_axis(steps, ranks[:, :, None, None], axis=1).sum(axis=0).transpose(1, 0, 2) / 2


def _error(rounds: list[np.ndarray]) -> np.ndarray:
    if len(rounds) < 2:
        return np.full(rounds[0].shape, math.nan)
    return np.std(rounds, axis=0, ddof=1) / math.sqrt(len(rounds))


def _is_stable(rounds: list[np.ndarray]) -> bool:
    largest = np.abs(np.mean(rounds, axis=0)).max(axis=1, initial=0.0)
    return bool((_error(rounds).max(axis=1, initial=0.0) <= STABLE * largest + 1e-12).all())


def strongest_first(contributions: np.ndarray) -> np.ndarray:
    """The columns by the size of their contribution, largest first."""
    return np.argsort(-np.abs(contributions), kind="stable")
