"""Networks learn what bends, stay within what was learned, and are the same again."""

import numpy as np
import pytest

from evergreen.tasks.problems.tabular.neural_network import NeuralNetworkClassifier, NeuralNetworkRegressor


def points(rows: int = 800) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 3))


def test_a_curve_and_an_interaction_are_learned_in_the_unit_of_the_target() -> None:
    X = points()
    y = 5e4 + 1e4 * (np.abs(X[:, 0]) + X[:, 1] * X[:, 2])
    model = NeuralNetworkRegressor(64).fit(X[:600], y[:600])
    rest = y[600:]
    assert np.mean((model.predict(X[600:]) - rest) ** 2) < 0.2 * rest.var()
    again = NeuralNetworkRegressor(64).fit(X[:600], y[:600])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.parametrize("names", [("no", "yes"), (1, 2, 3)])
def test_classes_keep_their_names_and_rare_ones_stop_nothing(names: tuple[str, ...]) -> None:
    X = points()
    y = np.array(names)[np.digitize(X[:, 0] ** 2, [0.5, 1.5][: len(names) - 1])]
    model = NeuralNetworkClassifier(32).fit(X, y)
    chances = model.predict_proba(X)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert np.mean(model.predict(X) == y) > 0.9
    y[1:] = names[0]
    y[0] = names[1]
    assert NeuralNetworkClassifier(8).fit(X, y).predict_proba(X).shape == (len(X), 2)


def test_few_rows_and_a_constant_target_are_no_error() -> None:
    X = points(5)
    assert NeuralNetworkRegressor(8).fit(X, np.full(5, 7.0)).predict(X) == pytest.approx(np.full(5, 7.0), abs=1)


def test_an_odd_row_gets_an_answer_near_those_of_training() -> None:
    X = points()
    model = NeuralNetworkRegressor(32).fit(X, X[:, 0])
    assert abs(model.predict(np.array([[1e9, 0.0, 0.0]]))[0]) < 10


def test_the_importance_is_that_of_the_columns_that_count() -> None:
    X = points()
    shares = NeuralNetworkRegressor(32, 2).fit(X, X[:, 1]).feature_importances_
    assert shares.shape == (3,)
    assert shares.argmax() == 1


def test_with_too_few_rows_to_hold_any_out_all_epochs_are_run() -> None:
    X = points(60)
    y = X[:, 0] - X[:, 1]
    model = NeuralNetworkRegressor(64).fit(X, y)
    assert np.mean((model.predict(X) - y) ** 2) < 0.01 * y.var()


def test_a_network_that_diverges_is_an_error() -> None:
    X = points(400)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite"):
        NeuralNetworkRegressor(8, learning_rate_init=1e30).fit(X, X[:, 0])
