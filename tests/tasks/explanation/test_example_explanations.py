"""Contributions to the predictions of a model, over many rows."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.linear_model import LinearRegression

from evergreen.tasks.explanation.example_explanations import Contributions
from evergreen.tasks.problems.tabular.rows import Rows


def test_contributions_to_a_line_are_its_weights_times_the_distance_from_the_mean():
    draw = np.random.default_rng(0)
    features = pd.DataFrame(draw.normal(size=(150, 3)), columns=["a", "b", "c"])
    y = features.to_numpy() @ [2.0, -1.0, 0.0]
    model = LinearRegression().fit(features, y)
    rows = Rows(pl.Series(np.arange(150)), None, pl.Series(y), features)
    found = Contributions(lambda X: model.predict(X)[:, None], ["y"], rows, ["a", "b", "c"], 0)
    assert found.error < 1e-9
    steps = np.diff(found.values[:, :2, 0], axis=0)
    exact = np.diff(features.to_numpy()[found.places][:, :2] * [2.0, -1.0], axis=0)
    np.testing.assert_allclose(steps, exact, atol=1e-9)
    assert np.abs(found.values[:, 2, 0]).max() < 1e-6
    assert found.values[:, :, 0].sum(axis=1) == pytest.approx(y[found.places] - found.base[0])
    assert found.base[0] == pytest.approx(y.mean(), abs=0.02)
