"""What lists that nobody saw would have earned, by the outcome of lists that were served with known propensities. Pure.

The value of a list is how many of its items its user bought after it. An item at a rank counts by its outcome where it
was shown at this rank: its weight is 1 / propensity where it was, else 0. A propensity is the chance at the rank, given the
items above, so an item that could be shown at several ranks is counted at one alone. It is assumed that whether a shown item is
bought depends on the item and its rank, not on the other items (Li et al. 2018), and that served lists were drawn independently
of the lists to be judged.

    ips     inverse propensity scoring: the mean of weight times hit (Horvitz and Thompson 1952)
    snips   the same, divided by the mean weight (Swaminathan and Joachims 2015)
    dr      doubly robust: the mean hit at the rank, by other users, plus its weighted error (Dudik et al. 2011)

ips and dr are unbiased where every item had a chance at its rank. `covered` measures it: the mean weight, whose expectation is
the share of items that had one.
"""

from collections.abc import Sequence

import polars as pl

from evergreen.monitoring.rollout.overlap import pair_with_shadow
from evergreen.tasks.core import intervals
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.release.off_policy_value import OffPolicyEstimate, OffPolicyValue
from evergreen.tasks.release.rollout_state import RolloutState

ESTIMATORS = ("ips", "snips", "dr")
CONFIDENCE = 0.95
FEWEST = 100
"""Effective number of items below which nothing is estimated."""
COVERED = 0.95
"""Where fewer items than this surely had a chance to be shown, nothing is estimated: the others would count as never bought."""
FOLDS = 2
"""Groups of users; the mean hits for `dr` are learned from the others."""


def estimate_shadow(kind: Labelled, rows: pl.DataFrame, stands: RolloutState, seed: int = 0) -> OffPolicyValue | None:
    """Of the lists of a shadow, by the champion's labelled ones of the same requests. `rows`: of the ledger, with labels. None
    without a list that has propensities and a label, and for a kind that predicts no lists.

    A shadow's list with explored items is left out: they were drawn as the champion's of that user and day were, so that they
    are found in the served list for sure and not with their propensity.
    """
    if not {"items", "propensities", "label"} <= set(rows.columns):
        return None
    served, shadows = pair_with_shadow(rows, stands)
    pairs = served.with_columns(kind.readable(served), entity=pl.coalesce("entity", "id"), wanted=shadows["items"])
    if "sources" in shadows.columns:
        pairs = pairs.filter(~shadows["sources"].list.contains("explore").fill_null(False))
    return estimate(pairs, seed)


def estimate(pairs: pl.DataFrame, seed: int = 0, confidence: float = CONFIDENCE) -> OffPolicyValue | None:
    """`pairs`: one row per served list: entity (its user), `items` and `propensities` as served, `wanted` (items of the list to
    be judged) and `label` (what the user bought after it).

    The gain is that over the served lists, which explored; with a column `against` (items of other lists that nobody saw),
    that over the same estimate of those. Lists without propensities, or with propensities that are none, are left out. None:
    no list is left.

    >>> lists = {"items": [["a", "b"]], "propensities": [[0.5, 0.5]], "wanted": [["a", "c"]], "label": [["a", "c"]]}
    >>> found = estimate(pl.DataFrame({"entity": ["u"], **lists}))
    >>> found.estimates[0].value, found.served, found.covered, found.why
    (2.0, 1.0, 1.0, 'too few items: 1 effective, at least 100 are needed')
    """
    usable = _usable(pairs)
    sides = [_judged(usable.with_columns(wanted=name)) for name in ("wanted", "against") if name in usable.columns]
    if sides[0].is_empty():
        return None
    effective, lists = min(_effective(each) for each in sides), sides[0].height
    sides = [each.group_by("entity", maintain_order=True).agg(pl.exclude("entity").mean()) for each in sides]
    without = list(intervals.leave_out(sides, seed)) if effective >= FEWEST else []
    why = _too_few_items(effective)
    for place, side in enumerate(sides):
        spread = intervals.interval(_covered(side), [_covered(parts[place]) for parts in without], confidence)
        why = why or _too_few_covered(_covered(side), spread)
    found = list[OffPolicyEstimate]()
    for name in ESTIMATORS:
        value, gain = _value(sides[0], name), _gain(sides, name)
        each = intervals.interval(value, [_value(parts[0], name) for parts in without], confidence)
        more = intervals.interval(gain, [_gain(parts, name) for parts in without], confidence)
        why = why or each.why or more.why
        found.append(_estimate(name, (value, gain), None if why else (each.low, each.high, more.low, more.high)))
    return OffPolicyValue(
        estimates=tuple(found),
        served=_mean(sides[0], "served"),
        covered=min(_covered(each) for each in sides),
        effective=effective,
        lists=lists,
        users=sides[0].height,
        why=why,
        **({"against": "the champion's lists"} if len(sides) > 1 else {}),
    )


def _effective(lists: pl.DataFrame) -> float:
    """Effective sample size in items (Kish 1965)."""
    weight, squares = float(lists["weight"].sum()), float(lists["squares"].sum())
    return weight**2 / squares if squares else 0.0


