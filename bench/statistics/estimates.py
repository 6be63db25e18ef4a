"""Estimated performance: how often the 95 % interval contains the score that the labels later give."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from evergreen.tasks.problems.classification.predictions import PREDICTIONS as CLASSES
from evergreen.tasks.problems.regression.predictions import PREDICTIONS as NUMBERS

RUNS, DRAWS = 200, 200
LOW = 0.90
METRICS = ("roc_auc", "average_precision", "log_loss", "brier")


def classes(random: np.random.Generator, rows: int, slope: float, base: float, moved: float) -> pl.DataFrame:
    """Probabilities whose log-odds are `slope` times too large, in a window whose true log-odds are `moved`."""
    odds = random.normal(base, 1.2, rows)
    second = 1 / (1 + np.exp(-slope * odds))
    happened = (random.random(rows) < 1 / (1 + np.exp(-odds - moved))).astype(float)
    entity = [str(each) for each in random.integers(0, 1 << 40, rows)]
    frame = pl.DataFrame({"entity": entity, "label": happened, "probability_0": 1 - second, "probability_1": second})
    return frame.with_columns(threshold=pl.lit(0.5))


def amounts(random: np.random.Generator, rows: int, degrees: float) -> pl.DataFrame:
    prediction = random.normal(size=rows)
    entity = [str(each) for each in random.integers(0, 1 << 40, rows)]
    return pl.DataFrame({"entity": entity, "label": prediction + random.standard_t(degrees, rows), "prediction": prediction})


def contained(kind: Any, window: pl.DataFrame, known: list[pl.DataFrame], names: tuple[str, ...], seed: int) -> list[bool]:
    drawn = [kind.score(part, None) for part in kind.draw_labels(window, known, DRAWS, seed)]
    actual, found = kind.score(window, None), list[bool]()
    for name in names:
        low, high = np.nanquantile([each[name] for each in drawn], [0.025, 0.975])
        found.append(bool(low <= actual[name] <= high))
    return found


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(20, round(RUNS * scale))
    for name, known, slope, base, spread in (
        ("calibrated, 400 rows with label", [400], 1.0, -1.0, 0.0),
        ("twice too sure, 100 rows with label", [100], 2.0, -1.0, 0.0),
        ("twice too sure, 400 rows with label", [400], 2.0, -1.0, 0.0),
        ("rare class, twice too sure, base rate moves, 4 windows", [400] * 4, 2.0, -3.0, 0.5),
    ):
        random = np.random.default_rng([seed, *name.encode()])
        hits = []
        for run in range(runs):
            earlier = [classes(random, rows, slope, base, random.normal(0, spread)) for rows in known]
            window = classes(random, 400, slope, base, random.normal(0, spread))
            hits.append(contained(CLASSES, window, earlier, METRICS, run))
        for metric, column in zip(METRICS, zip(*hits, strict=True), strict=True):
            yield Claim("95 % interval of an estimate", f"{metric}: {name}", sum(column), runs, LOW)
    for degrees in (30.0, 5.0):
        random = np.random.default_rng([seed, round(degrees)])
        metrics = ("rmse", "mae")
        hits = [
            contained(NUMBERS, amounts(random, 400, degrees), [amounts(random, 400, degrees)], metrics, run)
            for run in range(runs)
        ]
        for metric, column in zip(metrics, zip(*hits, strict=True), strict=True):
            setting = f"{metric}: errors of Student's t, {degrees:g} degrees"
            yield Claim("95 % interval of an estimate", setting, cast(int, sum(column)), runs, LOW)
