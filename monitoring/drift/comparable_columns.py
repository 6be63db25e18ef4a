"""Features, answers and truths as columns that can be compared: of a ledger's rows, and of rows a version learned from."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.drift import histograms
from evergreen.monitoring.drift.histograms import Form
from evergreen.tasks.config.params import KindName, Role

Reads = Mapping[str, Any]
"""What it takes to read answers beside the answers. clustering: features, centre and spread of each after the signed logarithm,
groups (name -> its centre). recommendation: bits (item -> how rare it is among buyers), rarest (of any other item)."""
ITEMS = "_items"
"""Column with a list's items: its entries are what coverage counts; they are no column to compare."""


def features(frame: pl.DataFrame, roles: Mapping[str, Role], at: pl.Series | None) -> pl.DataFrame:
    """`frame` with words by their number and dates by their age in days at `at` (None: as days since 1970)."""
    moments = histograms.numbers(at)[0] if at is not None else None
    made = []
    for name in frame.columns:
        if roles.get(name) == "text":
            made.append(histograms.texts(frame[name]).str.split(" ").list.len().alias(name))
        elif roles.get(name) == "date":
            days = histograms.numbers(_moments(frame[name]))[0]
            made.append(pl.Series(name, days if moments is None else moments - days, nan_to_null=True))
        else:
            made.append(frame[name])
    return pl.DataFrame(made)


def _moments(values: pl.Series) -> pl.Series:
    """Dates; those that came as text are read."""
    if values.dtype == pl.String:
        return values.str.slice(0, 19).str.replace(" ", "T").str.to_datetime(strict=False, format=None, time_unit="us")
    return values


def answers(kind: KindName, rows: pl.DataFrame, points: pl.DataFrame | None, reads: Reads) -> pl.DataFrame:
    """The columns of answers that are compared, in the order of `rows`; without any for rows that hold no answer.

    classification: probability_<class> (of two classes: the later one's), else prediction. regression: prediction. clustering:
    group, and distance to its centre where `points` has the features. recommendation: see `_lists`.
    """
    if kind == "recommendation":
        return _lists(rows, reads)
    named = sorted(name for name in rows.columns if name.startswith("probability_"))
    if kind == "classification" and named:
        return rows.select(pl.col(named[1:] if len(named) == 2 else named).cast(pl.Float64, strict=False))
    if "prediction" not in rows.columns:
        return pl.DataFrame()
    if kind == "regression":
        return rows.select(pl.col("prediction").cast(pl.Float64, strict=False))
    if kind == "classification":
        return pl.DataFrame({"prediction": histograms.texts(rows["prediction"])})
    return _groups(histograms.texts(rows["prediction"]), points, reads)


def truths(kind: KindName, values: pl.Series) -> pl.DataFrame:
    """The column label; none for groups and lists."""
    if kind == "regression":
        return pl.DataFrame({"label": values.cast(pl.Float64, strict=False)})
    if kind == "classification":
        return pl.DataFrame({"label": histograms.texts(values).str.replace(r"^(-?\d+)\.0+$", "$1")})
    return pl.DataFrame()


def form(values: pl.Series) -> Form:
    """How a column is compared, by its type."""
    dtype = values.dtype
    return "number" if dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean else "category"


def _groups(group: pl.Series, points: pl.DataFrame | None, reads: Reads) -> pl.DataFrame:
    names = reads.get("features", [])
    if points is None or not names or any(name not in points.columns for name in names):
        return pl.DataFrame({"group": group})
    where, centres = placed(points, reads), reads["groups"]
    nowhere = [np.nan] * len(names)
    centre = np.array([centres.get(name, nowhere) for name in group], dtype=float).reshape(where.shape)
    distance = np.sqrt(np.square(where - centre).mean(axis=1))
    return pl.DataFrame({"group": group, "distance": pl.Series(distance, nan_to_null=True)})


def placed(points: pl.DataFrame, reads: Reads) -> np.ndarray:
    """Rows of features as points: the signed logarithm, then in standard deviations from the mean; a missing one is at it."""
    columns = [histograms.numbers(points[name])[0] for name in reads["features"]]
    logs = np.column_stack([np.sign(each) * np.log1p(np.abs(each)) for each in columns])
    return np.nan_to_num((logs - np.asarray(reads["centre"])) / np.asarray(reads["spread"]))


