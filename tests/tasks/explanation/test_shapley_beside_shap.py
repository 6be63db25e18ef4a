"""Contributions beside those of the library shap, from the same background rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression

from evergreen.tasks.explanation.example_explanations import Contributions
from evergreen.tasks.problems.tabular.tabular_kind import Rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COLUMNS = [f"c{place}" for place in range(8)]
SETTINGS: dict[str, Any] = {"n_estimators": 60, "num_leaves": 8, "verbosity": -1, "n_jobs": 1, "random_state": 0}


def planted() -> tuple[pd.DataFrame, np.ndarray]:
    """Rows with an interaction, a curve and correlated columns."""
    draw = np.random.default_rng(0)
    features = pd.DataFrame(draw.normal(size=(600, 8)), columns=COLUMNS)
    features["c1"] += features["c0"]
    y = 2 * features["c0"] + features["c1"] * features["c2"] + np.sin(2 * features["c3"]) + 0.3 * draw.normal(size=600)
    return features, y.to_numpy()


def explained(predict: Callable[[Any], np.ndarray], features: pd.DataFrame) -> Contributions:
    rows = Rows(pl.Series(np.arange(len(features))), None, pl.Series(np.zeros(len(features))), features)
    return Contributions(predict, ["y"], rows, COLUMNS, seed=0)


def correlations(found: Contributions, shap_values: np.ndarray) -> np.ndarray:
    """Per explained row, of the first ones."""
    pairs = zip(found.values[: len(shap_values), :, 0], shap_values, strict=True)
    return np.array([np.corrcoef(ours, theirs)[0, 1] for ours, theirs in pairs])


def background_of(found: Contributions) -> pd.DataFrame:
    return found.features.iloc[found.background]


def test_lines_have_the_contributions_of_the_closed_form() -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    model = LinearRegression().fit(features, y)
    found = explained(lambda X: model.predict(X)[:, None], features)
    theirs = shap.LinearExplainer(model, background_of(found)).shap_values(features.iloc[found.places])
    np.testing.assert_allclose(found.values[:, :, 0], theirs, atol=1e-9)


@pytest.mark.parametrize("model", [LGBMRegressor(**SETTINGS), RandomForestRegressor(20, max_depth=6, random_state=0)])
def test_trees_have_the_contributions_of_shap(model: Any) -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    model.fit(features, y)
    found = explained(lambda X: model.predict(X)[:, None], features)
    theirs = shap.TreeExplainer(model, background_of(found)).shap_values(features.iloc[found.places])
    assert correlations(found, theirs).min() > 0.99
    assert (found.values[:, :, 0].argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.97


def test_probabilities_of_trees_have_the_contributions_of_shap() -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    model = LGBMClassifier(**SETTINGS).fit(features, y > 0)
    found = explained(lambda X: np.asarray(model.predict_proba(X))[:, 1:], features)
    independent = shap.maskers.Independent(background_of(found), max_samples=len(found.background))
    explainer = shap.explainers.Exact(
        lambda X: np.asarray(model.predict_proba(pd.DataFrame(X, columns=COLUMNS)))[:, 1], independent
    )
    theirs = explainer(features.iloc[found.places[:12]]).values
    assert correlations(found, theirs).min() > 0.99
