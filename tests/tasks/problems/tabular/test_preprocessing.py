import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline

from evergreen.tasks.config import params
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.tabular import preprocessing
from evergreen.tasks.problems.tabular import tabular_kind as tabular
from evergreen.tasks.problems.tabular.preprocessing import (
    ONEHOT_LEVELS,
    OTHER,
    Curves,
    FrequencyEncoder,
    Rare,
    SignedLog,
    Text,
    fold_back,
    preprocess,
    space,
)

NUMERIC, LOW, HIGH = ["spend", "visits", "noise"], ["colour"], ["street"]
CHOICES = [
    {"column_pairs": 4},
    {},
    {"impute": "mean", "scale": "robust"},
    {"impute": "zero", "scale": "quantile"},
    {"scale": "none", "log": True},
    {"encode": "ordinal", "encode_high": "frequency"},
    {"encode": "target", "encode_high": "ordinal"},
    {"select": "variance"},
    {"select": "univariate", "select_share": 0.5},
    {"select": "model", "select_share": 0.5},
    {"reduce": "pca", "components": 3},
    {"reduce": "svd", "components": 3},
    {"missing_indicator": True},
    {"spline_knots": 3, "missing_indicator": True},
    {"spline_knots": 4, "log": True, "scale": "none"},
    {"min_category_count": 30},
    {"encode_high": "onehot"},
]


def frame(count=200, seed=0):
    draw = np.random.default_rng(seed)
    spend = draw.gamma(2, 50, count)
    spend[:5] = np.nan
    colour = pd.Series(draw.choice(["red", "green", "blue"], count), dtype="str")
    colour[:3] = None
    features = {
        "spend": spend,
        "visits": draw.poisson(3, count).astype(float),
        "noise": draw.normal(size=count),
        "colour": colour,
        "street": pd.Series([f"street {each}" for each in draw.integers(0, 40, count)], dtype="str"),
    }
    return pd.DataFrame(features), (np.nan_to_num(spend) + draw.normal(0, 20, count) > 90).astype(int)


def steps(task="binary", native=False, **choices):
    return preprocess(params.Pipeline.model_validate(choices), {}, NUMERIC, LOW, HIGH, task, 0, native)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("task", ["binary", "continuous"])
def test_every_choice_gives_finite_numbers_and_survives_saving(choices, task, tmp_path):
    X, y = frame()
    y = y if task == "binary" else y + X["visits"].to_numpy() * 0.37
    fitted = steps(task, **choices).fit(X, y)
    strange = X.head(4).assign(colour="never seen", street="nowhere", spend=np.nan)
    skops_models.save(fitted, tmp_path / "steps.skops")
    loaded = skops_models.load(tmp_path / "steps.skops")
    for table in (X, strange):
        found = fitted.transform(table)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(loaded.transform(table), found)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_weights_are_handed_back_to_the_inputs_in_full(choices):
    X, y = frame()
    fitted = steps(**choices).fit(X, y)
    found = fold_back(fitted, np.ones(fitted.transform(X).shape[1]))
    assert set(found) == set(X.columns)
    assert sum(found.values()) == pytest.approx(1)


def test_a_category_gets_the_weights_of_all_its_columns():
    X, y = frame()
    fitted = steps().fit(X, y)
    assert fold_back(fitted, np.ones(8)) == {"colour": 0.5, "spend": 0.125, "visits": 0.125, "noise": 0.125, "street": 0.125}


def test_selection_keeps_what_tells_the_target():
    X, y = frame()
    for select in ("univariate", "model"):
        fitted = steps(select=select, select_share=0.2).fit(X, y)
        found = fold_back(fitted, np.ones(fitted.transform(X).shape[1]))
        assert found["spend"] > 0
        assert found["noise"] == 0


def test_a_missing_category_is_a_category_of_its_own_and_an_unseen_one_is_none():
    X, y = frame()
    fitted = steps().fit(X, y)
    encoded = fitted.transform(X)[:, 3:7]
    assert encoded.sum(axis=1).tolist() == [1.0] * len(X)
    assert (encoded[:3] == encoded[0]).all()
    assert encoded[0].tolist() != encoded[10].tolist()
    assert fitted.transform(X.head(1).assign(colour="never seen"))[0, 3:7].sum() == 0


