"""Calibration that earlier labels leave possible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks.problems.classification.known_calibration import KnownCalibration, Window


def window(rows: int, slope: float = 1.0, offset: float = 0.0, seed: int = 0) -> Window:
    """Probabilities whose log-odds are `slope` times too large; the true ones are moved by `offset`."""
    random = np.random.default_rng(seed)
    odds = random.normal(-1, 1.2, rows)
    second = 1 / (1 + np.exp(-slope * odds))
    happened = random.random(rows) < 1 / (1 + np.exp(-odds - offset))
    return Window(happened.astype(int), np.column_stack([1 - second, second]), np.arange(rows))


def drawn(windows: list[Window], chance: float, draws: int = 400) -> np.ndarray:
    """What the probability `chance` may be."""
    known, random = KnownCalibration(windows, 2), np.random.default_rng(1)
    return np.array([known.draw(np.array([[1 - chance, chance]]), random)[0, 1] for _ in range(draws)])


def test_without_labels_a_probability_is_its_own_middle_and_uncertain() -> None:
    found = drawn([], 0.8)
    assert np.median(found) == pytest.approx(0.8, abs=0.03)
    assert 0.05 < found.std() < 0.2


def test_an_overconfident_model_is_mended_and_more_labels_make_it_surer() -> None:
    right = 1 / (1 + np.exp(-np.log(0.9 / 0.1) / 2))
    few, many = (drawn([window(rows, slope=2)], 0.9) for rows in (100, 4000))
    assert np.median(many) == pytest.approx(right, abs=0.03)
    assert many.std() < 0.5 * few.std()


def test_repeated_rows_of_an_entity_make_nothing_surer() -> None:
    one = window(300)
    copies = Window(np.tile(one.true_class, 20), np.tile(one.chances, (20, 1)), np.tile(one.entity, 20))
    apart = Window(copies.true_class, copies.chances, np.arange(6000))
    assert drawn([copies], 0.5).std() > 3 * drawn([apart], 0.5).std()


def test_windows_that_were_off_in_different_directions_widen_the_next() -> None:
    steady = [window(500, seed=seed) for seed in range(6)]
    moved = [window(500, offset=(-1) ** seed, seed=seed) for seed in range(6)]
    assert drawn(moved, 0.5).std() > 3 * drawn(steady, 0.5).std()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 3), st.integers(0, 99))
def test_rows_of_any_number_of_classes_sum_to_one(classes: int, windows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    chances = random.dirichlet(np.full(classes, 0.2), 40)
    known = [Window(random.integers(-1, classes, 40), chances, np.repeat(np.arange(8), 5)) for _ in range(windows)]
    found = KnownCalibration(known, classes).draw(chances, random)
    assert found.shape == chances.shape
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found >= 0).all()
