"""Clustering: what kinds there are. Groups are judged by how well they separate and by whether they come back."""

from collections.abc import Sequence
from datetime import date
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import polars as pl
from sklearn.base import BaseEstimator, ClusterMixin, MetaEstimatorMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, pairwise_distances_chunked
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type
from evergreen.tasks.config.params import Range, Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.problems.base import Config, Fold, Kind, Model, Part
from evergreen.tasks.problems.clustering.predictions import COORDINATE, Segments
from evergreen.tasks.problems.tabular.model_families import Family
from evergreen.tasks.problems.tabular.rows import Rows
from evergreen.tasks.problems.tabular.tabular_kind import TabularKind

RESAMPLES = 20
"""Bootstrap fits behind `stability`."""
REFERENCES = 4000
"""Silhouettes are exact up to that many rows; above it distances are taken to so many rows, evenly chosen."""
POINTS = 800


@stored_type
class QuantileGroups(ClusterMixin, BaseEstimator):
    """Groups of equal size by the first coordinate alone."""

    def __init__(self, n_clusters: int = 4) -> None:
        self.n_clusters = n_clusters

    def fit(self, X: np.ndarray, y: Any = None) -> "QuantileGroups":
        self.edges_ = np.quantile(X[:, 0], np.arange(1, self.n_clusters) / self.n_clusters)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return np.searchsorted(self.edges_, X[:, 0], side="right")


@stored_type
class Segmenter(MetaEstimatorMixin, ClusterMixin, BaseEstimator):
    """The steps before and the clusterer, with labels that keep their meaning: 0 has the lowest mean first coordinate."""

    def __init__(self, prepare: Any = None, clusterer: Any = None) -> None:
        self.prepare = prepare
        self.clusterer = clusterer

    def fit(self, X: pd.DataFrame, y: Any = None) -> "Segmenter":
        prepare: Any = clone(self.prepare)
        clusterer: Any = clone(self.clusterer)
        points = prepare.fit_transform(X)
        self.dimensions_ = points.shape[1]
        self.prepare_, self.clusterer_ = prepare, clusterer.fit(points)
        found = self.clusterer_.predict(points)
        names = np.unique(found)
        order = np.argsort([points[found == name, 0].mean() for name in names], kind="stable")
        self.labels_in_order_ = names[order]
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        """The coordinates in which distances are taken."""
        check_is_fitted(self)
        return self.prepare_.transform(X)

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self.group(self.transform(X))

    def group(self, points: np.ndarray) -> np.ndarray:
        """Labels of coordinates that `transform` gave. A group that was empty in training counts as the last."""
        found = self.clusterer_.predict(points)
        matches = found[:, None] == self.labels_in_order_
        return np.where(matches.any(axis=1), matches.argmax(axis=1), len(self.labels_in_order_) - 1)


class Clustering(Segments, TabularKind):
    baseline = "quantiles"
    supervised = False
    families: ClassVar = {
        "quantiles": Family(QuantileGroups, stage="baseline"),
        "kmeans": Family(
            KMeans, {"n_init": 10}, {"n_clusters": 4}, {"n_clusters": Range(low=3, high=8, integer=True)}, stage="linear"
        ),
        "mixture": Family(
            GaussianMixture,
            {"n_init": 3, "reg_covar": 1e-3},
            {"n_components": 4, "covariance_type": "diag"},
            {"n_components": Range(low=3, high=8, integer=True), "covariance_type": Range(values=("diag", "full"))},
            stage="trees",
        ),
    }
    plain: ClassVar = families

    def cutoffs(self, data: Rows) -> list[date]:
        """All that there are: their horizon is over, so clustering is judged on the same days as its neighbours."""
        return [] if data.cutoff is None else data.cutoff.unique().sort().to_list()

    def space(self, section: Tabular) -> dict[str, dict[str, Range]]:
        if wrong := {"univariate", "model"} & set(section.pipeline.select):
            raise ParamsError(
                f"pipeline.select = {wrong.pop()}: needs a target, and clustering has none; choose none or variance"
            )
        if pairs := max(section.pipeline.column_pairs):
            raise ParamsError(
                f"pipeline.column_pairs = {pairs}: pairs are selected by the target, and clustering has none; set 0"
            )
        return super().space(section)

    def fit(self, data: Rows, parts: Sequence[Part], config: Config, section: Tabular, seed: int) -> Model:
        """A Segmenter. Raises DataError where there are fewer rows than groups."""
        rows = self.training_rows(data, parts, section, seed)
        whole: Pipeline = self.assemble(rows, config, section, "none", seed)
        clusterer = whole.named_steps["model"]
        groups = getattr(clusterer, "n_clusters", getattr(clusterer, "n_components", 2))
        if len(rows) < 2 * groups:
            raise DataError(f"{len(rows)} rows to make {groups} groups of; give more history or fewer groups in tune.space.")
        return Segmenter(whole.named_steps["prepare"], clusterer).fit(rows.features)

    def predict(self, model: Model, data: Rows, part: Part, section: Tabular) -> pl.DataFrame:
        """`entity`, `label` (always missing), `cluster`, `silhouette` of the row, coordinates `x0`, `x1`, ..."""
        rows = data.at([part])
        points = model.transform(rows.features) if len(rows) else np.empty((0, model.dimensions_))
        cluster = model.group(points) if len(rows) else np.empty(0, dtype=int)
        return pl.DataFrame(
            {"entity": rows.entity, "label": rows.target, "cluster": cluster, "silhouette": silhouettes(points, cluster)}
            | {f"{COORDINATE}{place}": column for place, column in enumerate(points.T)}
        )

    def score_model(
        self, model: Model, data: Rows, fold: Fold, config: Config, section: Tabular, seed: int
    ) -> dict[str, float]:
        """`stability`: the mean adjusted Rand index between the groups at the test cutoff by `model`, and by models of the same
        configuration from bootstrap resamples of the training entities. 1: the same groups each time; 0: no better than chance.

        `model`'s own preparation is kept, so that this speaks of the groups alone.
        """
        rows = data.at(fold.train)
        points, judged = model.transform(rows.features), model.transform(data.at([fold.test]).features)
        labels = model.clusterer_.predict(judged)
        entities, owner = np.unique(rows.entity.to_numpy(), return_inverse=True)
        draws = np.random.default_rng(seed)
        found = []
        for _ in range(RESAMPLES):
            times = np.bincount(draws.integers(0, len(entities), len(entities)), minlength=len(entities))
            other: Any = clone(model.clusterer)
            other.fit(np.repeat(points, times[owner], axis=0))
            found.append(adjusted_rand_score(labels, other.predict(judged)))
        return {"stability": float(np.mean(found))}

    @property
    def importance_metric(self) -> str:
        return "share of rows that change their group"

    def importance_loss(self, whole: pl.DataFrame, shuffled: pl.DataFrame, section: Tabular) -> float:
        return float(np.mean((whole["cluster"] != shuffled["cluster"]).to_numpy()))

    def plots(
        self, predictions: pl.DataFrame, baseline: pl.DataFrame, model: Model, data: Rows, section: Tabular
    ) -> dict[str, pl.DataFrame]:
        """Profiles, projection and silhouettes at the newest test cutoff."""
        newest: Any = predictions["cutoff"].max()
        shown = predictions.filter(pl.col("cutoff") == newest)
        return {
            "profile": _profile(shown, data.at([newest])),
            "projection": _projection(shown),
            "silhouettes": _sorted_silhouettes(shown),
        }


