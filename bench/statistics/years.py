"""Alarms in calm years: daily runs over weekly windows, of which the first of each seven days is evidence.

A run between two of these is no evidence, and no later evidence looks at its window; so one run a week is simulated.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from bench.statistics.drift import ANY, World, autoregressive, monitor, refer, window
from evergreen.monitoring.retraining.policy import count_calm_requests
from evergreen.tasks.config.operations import Retrain

YEARS, WEEKS, ROWS = 20, 52, 420
"""Years of each setting, windows of a year, and rows of a window: 60 a day."""
COLUMNS = ["number 0", "amount 0", "few 0"]
POLICY = Retrain(on_drift=True, alarms=2, of_last=3)


def effects(sd: float, phi: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda draw: autoregressive(draw, sd, phi)


SETTINGS = {
    "weeks differ (0.2 sd), 26 known": (26, effects(0.2, 0.0)),
    "weeks differ (0.2 sd, autocorrelation 0.95), 26 known": (26, effects(0.2, 0.95)),
    "weeks differ (0.2 sd), 8 known": (8, effects(0.2, 0.0)),
    "weeks are equal, 26 known": (26, effects(0.0, 0.0)),
}


def year(known: int, make: Callable[[np.random.Generator], np.ndarray], draw: np.random.Generator) -> list[bool]:
    """Whether each window of a calm year alarms, at any size of change."""
    world = World(draw, weeks=make(draw))

    def rows(count: int, week: np.ndarray) -> pl.DataFrame:
        return world.features(draw.integers(0, world.people, count), week).select(COLUMNS)

    weeks = np.repeat(np.arange(known), 4_000 // known)
    reference = refer(rows(len(weeks), weeks), week=weeks)
    windows = [window(rows(ROWS, np.full(ROWS, each)), each) for each in range(known, known + WEEKS)]
    return [any(each.significant for each in drift.changes) for drift in monitor(reference, windows, ANY)]


def requests(alarms: list[bool]) -> int:
    """Windows in which POLICY asks for a retraining for the first time in a row."""
    asked = [alarms[at] and sum(alarms[max(0, at - POLICY.of_last + 1) : at + 1]) >= POLICY.alarms for at in range(len(alarms))]
    return sum(now and not before for before, now in pairwise([False, *asked]))


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(2, round(YEARS * scale))
    for name, (known, make) in SETTINGS.items():
        found = [year(known, make, np.random.default_rng([seed, run])) for run in range(runs)]
        shares = np.array([np.mean(each) for each in found])
        error = float(shares.std(ddof=1)) / runs**0.5
        hits = sum(sum(each) for each in found)
        setting = f"{name}, {runs} years"
        yield Claim("a window of a calm year alarms", setting, hits, runs * WEEKS, high=ANY.false_alarm_rate, error=error)
        asked = [requests(each) for each in found]
        error = float(np.std(asked, ddof=1)) / runs**0.5
        most = count_calm_requests(POLICY, ANY)
        yield Claim("retrainings asked for in a calm year (100 % is one)", setting, sum(asked), runs, high=most, error=error)