def grouping(points: pl.DataFrame, group: pl.Series) -> dict[str, Any]:
    """The Reads of groups, from rows of features and the group of each: their numbers alone are looked at."""
    numeric = [name for name in points.columns if form(points[name]) == "number"]
    if not numeric:
        return {}
    reads: dict[str, Any] = {"features": numeric, "centre": [0.0] * len(numeric), "spread": [1.0] * len(numeric)}
    logs = placed(points, reads)
    reads["centre"] = logs.mean(axis=0).tolist()
    reads["spread"] = np.maximum(logs.std(axis=0), 1e-9).tolist()
    where, names = placed(points, reads), histograms.texts(group)
    known = names.drop_nulls().unique().sort()
    return reads | {"groups": {name: where[(names == name).to_numpy()].mean(axis=0).tolist() for name in known}}


def rarities(lines: pl.DataFrame, until: date) -> dict[str, Any]:
    """The Reads of lists, from purchases (user, item, day) up to `until`: bits = -log2 of the share of users who bought it."""
    known = lines.filter(pl.col("day") <= until).select("user", "item").unique()
    users = max(known["user"].n_unique(), 1)
    buyers = known.group_by("item").len().filter(pl.col("len") > 1).sort("item")
    bits = (-(buyers["len"] / users).log(2)).round(3)
    return {"bits": dict(zip(buyers["item"].cast(pl.String), bits, strict=True)), "rarest": float(np.log2(users))}


def repeats(rows: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """`rows` (entity, cutoff or at, items) with repeats: share of a list that its user had bought.

    `lines`: every purchase (user, item, day).
    """
    name = _items(rows)
    if name is None or "repeats" in rows.columns:
        return rows
    day = pl.coalesce(*(pl.col(each).cast(pl.Date) for each in ("cutoff", "at") if each in rows.columns))
    long = rows.select(pl.col("entity").cast(pl.String), day.alias("known"), pl.col(name).alias("item")).with_row_index("row")
    long = long.explode("item").with_columns(pl.col("item").cast(pl.String)).drop_nulls("item")
    first = lines.select(pl.col("user").cast(pl.String).alias("entity"), pl.col("item").cast(pl.String), "day")
    first = first.join(long.select("entity", "item").unique(), on=["entity", "item"], how="semi")
    first = first.group_by("entity", "item").agg(pl.col("day").min())
    share = (pl.col("day") <= pl.col("known")).fill_null(False).mean().alias("repeats")
    found = long.join(first, on=["entity", "item"], how="left").group_by("row").agg(share)
    return rows.with_row_index("row").join(found, on="row", how="left", maintain_order="left").drop("row")


def _items(rows: pl.DataFrame) -> str | None:
    return next((name for name in ("items", "prediction") if name in rows.columns and rows[name].dtype == pl.List), None)


def _lists(rows: pl.DataFrame, reads: Reads) -> pl.DataFrame:
    """Of each list popularity (minus the mean bits of its items), repeats where the rows say so, and ITEMS."""
    name = _items(rows)
    if name is None:
        return pl.DataFrame()
    bits = reads.get("bits", {})
    known = pl.DataFrame({"item": list(bits), "bits": list(bits.values())}, {"item": pl.String, "bits": pl.Float64})
    items = rows.select(pl.col(name).cast(pl.List(pl.String)).alias("item"))
    long = items.with_row_index("row").explode("item").drop_nulls("item").join(known, on="item", how="left")
    mean = long.group_by("row").agg(-pl.col("bits").fill_null(reads.get("rarest", 0.0)).mean())
    order = pl.DataFrame({"row": pl.Series(range(rows.height), dtype=pl.UInt32)})
    found = {"popularity": order.join(mean, on="row", how="left", maintain_order="left")["bits"]}
    if "repeats" in rows.columns:
        found["repeats"] = rows["repeats"].cast(pl.Float64, strict=False)
    return pl.DataFrame(found | {ITEMS: items["item"]})


def coverage(lists: pl.Series, chosen: np.ndarray) -> float:
    """How many items there are in the `chosen` of `lists`."""
    return float(lists.gather(chosen).explode().drop_nulls().n_unique())
