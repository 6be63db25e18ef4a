"""Calibration where it helps: how often right probabilities are calibrated, and how often wrong ones are."""

from collections.abc import Iterator

import numpy as np
from scipy.special import expit

from bench.statistics.claim import Claim
from evergreen.tasks.problems.tabular.calibration import Method, helping

RUNS = 400
REPEATS, NOISE = 3, 0.1
"""Of a cross-validation, and the standard deviation of the log-odds between them."""
BOTH: tuple[Method, ...] = ("sigmoid", "isotonic")


def calibrated(random: np.random.Generator, rows: int, slope: float, rows_each: int, seed: int) -> bool:
    """Whether probabilities whose log-odds are `slope` times too large are calibrated. `rows_each`: rows of an entity."""
    entity = np.repeat(np.arange(rows // rows_each), rows_each)
    shared = random.normal(size=rows // rows_each)[entity]
    odds = random.normal(-1, 1.2, rows) if rows_each == 1 else -1 + 1.2 * shared
    true_class = (random.random(rows) < expit(odds)).astype(int)
    repeats = REPEATS if rows < 1000 else 1
    second = expit(slope * (np.tile(odds, repeats) + random.normal(0, NOISE, rows * repeats)))
    chances = np.column_stack([1 - second, second])
    return helping(np.tile(true_class, repeats), chances, np.tile(entity, repeats), BOTH, seed) is not None


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(20, round(RUNS * scale))
    for rows in (100, 400, 2000):
        for rows_each in (1, 5):
            random = np.random.default_rng([seed, rows, rows_each])
            hits = sum(calibrated(random, rows, 1.0, rows_each, run) for run in range(runs))
            setting = f"{rows:,} rows{f', {rows_each} of an entity' if rows_each > 1 else ''}"
            yield Claim("right probabilities are calibrated", setting, hits, runs, 0.0, 0.05)
    for rows, slope, least in ((400, 1.5, 0.0), (400, 2.0, 0.5), (400, 3.0, 0.9), (2000, 1.5, 0.9), (2000, 2.0, 0.9)):
        random = np.random.default_rng([seed, rows, round(10 * slope)])
        hits = sum(calibrated(random, rows, slope, 1, run) for run in range(runs))
        yield Claim("overconfident probabilities are calibrated", f"{rows:,} rows, slope {slope}", hits, runs, least)
