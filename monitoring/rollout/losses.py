"""Losses of single predictions, for the comparison of two versions in a rollout. Pure functions of a ledger's rows."""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from evergreen.monitoring.rollout.sequential_tests import Losses
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX, RolloutState


def compared(
    kind: Labelled, metric: str | None, rows: pl.DataFrame, stands: RolloutState, bounds: Sequence[datetime]
) -> list[Losses]:
    """Losses of both versions between each two of `bounds`: after the one, up to the next. One value per entity, its mean.

    `metric`: the one that the gate compares. `rows`: of the ledger, without features. Rows without label are left out. A
    version in shadow is compared with the champion's answers to the very same requests.
    """
    if "label" not in rows.columns:
        return []
    if stands.strategy == "shadow":
        rows = _inherited(rows)
    rows = rows.filter(pl.col("label").is_not_null())
    if rows.is_empty():
        return []
    who = pl.coalesce("entity", pl.col("id").str.strip_suffix(SHADOW_SUFFIX)).alias("who")
    place = pl.col("at").map_elements(lambda at: sum(bound < at for bound in bounds), pl.Int64).alias("place")
    told = rows.select("id", "version", "variant", who, place).with_columns(
        loss=pl.Series(kind.losses(rows, rows["label"], metric))
    )
    told = told.filter(pl.col("loss").is_not_nan(), pl.col("place").is_between(1, len(bounds) - 1))
    sides = [told.filter(pl.col("version") == stands.champion, pl.col("variant") == "champion")]
    sides.append(told.filter(pl.col("version") == stands.candidate, pl.col("variant").is_in(["candidate", "shadow"])))
    return _pairs(*sides) if stands.strategy == "shadow" else _groups(*sides)


def _inherited(rows: pl.DataFrame) -> pl.DataFrame:
    """A label of the champion's prediction is also that of the prediction in its shadow."""
    known = rows.filter(pl.col("variant") == "champion").select("id", pl.col("label").alias("own"))
    rows = rows.with_columns(pl.col("id").str.strip_suffix(SHADOW_SUFFIX).alias("asked"))
    found = rows.join(known, left_on="asked", right_on="id", how="left", maintain_order="left")
    return found.with_columns(pl.coalesce("label", "own").alias("label")).drop("asked", "own")


def _groups(old: pl.DataFrame, new: pl.DataFrame) -> list[Losses]:
    means = [side.group_by("place", "who").agg(pl.col("loss").mean()) for side in (old, new)]
    places = sorted({place for side in means for place in side["place"]})
    stretches = ([side.filter(pl.col("place") == place)["loss"].to_list() for side in means] for place in places)
    return [Losses(before, after) for before, after in stretches]


def _pairs(old: pl.DataFrame, new: pl.DataFrame) -> list[Losses]:
    asked = new.with_columns(pl.col("id").str.strip_suffix(SHADOW_SUFFIX))
    both = old.join(asked.select("id", pl.col("loss").alias("new")), on="id")
    means = both.group_by("who", maintain_order=True).agg(pl.col("loss").mean(), pl.col("new").mean())
    return [Losses(means["loss"].to_list(), means["new"].to_list(), paired=True)] if len(means) else []
