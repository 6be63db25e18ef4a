"""Intervals of 95 %: how often they contain the score that infinitely many rows would give.

Runs without an interval ("too few") are left out of the rate; the setting says their share.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, logit

from bench.statistics.claim import Claim
from evergreen.tasks.core.intervals import Scale, group_of, interval
from evergreen.tasks.problems.classification.predictions import PREDICTIONS as CLASSES
from evergreen.tasks.problems.classification.scores import of_two
from evergreen.tasks.problems.regression.predictions import PREDICTIONS as NUMBERS

RUNS, LARGE = 1000, 1_000_000
CONFIDENCE, LOW, HIGH = 0.95, 0.93, 0.97
Score = Callable[[np.ndarray], np.ndarray]
"""Rows -> all metrics."""
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""So many entities -> their rows, entity first."""


@dataclass
class Setting:
    name: str
    entities: int
    draw: Draw
    score: Score
    scales: dict[str, Scale]
    runs: int = RUNS
    expected: Sequence[float] | None = None
    """Of each metric; None: its value on LARGE rows."""
    hits: dict[str, list[bool]] = field(default_factory=dict)

    def simulate(self, scale: float, seed: int) -> Iterator[Claim]:
        random = np.random.default_rng([seed, *self.name.encode()])
        expected = self.expected if self.expected is not None else self.score(self.draw(np.random.default_rng(0), LARGE))
        runs = max(20, round(self.runs * scale))
        for _ in range(runs):
            self._run(self.draw(random, self.entities), expected)
        for name, hits in self.hits.items():
            without = f", {1 - len(hits) / runs:.0%} of runs too few" if len(hits) < runs else ""
            setting = f"{name}: {self.name}{without}"
            if hits:
                yield Claim("95 % interval", setting, sum(hits), len(hits), LOW, HIGH)

    def _run(self, rows: np.ndarray, expected: Sequence[float] | np.ndarray) -> None:
        _, entity = np.unique(rows[:, 0], return_inverse=True)
        group = group_of(entity.max() + 1, 0)[entity]
        with np.errstate(all="ignore"):
            scores = self.score(rows)
            without = np.array([self.score(rows[group != each]) for each in range(group.max() + 1)])
        for place, (name, scale) in enumerate(self.scales.items()):
            low, high, _ = interval(scores[place], without[:, place].tolist(), CONFIDENCE, scale)
            kept = self.hits.setdefault(name, [])
            if math.isfinite(low):
                kept.append(bool(low - 1e-12 <= expected[place] <= high + 1e-12))


