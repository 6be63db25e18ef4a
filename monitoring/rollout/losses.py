"""Losses of single predictions, for the comparison of two versions in a rollout. Pure functions of a ledger's rows."""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from evergreen.monitoring.rollout.sequential_tests import Losses
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX, RolloutState


def compared(
    kind: Labelled, metric: str | None, rows: pl.DataFrame, stands: RolloutState, bounds: Sequence[datetime]
) -> Losses | None:
    """Losses of both versions in the periods between two `bounds` (the first exclusive, the second inclusive).

    An entity counts once, with the mean of the losses whose labels became known first: later ones resemble it, and would
    change what was bet on. It counts once per period as the champion's, and once per rollout as the candidate's, which it
    becomes as the share grows. A shadow is compared with the champion on the same requests. `metric`: the gate's. `rows`: of
    the ledger, without features; those without label are dropped. None: there are none with label.
    """
    if "label" not in rows.columns:
        return None
    if stands.strategy == "shadow":
        rows = _inherited(rows)
    rows = rows.with_columns(kind.readable(rows)).filter(pl.col("label").is_not_null())
    if rows.is_empty():
        return None
    kept = rows.select(
        "id",
        "at",
        pl.col("label_at").alias("known"),
        who=pl.coalesce("entity", pl.col("id").str.strip_suffix(SHADOW_SUFFIX)),
        period=pl.col("at").map_elements(lambda at: sum(bound < at for bound in bounds), pl.Int64),
        candidate=(pl.col("version") == stands.candidate) & pl.col("variant").is_in(["candidate", "shadow"]),
        champion=(pl.col("version") == stands.champion) & (pl.col("variant") == "champion"),
    )
    losses = kept.with_columns(loss=pl.Series(kind.losses(rows, rows["label"], metric)))
    losses = losses.filter(
        pl.col("candidate") | pl.col("champion"),
        pl.col("loss").is_not_nan(),
        pl.col("period").is_between(1, len(bounds) - 1),
    )
    single = _pairs(losses) if stands.strategy == "shadow" else _firsts(losses)
    return Losses(single["loss"].to_numpy(), single["candidate"].to_numpy(), single["stratum"].to_numpy(), kind.largest_loss)


def _inherited(rows: pl.DataFrame) -> pl.DataFrame:
    """Copy the labels of the champion's predictions to those of the shadow."""
    known = rows.filter(pl.col("variant") == "champion").select(asked="id", own="label", own_at="label_at")
    rows = rows.with_columns(pl.col("id").str.strip_suffix(SHADOW_SUFFIX).alias("asked"))
    found = rows.join(known, on="asked", how="left", maintain_order="left")
    own = (pl.coalesce(name, other).alias(name) for name, other in (("label", "own"), ("label_at", "own_at")))
    return found.with_columns(*own).drop("asked", "own", "own_at")


def _firsts(losses: pl.DataFrame) -> pl.DataFrame:
    """One row per entity of the champion and period, and per entity of the candidate; in the order in which labels came."""
    once = pl.when("candidate").then(0).otherwise("period")
    losses = losses.with_columns(once.alias("once"))
    first = losses.filter(pl.col("known") == pl.col("known").min().over("candidate", "once", "who"))
    first = first.filter(pl.col("period") == pl.col("period").min().over("candidate", "once", "who"))
    found = first.group_by("candidate", "period", "who").agg(pl.col("loss").mean(), pl.col("known", "at").min())
    return found.sort("known", "at", "who", "candidate").rename({"period": "stratum"})


def _pairs(losses: pl.DataFrame) -> pl.DataFrame:
    """Two rows per entity: both versions' mean loss on the same requests. Each entity is a stratum."""
    asked = pl.col("id").str.strip_suffix(SHADOW_SUFFIX)
    shadow = losses.filter("candidate").select(asked, theirs="loss")
    both = losses.filter("champion").join(shadow, on="id")
    first = both.filter(pl.col("known") == pl.col("known").min().over("who"))
    means = first.group_by("who").agg(pl.col("loss", "theirs").mean(), pl.col("known", "at").min()).sort("known", "at", "who")
    means = means.with_row_index("stratum")
    sides = [means.select("stratum", "loss", candidate=False), means.select("stratum", loss="theirs", candidate=True)]
    return pl.concat(sides).sort("stratum", "candidate")