def test_what_is_learned_from_the_training_rows_is_not_touched_by_others():
    X, y = frame()
    fitted = steps().fit(X.head(100), y[:100])
    alone = fitted.transform(X.iloc[100:101])
    beside = fitted.transform(X.iloc[100:].assign(spend=lambda table: table["spend"].where(table.index == 100, 1e9)))
    np.testing.assert_array_equal(beside[:1], alone)


def test_a_model_that_reads_gaps_itself_gets_them_unless_a_step_needs_all_numbers():
    X, y = frame()
    raw = steps(native=True).fit_transform(X, y)
    assert np.isnan(raw[0, 0])
    assert raw[10, 0] == X["spend"][10]
    assert np.isfinite(steps(native=True, reduce="pca", components=2).fit_transform(X, y)).all()
    assert np.isfinite(steps(native=True, select="univariate").fit_transform(X, y)).all()


def test_categories_that_trees_split_by_themselves_are_numbers_after_the_numbers():
    X, y = frame()
    both, high = {"encode": "native", "encode_high": "native"}, {"encode_high": "native"}

    def places(native=True, **choices):
        return preprocessing.native_columns(params.Pipeline.model_validate(choices), {}, NUMERIC, LOW, HIGH, native)

    assert (places(**both), places(**high), places()) == ([3, 4], [3], [])
    made = steps(native=True, **high).fit(X, y).transform(X.assign(street="never seen"))
    assert set(made[:, 3]) == {-1.0}
    assert set(steps(native=True, **both).fit_transform(X, y)[:, 3]) == {0.0, 1.0, 2.0, 3.0}
    for others in ({"native": False}, {"select": "univariate"}, {"reduce": "pca", "components": 2}):
        assert places(**{**both, **others}) == []
        target = dict.fromkeys(both, "target")
        assert np.allclose(steps(**{**both, **others}).fit_transform(X, y), steps(**{**target, **others}).fit_transform(X, y))


def test_target_encoding_is_cross_fitted():
    """With a category per row, what a row is given must not be its own answer."""
    X, y = frame()
    X = X.assign(street=[f"house {each}" for each in range(len(X))])
    encoded = steps(scale="none").fit_transform(X, y)[:, -1]
    assert len(np.unique(encoded)) <= 5


def test_a_gap_shows_in_a_column_of_its_own():
    X, y = frame()
    found = steps(missing_indicator=True, scale="none").fit_transform(X, y)
    np.testing.assert_array_equal(found[:, len(NUMERIC)], X["spend"].isna())


def test_a_linear_model_with_curves_follows_a_bend():
    x = np.linspace(0, 10, 400)
    X, y = pd.DataFrame({"spend": x}), np.abs(x - 4)
    straight, bent = (
        LinearRegression()
        .fit(prepared := preprocess(chosen, {}, ["spend"], [], [], "continuous", 0).fit_transform(X), y)
        .score(prepared, y)
        for chosen in (params.Pipeline(), params.Pipeline(spline_knots=(9,)))
    )
    assert straight < 0.5
    assert bent > 0.99


def test_curves_end_at_the_outer_hundredths_and_leave_flags_alone():
    draw = np.random.default_rng(0)
    X = np.column_stack([draw.normal(size=1000), draw.integers(0, 2, 1000)])
    curves = Curves(4).fit(X)
    assert curves.columns_.tolist() == [0, 0, 0, 0]
    far = curves.transform(np.array([[1e9, 1.0], [-1e9, 0.0]]))
    np.testing.assert_array_equal(far[:, 0], np.quantile(X[:, 0], [0.99, 0.01]))


def test_rare_categories_are_one_with_those_never_seen():
    column = np.array([["a"]] * 5 + [["b"]] * 5 + [["c"], ["d"]])
    found = Rare(2).fit(column).transform(np.array([["a"], ["c"], ["d"], ["zz"]]))
    assert found[:, 0].tolist() == ["a", OTHER, OTHER, OTHER]


