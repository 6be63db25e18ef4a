"""Exact contributions beside those that are computed over all subsets of the user's columns."""

from collections.abc import Callable
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from evergreen.tasks.config import params
from evergreen.tasks.explanation.compiled_contributions import CompiledContributions
from evergreen.tasks.explanation.exact_shapley import ExactShapley, Rows, slopes_of_link
from evergreen.tasks.model_files import onnx_export, score_tables
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.regression.kind import LogRegressor, OffsetRegressor
from evergreen.tasks.problems.tabular import preprocessing
from evergreen.tasks.problems.tabular.calibration import Calibrated, Calibration, Method
from evergreen.tasks.problems.tabular.weighted_ensemble import BlendClassifier, BlendRegressor

ROWS, OWN, BACKGROUND = 300, [3, 40], slice(100, 107)
QUICK: dict[str, Any] = {"n_estimators": 15, "num_leaves": 8, "min_child_samples": 5, "verbosity": -1, "n_jobs": 1}
TREES: dict[str, Any] = {"n_estimators": 5, "min_samples_leaf": 5, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Numbers, categories few and many, a date and words; all with gaps."""
    draw = np.random.default_rng(0)
    found = pd.DataFrame(
        {
            "age": draw.normal(size=ROWS),
            "money": draw.exponential(50, ROWS),
            "colour": pd.Series(draw.choice(["red", "blue", "green"], ROWS), dtype="str"),
            "town": pd.Series(draw.choice([f"town {each}" for each in range(30)], ROWS), dtype="str"),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 1_500, ROWS), "D"),
            "said": pd.Series([" ".join(draw.choice(["good", "late", "broken", "fine"], 3)) for _ in range(ROWS)], dtype="str"),
        }
    )
    return found.mask(draw.random(found.shape) < 0.08)


@pytest.fixture(scope="module")
def signal(table: pd.DataFrame) -> np.ndarray:
    noise = 0.3 * np.random.default_rng(1).normal(size=ROWS)
    late = table["said"].fillna("").str.count("late").to_numpy()
    red = (table["colour"] == "red").to_numpy()
    return table["age"].fillna(1.0).to_numpy() * (1 + red) + np.log1p(table["money"].fillna(0).to_numpy()) - late + noise


def assembled(estimator: Any, task: preprocessing.Task, native: bool = False, **choices: Any) -> Pipeline:
    section, numbers = params.Pipeline(**choices), ["age", "money"]
    prepare = preprocessing.preprocess(
        section, {}, numbers, ["colour"], ["town"], task, 0, native, dates=["since"], texts=["said"]
    )
    return Pipeline([("prepare", prepare), ("model", estimator)])


def compile_fitted(model: Any, table: pd.DataFrame) -> Compiled:
    compiled = Compiled(onnx_export.compile_model(model, table))
    assert compiled.tables
    return compiled


def enumerated(predict: Callable[[pd.DataFrame], np.ndarray], own: pd.DataFrame, background: pd.DataFrame) -> np.ndarray:
    """Column x output: Shapley values by their definition, of the one row `own`."""
    names = list(own.columns)
    subsets = [each for size in range(len(names) + 1) for each in combinations(range(len(names)), size)]
    mixtures = []
    for subset in subsets:
        mixed = background.reset_index(drop=True)
        for place in subset:
            mixed[names[place]] = own[names[place]].repeat(len(mixed)).array
        mixtures.append(mixed)
    outputs = predict(pd.concat(mixtures, ignore_index=True))
    value = dict(zip(subsets, outputs.reshape(len(subsets), len(background), -1).mean(axis=1), strict=True))
    found = np.zeros((len(names), outputs.shape[1]))
    for place in range(len(names)):
        for subset in (each for each in subsets if place not in each):
            weight = factorial(len(subset)) * factorial(len(names) - len(subset) - 1) / factorial(len(names))
            found[place] += weight * (value[tuple(sorted((*subset, place)))] - value[subset])
    return found


def check(model: Any, table: pd.DataFrame) -> None:
    """The scores' contributions are the enumerated ones, and those to predictions sum up."""
    compiled = compile_fitted(model, table)
    background, own = table.iloc[BACKGROUND], table.iloc[OWN]

    def traced(rows: pd.DataFrame) -> Rows:
        found = compiled.trace(*compiled.encode_columns(rows, len(rows)))
        return Rows(found[::2], np.hstack(found[1::2]))

    tables = score_tables.read(compiled.tables)
    of_scores = ExactShapley(tables.scores, lambda scores: scores, len(compiled.features), traced(background))
    found = of_scores.values(traced(own))
    for row in range(len(own)):
        right = enumerated(lambda rows: traced(rows).scores, own.iloc[[row]][compiled.features], background[compiled.features])
        np.testing.assert_allclose(found[row], right, atol=1e-9 * max(1.0, float(np.abs(right).max())))
    explainer = CompiledContributions(compiled, compiled.encode_columns(background, len(background)))
    values = explainer.values(compiled.encode_columns(own, len(own)))
    assert values is not None
    outputs = [name for name in compiled.predict_columns(own) if name.startswith("probability_")] or ["prediction"]
    right = np.column_stack([compiled.predict_columns(own)[name] for name in outputs])
    np.testing.assert_allclose(values.sum(axis=1) + explainer.base, right, rtol=1e-5, atol=1e-12)


CLASSIFIERS = [
    (LogisticRegression(max_iter=300), False),
    (LGBMClassifier(**QUICK), True),
    (LGBMClassifier(**QUICK), False),
    (HistGradientBoostingClassifier(max_iter=10), True),
    (RandomForestClassifier(**TREES), False),
    (ExtraTreesClassifier(**TREES), False),
]
REGRESSORS = [(Ridge(), False), (LGBMRegressor(**QUICK), True), (RandomForestRegressor(**TREES), False)]


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: f"{type(case[0]).__name__}, native {case[1]}")
@pytest.mark.parametrize("classes", [2, 3])
def test_classifiers_of_trees_and_lines(case: Any, classes: int, table: pd.DataFrame, signal: np.ndarray) -> None:
    target = np.searchsorted(np.quantile(signal, [0.3, 0.7][: classes - 1]), signal)
    check(assembled(case[0], "binary" if classes == 2 else "multiclass", case[1]).fit(table, target), table)


