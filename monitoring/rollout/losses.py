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
    """Losses of both versions in each period between two `bounds` (the first exclusive, the second inclusive).

    One value per entity, the mean of its losses. `metric`: the gate's. `rows`: of the ledger, without features; those without
    label are dropped. A shadow is compared with the champion on the same requests.
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
    losses = rows.select("id", "version", "variant", who, place).with_columns(
        loss=pl.Series(kind.losses(rows, rows["label"], metric))
    )
    losses = losses.filter(pl.col("loss").is_not_nan(), pl.col("place").is_between(1, len(bounds) - 1))
    sides = [losses.filter(pl.col("version") == stands.champion, pl.col("variant") == "champion")]
    sides.append(losses.filter(pl.col("version") == stands.candidate, pl.col("variant").is_in(["candidate", "shadow"])))
    return _pairs(*sides) if stands.strategy == "shadow" else _groups(*sides)


def _inherited(rows: pl.DataFrame) -> pl.DataFrame:
    """Copy the labels of the champion's predictions to those of the shadow."""
    known = rows.filter(pl.col("variant") == "champion").select("id", pl.col("label").alias("own"))
    rows = rows.with_columns(pl.col("id").str.strip_suffix(SHADOW_SUFFIX).alias("asked"))
    found = rows.join(known, left_on="asked", right_on="id", how="left", maintain_order="left")
    return found.with_columns(pl.coalesce("label", "own").alias("label")).drop("asked", "own")


def _groups(champion: pl.DataFrame, candidate: pl.DataFrame) -> list[Losses]:
    means = [side.group_by("place", "who").agg(pl.col("loss").mean()) for side in (champion, candidate)]
    places = sorted({place for side in means for place in side["place"]})
    stretches = ([side.filter(pl.col("place") == place)["loss"].to_list() for side in means] for place in places)
    return [Losses(before, after) for before, after in stretches]


def _pairs(champion: pl.DataFrame, candidate: pl.DataFrame) -> list[Losses]:
    asked = candidate.with_columns(pl.col("id").str.strip_suffix(SHADOW_SUFFIX))
    both = champion.join(asked.select("id", pl.col("loss").alias("candidate")), on="id")
    means = both.group_by("who", maintain_order=True).agg(pl.col("loss").mean(), pl.col("candidate").mean())
    return [Losses(means["loss"].to_list(), means["candidate"].to_list(), paired=True)] if len(means) else []
