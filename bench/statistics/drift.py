"""Drift: alarms in calm windows, faults of data that are found at once, and drift that is found.

Twenty columns of all sorts are drawn through one latent normal number each, to which people and weeks add their effects.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import product

import numpy as np
import polars as pl
from scipy.special import ndtr
from scipy.stats import poisson

from bench.statistics.claim import Claim
from evergreen.monitoring.drift import detection, past_windows, reference_data
from evergreen.monitoring.drift.past_windows import PastWindow
from evergreen.monitoring.drift.reference_data import ENTITY, WEEK, Reference
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Change, Drift
from evergreen.tasks.config.operations import Monitor

START = date(2024, 1, 1)
ANY = Monitor(min_effect=0.0, min_fault=0.0)
"""Each significant change is an alarm, however small."""
LEVELS = np.array([f"level {place:02}" for place in range(50)])
SHARES = np.cumsum(1 / np.arange(1, 51)) / (1 / np.arange(1, 51)).sum()
COUNTS = poisson.cdf(np.arange(8), 0.3)
COLUMNS = 20
CALM_RUNS, POWER_RUNS, SHIFT_RUNS = 200, 60, 40


@dataclass(frozen=True, eq=False)
class World:
    """People and weeks, and rows of them."""

    draw: np.random.Generator
    people: int = 10_000
    keeps: float = 0.0
    """Share of a column's variance that a person keeps, 0 to 1."""
    weeks: np.ndarray = field(default_factory=lambda: np.zeros((200, COLUMNS)))
    """Effects, week x column, in standard deviations."""
    levels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", self.draw.normal(size=(self.people, COLUMNS)))

    def features(self, who: np.ndarray, week: np.ndarray) -> pl.DataFrame:
        """One row per entry of `who` (numbers of people) and `week`."""
        noise = self.draw.normal(size=(len(who), COLUMNS))
        return table(self.keeps**0.5 * self.levels[who] + (1 - self.keeps) ** 0.5 * noise + self.weeks[week])


def table(latent: np.ndarray) -> pl.DataFrame:
    """Numbers, heavy tails, zeros, counts, gaps, categories of 50 and of 5 levels, from normal numbers (rows x 20)."""
    share = np.clip(ndtr(latent), 1e-12, 1 - 1e-12)
    many = np.minimum(np.searchsorted(SHARES, share), 49)
    gap = share[:, 12:14] < 0.1
    gaps = np.where(gap, np.nan, latent[:, 12:14])
    return pl.DataFrame(
        {
            **{f"number {place}": latent[:, place] for place in range(6)},
            **{f"amount {place}": np.exp(max(1, place) * latent[:, 6 + place]) for place in range(3)},
            "heavy": (2 * share[:, 9] - 1) / np.sqrt(2 * share[:, 9] * (1 - share[:, 9])),
            "mostly zero": np.where(share[:, 10] < 0.8, 0.0, -np.log((1 - share[:, 10]) / 0.2)),
            "count": np.searchsorted(COUNTS, share[:, 11]).astype(float),
            **{f"gaps {place}": pl.Series(gaps[:, place], nan_to_null=True) for place in range(2)},
            **{f"many {place}": LEVELS[many[:, 14 + place]] for place in range(3)},
            **{f"few {place}": LEVELS[np.minimum((share[:, 17 + place] * 5).astype(int), 4)] for place in range(3)},
        }
    )


def autoregressive(draw: np.random.Generator, sd: float, phi: float, weeks: int = 200) -> np.ndarray:
    """Effects of `weeks` weeks, each column on its own, that keep a share `phi` from week to week."""
    effects = np.empty((weeks, COLUMNS))
    effects[0] = draw.normal(size=COLUMNS)
    for week in range(1, weeks):
        effects[week] = phi * effects[week - 1] + (1 - phi**2) ** 0.5 * draw.normal(size=COLUMNS)
    return sd * effects


def day(week: int) -> date:
    return START + timedelta(weeks=int(week))


def refer(frame: pl.DataFrame, who: np.ndarray | None = None, week: np.ndarray | None = None) -> Reference:
    count = frame.height
    nobody, never = pl.Series([None] * count, dtype=pl.String), pl.Series([None] * count, dtype=pl.Date)
    known = {
        ENTITY: pl.Series(who.astype(str)) if who is not None else nobody,
        WEEK: pl.Series([day(each) for each in week]) if week is not None else never,
    }
    return reference_data.of("bench", 1, "regression", {"features": frame.with_columns(**known)})


def window(frame: pl.DataFrame, week: int, who: np.ndarray | None = None) -> Predictions:
    entity = pl.Series(who.astype(str)) if who is not None else pl.Series([None] * frame.height, dtype=pl.String)
    at = datetime.combine(day(week), datetime.min.time(), UTC)
    return Predictions(pl.DataFrame({"entity": entity, "at": [at] * frame.height}), frame)


