"""Compiled models predict as their pipelines do, cell by cell and choice by choice."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from scipy.stats import norm
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from evergreen.tasks import problems
from evergreen.tasks.config import params
from evergreen.tasks.core.errors import CompileError, DataError, ModelError
from evergreen.tasks.model_files import onnx_export as compiling
from evergreen.tasks.model_files import onnx_graph, onnx_parity
from evergreen.tasks.model_files.onnx_runtime import INPUT, Column, Compiled, Signature
from evergreen.tasks.problems.clustering.kind import QuantileGroups, Segmenter
from evergreen.tasks.problems.regression.kind import LogRegressor, OffsetRegressor
from evergreen.tasks.problems.tabular import preprocessing
from evergreen.tasks.problems.tabular.calibration import Calibrated, Calibration
from evergreen.tasks.problems.tabular.neural_network import NeuralNetworkClassifier, NeuralNetworkRegressor
from evergreen.tasks.problems.tabular.weighted_ensemble import BlendClassifier, BlendRegressor
from tests.tasks.problems.tabular import test_tabular_kind as plain

WORDS = ["a", "Broken", "broken", "late", "très", "bien,", "don't", "no-one", "naïve", "x9", "ﬁne", "not", "late!"]
ROWS, HELD_OUT = 600, 200
QUICK: dict[str, Any] = {"n_estimators": 20, "verbosity": -1, "n_jobs": 1}
TREES: dict[str, Any] = {"n_estimators": 8, "min_samples_leaf": 3, "random_state": 0}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Numbers with ties and a constant, categories few and many, a date, a time and words; all with gaps."""
    draw = np.random.default_rng(0)

    def text(values: list[Any]) -> pd.Series:
        return pd.Series(draw.choice(np.array(values, dtype=object), ROWS), dtype="str")

    found = pd.DataFrame(
        {
            "age": draw.normal(size=ROWS),
            "money": np.round(draw.exponential(50, ROWS), 1),
            "count": draw.integers(0, 5, ROWS).astype(float),
            "constant": np.zeros(ROWS),
            "colour": text(["red", "blue", "green", None]),
            "shape": text([f"shape {each}" for each in range(9)]),
            "town": text([f"town {each}" for each in range(60)]),
            "since": pd.Timestamp("1968-02-20") + pd.to_timedelta(draw.integers(0, 25_000, ROWS), "D"),
            "seen": pd.Timestamp("2024-02-27") + pd.to_timedelta(draw.integers(0, 4 * 86_400, ROWS), "s"),
            "said": [" ".join(draw.choice(WORDS, draw.integers(0, 7))) for _ in range(ROWS)],
        }
    ).astype({"since": "datetime64[us]", "seen": "datetime64[us]", "said": "str"})
    return found.mask(draw.random(found.shape) < 0.08)


@pytest.fixture(scope="module")
def signal(table: pd.DataFrame) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=ROWS)
    town = table["town"].str[5:].astype(float).fillna(0) / 30
    return (table["age"].fillna(0) + np.log1p(table["money"].fillna(0)) + (table["colour"] == "red") + town + noise).to_numpy()


@pytest.fixture(scope="module")
def targets(signal: np.ndarray) -> dict[str, np.ndarray]:
    edges = np.quantile(signal, [0.003, 0.3, 0.5, 0.8])
    return {
        "binary": (signal > np.median(signal)).astype(int),
        "multiclass": np.searchsorted(edges, signal),
        "continuous": 1e5 * signal,
    }


def prepare(task: preprocessing.Task, native: bool = False, **choices: Any) -> Pipeline:
    section = params.Pipeline(**choices)
    numbers = ["age", "money", "count", "constant"]
    others: dict[str, Any] = {"dates": ["since", "seen"], "texts": ["said"]}
    return preprocessing.preprocess(section, {}, numbers, ["colour", "shape"], ["town"], task, 0, native, **others)


def assembled(estimator: Any, task: preprocessing.Task, native: bool = False, **choices: Any) -> Pipeline:
    return Pipeline([("prepare", prepare(task, native, **choices)), ("model", clone(estimator))])


