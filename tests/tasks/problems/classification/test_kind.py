import warnings
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.classification.kind import KIND, PREFIX
from evergreen.tasks.problems.tabular.rows import Rows
from tests.contracts import SupervisedContract

DAY = date(2024, 1, 1)
SECTION = Tabular.model_validate(
    {"question": "Which?", "features": {"entity": "id", "horizon_days": 28, "cutoffs": {"first": "2024-01-01"}}}
)


class TestClassification(SupervisedContract):
    problem = "redeem"
    model = "lightgbm"
    floor = 0.86
    ceiling = 0.08


def rows(target, seed=0):
    """One feature that tells the classes apart a little, one category, and one row per target."""
    draw = np.random.default_rng(seed)
    codes = pd.factorize(np.asarray(target))[0]
    features = pd.DataFrame({"x": codes + draw.normal(0, 0.7, len(codes)), "colour": draw.choice(["red", "green"], len(codes))})
    return Rows(pl.Series(np.arange(len(codes))), pl.Series([DAY] * len(codes)), pl.Series("target", target), features, 28)


def answers(true_class, chances, threshold=0.5):
    chances = np.asarray(chances)
    names = {f"{PREFIX}{place}": column for place, column in enumerate(chances.T)}
    return pl.DataFrame(
        {"entity": range(len(true_class)), "label": pl.Series(true_class, dtype=pl.Float64), **names}
    ).with_columns(threshold=pl.lit(threshold, pl.Float64))


def of_two(true_class, chance, threshold=0.5):
    chance = np.asarray(chance)
    return answers(true_class, np.column_stack([1 - chance, chance]), threshold)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=2, max_size=40), st.floats(0.05, 0.95))
def test_metrics_of_two_classes_agree_with_the_library_whatever_the_ties(pairs, threshold):
    true_class, chance = np.array([each for each, _ in pairs], dtype=float), np.array([tenth / 10 for _, tenth in pairs])
    found = KIND.score(of_two(true_class, chance, threshold), SECTION)
    said = chance >= threshold
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true_class, said))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(true_class, chance))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(true_class, chance, labels=[0, 1]))
    if said.any():
        assert found["precision"] == pytest.approx(metrics.precision_score(true_class, said, zero_division=0))
    if true_class.any():
        assert found["recall"] == pytest.approx(metrics.recall_score(true_class, said))
        assert found["f1"] == pytest.approx(metrics.f1_score(true_class, said))
        assert found["average_precision"] == pytest.approx(metrics.average_precision_score(true_class, chance))
    if true_class.any() and not true_class.all():
        assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(true_class, chance))


def test_a_metric_that_is_not_defined_is_nan_and_the_others_stay():
    found = KIND.score(of_two([0.0, 0.0, 0.0], [0.1, 0.2, 0.3]), SECTION)
    assert {name for name, score in found.items() if np.isnan(score)} == {
        "roc_auc",
        "average_precision",
        "precision",
        "recall",
        "f1",
    }
    assert found["accuracy"] == 1


def test_metrics_of_several_classes_agree_with_the_library():
    draw = np.random.default_rng(0)
    true_class, chances = draw.integers(0, 3, 200).astype(float), draw.dirichlet(np.ones(3), 200)
    said, one_hot = chances.argmax(axis=1), np.eye(3)[true_class.astype(int)]
    found = KIND.score(answers(true_class, chances, None), SECTION)
    assert found == pytest.approx(
        {
            "roc_auc": metrics.roc_auc_score(true_class, chances, multi_class="ovr", average="macro"),
            "average_precision": metrics.average_precision_score(one_hot, chances, average="macro"),
            "accuracy": metrics.accuracy_score(true_class, said),
            "precision": metrics.precision_score(true_class, said, average="macro"),
            "recall": metrics.recall_score(true_class, said, average="macro"),
            "f1": metrics.f1_score(true_class, said, average="macro"),
            "log_loss": metrics.log_loss(true_class, chances),
            "brier": ((chances - one_hot) ** 2).sum(axis=1).mean(),
        }
    )


def test_a_class_missing_from_a_resample_is_left_out_of_the_mean():
    chances = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    found = KIND.score(answers([0.0, 1.0, 0.0], chances, None), SECTION)
    assert found["roc_auc"] == 1
    assert found["recall"] == 1


