"""How much a shadow's predictions resemble the champion's on the same requests. Pure."""

import numpy as np
import polars as pl

from evergreen.monitoring.rollout.sequential_tests import Overlap
from evergreen.tasks.core import intervals
from evergreen.tasks.problems.prediction_type import PredictionType
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX, RolloutState

MOST = 5_000
"""Newest requests that are compared."""
CONFIDENCE = 0.95


def measure_overlap(kind: PredictionType, rows: pl.DataFrame, stands: RolloutState, seed: int = 0) -> Overlap | None:
    """Of the newest requests in `rows` of the ledger that both versions answered. None without such a request, and for a kind
    that has no such measure."""
    pairs, shadows = pair_with_shadow(rows, stands)
    if pairs.is_empty():
        return None
    found = kind.resemblance(pairs, shadows)
    if found is None:
        return None
    return summarise(pairs.select(entity=pl.coalesce("entity", "id"), value=pl.Series(found)), seed)


def summarise(each: pl.DataFrame, seed: int = 0) -> Overlap:
    """`each`: entity, and the overlap (value) of both versions' lists for one of its requests."""
    mean = _mean_over_users(each)
    without = [_mean_over_users(part) for (part,) in intervals.leave_out([each], seed)]
    low, high, why = intervals.interval(mean, without, CONFIDENCE, "share")
    users = each["entity"].n_unique()
    return Overlap(mean=mean, low=None if why else low, high=None if why else high, users=users, requests=each.height)


def pair_with_shadow(rows: pl.DataFrame, stands: RolloutState) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The newest requests that both versions answered: the champion's rows, and in their order the shadow's."""
    asked = pl.col("id").str.strip_suffix(SHADOW_SUFFIX)
    shadows = rows.filter(pl.col("variant") == "shadow", pl.col("version") == stands.candidate).tail(MOST).with_columns(asked)
    champions = rows.filter(pl.col("variant") == "champion", pl.col("version") == stands.champion)
    pairs = shadows.select("id").join(champions, on="id", maintain_order="left")
    return pairs, pairs.select("id").join(shadows, on="id", maintain_order="left")


def _mean_over_users(each: pl.DataFrame) -> float:
    return float(np.mean(each.group_by("entity").agg(pl.col("value").mean())["value"].to_numpy()))
