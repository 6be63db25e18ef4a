"""Drift of a shop: its shoppers, what they buy, and its catalogue, from the purchases alone. Pure.

Time is cut into windows backwards from the end of the one that is judged. Each measure of a window is compared with its mean
over the BASE windows before; the same difference in earlier windows shows how much windows differ, with growth and turnover:

    shoppers                users who bought, on a log scale
    purchases per shopper   pairs of user and item, by user, on a log scale
    unknown items           share of purchases of items that nobody bought before
    gone items              share of purchases of items that sold well before and do not sell now

The difference is judged by Student's t of a new observation (a prediction interval), on both sides for the first two, else for
more alone; chance in the counts themselves is the least spread. A window after the training that drifts in a measure is no
reference for the next HELD ones, which are compared with the last windows without drift: a change that lasts is the usual
after that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

from evergreen.monitoring.drift.null_distribution import discoveries
from evergreen.monitoring.ledger.records import Change, Drift
from evergreen.tasks.config.operations import Monitor

BASE = 4
"""Windows that a window is compared with."""
FEWEST = 6
"""Fewest earlier differences to judge by."""
MOST = 26
"""Most of them, the newest: of a year in weeks, the half before."""
HELD = 4
"""Windows for which one with drift is no reference."""
FREEDOM = {False: 20.0, True: 4.0}
"""Most degrees of freedom, of numbers and of shares: those have heavy tails, for popular items come and go at once."""
SELLS_WELL = 5.0
"""Fewest purchases of an item that are expected in a window for it to count as gone where there are none."""
OF_PURCHASES = 0.5
"""Share of the false alarms that are allowed for purchases, where they are looked at; the rest is for predictions."""


class Judged(NamedTuple):
    """A measure of one window."""

    value: float
    usual: float
    """The mean of the windows before, on the scale of the measure."""
    p: float
    change: float
    """As a share: relative for numbers, a difference for shares."""


@dataclass(frozen=True, eq=False)
class Purchases:
    """Pairs of user and item in each of the windows 0 to `count` - 1: arrays of one entry per pair."""

    window: np.ndarray
    user: np.ndarray
    item: np.ndarray
    count: int
    _kept: dict[tuple[str, int], np.ndarray] = field(default_factory=dict[tuple[str, int], np.ndarray], repr=False)

    @classmethod
    def of(cls, lines: pl.DataFrame, until: date, days: int) -> "Purchases":
        """`lines`: user, item and day. Windows of `days` days, the last ends with `until`; earlier days are left out."""
        known = lines.filter(pl.col("day") <= until)
        if known.is_empty():
            nothing = np.zeros(0, np.int64)
            return cls(nothing, nothing, nothing, 0)
        count = ((until - known.select(pl.col("day").min()).item()).days + 1) // days
        place = count - 1 - ((pl.lit(until) - pl.col("day")).dt.total_days() // days)
        codes = [pl.col(name).rank("dense").cast(pl.Int64) - 1 for name in ("user", "item")]
        pairs = known.select(*codes, window=place.cast(pl.Int64)).filter(pl.col("window") >= 0).unique()
        window, user, item = (pairs[name].to_numpy() for name in ("window", "user", "item"))
        return cls(window, user, item, int(count))

    def _per_window(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(values, minlength=self.count).astype(float)

    def pairs(self) -> np.ndarray:
        """Per window, as all of these."""
        return self._once("pairs", 0, lambda: self._per_window(self.window))

    def users(self) -> np.ndarray:
        size = int(self.user.max(initial=0)) + 1
        return self._once("users", 0, lambda: self._per_window(np.unique(self.window * size + self.user) // size))

    def unknown(self, lag: int) -> np.ndarray:
        """Share of pairs whose item was first bought less than `lag` windows before."""

        def count() -> np.ndarray:
            first = np.full(int(self.item.max(initial=0)) + 1, self.count)
            np.minimum.at(first, self.item, self.window)
            young = self.window - first[self.item] < lag
            return self._per_window(self.window[young]) / np.maximum(self.pairs(), 1)

        return self._once("unknown", lag, count)

    def gone(self, lag: int) -> np.ndarray:
        """Share of the pairs of the BASE windows that end `lag` before, of items that sold well there and not in the window."""

        def count() -> np.ndarray:
            sold = self._sold()
            found = np.zeros(self.count)
            for each in range(lag + BASE - 1, self.count):
                before = sold[:, each - lag - BASE + 1 : each - lag + 1].sum(axis=1)
                total = self.pairs()[each - lag - BASE + 1 : each - lag + 1].sum()
                expected = before * self.pairs()[each] / max(total, 1)
                found[each] = before[(expected >= SELLS_WELL) & (sold[:, each] == 0)].sum() / max(total, 1)
            return found

        return self._once("gone", lag, count)

    def _sold(self) -> np.ndarray:
        """Pairs per item and window, of items with SELLS_WELL in some window at least."""
        if not len(self.item):
            return np.zeros((0, self.count))
        size = int(self.item.max()) + 1
        keys, sizes = np.unique(self.item * self.count + self.window, return_counts=True)
        well = np.zeros(size, bool)
        well[keys[sizes >= SELLS_WELL] // self.count] = True
        place = np.cumsum(well) - 1
        kept = well[keys // self.count]
        sold = np.zeros((int(well.sum()), self.count), np.float32)
        sold[place[keys[kept] // self.count], keys[kept] % self.count] = sizes[kept]
        return sold

    def _once(self, name: str, lag: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        if (name, lag) not in self._kept:
            self._kept[name, lag] = make()
        return self._kept[name, lag]


@dataclass(frozen=True)
class Measure:
    name: str
    is_share: bool
    values: Callable[[Purchases, int], np.ndarray]
    """Of each window, on the scale that is compared; `lag`: windows to the last one that is known."""
    spread: Callable[[Purchases], np.ndarray]
    """Variance of each by chance in the counts alone, at least."""
    first: Callable[[int, int], int] = lambda window, lag: 0
    """The first window with a value that others can be compared with, of as many as `window`."""

    def back(self, value: float) -> float:
        """On the scale that people read."""
        return float(np.sin(np.clip(value, 0, np.pi / 2)) ** 2) if self.is_share else float(np.exp(value))


def _angle(share: np.ndarray) -> np.ndarray:
    return np.arcsin(np.sqrt(share))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, 0.5))


MEASURES = (
    Measure("shoppers", False, lambda by, _: _log(by.users()), lambda by: 1 / np.maximum(by.users(), 1)),
    Measure(
        "purchases per shopper",
        False,
        lambda by, _: _log(by.pairs()) - _log(by.users()),
        lambda by: 1 / np.maximum(by.pairs(), 1),
    ),
    Measure(
        "unknown items",
        True,
        lambda by, lag: _angle(by.unknown(lag)),
        lambda by: 0.25 / np.maximum(by.pairs(), 1),
        lambda window, lag: max(window // 4, lag),  # at first every item is unknown
    ),
    Measure(
        "gone items",
        True,
        lambda by, lag: _angle(by.gone(lag)),
        lambda by: 0.25 / np.maximum(by.pairs(), 1),
        lambda window, lag: lag + BASE - 1,
    ),
)


class Findings(NamedTuple):
    changes: tuple[Change, ...]
    unknown: str | None
    """Why nothing was judged."""


def examine(lines: pl.DataFrame, known: date, until: date, learned: date, policy: Monitor) -> Findings:
    """The changes of the window that ends with `until` from those before it.

    `lines`: user, item and day of purchases, complete up to `known`; those after `until` are not looked at. `learned`: last day
    of the training; windows up to it are references. All measures together have OF_PURCHASES of policy.false_alarm_rate.
    """
    days = policy.window_days
    if known < until:
        return Findings((), f"purchases are known up to {known}, and the window ends with {until}")
    by = Purchases.of(lines, until, days)
    season = round(policy.season_days / days) if policy.season_days else 0
    last = by.count - 1
    trained = last - max(-(-(until - learned).days // days), 1)
    drifted: dict[str, set[int]] = {each.name: set() for each in MEASURES}
    found: dict[str, Judged] = {}
    cut = 0.0
    for window in range(max(trained + 1, 0), by.count):
        calm = {
            name: [each for each in range(window) if each not in windows or each < window - HELD]
            for name, windows in drifted.items()
        }
        found = {each.name: judged for each in MEASURES if (judged := _judge(by, each, window, calm[each.name], season))}
        sure, cut = discoveries([each.p for each in found.values()], OF_PURCHASES * policy.false_alarm_rate)
        for name, significant in zip(found, sure, strict=True):
            drifted[name] |= {window} if significant else set()
    if not found:
        needed = FEWEST + BASE + 1
        return Findings((), f"purchases are known for {by.count} windows of {days} days; {needed} show how much they differ")
    until_end = timedelta(days=days)
    changes = tuple(_change(each, found[each.name], cut, policy, until - until_end) for each in MEASURES if each.name in found)
    return Findings(changes, None)


def predictions_policy(policy: Monitor) -> Monitor:
    """`policy` with the share of the false alarms that purchases leave to predictions."""
    return policy.model_copy(update={"false_alarm_rate": (1 - OF_PURCHASES) * policy.false_alarm_rate})


def add(drift: Drift, found: Findings) -> Drift:
    """The drift of a window's predictions and that of its purchases. A part that was not judged is named."""
    if not found.changes:
        return drift.model_copy(update={"unknown": "; ".join(filter(None, (drift.unknown, found.unknown)))})
    alarms = [each for each in found.changes if each.alarm]
    rest = [each for each in found.changes if not each.alarm]
    changes = (*alarms, *drift.alarms, *(each for each in drift.changes if not each.alarm), *rest)
    unknown = "; ".join(filter(None, (drift.unknown, drift.skipped and f"predictions: {drift.skipped}")))
    alarm = drift.alarm or bool(alarms)
    return drift.model_copy(update={"changes": changes, "alarm": alarm, "skipped": None, "unknown": unknown or None})


