"""How wrong single answers were, for the comparison of two versions on trial. Pure functions of a ledger's rows.

classification   the squared errors of the probabilities, added up (Brier 1950)
regression       the squared error, or the absolute one where the gate's metric is mae
recommendation   1 - NDCG of the list, of binary gain (Järvelin and Kekäläinen 2002)
clustering       nothing is ever true or false of a group
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.rollout.sequential_tests import Losses
from evergreen.tasks.config.params import KindName
from evergreen.tasks.release.rollouts import SHADOW, Standing

PREFIX = "probability_"


def compared(kind: KindName, absolute: bool, rows: pl.DataFrame, stands: Standing, bounds: Sequence[datetime]) -> list[Losses]:
    """Losses of both versions between each two of `bounds`: after the one, up to the next. One value per entity, its mean.

    `rows`: of the ledger, without features. Rows without label are left out. A version in shadow is compared with the
    champion's answers to the very same requests.
    """
    if kind == "clustering" or "label" not in rows.columns:
        return []
    if stands.strategy == "shadow":
        rows = _inherited(rows)
    rows = rows.filter(pl.col("label").is_not_null())
    if rows.is_empty():
        return []
    who = pl.coalesce("entity", pl.col("id").str.strip_suffix(SHADOW)).alias("who")
    place = pl.col("at").map_elements(lambda at: sum(bound < at for bound in bounds), pl.Int64).alias("place")
    told = rows.select("id", "version", "variant", who, place).with_columns(loss=pl.Series(of(kind, absolute, rows)))
    told = told.filter(pl.col("loss").is_not_nan(), pl.col("place").is_between(1, len(bounds) - 1))
    sides = [told.filter(pl.col("version") == stands.champion, pl.col("variant") == "champion")]
    sides.append(told.filter(pl.col("version") == stands.candidate, pl.col("variant").is_in(["candidate", "shadow"])))
    return _pairs(*sides) if stands.strategy == "shadow" else _groups(*sides)


def _inherited(rows: pl.DataFrame) -> pl.DataFrame:
    """A label of the champion's prediction is also that of the prediction in its shadow."""
    known = rows.filter(pl.col("variant") == "champion").select("id", pl.col("label").alias("own"))
    rows = rows.with_columns(pl.col("id").str.strip_suffix(SHADOW).alias("asked"))
    found = rows.join(known, left_on="asked", right_on="id", how="left", maintain_order="left")
    return found.with_columns(pl.coalesce("label", "own").alias("label")).drop("asked", "own")


def _groups(old: pl.DataFrame, new: pl.DataFrame) -> list[Losses]:
    means = [side.group_by("place", "who").agg(pl.col("loss").mean()) for side in (old, new)]
    places = sorted({place for side in means for place in side["place"]})
    stretches = ([side.filter(pl.col("place") == place)["loss"].to_list() for side in means] for place in places)
    return [Losses(before, after) for before, after in stretches]


def _pairs(old: pl.DataFrame, new: pl.DataFrame) -> list[Losses]:
    asked = new.with_columns(pl.col("id").str.strip_suffix(SHADOW))
    both = old.join(asked.select("id", pl.col("loss").alias("new")), on="id")
    means = both.group_by("who", maintain_order=True).agg(pl.col("loss").mean(), pl.col("new").mean())
    return [Losses(means["loss"].to_list(), means["new"].to_list(), paired=True)] if len(means) else []


def of(kind: KindName, absolute: bool, rows: pl.DataFrame) -> np.ndarray:
    """The loss of each row, all with a label; NaN where label or answer are not what they should be."""
    if kind == "classification":
        return _brier(rows)
    if kind == "regression":
        gaps = np.abs(_floats(rows["label"]) - _floats(rows["prediction"]))
        return gaps if absolute else gaps**2
    return np.array([_ndcg_lost(*each) for each in zip(rows["items"], rows["label"], strict=True)])


def _brier(rows: pl.DataFrame) -> np.ndarray:
    labels = np.array([_class(value) for value in rows["label"]], dtype=object)
    found = np.ones(rows.height)  # of a class that the version does not know, all of it is missed
    for name in (name for name in rows.columns if name.startswith(PREFIX)):
        chance, mine = np.nan_to_num(_floats(rows[name])), labels == name.removeprefix(PREFIX)
        found += chance**2 - 2 * np.where(mine, chance, 0.0)
    return found


def _class(value: Any) -> str:
    """A class as the names of the probabilities have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _floats(values: pl.Series) -> np.ndarray:
    return values.cast(pl.Float64, strict=False).to_numpy()


def _ndcg_lost(items: Any, bought: Any) -> float:
    wanted = {str(each) for each in bought} if bought is not None and not isinstance(bought, str) else set[str]()
    if not wanted or items is None or not len(items):
        return float("nan")
    gains = [1 / np.log2(place + 2) for place in range(len(items))]
    hits = sum(gain for gain, item in zip(gains, items, strict=True) if str(item) in wanted)
    return 1 - float(hits / sum(gains[: len(wanted)]))
