"""Drift tests of one column: its statistics, and their p in the draws without drift."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from evergreen.monitoring.drift import comparable_columns, histograms, null_distribution
from evergreen.monitoring.drift.histograms import Bins, Categories, Histogram
from evergreen.monitoring.drift.reference_data import Part
from evergreen.monitoring.ledger.records import Aspect

TRIES = 20
"""Coverage is the mean over so many draws of lists from the window."""


@dataclass(frozen=True)
class Test:
    """One statistic of one column, and its p in each draw without drift."""

    column: str
    what: Aspect
    statistic: str
    value: float
    p: float
    effect: float
    reason: str
    drawn: np.ndarray = field(repr=False)
    """Values of the statistic without drift."""
    null: np.ndarray = field(repr=False)
    """The p of each draw, by all statistics of this column."""
    share: float = 1.0
    """Of the p that this statistic alone must reach: down to half where another one is tried beside it."""


def of_coverage(side: Part, lists: pl.Series, size: int, drawn: np.ndarray, seed: int) -> Test:
    """How many items there are in as many lists as those of the draws; as a share of what is usual."""
    random, count = np.random.default_rng(seed), min(side.lists(size), len(lists))
    tries = [comparable_columns.coverage(lists, random.choice(len(lists), count, replace=False)) for _ in range(TRIES)]
    usual, now = float(drawn.mean()), float(np.mean(tries))
    far = np.abs(drawn - usual) / usual
    value = abs(now - usual) / usual
    p = null_distribution.p_values(far, np.array([value, *far]))
    reason = f"{usual:.0f} items in {count} lists to {now:.0f}"
    return Test("coverage", "ranking", "share", value, float(p[0]), value, reason, far, p[1:])


def of_column(name: str, what: Aspect, bins: Bins, was: Histogram, now: Histogram, drawn: dict[str, np.ndarray]) -> list[Test]:
    """The tests of a column whose statistics were `drawn` without drift."""
    found = []
    if was.present and now.present:
        found.append(_values(name, what, bins, was, now, drawn))
    if was.missing or now.missing:
        change = abs(now.missing - was.missing)
        reason = f"{now.missing:.1%} of rows are missing{describe_odd(now)}, {was.missing:.1%} in training"
        found.append(_share(name, "missing", change, reason, drawn["missing"]))
    return found


def describe_odd(now: Histogram) -> str:
    return f" ({now.odd:,} of them not finite numbers)" if now.odd else ""


def _share(name: str, what: Aspect, value: float, reason: str, drawn: np.ndarray) -> Test:
    p = null_distribution.p_values(drawn, np.array([value, *drawn]))
    return Test(name, what, "share", value, float(p[0]), value, reason, drawn, p[1:])


def _values(name: str, what: Aspect, bins: Bins, was: Histogram, now: Histogram, drawn: dict[str, np.ndarray]) -> Test:
    mine, other = (each.counts / each.present for each in (now, was))
    if isinstance(bins, Categories):
        value, effect = float(histograms.jensenshannon(mine, other)), float(histograms.variation(mine, other))
        p = null_distribution.p_values(drawn["jensenshannon"], np.array([value, *drawn["jensenshannon"]]))
        most = int(np.abs(mine - other).argmax())
        reason = f"{bins.label(most)}: {other[most]:.1%} of rows to {mine[most]:.1%}"
        return Test(name, what, "jensenshannon", value, float(p[0]), effect, reason, drawn["jensenshannon"], p[1:])
    apart = float(histograms.kolmogorov(mine, other))
    tried = {"ks": apart}
    if "wasserstein" in drawn:
        far = histograms.wasserstein(bins, mine, now.beyond / now.present, other, was.beyond / was.present)
        tried["wasserstein"] = float(far)
    p = {key: null_distribution.p_values(drawn[key], np.array([value, *drawn[key]])) for key, value in tried.items()}
    best = min(tried, key=lambda key: p[key][0])
    every = np.stack(list(p.values()))
    count = null_distribution.tried(every[:, 1:])
    combined = np.minimum(count * every.min(axis=0), 1.0)
    reason = f"mean {bins.mean(was):.4g} to {bins.mean(now):.4g}"
    effect = max(tried.values())
    return Test(name, what, best, tried[best], float(combined[0]), effect, reason, drawn[best], combined[1:], 1 / count)