def monitor(reference: Reference, windows: Sequence[Predictions], policy: Monitor) -> list[Drift]:
    """Monitoring runs of weekly windows in their order."""
    past: list[PastWindow] = []
    found = []
    for each in windows:
        drift, seen = detection.examine(reference, each, policy, 0, past)
        past = [*past, seen][-past_windows.MOST :] if seen else past
        found.append(drift)
    return found


# Calm windows

Case = tuple[Reference, list[Predictions]]
"""Of the windows, only the last one counts."""


def independent(known: int, rows: int) -> Callable[[np.random.Generator], Case]:
    def make(draw: np.random.Generator) -> Case:
        world = World(draw)
        weeks = np.sort(draw.integers(0, 8, known))
        was = world.features(draw.integers(0, world.people, known), weeks)
        now = world.features(draw.integers(0, world.people, rows), np.full(rows, 9))
        return refer(was, week=weeks), [window(now, 9)]

    return make


def callers(named: bool, same_rows: bool, rows: int = 1_000, exponent: float = 1.2) -> Callable[[np.random.Generator], Case]:
    """Zipf-distributed callers: a few people ask for most of the predictions."""

    def make(draw: np.random.Generator) -> Case:
        world = World(draw, keeps=0.9)
        learned = draw.choice(world.people, 3_000, replace=False)
        weeks = np.sort(draw.integers(0, 8, 3_000))
        share = 1 / np.arange(1, world.people + 1) ** exponent
        who = draw.permutation(world.people)[draw.choice(world.people, rows, p=share / share.sum())]
        if same_rows:
            each = world.features(np.arange(world.people), np.zeros(world.people, dtype=int))
            now = each[who]
        else:
            now = world.features(who, np.full(rows, 9))
        was = world.features(learned, weeks)
        return refer(was, learned if named else None, weeks), [window(now, 9, who if named else None)]

    return make