def _judge(by: Purchases, measure: Measure, window: int, calm: Sequence[int], season: int) -> Judged | None:
    """None where too few windows are known."""
    if not calm:
        return None
    lag = window - calm[-1]
    values = measure.values(by, lag)
    first = measure.first(window, lag)
    seasonal = season if season and not measure.is_share and len(calm) > season + BASE + FEWEST else 0
    compared = values.copy()
    if seasonal:
        compared[seasonal:] -= values[:-seasonal]
        first = max(first, seasonal)
    usable = [each for each in calm if each >= first]
    base = [each for each in usable if each <= window - lag][-BASE:]
    differences = list[float]()
    for place in reversed(usable):
        before = [each for each in usable if each <= place - lag][-BASE:]
        if len(before) < BASE or len(differences) == MOST:
            break
        differences.append(compared[place] - compared[before].mean())
    if len(base) < BASE or len(differences) < FEWEST:
        return None
    chance = measure.spread(by)
    least = (chance[window] + chance[base].mean() / BASE) * (2 if seasonal else 1)
    count = max(len(differences) / lag, 2.0)  # those that overlap repeat each other
    sd = np.sqrt(max(np.var(differences, ddof=1), least))
    score = (compared[window] - compared[base].mean() - np.mean(differences)) / (sd * np.sqrt(1 + 1 / count))
    freedom = min(len(differences) - 1, FREEDOM[measure.is_share])
    tail = float(special.stdtr(freedom, -score if measure.is_share else -abs(score)))
    usual = values[window] - (score * sd * np.sqrt(1 + 1 / count))
    change = _effect(measure, values[window], usual)
    return Judged(measure.back(values[window]), measure.back(usual), tail if measure.is_share else 2 * tail, change)


def _effect(measure: Measure, value: float, usual: float) -> float:
    now, before = measure.back(value), measure.back(usual)
    return abs(now - before) if measure.is_share else abs(now / before - 1)


def _change(measure: Measure, found: Judged, cut: float, policy: Monitor, before: date) -> Change:
    significant = found.p <= cut
    large = found.change >= policy.min_effect
    shown = [f"{each:.1%}" if measure.is_share else f"{each:,.3g}" for each in (found.value, found.usual)]
    reason = f"{shown[0]}, and {shown[1]} were expected from the windows up to {before}"
    return Change(
        column=measure.name,
        aspect="purchases",
        statistic="difference",
        value=found.value,
        threshold=None,
        p=found.p,
        effect=found.change,
        significant=significant,
        alarm=significant and large,
        reason=reason if large or not significant else f"{reason}; no alarm: smaller than min_effect {policy.min_effect:g}",
    )