KIND: Kind = Clustering()


def silhouettes(points: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """How much nearer each row is to its own group than to the next one, from -1 to 1; 0 in a group of one or without a second.

    Rousseeuw (1987), with distances to at most REFERENCES rows.
    """
    groups = np.unique(cluster)
    if len(groups) < 2:
        return np.zeros(len(points))
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), REFERENCES)).astype(int))
    member = (cluster[chosen][:, None] == groups).astype(float)
    sums = np.vstack([part @ member for part in pairwise_distances_chunked(points, points[chosen])])
    own = cluster[:, None] == groups
    others = member.sum(axis=0) - own * np.isin(np.arange(len(points)), chosen)[:, None]
    means = sums / np.maximum(others, 1)
    inside = means[own]
    nearest = np.where(own | (others == 0), np.inf, means).min(axis=1)
    alone = (others[own] == 0) | ~np.isfinite(nearest)
    widest = np.maximum(inside, nearest)
    return np.where(alone | (widest == 0), 0.0, (nearest - inside) / np.where(alone | (widest == 0), 1.0, widest))


def _profile(shown: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    """One row per group and feature: its mean, and how many standard deviations that lies from the mean of all."""
    names = rows.features.select_dtypes("number").columns.tolist()
    columns = {"entity": rows.entity} | {name: pl.Series(rows.features[name].to_numpy(), nan_to_null=True) for name in names}
    long = (
        pl.DataFrame(columns)
        .join(shown.select("entity", "cluster"), on="entity")
        .unpivot(names, index="cluster", variable_name="feature")
    )
    overall = long.group_by("feature", maintain_order=True).agg(overall=pl.col("value").mean(), spread=pl.col("value").std())
    sizes = shown.group_by("cluster").agg(rows=pl.len()).with_columns(share=pl.col("rows") / len(shown))
    return (
        long.group_by("cluster", "feature", maintain_order=True)
        .agg(mean=pl.col("value").mean())
        .join(overall, on="feature", maintain_order="left")
        .join(sizes, on="cluster", maintain_order="left")
        .with_columns(deviations=((pl.col("mean") - pl.col("overall")) / pl.col("spread")).fill_nan(0.0))
        .select("cluster", "rows", "share", "feature", "mean", "overall", "deviations")
        .sort("cluster", maintain_order=True)
    )


def _projection(shown: pl.DataFrame) -> pl.DataFrame:
    """At most POINTS rows on the two directions that the coordinates vary most in."""
    points = shown.select(pl.col(f"^{COORDINATE}[0-9]+$")).to_numpy()
    flat = PCA(n_components=min(2, *points.shape), random_state=0).fit_transform(points)
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).astype(int))
    second = flat[kept, 1] if flat.shape[1] > 1 else np.zeros(len(kept))
    return pl.DataFrame({"cluster": shown["cluster"].to_numpy()[kept], "first": flat[kept, 0], "second": second})


def _sorted_silhouettes(shown: pl.DataFrame) -> pl.DataFrame:
    """The silhouettes of each group, from high to low, at most POINTS rows in all."""
    step = max(1, len(shown) // POINTS)
    ordered = shown.select("cluster", "silhouette").sort("cluster", "silhouette", descending=[False, True])
    return ordered.gather_every(step).with_row_index("place")