def classes(share: float, apart: float, rows_each: int = 1, correlation: float = 0.0) -> Draw:
    """Entity, label, a calibrated probability (of rows alone). `correlation`: the correlation of the rows of an entity."""

    def draw(random: np.random.Generator, entities: int) -> np.ndarray:
        entity = np.repeat(np.arange(max(1, entities // rows_each if entities == LARGE else entities)), rows_each)
        own = random.normal(size=entity.max() + 1)[entity] * math.sqrt(correlation)
        positive = random.random(len(entity)) < expit(logit(share) + 2 * own)
        signal = own + random.normal(size=len(entity)) * math.sqrt(1 - correlation) + apart * positive
        return np.column_stack([entity, positive, expit(apart * (signal - apart / 2) + logit(share))])

    return draw


def two_classes(threshold: float) -> Score:
    return lambda rows: np.array(of_two(rows[:, 1].astype(int), rows[:, 2], threshold))


def amounts(errors: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """Entity, label, prediction."""

    def draw(random: np.random.Generator, entities: int) -> np.ndarray:
        prediction = random.normal(size=entities)
        return np.column_stack([np.arange(entities), prediction + errors(random, entities), prediction])

    return draw


def errors_of(rows: np.ndarray) -> np.ndarray:
    """RMSE, MAE and R²."""
    error, spread = rows[:, 1] - rows[:, 2], rows[:, 1].var()
    return np.array([np.sqrt((error**2).mean()), np.abs(error).mean(), 1 - (error**2).mean() / spread])


def two_models(metric: int) -> Score:
    """The gain of a second model, whose predictions are in the fourth column."""

    def score(rows: np.ndarray) -> np.ndarray:
        label = rows[:, 1].astype(int)
        return np.array([of_two(label, rows[:, 3], 0.5)[metric] - of_two(label, rows[:, 2], 0.5)[metric]])

    return score


def pair(share: float, apart: float) -> Draw:
    """`classes`, and the probabilities of a second model that sees a little more."""
    plain = classes(share, apart)

    def draw(random: np.random.Generator, entities: int) -> np.ndarray:
        rows = plain(random, entities)
        more = logit(rows[:, 2]) + random.normal(0.2 * (2 * rows[:, 1] - 1), 0.5)
        return np.column_stack([rows, expit(more)])

    return draw


def lists(random: np.random.Generator, entities: int) -> np.ndarray:
    """Entity, NDCG (nothing is found for four users of five), whether anything was found."""
    found = random.random(entities) < 0.2
    return np.column_stack([np.arange(entities), found * random.beta(2, 4, entities), found])


def _means(rows: np.ndarray) -> np.ndarray:
    return rows[:, 1:].mean(axis=0)


OF_CLASSES: dict[str, Scale] = {each.name: each.scale for each in CLASSES.metrics}
OF_NUMBERS: dict[str, Scale] = {each.name: each.scale for each in NUMBERS.metrics}
LOGNORMAL = math.sqrt((math.e - 1) * math.e)
ERRORS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float, float]] = {
    "normal errors": (lambda random, n: random.normal(size=n), 1.0, math.sqrt(2 / math.pi)),
    "Laplace errors": (lambda random, n: random.laplace(size=n), math.sqrt(2), 1.0),
    "log-normal errors": (lambda random, n: np.exp(random.normal(size=n)) - math.exp(0.5), LOGNORMAL, 1.2627),
    "errors of Student's t, 5 degrees": (lambda random, n: random.standard_t(5, n), math.sqrt(5 / 3), 0.9490),
    "errors of Student's t, 3 degrees": (lambda random, n: random.standard_t(3, n), math.sqrt(3), 2 * math.sqrt(3) / math.pi),
}
"""Errors, their standard deviation and their mean absolute value."""


def settings() -> Iterator[Setting]:
    for name, entities, share, apart, runs in (
        ("100 rows, half positive", 100, 0.5, 1.5, RUNS),
        ("100 rows, 10 positive", 100, 0.1, 1.5, RUNS),
        ("100 rows, 5 positive", 100, 0.05, 1.5, RUNS),
        ("400 rows, 8 positive", 400, 0.02, 1.5, RUNS // 2),
        ("1,000 rows, 100 positive", 1000, 0.1, 1.5, RUNS // 2),
    ):
        yield Setting(name, entities, classes(share, apart), two_classes(share), OF_CLASSES, runs)
    for entities in (8, 15, 60):
        draw = classes(0.3, 1.0, rows_each=10, correlation=0.3)
        yield Setting(f"{entities} entities of 10 rows that resemble each other", entities, draw, two_classes(0.3), OF_CLASSES)
    for name, (errors, spread, mean) in ERRORS.items():
        expected = (spread, mean, 1 - spread**2 / (1 + spread**2))
        for entities, runs in ((100, RUNS), (1000, RUNS // 2)):
            yield Setting(f"{entities:,} rows, {name}", entities, amounts(errors), errors_of, OF_NUMBERS, runs, expected)
    for entities in (100, 500):
        scales: dict[str, Scale] = {"ndcg": "share", "hit_rate": "proportion"}
        yield Setting(f"{entities} users", entities, lists, _means, scales, expected=(0.2 / 3, 0.2))
    for name, place in (("gain in ROC AUC", 0), ("gain in log loss", 6)):
        for entities, share in ((100, 0.5), (200, 0.1), (1000, 0.1)):
            draw, score = pair(share, 1.5), two_models(place)
            yield Setting(f"{entities:,} rows, {share:.0%} positive", entities, draw, score, {name: "linear"})


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    for each in settings():
        yield from each.simulate(scale, seed)