def said_by(model: Any) -> Callable[[pd.DataFrame], dict[str, np.ndarray]]:
    def said(asked: pd.DataFrame) -> dict[str, np.ndarray]:
        chances = model.predict_proba(asked).T if hasattr(model, "predict_proba") else []
        named = {f"probability_{name}": each for name, each in zip(getattr(model, "classes_", []), chances, strict=True)}
        return {"prediction": model.predict(asked), **named}

    return said


def compare(model: Any, table: pd.DataFrame) -> compiling.Attempt:
    """Compile; the comparison is on rows with gaps and unseen categories too."""
    return compiling.compare(model, said_by(model), table, table.tail(HELD_OUT), 0)


CLASSIFIERS = [
    (LogisticRegression(max_iter=300), False),
    (LGBMClassifier(**QUICK), True),
    (HistGradientBoostingClassifier(max_iter=20), True),
    (DecisionTreeClassifier(max_depth=4), False),
    (RandomForestClassifier(**TREES), False),
    (ExtraTreesClassifier(**TREES), False),
    (NeuralNetworkClassifier(16, 2), False),
]
REGRESSORS = [
    (Ridge(), False),
    (ElasticNet(), False),
    (Lasso(), False),
    (LGBMRegressor(**QUICK), True),
    (HistGradientBoostingRegressor(max_iter=20), True),
    (DecisionTreeRegressor(max_depth=4), False),
    (RandomForestRegressor(**TREES), False),
    (NeuralNetworkRegressor(16), False),
]
CLUSTERERS = [
    KMeans(4, n_init=1),
    GaussianMixture(3),
    GaussianMixture(3, covariance_type="diag"),
    GaussianMixture(3, covariance_type="tied"),
    GaussianMixture(3, covariance_type="spherical"),
    QuantileGroups(),
]


def named(case: Any) -> str:
    return type(case[0] if isinstance(case, tuple) else case).__name__


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("case", CLASSIFIERS, ids=named)
def test_a_classifier_predicts_the_same_probabilities_and_classes(case, task, table, targets):
    model = assembled(case[0], task, case[1]).fit(table, targets[task])
    assert compare(model, table).parity.difference < 1e-12


@pytest.mark.parametrize("case", REGRESSORS, ids=named)
def test_a_regressor_predicts_the_same_numbers(case, table, targets):
    model = assembled(case[0], "continuous", case[1]).fit(table, targets["continuous"])
    assert compare(model, table).parity.difference < 1e-10


@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=named)
def test_rows_get_the_same_clusters(clusterer, table):
    assert compare(Segmenter(prepare("none"), clusterer).fit(table), table).parity.difference == 0