def test_the_most_frequent_of_many_categories_get_a_column_each():
    X, y = frame(1000)
    X["town"] = [f"{min(each % 500, 450)}" for each in range(len(X))]  # two rows each, the last 100
    encoded = preprocess(params.Pipeline(encode_high=("onehot",)), {}, [], [], ["town"], "continuous", 0).fit_transform(X, y)
    assert encoded.shape == (len(X), ONEHOT_LEVELS + 1)
    assert (encoded.sum(axis=1) == 1).all()
    column = np.array([["a"]] * 5 + [["b"]] * 4 + [["c"]] * 3)
    assert set(Rare(2, most=2).fit(column).transform(column)[:, 0]) == {"a", "b", OTHER}


def test_a_class_with_one_row_does_not_hinder_target_encoding():
    X, y = frame()
    y = np.where(np.arange(len(y)) == 7, 2, y)
    chosen = params.Pipeline(encode=("target",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = preprocess(chosen, {}, NUMERIC, LOW, HIGH, "multiclass", 0, stratified=False).fit_transform(X, y)
    assert np.isfinite(encoded).all()


def test_columns_that_do_not_vary_are_not_selected_and_raise_no_warning():
    X, y = frame()
    X = X.assign(visits=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = steps(select="univariate", select_share=0.3, scale="none").fit(X, y)
    assert fold_back(fitted, np.ones(fitted.transform(X).shape[1]))["visits"] == 0


def test_without_a_target_frequency_takes_the_place_of_target_encoding():
    X, _ = frame()
    fitted = steps("none", encode="target").fit(X)
    assert isinstance(fitted.named_steps["columns"].named_transformers_["high"].named_steps["encode"], FrequencyEncoder)


def test_choices_given_as_lists_are_searched_and_a_model_that_reads_numbers_raw_skips_theirs():
    chosen = params.Pipeline.model_validate({"log": [True, False], "encode": ["onehot", "target"], "select": ["none"]})
    assert {name: each.values for name, each in space(chosen, native=False).items()} == {
        "log": (True, False),
        "encode": ("onehot", "target"),
    }
    assert list(space(chosen, native=True)) == ["encode"]
    assert preprocessing.choose(chosen, {"log": False})["log"] is False
    assert preprocessing.choose(chosen, {})["log"] is True


def test_text_without_imputing_is_refused_for_a_model_that_needs_all_numbers():
    X, _ = frame()
    with pytest.raises(DataError, match=r"spend: 5 of 200 rows are missing, and with pipeline\.impute none logistic cannot"):
        tabular._refuse_missing(X[NUMERIC], "logistic")


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_the_signed_logarithm_keeps_order_zero_and_sign(values):
    column = np.array(sorted(values))[:, None]
    found = SignedLog().fit_transform(column)
    assert (np.diff(found[:, 0]) >= 0).all()
    np.testing.assert_array_equal(SignedLog().fit_transform(-column), -found)


def test_none_and_nan_are_the_same_missing_category():
    found = Text().fit_transform(pd.DataFrame({"a": pd.Series([None, np.nan, "x"], dtype=object)}))
    assert found[:, 0].tolist() == [preprocessing.MISSING, preprocessing.MISSING, "x"]


def test_frequency_is_the_share_of_the_training_rows():
    encoder = FrequencyEncoder().fit(np.array([["a"], ["a"], ["b"], ["c"]]))
    assert encoder.transform(np.array([["a"], ["c"], ["zz"], [""]]))[:, 0].tolist() == [0.5, 0.25, 0, 0]


@pytest.mark.parametrize("last", [LogisticRegression(), Lasso()])
def test_importance_of_a_linear_model_names_its_inputs(last):
    X, y = frame()
    found = tabular.importance(Pipeline([("prepare", steps()), ("model", last)]).fit(X, y))
    assert set(found) == set(X.columns)


def test_columns_are_told_apart_by_type_and_number_of_values():
    X, _ = frame()
    assert tabular.roles(X, 20) == (NUMERIC, LOW, HIGH)
    assert tabular.roles(X, 50) == (NUMERIC, LOW + HIGH, [])
