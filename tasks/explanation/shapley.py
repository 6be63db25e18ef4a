"""Shapley values by sampling: the contribution of each column of a row to its prediction.

A walk goes from a background row to the explained row: in a random order, one column after the other takes the explained row's
value. The contribution of a column is the mean change of the prediction at its step. Each order is followed by its reverse;
the values of both together are exact where columns interact in pairs at most. Contributions sum to the prediction minus the
mean prediction of the background rows.

Source: Štrumbelj and Kononenko, Explaining prediction models and individual predictions with feature contributions, 2014.
The server and its bundle import this module, so it imports NumPy alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

Row = TypeVar("Row")


def sample_walks(
    backgrounds: Iterable[Row], columns: int, orders: int, random: np.random.Generator
) -> Iterator[tuple[Row, np.ndarray]]:
    """(background row, order of the columns): per background row `orders` random orders, each followed by its reverse."""
    for background in backgrounds:
        for _ in range(orders):
            order = random.permutation(columns)
            yield background, order
            yield background, order[::-1]


def rows_between(background: Row, order: np.ndarray, take: Callable[[Row, int], Row]) -> list[Row]:
    """The rows of a walk without its ends: one less than columns. `take`: a row with the explained row's value in a column."""
    rows = []
    for column in order[:-1]:
        background = take(background, int(column))
        rows.append(background)
    return rows


def shapley_values(walks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The contribution of each column, over one or more walks.

    `walks`: the order of the columns, and the predictions along the walk, from the background row to the explained row; one
    more than columns along the first axis. Any further axes (rows, outputs) are kept.
    """
    total, count = np.zeros(()), 0
    for order, predictions in walks:
        steps = np.diff(predictions, axis=0)
        found = np.empty_like(steps)
        found[order] = steps
        total, count = total + found, count + 1
    return total / count


def strongest_first(contributions: np.ndarray) -> np.ndarray:
    """The columns by the size of their contribution, largest first."""
    return np.argsort(-np.abs(contributions), kind="stable")
