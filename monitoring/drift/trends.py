"""Columns that move with time by nature, and slopes of columns that did not in training.

Both look at the mean rank of a column's values in each week, among the values of the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from evergreen.monitoring.drift import week_effects
from evergreen.monitoring.drift.histograms import Histogram, Numbers
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Part, PastPart
from evergreen.monitoring.drift.week_effects import Series
from evergreen.tasks.core.columns import numbers

FEWEST_TREND_WEEKS = 5
"""Weeks that must all follow one direction."""
STRAIGHT = 0.9
"""Share of the variance between weeks that a trend must explain."""
LEAST_RISE = 0.07
"""Change of the mean rank over all weeks that makes a trend: about a quarter of a standard deviation."""
ALL = 0.99
"""Share of entities whose value must never turn back."""
FEWEST_PAIRS = 30
FEWEST_PAST = 3
FEWEST_POINTS = 8
"""Weeks of the reference and of production that a slope rests on."""


@dataclass(frozen=True)
class Slope:
    """Change of a column's mean rank per week since training."""

    per_week: float
    change: float
    """Until now."""
    p: float


def mean_ranks(windows: Sequence[Histogram], reference: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """The mean rank of each window's values in the reference, 0 to 1, and its sampling variance."""
    share = reference.counts / reference.present
    rank = np.cumsum(share) - share / 2
    means, noise = [], []
    for each in windows:
        mine = each.counts / max(each.present, 1e-12)
        mean = float(mine @ rank)
        means.append(mean)
        noise.append(max(float(mine @ np.square(rank - mean)), 1e-6) / max(each.present, 1))
    return np.array(means), np.array(noise)


def find_trends(part: Part) -> dict[str, str]:
    """Columns of numbers that rise or fall with time by nature, such as the days since a first event; each with the reason.

    Either each entity's value moves in one direction from week to week, or the mean of the weeks does.
    """
    found = {}
    for name, bins in part.bins.items():
        if not isinstance(bins, Numbers) or not part.profile[name].present:
            continue
        direction = _of_entities(part, name) or _of_weeks(part, name)
        if direction:
            found[name] = direction
    return found


def _of_entities(part: Part, name: str) -> str | None:
    if part.rows[WEEK].null_count() or part.rows[ENTITY].null_count() or len(part.times) < 2:
        return None
    values = pl.DataFrame({"entity": part.entity, "week": part.week, "value": numbers(part.rows[name])[0]})
    ordered = values.drop_nans("value").sort("entity", "week")
    ordered = ordered.with_columns(pl.col("value", "week").diff().over("entity").name.prefix("_"))
    steps = ordered.filter(pl.col("_week") > 0)["_value"].to_numpy()
    if len(steps) < FEWEST_PAIRS:
        return None
    for sign, word in ((1, "rises"), (-1, "falls")):
        if (sign * steps >= 0).mean() >= ALL and (sign * steps > 0).mean() > 0.5:
            return f"{word} with time for nearly every entity"
    return None


def _of_weeks(part: Part, name: str) -> str | None:
    if len(part.times) < FEWEST_TREND_WEEKS:
        return None
    y, _ = mean_ranks(part.weekly[name], part.profile[name])
    steps = np.diff(y)
    monotone = (steps > 0).all() or (steps < 0).all()
    if not monotone or abs(y[-1] - y[0]) < LEAST_RISE or np.corrcoef(part.times, y)[0, 1] ** 2 < STRAIGHT:
        return None
    return f"{'rises' if steps[0] > 0 else 'falls'} from week to week"


def find_slopes(
    part: Part, names: Sequence[str], past: Sequence[PastPart], now: Mapping[str, Histogram], time: float
) -> dict[str, Slope]:
    """The change of columns per week since training; without those where too few weeks are known.

    `past`: oldest first; `now`: the window that ends at `time`, in weeks since 1970.
    """
    series = {name: found for name in names if (found := _series(part, name, past, now[name], time))}
    slopes = {}
    for (name, each), posterior in zip(series.items(), week_effects.pool(list(series.values())), strict=True):
        slope, p = week_effects.slope_p(each, posterior)
        slopes[name] = Slope(slope, slope * float(each.design[-1, 1]), p)
    return slopes


def _series(part: Part, name: str, past: Sequence[PastPart], now: Histogram, time: float) -> Series | None:
    """Mean ranks of a column, and the weeks since training as their ramp."""
    usable = [each for each in past if name in each.columns and name not in each.faulty and each.columns[name].present]
    dated = part.times[0] > 0
    weeks = list(zip(part.times, part.weekly[name], strict=True)) if dated else []
    weeks = [(at, each) for at, each in weeks if each.present]
    if len(usable) < FEWEST_PAST or len(weeks) + len(usable) + 1 < FEWEST_POINTS or not now.present:
        return None
    times = np.array([*(at for at, _ in weeks), *(each.time for each in usable), time])
    y, noise = mean_ranks([*(each for _, each in weeks), *(each.columns[name] for each in usable), now], part.profile[name])
    begin = weeks[-1][0] if weeks else times[0]
    present = np.array([*(each.present for _, each in weeks), *(each.columns[name].present for each in usable), now.present])
    return Series(y, noise, times, float((noise * present).mean()), np.maximum(times - begin, 0))