@pytest.mark.parametrize("case", REGRESSORS, ids=lambda case: type(case[0]).__name__)
def test_regressors_of_trees_and_lines(case: Any, table: pd.DataFrame, signal: np.ndarray) -> None:
    check(assembled(case[0], "continuous", case[1]).fit(table, signal), table)


def test_one_hot_and_target_encoded_categories_count_as_one_column(table: pd.DataFrame, signal: np.ndarray) -> None:
    several: list[dict[str, Any]] = [
        {"encode": "target"},
        {"encode_high": "frequency", "missing_indicator": True, "scale": "quantile"},
    ]
    for choices in several:
        check(assembled(Ridge(), "continuous", **choices).fit(table, signal), table)


def test_blends_and_calibrated_models(table: pd.DataFrame, signal: np.ndarray) -> None:
    labels = (signal > np.median(signal)).astype(int)
    members = [assembled(LGBMClassifier(**QUICK), "binary", True), assembled(LogisticRegression(max_iter=300), "binary")]
    blend = BlendClassifier(members, [3, 1]).fit(table, labels)
    check(blend, table)
    methods: list[Method] = ["sigmoid", "isotonic"]
    for method in methods:
        learned = Calibration(method).fit(labels, blend.predict_proba(table))
        check(Calibrated(blend, learned.method, learned.maps).fit(), table)


def test_amounts_with_an_offset_a_logarithm_or_several_members(table: pd.DataFrame, signal: np.ndarray) -> None:
    amounts = np.exp(signal)
    trees, line = assembled(LGBMRegressor(**QUICK), "continuous", True), assembled(Ridge(), "continuous")
    for model in (OffsetRegressor(LogRegressor(trees), "money"), BlendRegressor([LogRegressor(trees), line], [1, 2])):
        check(model.fit(table, amounts), table)


def test_models_whose_columns_mix_features_have_no_exact_contributions(table: pd.DataFrame, signal: np.ndarray) -> None:
    model = assembled(Ridge(), "continuous", reduce="pca", components=3).fit(table, signal)
    assert Compiled(onnx_export.compile_model(model, table)).tables == ""


def test_a_row_whose_value_moves_a_column_without_owner_is_left_to_sampling(table: pd.DataFrame, signal: np.ndarray) -> None:
    compiled = compile_fitted(assembled(Ridge(), "continuous").fit(table, signal), table)
    explainer = CompiledContributions(compiled, compiled.encode_columns(table.iloc[BACKGROUND], 7))
    tables = score_tables.read(compiled.tables)
    tables.scores[0].player[:] = -1
    explainer._shapley = ExactShapley(  # as if no value had moved any column at training time
        tables.scores, explainer._link, 6, explainer._trace(compiled.encode_columns(table.iloc[BACKGROUND], 7))
    )
    assert explainer.values(compiled.encode_columns(table.iloc[OWN], 2)) is None


def test_a_score_that_does_not_move_takes_the_slope_of_the_link() -> None:
    slopes = slopes_of_link(np.exp, np.array([1.0]), np.array([[1.0], [0.0]]))
    assert slopes.ravel() == pytest.approx([np.e, np.e - 1], rel=1e-5)


def test_scores_share_what_their_product_adds() -> None:
    slopes = slopes_of_link(lambda scores: scores.prod(axis=1, keepdims=True), np.array([2.0, 3.0]), np.zeros((1, 2)))
    assert slopes[0, :, 0] == pytest.approx([1.5, 1.0])
