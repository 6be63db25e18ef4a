"""Sampled Shapley values beside exact ones, which are computed over all subsets of four columns."""

from collections.abc import Callable, Iterator
from itertools import combinations, permutations
from math import factorial

import numpy as np
import pytest

from evergreen.tasks.explanation.shapley import rows_between, sample_walks, shapley_values, strongest_first

WIDTH = 4
Model = Callable[[np.ndarray], np.ndarray]


def pairs(rows: np.ndarray) -> np.ndarray:
    """Two interactions of two columns."""
    a, b, c, d = rows.T
    return 2 * a - b + 3 * a * c + b * d


def of_all(rows: np.ndarray) -> np.ndarray:
    """An interaction of all columns."""
    return np.exp(rows.sum(axis=1)) * rows[:, 0]


def exact(model: Model, own: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
    """Shapley values by their definition: over all subsets of the other columns, the mean over the background rows."""

    def value(subset: tuple[int, ...]) -> float:
        rows = backgrounds.copy()
        rows[:, subset] = own[list(subset)]
        return float(model(rows).mean())

    found = np.zeros(WIDTH)
    for column in range(WIDTH):
        others = [each for each in range(WIDTH) if each != column]
        for size in range(WIDTH):
            weight = factorial(size) * factorial(WIDTH - size - 1) / factorial(WIDTH)
            for subset in combinations(others, size):
                found[column] += weight * (value((*subset, column)) - value(subset))
    return found


def walk(model: Model, own: np.ndarray, background: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def take(row: np.ndarray, column: int) -> np.ndarray:
        return np.where(np.arange(WIDTH) == column, own, row)

    return order, model(np.stack([background, *rows_between(background, order, take), own]))


def sampled(model: Model, own: np.ndarray, backgrounds: np.ndarray, orders: int) -> np.ndarray:
    walks = sample_walks(backgrounds, WIDTH, orders, np.random.default_rng(3))
    return shapley_values(walk(model, own, background, order) for background, order in walks)


@pytest.fixture
def rows() -> np.ndarray:
    """The explained row, then three background rows."""
    return np.random.default_rng(7).normal(size=(4, WIDTH))


@pytest.mark.parametrize("model", [pairs, of_all])
def test_the_walks_of_all_orders_give_the_exact_values(model: Model, rows: np.ndarray) -> None:
    def all_walks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for background in rows[1:]:
            for order in permutations(range(WIDTH)):
                yield walk(model, rows[0], background, np.array(order))

    assert shapley_values(all_walks()) == pytest.approx(exact(model, rows[0], rows[1:]))


def test_one_order_and_its_reverse_are_exact_where_columns_interact_in_pairs(rows: np.ndarray) -> None:
    assert sampled(pairs, rows[0], rows[1:], orders=1) == pytest.approx(exact(pairs, rows[0], rows[1:]))


def test_more_orders_come_nearer_to_the_exact_values(rows: np.ndarray) -> None:
    right = exact(of_all, rows[0], rows[1:])
    errors = [np.abs(sampled(of_all, rows[0], rows[1:], orders) - right).max() for orders in (1, 1000)]
    assert errors[1] < 0.02 * np.abs(right).max()
    assert errors[1] < errors[0]


@pytest.mark.parametrize("model", [pairs, of_all])
def test_contributions_sum_to_the_prediction_minus_the_mean_of_the_background(model: Model, rows: np.ndarray) -> None:
    found = sampled(model, rows[0], rows[1:], orders=2)
    assert found.sum() == pytest.approx(model(rows[:1])[0] - model(rows[1:]).mean())


def test_a_column_that_the_model_ignores_contributes_nothing(rows: np.ndarray) -> None:
    assert sampled(lambda x: x[:, 0] * x[:, 1], rows[0], rows[1:], orders=2)[2:] == pytest.approx(0)


def test_further_axes_are_kept_one_value_per_column_row_and_output() -> None:
    along = np.arange((WIDTH + 1) * 2 * 3, dtype=float).reshape(WIDTH + 1, 2, 3)
    assert shapley_values([(np.array([2, 0, 3, 1]), along)]).shape == (WIDTH, 2, 3)


def test_the_strongest_come_first_and_equal_ones_in_their_order() -> None:
    assert strongest_first(np.array([0.5, -2.0, 1.0, -0.5])).tolist() == [1, 2, 0, 3]
