"""The console's comparison of two versions on the same rows: how often the interval of a gain contains the true gain."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit

from bench.statistics.claim import Claim
from evergreen.flows.console.equal_rows import measure_gains
from evergreen.tasks.problems.classification.predictions import PREDICTIONS as CLASSES
from evergreen.tasks.problems.regression.predictions import PREDICTIONS as NUMBERS

RUNS, LARGE = 300, 500_000
CONFIDENCE, LOW, HIGH = 0.95, 0.93, 0.97
SECTION = SimpleNamespace(evaluate=SimpleNamespace(confidence=CONFIDENCE))
Pair = tuple[pl.DataFrame, pl.DataFrame]
Draw = Callable[[np.random.Generator, int], Pair]


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    """As many rows as a ledger with few labels has, up to those of the page. The second version is a little better."""
    for name, kind, rows, draw in SETTINGS:
        random, runs = np.random.default_rng([seed, *name.encode(), rows]), max(20, round(RUNS * scale))
        one, two = draw(np.random.default_rng(0), LARGE)
        first, second = kind.score(one, SECTION), kind.score(two, SECTION)
        expected = {metric.name: metric.gain(second[metric.name], first[metric.name]) for metric in kind.metrics}
        hits: dict[str, list[bool]] = {}
        for run in range(runs):
            for found in measure_gains(kind, SECTION, *draw(random, rows), seed=run):
                if math.isfinite(found.interval.low):
                    hit = found.interval.low <= expected[found.name] <= found.interval.high
                    hits.setdefault(found.name, []).append(hit)
        for metric, each in hits.items():
            without = f", {1 - len(each) / runs:.0%} of runs too few" if len(each) < runs else ""
            setting = f"{metric}: {name}, {rows:,} rows{without}"
            yield Claim("compare: 95 % interval of a gain", setting, sum(each), len(each), LOW, HIGH)


def numbers(random: np.random.Generator, rows: int, repeats: int = 1, tail: float = math.inf) -> Pair:
    """The errors of both versions share most of their noise; rows of an entity share some."""
    entity = np.arange(rows) // repeats
    signal, own = random.normal(size=rows), random.normal(size=rows)[entity]
    noise = random.normal(size=rows) if math.isinf(tail) else random.standard_t(tail, rows)
    label = signal + 0.7 * noise + 0.5 * own
    sides = (signal + random.normal(size=rows) * spread for spread in (0.4, 0.3))
    one, two = (pl.DataFrame({"entity": entity, "label": label, "prediction": each}) for each in sides)
    return one, two


def classes(random: np.random.Generator, rows: int, share: float = 0.3, repeats: int = 1) -> Pair:
    """The second version sees a little more of what decides."""
    entity = np.arange(rows) // repeats
    seen, more, own = random.normal(size=rows), random.normal(size=rows), random.normal(size=rows)[entity]
    middle = math.log(share / (1 - share))
    label = np.where(random.random(rows) < expit(middle + seen + 0.6 * more + 0.5 * own), "yes", "no")
    chances = (expit(middle + seen + weight * more) for weight in (0.0, 0.4))
    one, two = (
        pl.DataFrame({"entity": entity, "label": label, "probability_no": 1 - each, "probability_yes": each, "threshold": 0.5})
        for each in chances
    )
    return one, two


SETTINGS: tuple[tuple[str, Any, int, Draw], ...] = (
    ("normal errors", NUMBERS, 200, numbers),
    ("normal errors", NUMBERS, 2_000, numbers),
    ("four rows per entity", NUMBERS, 400, lambda random, rows: numbers(random, rows, repeats=4)),
    ("errors of Student's t, 4 degrees", NUMBERS, 1_000, lambda random, rows: numbers(random, rows, tail=4)),
    ("three of ten positive", CLASSES, 200, classes),
    ("three of ten positive", CLASSES, 2_000, classes),
    ("a twentieth positive", CLASSES, 1_000, lambda random, rows: classes(random, rows, share=0.05)),
    ("four rows per entity", CLASSES, 400, lambda random, rows: classes(random, rows, repeats=4)),
)