def _gain(sides: Sequence[pl.DataFrame], method: str) -> float:
    other = _value(sides[1], method) if len(sides) > 1 else _mean(sides[0], "served")
    return _value(sides[0], method) - other


def _usable(pairs: pl.DataFrame) -> pl.DataFrame:
    names = [name for name in ("items", "wanted", "against", "label") if name in pairs.columns]
    texts = [pl.col(name).cast(pl.List(pl.String)) for name in names]
    found = pairs.select("entity", *texts, pl.col("propensities").cast(pl.List(pl.Float64))).drop_nulls()
    chances = pl.col("propensities").list
    valid = (chances.len() == pl.col("items").list.len()) & (chances.min() > 0) & (chances.max() <= 1)
    judged = [pl.col(name).list.len() > 0 for name in ("wanted", "against") if name in names]
    return found.filter(valid, *judged)


def _judged(pairs: pl.DataFrame) -> pl.DataFrame:
    """One row per list: entity, ips, dr, served, size (of the wanted list), weight and squares (sums of the weights)."""
    names = pairs["entity"].unique().sort()
    fold = dict(zip(names.to_list(), (intervals.group_of(len(names), 0, FOLDS) % FOLDS).tolist(), strict=True))
    rows = pairs.with_row_index("list").with_columns(fold=pl.col("entity").replace_strict(fold, return_dtype=pl.Int64))
    wanted = rows.select("list", "entity", "fold", item="wanted", rank=pl.int_ranges(pl.col("wanted").list.len()))
    wanted = wanted.explode("item", "rank")
    shown = rows.select("list", "items", "propensities", rank=pl.int_ranges(pl.col("items").list.len()))
    shown = shown.explode("items", "propensities", "rank").rename({"items": "item"})
    bought = rows.select("list", item="label").explode("item").drop_nulls().unique().with_columns(hit=pl.lit(1.0))
    shown = shown.join(bought, on=["list", "item"], how="left").with_columns(pl.col("hit").fill_null(0.0))
    long = wanted.join(shown, on=["list", "item", "rank"], how="left")
    long = long.with_columns(weight=(1 / pl.col("propensities")).fill_null(0.0), hit=pl.col("hit").fill_null(0.0))
    long = long.join(_usual_hits(long), on=["rank", "fold"], how="left").with_columns(pl.col("usual").fill_null(0.0))
    found = long.group_by("list", maintain_order=True).agg(
        pl.col("entity").first(),
        ips=(pl.col("weight") * pl.col("hit")).sum(),
        dr=(pl.col("usual") + pl.col("weight") * (pl.col("hit") - pl.col("usual"))).sum(),
        size=pl.len().cast(pl.Float64),
        weight=pl.col("weight").sum(),
        squares=(pl.col("weight") ** 2).sum(),
    )
    return found.join(shown.group_by("list").agg(served=pl.col("hit").sum()), on="list", how="left").drop("list")


def _usual_hits(long: pl.DataFrame) -> pl.DataFrame:
    """rank, fold and `usual`: the weighted mean hit at the rank among the users of the other folds."""
    sums = long.group_by("rank", "fold", maintain_order=True).agg(
        hits=(pl.col("weight") * pl.col("hit")).sum(), weights=pl.col("weight").sum()
    )
    total = sums.group_by("rank", maintain_order=True).agg(all_hits=pl.col("hits").sum(), all_weights=pl.col("weights").sum())
    rest = sums.join(total, on="rank").with_columns(weights=pl.col("all_weights") - pl.col("weights"))
    usual = pl.when(pl.col("weights") > 0).then((pl.col("all_hits") - pl.col("hits")) / pl.col("weights")).otherwise(0.0)
    return rest.select("rank", "fold", usual=usual)


def _value(lists: pl.DataFrame, method: str) -> float:
    if method != "snips":
        return _mean(lists, method)
    weight = _mean(lists, "weight")
    return _mean(lists, "ips") / weight * _mean(lists, "size") if weight > 0 else float("nan")


def _mean(lists: pl.DataFrame, column: str) -> float:
    """Over users, whose rows are means over their lists: one who asks often counts once."""
    return float(lists[column].to_numpy().mean())


def _covered(lists: pl.DataFrame) -> float:
    return _mean(lists, "weight") / _mean(lists, "size")


def _too_few_items(effective: float) -> str:
    enough = effective >= FEWEST
    return "" if enough else f"{intervals.TOO_FEW} items: {effective:.0f} effective, at least {FEWEST} are needed"


def _too_few_covered(covered: float, interval: intervals.Interval) -> str:
    """`interval`: of `covered`."""
    if interval.high < COVERED:
        return f"{intervals.TOO_FEW} of the items had a chance to be shown: {covered:.0%}, at least {COVERED:.0%} are needed"
    return interval.why


def _estimate(method: str, values: tuple[float, float], bounds: tuple[float, float, float, float] | None) -> OffPolicyEstimate:
    """`values`, `bounds`: of the value and of the gain."""
    low, high, gain_low, gain_high = bounds or (None,) * 4
    value, gain = values
    return OffPolicyEstimate(method=method, value=value, low=low, high=high, gain=gain, gain_low=gain_low, gain_high=gain_high)
