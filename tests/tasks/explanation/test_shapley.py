"""Sampled Shapley values beside exact ones, which are computed over all subsets of four columns."""

from collections.abc import Callable
from itertools import combinations
from math import factorial

import numpy as np
import pytest

from evergreen.tasks.explanation.shapley import Contributions, shapley_values, strongest_first

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


def sampled(model: Model, own: np.ndarray, backgrounds: np.ndarray, most: int = 10_000) -> Contributions:
    def predict(taken: np.ndarray, place: np.ndarray, other: np.ndarray) -> np.ndarray:
        return model(np.where(taken, np.atleast_2d(own)[place], backgrounds[other]))[:, None]

    return shapley_values(predict, len(np.atleast_2d(own)), len(backgrounds), WIDTH, most, seed=3)


@pytest.fixture
def rows() -> np.ndarray:
    """The explained row, then three background rows."""
    return np.random.default_rng(7).normal(size=(4, WIDTH))


def test_one_order_and_its_reverse_are_exact_where_columns_interact_in_pairs(rows: np.ndarray) -> None:
    found = sampled(pairs, rows[0], rows[1:], most=0)
    one_background = min(range(3), key=lambda each: abs(pairs(rows[1:])[each] - found.base[0]))
    assert found.values[0, :, 0] == pytest.approx(exact(pairs, rows[0], rows[1:][[one_background]]))
    assert np.isnan(found.error).all()
    found = sampled(pairs, rows[0], rows[1:])
    assert found.values[0, :, 0] == pytest.approx(exact(pairs, rows[0], rows[1:]))
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_error_says_how_far_the_values_are_from_the_exact_ones(rows: np.ndarray) -> None:
    right = exact(of_all, rows[0], rows[1:])
    found = sampled(of_all, rows[0], rows[1:])
    assert np.abs(found.values[0, :, 0] - right).max() < 4 * found.error.max() + 1e-9
    assert np.abs(found.values[0, :, 0] - right).max() < 0.1 * np.abs(right).max()


@pytest.mark.parametrize("model", [pairs, of_all])
def test_contributions_sum_to_the_prediction_minus_the_mean_of_the_background(model: Model, rows: np.ndarray) -> None:
    found = sampled(model, rows[0], rows[1:])
    assert found.base[0] == pytest.approx(model(rows[1:]).mean())
    assert found.values.sum() == pytest.approx(model(rows[:1])[0] - found.base[0])


def test_a_column_that_the_model_ignores_contributes_nothing(rows: np.ndarray) -> None:
    assert sampled(lambda x: x[:, 0] * x[:, 1], rows[0], rows[1:]).values[0, 2:] == pytest.approx(0)


def test_several_rows_are_explained_as_each_alone(rows: np.ndarray) -> None:
    found = sampled(pairs, rows[:2], rows[2:])
    for place in range(2):
        assert found.values[place, :, 0] == pytest.approx(exact(pairs, rows[place], rows[2:]))


def test_a_single_column_contributes_the_whole_difference() -> None:
    def predict(taken: np.ndarray, place: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.where(taken[:, :1], 5.0, np.array([1.0, 2.0])[other][:, None])

    assert shapley_values(predict, 1, 2, 1, 100, seed=0).values.ravel() == pytest.approx([3.5])


def test_the_strongest_come_first_and_equal_ones_in_their_order() -> None:
    assert strongest_first(np.array([0.5, -2.0, 1.0, -0.5])).tolist() == [1, 2, 0, 3]
