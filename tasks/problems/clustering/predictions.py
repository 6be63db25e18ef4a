"""Groups of rows. No label ever judges one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName, Tabular
from evergreen.tasks.core.columns import is_number, numbers, texts
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.prediction_type import Context
from evergreen.tasks.problems.tabular.predictions import RowPredictions

COORDINATE = "x"
"""Columns of the coordinates that distances are taken in: this, then their number."""


class Segments(RowPredictions):
    """`prediction`: the group of a row.

    Context: `features`, the numbers among them; `centre` and `spread` of each after the signed logarithm; `groups`: name ->
    its centre.
    """

    name: KindName = "clustering"
    metrics = (Metric("silhouette"), Metric("davies_bouldin", greater_is_better=False, scale="positive"), Metric("stability"))
    caveat = "Groups are one way to describe the rows; other numbers of groups are possible."
    aspect = "segments"

    def question(self, name: str, columns: Mapping[str, str | None]) -> str:
        return f"What kinds of rows does {name} have?"

    def score(self, predictions: pl.DataFrame, section: Tabular) -> dict[str, float]:
        """Mean silhouette and the Davies-Bouldin index.

        A row's silhouette is the one it has among all rows of its window: on a resample the distances are not taken again, so
        the bootstrap is cheap and leaves out only how the resample changes its rows' neighbourhoods.
        """
        names = [name for name in predictions.columns if name.startswith(COORDINATE)]
        points = np.column_stack([predictions[name].to_numpy() for name in names])
        silhouette = predictions["silhouette"].to_numpy()
        return {
            "silhouette": float(silhouette.mean()) if len(silhouette) else np.nan,
            "davies_bouldin": davies_bouldin(points, predictions["cluster"].to_numpy()),
        }

    def comparable(self, rows: pl.DataFrame, features: pl.DataFrame | None, context: Context) -> pl.DataFrame:
        """`group`, and the `distance` to its centre where the features are known."""
        if "prediction" not in rows.columns:
            return pl.DataFrame()
        group, names = texts(rows["prediction"]), context.get("features", [])
        if features is None or not names or any(name not in features.columns for name in names):
            return pl.DataFrame({"group": group})
        points, nowhere = _points(features, context), [np.nan] * len(names)
        centre = np.array([context["groups"].get(name, nowhere) for name in group], dtype=float).reshape(points.shape)
        distance = np.sqrt(np.square(points - centre).mean(axis=1))
        return pl.DataFrame({"group": group, "distance": pl.Series(distance, nan_to_null=True)})

    def context_of_rows(self, rows: pl.DataFrame, features: pl.DataFrame | None) -> dict[str, Any]:
        if features is None or "prediction" not in rows.columns:
            return {}
        numeric = [name for name, dtype in features.schema.items() if is_number(dtype)]
        if not numeric:
            return {}
        found: dict[str, Any] = {"features": numeric, "centre": [0.0] * len(numeric), "spread": [1.0] * len(numeric)}
        logs = _points(features, found)
        found["centre"] = logs.mean(axis=0).tolist()
        found["spread"] = np.maximum(logs.std(axis=0), 1e-9).tolist()
        points, names = _points(features, found), texts(rows["prediction"])
        known = names.drop_nulls().unique().sort()
        return found | {"groups": {name: points[(names == name).to_numpy()].mean(axis=0).tolist() for name in known}}


PREDICTIONS = Segments()


def davies_bouldin(points: np.ndarray, cluster: np.ndarray) -> float:
    """Mean over groups of the worst ratio of scatter to distance between centres; small is good. NaN for fewer than two groups.

    Davies and Bouldin (1979).
    """
    names, place = np.unique(cluster, return_inverse=True)
    if len(names) < 2:
        return np.nan
    sizes = np.bincount(place)
    centres = np.column_stack([np.bincount(place, weights=column) / sizes for column in points.T])
    scatter = np.bincount(place, weights=np.sqrt(((points - centres[place]) ** 2).sum(axis=1))) / sizes
    apart = np.sqrt(((centres[:, None] - centres[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    ratios = (scatter[:, None] + scatter[None]) / np.where(apart == 0, np.nan, apart)
    return float(np.nanmax(ratios, axis=1).mean())


def _points(features: pl.DataFrame, context: Context) -> np.ndarray:
    """Rows of features as points: the signed logarithm, then in standard deviations from the mean; a missing one is at it."""
    columns = [numbers(features[name])[0] for name in context["features"]]
    logs = np.column_stack([np.sign(each) * np.log1p(np.abs(each)) for each in columns])
    return np.nan_to_num((logs - np.asarray(context["centre"])) / np.asarray(context["spread"]))
