from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn import metrics
from sklearn.dummy import DummyRegressor

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.regression.kind import KIND, LogRegressor, OffsetRegressor, has_long_tail
from evergreen.tasks.problems.tabular.rows import Rows, aged
from tests.contracts import SupervisedContract

DAY = date(2024, 1, 1)


class TestRegression(SupervisedContract):
    problem = "spend"
    model = "lightgbm"
    floor = 72.0
    ceiling = 4.0


def section(**pipeline):
    return Tabular.model_validate(
        {
            "question": "How much?",
            "features": {"entity": "id", "horizon_days": 28, "cutoffs": {"first": "2024-01-01"}},
            "pipeline": pipeline,
        }
    )


def rows(count=300, seed=0):
    """The target is half of `past`, plus `extra`, plus noise."""
    draw = np.random.default_rng(seed)
    past, extra = draw.gamma(4, 25, count), draw.normal(0, 20, count)
    target = past / 2 + extra + draw.normal(0, 5, count)
    features = pd.DataFrame({"past": past, "extra": extra})
    return Rows(pl.Series(np.arange(count)), pl.Series([DAY] * count), pl.Series("target", target), features, 28)


def fit(data, model, where, **config):
    return KIND.fit(data, [DAY], {**KIND.defaults(model, where), **config}, where, 0)


def test_metrics_agree_with_the_library():
    draw = np.random.default_rng(0)
    label, answer = draw.normal(0, 3, 100), draw.normal(0, 3, 100)
    found = KIND.score(pl.DataFrame({"entity": range(100), "label": label, "prediction": answer}), section())
    assert found == pytest.approx(
        {
            "rmse": metrics.root_mean_squared_error(label, answer),
            "mae": metrics.mean_absolute_error(label, answer),
            "r2": metrics.r2_score(label, answer),
        }
    )


def test_r2_of_a_constant_label_is_not_defined():
    found = KIND.score(pl.DataFrame({"entity": [1, 2], "label": [3.0, 3.0], "prediction": [2.0, 4.0]}), section())
    assert np.isnan(found["r2"])
    assert found["rmse"] == 1


def test_rows_without_label_are_not_scored():
    known = pl.DataFrame({"entity": [1, 2], "label": [3.0, 5.0], "prediction": [2.0, 4.0]})
    more = pl.concat([known, pl.DataFrame({"entity": [3], "label": [None], "prediction": [9.0]}, schema=known.schema)])
    assert KIND.score(more, section()) == KIND.score(known, section())


def test_the_baseline_is_the_mean_without_an_offset_and_the_scaled_offset_with_one():
    data = rows()
    target = data.target.to_numpy()
    mean = fit(data, "naive", section()).predict(data.features)
    assert mean == pytest.approx(np.full(300, target.mean()))
    guess = fit(data, "naive", section(offset="past")).predict(data.features)
    assert guess.sum() == pytest.approx(target.sum())
    assert np.ptp(guess / data.features["past"]) == pytest.approx(0, abs=1e-12)


def test_a_missing_offset_counts_as_a_guess_of_zero():
    features = pd.DataFrame({"past": [10.0, np.nan, 30.0]})
    model = OffsetRegressor(DummyRegressor(strategy="constant", constant=0), "past").fit(features, np.array([5.0, 0.0, 15.0]))
    assert model.predict(features) == pytest.approx([5.0, 0.0, 15.0])


def test_trees_learn_what_the_offset_leaves_over_better_than_the_whole():
    data, later = rows(), rows(seed=1)
    errors = {}
    for offset in (None, "past"):
        where = section(offset=offset)
        errors[offset] = KIND.score(KIND.predict(fit(data, "lightgbm", where), later, DAY, where), where)["rmse"]
    assert errors["past"] < errors[None]


def test_offsets_given_as_a_list_are_searched_and_the_baseline_takes_the_first_that_is_one():
    where = section(offset=[None, "past"])
    assert KIND.space(where)["ridge"]["offset"].values == (None, "past")
    assert "offset" not in KIND.space(where)["naive"]
    assert isinstance(fit(rows(), "naive", where), OffsetRegressor)
    assert not isinstance(fit(rows(), "ridge", where), OffsetRegressor)
    assert isinstance(fit(rows(), "ridge", where, offset="past"), OffsetRegressor)


def test_an_offset_that_is_no_feature_is_refused_with_the_nearest_name():
    with pytest.raises(ParamsError, match=r"pipeline\.offset = pst: no such feature; did you mean past\?"):
        fit(rows(), "ridge", section(offset="pst"))


def test_no_labelled_row_is_refused_with_the_cutoffs():
    data = rows()
    with pytest.raises(DataError, match=r"no labelled row to learn from at the cutoffs 2023-01-01\. Give more history"):
        KIND.fit(data, [date(2023, 1, 1)], {"model": "naive"}, section(), 0)


def test_slices_that_are_no_features_are_refused_with_the_nearest_name():
    with pytest.raises(ParamsError, match=r"evaluate\.slices = extr: no such feature; did you mean extra\?"):
        KIND.slices(rows(), DAY, ["extr"], section())


def test_plots_count_every_row_once_and_centre_on_the_residuals():
    data, where = rows(), section()
    model, naive = fit(data, "ridge", where), fit(data, "naive", where)
    found, baseline = (KIND.predict(each, data, DAY, where).with_columns(cutoff=pl.lit(DAY)) for each in (model, naive))
    plots = KIND.plots(found, baseline, model, data, where)
    assert plots["error_by_prediction"].group_by("series").agg(pl.col("rows").sum())["rows"].to_list() == [300, 300]
    shares = plots["residuals"].filter(pl.col("series") == "model")["share"]
    assert 0.98 <= shares.sum() <= 1
    assert plots["predicted_actual"].height == 300


@pytest.mark.parametrize(
    ("draw", "long"),
    [
        (lambda random: random.lognormal(3, 1, 500), True),
        (lambda random: random.normal(100, 5, 500), False),
        (lambda random: random.lognormal(3, 1, 500) - 20, False),
        (lambda random: np.where(random.random(500) < 0.05, 1.0, 0.0), False),
        (lambda random: np.full(500, 7.0), False),
    ],
)
def test_only_amounts_with_a_long_tail_are_learned_by_their_logarithm(draw, long):
    assert has_long_tail(draw(np.random.default_rng(0))) == long


def test_auto_learns_the_logarithm_where_there_is_a_long_tail():
    data, config = rows(), {"model": "ridge", "target_log": "auto"}
    assert not isinstance(KIND.fit(data, [DAY], config, section(), 0), LogRegressor)
    long = replace(data, target=(data.target / 20).exp())
    assert isinstance(KIND.fit(long, [DAY], config, section(), 0), LogRegressor)


def test_of_rows_a_half_life_old_a_half_are_learned_from_and_all_of_the_newest():
    days = [date(2024, 1, 1), date(2024, 1, 31), date(2024, 3, 1)]
    cutoff = pl.Series("cutoff", [day for day in days for _ in range(4000)])
    count = len(cutoff)
    rows = Rows(
        pl.Series("who", range(count)), cutoff, pl.Series("target", [1.0] * count), pd.DataFrame({"x": np.arange(count) * 1.0})
    )
    kept = aged(rows, 30.0, 0)
    shares = [(kept.cutoff == day).sum() / 4000 for day in days]
    assert shares == pytest.approx([0.25, 0.5, 1.0], abs=0.03)
    assert kept.features["x"].tolist() == kept.entity.to_list()
    assert aged(rows, None, 0) is rows