def test_rows_without_label_are_not_scored():
    known = of_two([0.0, 1.0, 1.0], [0.1, 0.4, 0.6])
    more = pl.concat([known, of_two([None, None], [0.9, 0.9])])
    assert KIND.score(more, SECTION) == KIND.score(known, SECTION)


def test_the_threshold_lies_a_hair_above_the_base_rate_unless_params_name_one():
    data = rows([0.0] * 30 + [1.0] * 10)
    model = KIND.fit(data, [DAY], {"model": "prior"}, SECTION, 0)
    assert KIND.predict(model, data, DAY, SECTION)["threshold"].unique().to_list() == [pytest.approx(0.25)]
    fixed = SECTION.model_copy(update={"evaluate": SECTION.evaluate.model_copy(update={"threshold": 0.6})})
    assert KIND.predict(model, data, DAY, fixed)["threshold"].unique().to_list() == [0.6]
    assert KIND.fit(data, [DAY], {"model": "prior"}, fixed, 0).predict(data.features).sum() == 0
    assert model.predict(data.features).sum() == 0


def test_training_rows_of_one_class_are_refused_with_the_class():
    with pytest.raises(DataError, match=r"all 12 training rows have the target 0; two classes are needed.*features\.target"):
        KIND.fit(rows([0.0] * 12), [DAY], {"model": "prior"}, SECTION, 0)


@pytest.mark.parametrize("model", ["prior", "logistic", "lightgbm"])
@pytest.mark.parametrize("target", [["low", "mid", "high"] * 120, [1.0, 2.0, 3.0] * 120])
def test_several_classes_are_learned_with_their_names(model, target):
    data = rows(target)
    found = KIND.predict(KIND.fit(data, [DAY], KIND.defaults(model, SECTION), SECTION, 0), data, DAY, SECTION)
    names = ["high", "low", "mid"] if isinstance(target[0], str) else ["1", "2", "3"]
    assert found.columns == ["entity", "label", *(f"{PREFIX}{name}" for name in names), "threshold"]
    assert found["threshold"].null_count() == len(found)
    auc = KIND.score(found, SECTION)["roc_auc"]
    assert auc == 0.5 if model == "prior" else auc > 0.8


def test_several_classes_have_one_curve_each():
    data = rows(["a", "b", "c"] * 40)
    model = KIND.fit(data, [DAY], KIND.defaults("logistic", SECTION), SECTION, 0)
    found = KIND.predict(model, data, DAY, SECTION).with_columns(cutoff=pl.lit(DAY))
    plots = KIND.plots(found, found, model, data, SECTION)
    assert plots["roc"]["series"].unique().sort().to_list() == [
        f"{who} {name}" for who in ("baseline", "model") for name in "abc"
    ]
    assert plots["confusion"]["rows"].sum() == 120


def test_curves_of_two_classes_begin_and_end_where_they_must():
    draw = np.random.default_rng(1)
    true_class = (draw.random(1000) < 0.2).astype(float)
    found = of_two(true_class, np.clip(0.2 + 0.2 * true_class + draw.normal(0, 0.1, 1000), 0.01, 0.99))
    plots = KIND.plots(found, found, None, None, SECTION)
    roc = plots["roc"].filter(pl.col("series") == "model")
    assert roc.row(0)[1:] == (0.0, 0.0)
    assert roc.row(-1)[1:] == (1.0, 1.0)
    assert roc.height <= 200
    area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert area == pytest.approx(KIND.score(found, SECTION)["roc_auc"], abs=0.01)
    assert plots["precision_recall"]["recall"].max() == 1
    assert plots["gain"].row(0)[1:3] == (0.0, 0.0), "who asks nobody finds nobody"
    assert plots["gain"].row(-1)[1:] == (1.0, 1.0, 1.0)
    assert plots["calibration"]["rows"].sum() == 1000
    assert plots["scores"]["share_of_positives"].sum() == pytest.approx(1)
    assert plots["confusion"]["rows"].sum() == 1000


def test_plots_of_one_class_have_no_curve_and_raise_nothing():
    found = of_two([0.0, 0.0], [0.1, 0.2])
    plots = KIND.plots(found, found, None, None, SECTION)
    assert plots["roc"].is_empty()
    assert plots["confusion"].to_dicts() == [{"label": "0", "predicted": "0", "rows": 2}]


def test_boosted_trees_answer_without_a_warning():
    data = rows([0.0, 1.0] * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = KIND.fit(data, [DAY], KIND.defaults("lightgbm", SECTION), SECTION, 0)
        KIND.predict(model, data, DAY, SECTION)
