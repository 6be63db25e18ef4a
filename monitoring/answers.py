"""Answers and truths as columns that can be compared: of a ledger's rows, and of the rows a version was judged on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from monitoring import sketch
from monitoring.sketch import Form
from tasks.params import KindName

Reads = Mapping[str, Any]
"""What it takes to read answers beside the answers. clustering: features, centre and spread of each after the signed logarithm,
groups (name -> its centre). recommendation: catalogue (number of items), bits (item -> how rare it is)."""


def answers(kind: KindName, rows: pl.DataFrame, features: pl.DataFrame | None, reads: Reads) -> pl.DataFrame:
    """The columns of answers that are compared, in the order of `rows`; without any for rows that hold no answer.

    classification: probability_<class> of all but one class (of two: the later one), else prediction. regression: prediction.
    clustering: group, distance to its centre. recommendation: see `lists`.
    """
    if kind == "classification":
        named = sorted(name for name in rows.columns if name.startswith("probability_"))
        if named:
            return rows.select(named[1:] if len(named) == 2 else named).cast(pl.Float64, strict=False)
        return (
            rows.select(sketch.texts(rows["prediction"]).alias("prediction"))
            if "prediction" in rows.columns
            else pl.DataFrame()
        )
    if kind == "regression":
        return (
            rows.select(pl.col("prediction").cast(pl.Float64, strict=False)) if "prediction" in rows.columns else pl.DataFrame()
        )
    if kind == "clustering":
        return _groups(rows, features, reads)
    return lists(rows, reads)


def truths(kind: KindName, rows: pl.DataFrame) -> pl.DataFrame:
    """The column label, of the rows of `rows` whose truth is known; none for groups and lists."""
    if kind not in ("classification", "regression") or "truth" not in rows.columns:
        return pl.DataFrame()
    values = sketch.texts(rows["truth"]) if kind == "classification" else rows["truth"].cast(pl.Float64, strict=False)
    return pl.DataFrame({"label": values})


def form(kind: KindName, column: str) -> Form:
    if column == "label":
        return "category" if kind == "classification" else "number"
    return "category" if column == "group" or (column == "prediction" and kind == "classification") else "number"


def _groups(rows: pl.DataFrame, features: pl.DataFrame | None, reads: Reads) -> pl.DataFrame:
    if "prediction" not in rows.columns:
        return pl.DataFrame()
    group = sketch.texts(rows["prediction"])
    found = {"group": group}
    names = reads.get("features", [])
    if features is not None and names and all(name in features.columns for name in names):
        found["distance"] = pl.Series(_distance(group, placed(features, reads), reads))
    return pl.DataFrame(found)


def placed(features: pl.DataFrame, reads: Reads) -> np.ndarray:
    """Rows of features as points: the signed logarithm, then in standard deviations from the mean; a missing one is at it."""
    columns = [sketch.numbers(features[name])[0] for name in reads["features"]]
    logs = np.column_stack([np.sign(each) * np.log1p(np.abs(each)) for each in columns])
    return np.nan_to_num((logs - np.asarray(reads["centre"])) / np.asarray(reads["spread"]))


def _distance(group: pl.Series, points: np.ndarray, reads: Reads) -> np.ndarray:
    """Of each point from the centre of its group; null for a group that is not known."""
    centres = reads["groups"]
    where = np.array([centres.get(name, [np.nan] * points.shape[1]) for name in group], dtype=float).reshape(points.shape)
    return np.sqrt(np.square(points - where).mean(axis=1))


def grouping(features: pl.DataFrame, group: pl.Series) -> dict[str, Any]:
    """What `answers` needs to know of groups, of rows of numbers and the group of each."""
    numeric = [name for name in features.columns if features[name].dtype.is_numeric()]
    if not numeric:
        return {}
    reads: dict[str, Any] = {"features": numeric, "centre": [0.0] * len(numeric), "spread": [1.0] * len(numeric)}
    points = placed(features, reads)
    reads["centre"] = points.mean(axis=0).tolist()
    reads["spread"] = np.maximum(points.std(axis=0), 1e-9).tolist()
    points, names = placed(features, reads), sketch.texts(group)
    reads["groups"] = {
        name: points[(names == name).to_numpy()].mean(axis=0).tolist() for name in names.drop_nulls().unique().sort()
    }
    return reads


def lists(rows: pl.DataFrame, reads: Reads) -> pl.DataFrame:
    """Of each list: popularity (mean number of buyers' bits of its items; more is rarer), repeats (share bought before) where
    the rows say so, and its items."""
    name = next((each for each in ("items", "prediction") if each in rows.columns and rows[each].dtype == pl.List), None)
    if name is None:
        return pl.DataFrame()
    bits = reads.get("bits", {})
    known = pl.DataFrame({"item": list(bits), "bits": list(bits.values())}, {"item": pl.String, "bits": pl.Float64})
    long = rows.select(pl.col(name).alias("item")).with_row_index("row").explode("item").drop_nulls("item")
    long = long.with_columns(pl.col("item").cast(pl.String)).join(known, on="item", how="left")
    mean = long.group_by("row").agg(pl.col("bits").fill_null(reads.get("rarest", 0.0)).mean())
    order = pl.DataFrame({"row": pl.Series(range(rows.height), dtype=pl.UInt32)})
    found = {"rarity": order.join(mean, on="row", how="left", maintain_order="left")["bits"]}
    if "repeats" in rows.columns:
        found["repeats"] = rows["repeats"].cast(pl.Float64, strict=False)
    return pl.DataFrame(found)
