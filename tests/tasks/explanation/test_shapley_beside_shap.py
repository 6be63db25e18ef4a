"""Contributions beside those of the library shap, from the same background rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import Pipeline

from evergreen.tasks.explanation.example_explanations import Contributions
from evergreen.tasks.model_files.onnx_export import compile_model
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.tabular.preprocessing import Numbers
from evergreen.tasks.problems.tabular.rows import Rows

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


def exactly(model: Any, features: pd.DataFrame, outputs: list[str]) -> Contributions:
    """From the compiled model."""
    rows = Rows(pl.Series(np.arange(len(features))), None, pl.Series(np.zeros(len(features))), features)
    prepare = ColumnTransformer([("numbers", Numbers(), COLUMNS)]).fit(features)
    compiled = Compiled(compile_model(Pipeline([("prepare", prepare), ("model", model)]), features))
    predict = (lambda X: model.predict_proba(X)[:, 1:]) if hasattr(model, "classes_") else lambda X: model.predict(X)[:, None]
    found = Contributions(predict, outputs, rows, COLUMNS, seed=0, compiled=compiled)
    assert found.error == 0
    return found


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


FOREST: dict[str, Any] = {"n_estimators": 20, "max_depth": 6, "random_state": 0}


@pytest.mark.parametrize("model", [LGBMRegressor(**SETTINGS), RandomForestRegressor(**FOREST)])
def test_sampled_contributions_of_trees_are_near_those_of_shap(model: Any) -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    model.fit(features, y)
    found = explained(lambda X: model.predict(X)[:, None], features)
    theirs = shap.TreeExplainer(model, background_of(found)).shap_values(features.iloc[found.places])
    assert correlations(found, theirs).min() > 0.99


@pytest.mark.parametrize("model", [LGBMRegressor(**SETTINGS), RandomForestRegressor(**FOREST), Ridge()])
def test_exact_contributions_to_amounts_are_those_of_shap(model: Any) -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    model.fit(features, y)
    found = exactly(model, features, ["prediction"])
    explainer = shap.LinearExplainer if isinstance(model, Ridge) else shap.TreeExplainer
    theirs = explainer(model, background_of(found)).shap_values(features.iloc[found.places])
    np.testing.assert_allclose(found.values[:, :, 0], theirs, atol=1e-6)


def test_exact_contributions_to_probabilities_are_those_of_shap() -> None:
    shap = pytest.importorskip("shap")
    features, y = planted()
    boosted = LGBMClassifier(**SETTINGS).fit(features, y > 0)
    found = exactly(boosted, features, ["True"])
    explainer = shap.TreeExplainer(boosted, background_of(found), model_output="probability")
    np.testing.assert_allclose(found.values[:, :, 0], explainer.shap_values(features.iloc[found.places]), atol=1e-6)
    forest = RandomForestClassifier(**FOREST).fit(features, y > 0)
    found = exactly(forest, features, ["True"])
    theirs = shap.TreeExplainer(forest, background_of(found)).shap_values(features.iloc[found.places])
    np.testing.assert_allclose(found.values[:, :, 0], theirs[:, :, 1], atol=1e-6)


def test_contributions_to_probabilities_are_near_enumerated_ones() -> None:
    """The link is no line, so its rule is not exact; sampling is nearly."""
    shap = pytest.importorskip("shap")
    features, y = planted()
    model = LGBMClassifier(**SETTINGS).fit(features, y > 0)
    sampled, found = (
        explained(lambda X: np.asarray(model.predict_proba(X))[:, 1:], features),
        exactly(model, features, ["True"]),
    )
    independent = shap.maskers.Independent(background_of(found), max_samples=len(found.background))
    explainer = shap.explainers.Exact(
        lambda X: np.asarray(model.predict_proba(pd.DataFrame(X, columns=COLUMNS)))[:, 1], independent
    )
    theirs = explainer(features.iloc[found.places[:12]]).values
    assert correlations(sampled, theirs).min() > 0.99
    assert correlations(found, theirs).min() > 0.95
