"""Groups of rows. No label ever judges one."""

from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.columns import is_number, numbers, texts
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.prediction_type import Context
from evergreen.tasks.problems.tabular.predictions import RowPredictions


class Segments(RowPredictions):
    """`prediction`: the group of a row.

    Context: `features`, the numbers among them; `centre` and `spread` of each after the signed logarithm; `groups`: name ->
    its centre.
    """

    name: KindName = "clustering"
    metrics = (Metric("silhouette"), Metric("davies_bouldin", greater_is_better=False), Metric("stability"))
    caveat = "Groups are a way to look at the rows, not a truth about them; other numbers of groups are possible."
    aspect = "segments"

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


def _points(features: pl.DataFrame, context: Context) -> np.ndarray:
    """Rows of features as points: the signed logarithm, then in standard deviations from the mean; a missing one is at it."""
    columns = [numbers(features[name])[0] for name in context["features"]]
    logs = np.column_stack([np.sign(each) * np.log1p(np.abs(each)) for each in columns])
    return np.nan_to_num((logs - np.asarray(context["centre"])) / np.asarray(context["spread"]))
