from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn import metrics

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.base import Fold
from evergreen.tasks.problems.clustering import kind as clustering
from evergreen.tasks.problems.clustering.kind import KIND, silhouettes
from evergreen.tasks.problems.clustering.predictions import davies_bouldin
from evergreen.tasks.problems.tabular.rows import Rows
from tests.contracts import TabularContract

DAYS = (date(2024, 1, 1), date(2024, 2, 1))


class TestClustering(TabularContract):
    problem = "segments"
    model = "kmeans"
    floor = 0.5
    ceiling = 0.2

    def shuffle(self, frames, draw):
        """Each feature in an order of its own: what kinds there were is gone."""
        rows = frames["rows"]
        mixed = [pl.Series(name, draw.permutation(rows[name].to_numpy())) for name in rows.columns[3:]]
        return {"rows": rows.with_columns(mixed)}


def section(**pipeline):
    """Coordinates stay as they are unless `pipeline` says otherwise."""
    return Tabular.model_validate(
        {
            "question": "Which kinds?",
            "features": {"entity": "id", "horizon_days": 28, "cutoffs": {"first": "2024-01-01"}},
            "pipeline": {"scale": "none", **pipeline},
        }
    )


def blobs(apart=6.0, count=240, seed=0):
    """Three groups `apart` from one another along the first of two coordinates, the same at both cutoffs."""
    draw = np.random.default_rng(seed)
    group = np.arange(count) % 3
    points = np.column_stack([group * apart, np.zeros(count)]) + draw.normal(0, 1, (count, 2))
    points = np.vstack([points, points + draw.normal(0, 0.1, points.shape)])
    return Rows(
        pl.Series(np.tile(np.arange(count), 2)),
        pl.Series([DAYS[0]] * count + [DAYS[1]] * count),
        pl.Series("target", [None] * (2 * count), pl.Float64),
        pd.DataFrame(points, columns=["a", "b"]),
        28,
    ), np.tile(group, 2)


def fit(data, model, where=None, **config):
    where = where or section()
    return KIND.fit(data, DAYS[:1], {**KIND.defaults(model, where), **config}, where, 0)


@pytest.mark.parametrize(("model", "groups"), [("kmeans", {"n_clusters": 3}), ("mixture", {"n_components": 3})])
def test_planted_groups_are_found_and_numbered_from_the_lowest_first_feature(model, groups):
    data, planted = blobs()
    found = KIND.predict(fit(data, model, **groups), data, DAYS[1], section())
    assert metrics.adjusted_rand_score(planted[:240], found["cluster"]) > 0.95
    means = found.group_by("cluster").agg(pl.col("x0").mean()).sort("cluster")["x0"].to_list()
    assert means == sorted(means)


def test_scores_agree_with_the_library():
    data, _ = blobs(apart=3.0)
    model = fit(data, "kmeans", n_clusters=3)
    found = KIND.predict(model, data, DAYS[1], section())
    points = model.transform(data.at([DAYS[1]]).features)
    assert KIND.score(found, section()) == pytest.approx(
        {
            "silhouette": metrics.silhouette_score(points, found["cluster"]),
            "davies_bouldin": metrics.davies_bouldin_score(points, found["cluster"]),
        }
    )


def test_silhouettes_agree_with_the_library_also_for_a_group_of_one():
    draw = np.random.default_rng(0)
    points, cluster = draw.normal(size=(50, 3)), np.append(draw.integers(0, 3, 49), 3)
    assert silhouettes(points, cluster) == pytest.approx(metrics.silhouette_samples(points, cluster))


def test_silhouettes_against_some_of_the_rows_are_close_to_those_against_all(monkeypatch):
    data, planted = blobs(apart=3.0)
    points = data.features.to_numpy()
    exact = silhouettes(points, planted)
    monkeypatch.setattr(clustering, "REFERENCES", 150)
    assert silhouettes(points, planted).mean() == pytest.approx(exact.mean(), abs=0.02)


def test_one_group_alone_has_silhouettes_of_zero_and_no_davies_bouldin():
    points = np.arange(6.0).reshape(3, 2)
    assert silhouettes(points, np.zeros(3, dtype=int)).tolist() == [0, 0, 0]
    assert np.isnan(davies_bouldin(points, np.zeros(3, dtype=int)))


def test_groups_that_are_there_are_stable_and_groups_that_are_not_are_less():
    fold, config = Fold(DAYS[:1], DAYS[1]), {"model": "kmeans", "n_clusters": 3}
    found = {}
    for apart in (6.0, 0.0):
        data, _ = blobs(apart)
        found[apart] = KIND.score_model(fit(data, "kmeans", n_clusters=3), data, fold, config, section(), 0)["stability"]
    assert found[6.0] > 0.95
    assert found[0.0] < 0.8


def test_rows_are_judged_at_every_cutoff():
    data, _ = blobs()
    assert KIND.cutoffs(data) == list(DAYS)


def test_training_rows_count_although_they_have_no_target():
    data, _ = blobs()
    assert KIND.rows(data, DAYS[:1]) == 240


@pytest.mark.parametrize("select", ["univariate", "model"])
def test_a_selection_that_needs_a_target_is_refused(select):
    with pytest.raises(ParamsError, match=rf"pipeline\.select = {select}: needs a target.*choose none or variance"):
        KIND.space(section(select=select))


def test_pairs_of_columns_that_need_a_target_are_refused():
    with pytest.raises(ParamsError, match=r"pipeline\.column_pairs = 8: pairs are selected by the target.*set 0"):
        KIND.space(section(column_pairs=[0, 8]))


def test_too_few_rows_for_the_groups_are_refused():
    data, _ = blobs(count=6)
    with pytest.raises(DataError, match=r"6 rows to make 4 groups of; give more history or fewer groups"):
        fit(data, "kmeans", n_clusters=4)


def test_the_profile_says_how_far_each_group_is_from_the_mean_of_all():
    data, _ = blobs()
    model = fit(data, "kmeans", n_clusters=3)
    found = KIND.predict(model, data, DAYS[1], section()).with_columns(cutoff=pl.lit(DAYS[1]))
    plots = KIND.plots(found, found, model, data, section())
    profile = plots["profile"].filter(pl.col("feature") == "a")
    assert profile["rows"].sum() == 240
    assert profile["share"].sum() == pytest.approx(1)
    assert profile["deviations"].to_list() == pytest.approx([-1.2, 0, 1.2], abs=0.1)
    assert plots["projection"].height == plots["silhouettes"].height == 240