def by_week(
    known_weeks: int, sd: float, phi: float = 0.0, timed: bool = True, rows: int = 500
) -> Callable[[np.random.Generator], Case]:
    """Weeks that differ without drift; the last of 1 to 12 windows after the reference counts."""

    def make(draw: np.random.Generator) -> Case:
        world = World(draw, weeks=autoregressive(draw, sd, phi))
        weeks = np.repeat(np.arange(known_weeks), 4_000 // known_weeks)
        was = world.features(draw.integers(0, world.people, len(weeks)), weeks)
        count = int(draw.integers(1, 13))
        later = [known_weeks + place for place in range(count)] if not timed else [known_weeks + count - 1]
        windows = [window(world.features(draw.integers(0, world.people, rows), np.full(rows, each)), each) for each in later]
        return refer(was, week=weeks if timed else None), windows

    return make


CALM: dict[str, Callable[[np.random.Generator], Case]] = {
    "independent rows, reference 1,000, window 50": independent(1_000, 50),
    "independent rows, reference 4,000, window 1,000": independent(4_000, 1_000),
    "independent rows, reference 4,000, window 20,000": independent(4_000, 20_000),
    "callers repeat (Zipf), entity known": callers(named=True, same_rows=False),
    "the same rows asked again (Zipf), no entity": callers(named=False, same_rows=True),
    "weeks differ (0.2 sd), 26 known": by_week(26, 0.2),
    "weeks differ (0.2 sd), 12 known": by_week(12, 0.2),
    "weeks differ (0.2 sd), 8 known": by_week(8, 0.2),
    "weeks differ (0.2 sd), 4 known": by_week(4, 0.2),
    "weeks differ (0.2 sd), time unknown": by_week(12, 0.2, timed=False),
    "weeks differ (0.2 sd, autocorrelation 0.95), 12 known": by_week(12, 0.2, 0.95),
    "weeks differ (0.2 sd, autocorrelation 0.95), 26 known": by_week(26, 0.2, 0.95),
    "weeks differ (0.2 sd, autocorrelation 0.95), time unknown": by_week(12, 0.2, 0.95, timed=False),
}


def calm(name: str, make: Callable[[np.random.Generator], Case], runs: int, seed: int) -> Claim:
    hits = 0
    for run in range(runs):
        reference, windows = make(np.random.default_rng([seed, run]))
        hits += any(each.significant for each in monitor(reference, windows, ANY)[-1].changes)
    return Claim("calm windows alarm", name, hits, runs, high=ANY.false_alarm_rate)


# Faults and drift that are found

Fault = Callable[[pl.DataFrame, np.random.Generator], pl.DataFrame]


def replace(column: str, share: float, value: pl.Expr) -> Fault:
    def work(frame: pl.DataFrame, draw: np.random.Generator) -> pl.DataFrame:
        changed = pl.Series(draw.random(frame.height) < share)
        return frame.with_columns(pl.when(changed).then(value).otherwise(column).alias(column))

    return work


FAULTS: dict[str, tuple[str, Fault]] = {
    "a join fills 30 % of a number with zeros": ("number 0", replace("number 0", 0.3, pl.lit(0.0))),
    "a join fills 30 % of an amount with zeros": ("amount 1", replace("amount 1", 0.3, pl.lit(0.0))),
    **{
        f"5 % of an amount ({spread}) in {unit}": (
            f"amount {place}",
            replace(f"amount {place}", 0.05, pl.col(f"amount {place}") * by),
        )
        for place, spread in ((0, "log sd 1"), (2, "log sd 2"))
        for unit, by in (("cents", 100.0), ("hundreds", 0.01))
    },
    "a number is constant": ("number 1", replace("number 1", 1.0, pl.lit(0.3))),
    "a category is constant": ("few 1", replace("few 1", 1.0, pl.lit(str(LEVELS[1])))),
    "10 % of a number is missing": ("number 2", replace("number 2", 0.1, pl.lit(None))),
    "10 % of a category is a new level": ("few 2", replace("few 2", 0.1, pl.lit("new"))),
}


def faulty(known_weeks: int, rows: int, column: str, fault: Fault, draw: np.random.Generator) -> bool:
    world = World(draw, weeks=autoregressive(draw, 0.1, 0.0))
    weeks = np.repeat(np.arange(known_weeks), 4_000 // known_weeks)
    was = world.features(draw.integers(0, world.people, len(weeks)), weeks)
    now = world.features(draw.integers(0, world.people, rows), np.full(rows, known_weeks + 1))
    drift = monitor(refer(was, week=weeks), [window(fault(now, draw), known_weeks + 1)], Monitor())[-1]
    return found(drift, column) is not None


def found(drift: Drift, column: str) -> Change | None:
    return next((each for each in drift.alarms if each.column == column), None)


def weeks_to_alarm(slope: float, rows: int, most: int, sd: float, draw: np.random.Generator) -> int:
    """Weeks until a number that rises by `slope` a week raises an alarm; most + 1 where it does not."""
    effects = autoregressive(draw, sd, 0.0)
    effects[12:, 3] += slope * np.arange(1, len(effects) - 11)
    world = World(draw, weeks=effects)
    weeks = np.repeat(np.arange(12), 333)
    reference = refer(world.features(draw.integers(0, world.people, len(weeks)), weeks), week=weeks)
    windows = [
        window(world.features(draw.integers(0, world.people, rows), np.full(rows, each)), each) for each in range(12, 12 + most)
    ]
    drifts = monitor(reference, windows, Monitor())
    return next((place for place, each in enumerate(drifts, 1) if found(each, "number 3")), most + 1)


def shifted(known_weeks: int, rows: int, by: float, draw: np.random.Generator) -> bool:
    """Whether a number that moves by `by` standard deviations raises an alarm, beside a reference of as many rows."""
    world = World(draw)
    weeks = np.arange(rows) % known_weeks
    reference = refer(world.features(draw.integers(0, world.people, rows), weeks), week=weeks)
    now = world.features(draw.integers(0, world.people, rows), np.full(rows, known_weeks))
    moved = window(now.with_columns(pl.col("number 3") + by), known_weeks)
    return found(monitor(reference, [moved], Monitor())[-1], "number 3") is not None


def simulate(scale: float, seed: int, words: str = "") -> Iterator[Claim]:
    """`words`: only the settings whose name contains them."""
    for name, make in CALM.items():
        if words in name:
            yield calm(name, make, max(1, round(CALM_RUNS * scale)), seed)
    runs = max(1, round(POWER_RUNS * scale))
    for (name, (column, fault)), known in product(FAULTS.items(), (3, 8)):
        setting = f"{name}, {known} weeks known, 1,000 rows"
        if words in setting:
            hits = sum(faulty(known, 1_000, column, fault, np.random.default_rng([seed, run])) for run in range(runs))
            yield Claim("a fault is found at once", setting, hits, runs, low=0.95)
    runs = max(1, round(SHIFT_RUNS * scale))
    for by in (0.08, 0.15):
        setting = f"a number moves by {by:g} sd, 26 weeks known, 20,000 rows"
        if words in setting:
            hits = sum(shifted(26, 20_000, by, np.random.default_rng([seed, run])) for run in range(runs))
            yield Claim("drift is found in one window", setting, hits, runs)
    for sd in (0.0, 0.05):
        setting = f"a number rises, weeks differ by {sd:g} sd"
        if words in setting:
            waits = [weeks_to_alarm(0.02, 1_000, 16, sd, np.random.default_rng([seed, run])) for run in range(runs)]
            yield Claim("0.02 sd a week is found in 12 weeks", setting, sum(each <= 12 for each in waits), runs)