CHOICES: list[dict[str, Any]] = [
    {"log": True},
    {"missing_indicator": True, "log": True},
    {"spline_knots": 5, "log": True},
    {"column_pairs": 4},
    {"min_category_count": 80},
    {"min_category_count": 80, "encode": "ordinal"},
    {"impute": "mean"},
    {"impute": "zero"},
    {"scale": "robust"},
    {"scale": "quantile"},
    {"scale": "quantile", "log": True},
    {"scale": "none"},
    {"encode": "ordinal"},
    {"encode": "target"},
    {"encode_high": "frequency"},
    {"encode_high": "ordinal"},
    {"select": "variance"},
    {"select": "univariate"},
    {"select": "model"},
    {"reduce": "pca", "components": 3},
    {"reduce": "svd", "components": 3},
    {"scale": "quantile", "encode": "target", "select": "univariate", "reduce": "pca", "components": 2},
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("task", ["binary", "multiclass", "continuous"])
def test_every_choice_of_the_pipeline_is_compiled(choices, task, table, targets):
    model = assembled(Ridge() if task == "continuous" else LogisticRegression(max_iter=50), task, **choices)
    assert compare(model.fit(table, targets[task]), table).parity.difference < 1e-10


@pytest.mark.parametrize("choices", [{"select": "variance"}, {"select": "univariate"}, {"encode": "ordinal"}], ids=str)
def test_boosted_trees_behind_a_selection_are_compiled(choices, table, targets):
    model = assembled(LGBMClassifier(**QUICK), "binary", True, **choices).fit(table, targets["binary"])
    assert compare(model, table).parity.difference < 1e-12


def test_the_categories_that_boosted_trees_split_by_themselves_fall_on_the_same_side(table, targets):
    own = {"encode": "native", "encode_high": "native"}
    split = preprocessing.native_columns(params.Pipeline(**own), {}, ["a"] * 4, ["b"] * 2, ["c"], native=True)
    trees = LGBMClassifier(**QUICK, min_data_per_group=5, cat_smooth=1, categorical_column=split)
    model = assembled(trees, "binary", True, **own).fit(table, targets["binary"])
    assert "num_cat=0" not in model.named_steps["model"].booster_.model_to_string().partition("Tree=1\n")[0]
    assert compare(model, table).parity.difference < 1e-12


def test_a_tree_that_never_splits_is_compiled(table, targets):
    model = assembled(LGBMClassifier(**QUICK, min_child_samples=ROWS), "binary", True).fit(table, targets["binary"])
    assert compare(model, table).parity.difference < 1e-12


def test_thresholds_of_trees_keep_double_precision():
    near = 1e9 + np.arange(400) / 64  # single precision takes all of them for two numbers
    frame = pd.DataFrame({"near": near})
    steps = preprocessing.preprocess(params.Pipeline(), {}, ["near"], [], [], "continuous", 0, True)
    model = Pipeline([("prepare", steps), ("model", LGBMRegressor(**QUICK))]).fit(frame, np.arange(400) % 200)
    assert len(np.unique(model.predict(frame))) > 10
    np.testing.assert_array_equal(
        Compiled(compiling.compile_model(model, frame)).predict_columns(frame)["prediction"], model.predict(frame)
    )


def test_the_threshold_of_a_classifier_decides(table, targets):
    inner = assembled(LogisticRegression(), "binary")
    for threshold in (0.2, 0.8):
        model = FixedThresholdClassifier(inner, threshold=threshold, pos_label=1, response_method="predict_proba")
        model.fit(table, targets["binary"])
        compiled = Compiled(compare(model, table).file)
        said = compiled.predict_columns(table)
        np.testing.assert_array_equal(said["prediction"], model.predict(table))
        assert 0 < said["prediction"].mean() < 1
        assert compiled.predict_row(table.iloc[0].to_dict())["prediction"] == said["prediction"][0]


def test_an_offset_is_added_and_counts_as_zero_where_it_is_missing(table, targets):
    model = OffsetRegressor(assembled(Ridge(), "continuous"), "money").fit(table, targets["continuous"])
    assert table["money"].isna().any()
    assert compare(model, table).parity.difference < 1e-10


@pytest.mark.parametrize("task", ["binary", "multiclass", "continuous"])
def test_a_blend_is_compiled_and_reads_each_column_once(task, table, targets):
    number = task == "continuous"
    pair = (Ridge(), LGBMRegressor(**QUICK)) if number else (LogisticRegression(), LGBMClassifier(**QUICK))
    models = [assembled(each, task, native) for each, native in zip(pair, (False, True), strict=True)]
    blend = (BlendRegressor if number else BlendClassifier)([*models, models[0]], [3, 1, 2]).fit(table, targets[task])
    found = compare(blend, table)
    assert found.parity.difference < 1e-10
    columns = Compiled(found.file).signature.columns
    assert len(columns) == len({column.model_dump_json() for column in columns if column.part != "days"}) + 4


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_calibrated_probabilities_are_compiled(method, task, table, targets):
    inner = assembled(LogisticRegression(C=0.01), task, scale="standard").fit(table, targets[task])
    learned = Calibration(method).fit(targets[task], inner.predict_proba(table))
    model = Calibrated(inner, learned.method, learned.maps).fit()
    assert np.abs(model.predict_proba(table) - inner.predict_proba(table)).max() > 0.01
    assert compare(model, table).parity.difference < 1e-6


def test_one_step_of_calibration_is_a_constant(table, targets):
    inner = assembled(LogisticRegression(), "binary").fit(table, targets["binary"])
    model = Calibrated(inner, "isotonic", [[np.array([0.4]), np.array([0.7])]]).fit()
    assert compare(model, table).parity.difference == 0


def test_a_target_on_a_log_scale_is_predicted_in_its_unit(table, targets):
    model = OffsetRegressor(LogRegressor(assembled(Ridge(), "continuous")), "money").fit(table, targets["continuous"])
    assert compare(model, table).parity.difference < 1e-8


def test_times_and_words_are_read_from_json(table, targets):
    compiled = Compiled(compare(assembled(Ridge(), "continuous").fit(table, targets["continuous"]), table).file)
    row = table.dropna().head(1).to_dict("records")[0]
    assert row["seen"].hour
    asked = compiled.predict_row(row)
    assert compiled.predict_row({**row, "seen": row["seen"].isoformat(), "since": str(row["since"].date())}) == asked
    assert compiled.predict_row({**row, "seen": row["seen"].date().isoformat()}) != asked
    assert compiled.predict_row({**row, "seen": f"{row['seen'].isoformat()}+00:00"}) == asked
    assert compiled.predict_row({**row, "seen": ""}) == compiled.predict_row({**row, "seen": None})
    with pytest.raises(DataError, match=r"^seen = yesterday: not a date; write it as 2024-03-31"):
        compiled.predict_row({**row, "seen": "yesterday"})
    assert compiled.predict_row({**row, "said": "LATE, très bien"}) == compiled.predict_row({**row, "said": "late: tres bien"})


def test_normal_quantiles_are_those_of_scipy_to_the_last_digits():
    x = np.linspace(-3, 3, 5000)[:, None]
    steps = QuantileTransformer(n_quantiles=100, output_distribution="normal").fit(x)
    graph = onnx_graph.Graph(compiling.CONVERTERS)
    graph.columns.append(Column(name="x"))
    output = graph.convert(steps, INPUT)
    session = onnxruntime.InferenceSession(graph.serialize(output, Signature(columns=(), output="value")))
    wide = np.concatenate([x, [[-9.0], [9.0]]])
    found = session.run(None, {INPUT: wide})[0]
    np.testing.assert_allclose(found, steps.transform(wide), rtol=0, atol=1e-13)
    assert found.max() == pytest.approx(norm.ppf(1 - 1e-7), abs=1e-6)


def test_one_row_several_rows_and_columns_get_the_same_predictions(table, targets):
    names = np.array(["bad", "good"])[targets["binary"]]
    model = assembled(LGBMClassifier(**QUICK), "binary", True).fit(table, names)
    compiled = Compiled(compare(model, table).file)
    rows = table.astype(object).where(table.notna(), None).head(50).to_dict("records")
    alone = [compiled.predict_row(row) for row in rows]
    together = compiled.predict(rows)
    assert [each["prediction"] for each in together] == [each["prediction"] for each in alone]
    assert [list(each.values())[1:] for each in together] == pytest.approx(
        np.array([list(each.values())[1:] for each in alone])
    )
    assert list(alone[0]) == ["prediction", "probability_bad", "probability_good"]
    assert [each["prediction"] for each in alone] == model.predict(table.head(50)).tolist()
    assert all(type(value) in (str, float) for value in alone[0].values())
    assert compiled.predict([]) == []


def test_a_model_without_features_predicts_for_any_row(table, targets):
    from sklearn.dummy import DummyClassifier, DummyRegressor

    prior = DummyClassifier(strategy="prior").fit(table, targets["multiclass"])
    assert compare(prior, table).parity.difference == 0
    compiled = Compiled(compare(DummyRegressor().fit(table, targets["continuous"]), table).file)
    assert compiled.features == []
    assert compiled.predict([{}, {}]) == [{"prediction": pytest.approx(targets["continuous"].mean())}] * 2


@pytest.fixture(scope="module")
def simple(table: pd.DataFrame, targets: dict[str, np.ndarray]) -> Compiled:
    return Compiled(compare(assembled(LogisticRegression(), "binary").fit(table, targets["binary"]), table).file)


def test_invalid_values_are_refused_by_name(simple, table):
    row = table.head(1).to_dict("records")[0]
    for wrong in ("much", float("inf"), [1]):
        with pytest.raises(DataError, match=r"^age = .*: not a finite number$"):
            simple.predict_row({**row, "age": wrong})
        with pytest.raises(DataError, match=r"^age = .*: not a finite number$"):
            simple.predict([{**row, "age": wrong}])
    with pytest.raises(DataError, match=r"^colour: is missing from the row"):
        simple.predict_row({name: value for name, value in row.items() if name != "colour"})


def test_missing_values_numbers_as_text_and_booleans_are_read_as_by_the_pipeline(simple, table):
    row = table.dropna().head(1).to_dict("records")[0]
    assert simple.predict_row({**row, "age": None}) == simple.predict_row({**row, "age": float("nan")})
    assert simple.predict_row({**row, "colour": None}) == simple.predict_row({**row, "colour": float("nan")})
    assert simple.predict_row({**row, "colour": None}) != simple.predict_row({**row, "colour": "never seen"})
    assert simple.predict_row({**row, "age": "1.5", "count": 2}) == simple.predict_row({**row, "age": 1.5, "count": 2.0})


def test_a_model_that_requires_numbers_names_the_missing_one(table, targets):
    whole = table.dropna()
    model = assembled(LogisticRegression(), "binary", impute="none").fit(whole, targets["binary"][whole.index])
    compiled = Compiled(compare(model, whole).file)
    with pytest.raises(DataError, match=r"^age: is missing, and this model needs every number"):
        compiled.predict_row({**whole.head(1).to_dict("records")[0], "age": None})
    with pytest.raises(DataError, match=r"^age: is missing, and this model needs every number"):
        compiled.predict_columns(table)


def test_a_step_without_a_converter_is_named(table, targets):
    with pytest.raises(CompileError, match=r"^sklearn\.KNeighborsClassifier has no compiled form"):
        compare(assembled(KNeighborsClassifier(), "binary").fit(table, targets["binary"]), table)


def test_a_file_that_predicts_otherwise_is_refused(table, targets):
    one, other = (assembled(LogisticRegression(C=c), "binary").fit(table, targets["binary"]) for c in (1.0, 0.99))
    file = compiling.compile_model(one, table)
    with pytest.raises(CompileError, match=r"differs by .* on 400 rows"):
        onnx_parity.parity(said_by(other), file, table.tail(HELD_OUT), 0)


def test_too_many_leaves_are_refused(table, targets, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_LEAVES", 10)
    with pytest.raises(CompileError, match="leaves of trees are too many"):
        compare(assembled(LGBMClassifier(**QUICK), "binary", True).fit(table, targets["binary"]), table)


def test_an_invalid_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    for wrong in (tmp_path / "model.onnx", tmp_path / "absent.onnx", b"no graph"):
        with pytest.raises(ModelError, match="not a readable compiled model"):
            Compiled(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [("classification", "dear"), ("classification", "class"), ("regression", "price")])
def test_every_model_of_a_plain_table_has_a_compiled_form(name, target, tmp_path):
    kind, section = problems.kind(name), plain.section(target)
    data = plain.loaded(tmp_path, kind, section, plain.houses())
    held_out = data.at([kind.splits(data, section).tests[0].test]).features
    for config in (*(kind.defaults(model, section) for model in kind.space(section)), plain.blend(kind, section)):
        model, _ = plain.learned(data, kind, section, config)
        found = compiling.compare(model, partial(kind.predict_rows, model), data.features, held_out, 0)
        assert found.parity.difference < 1e-9, config["model"]
