"""The promotion gate: how often a challenger of the same quality is promoted, and one that is better."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from evergreen.tasks.config.params import Gate
from evergreen.tasks.problems.base import Metric
from evergreen.tasks.problems.classification import scores
from evergreen.tasks.release import promotion_gate

Pair = tuple[pl.DataFrame, pl.DataFrame]
POLICY = Gate()
HALF = (1 - POLICY.confidence) / 2
"""Stated share of equal challengers that are promoted: the whole interval lies above zero."""
LOSS, AUC = Metric("rmse", greater_is_better=False), Metric("roc_auc")


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    """Rows of one window; some entities have several rows, with errors that resemble each other."""
    rng, runs = np.random.default_rng(seed), max(1, round(300 * scale))
    for name, rows, make, metric, score in SETTINGS:
        promoted = sum(promotes(make(rng, rows, 0.0), metric, score, seed=run) for run in range(runs))
        yield Claim("gate: an equal challenger is promoted", f"{name}, {rows:,} rows", promoted, runs, 0, HALF)
    for name, rows, make, metric, score in SETTINGS[:1]:
        some = max(1, runs // 3)
        promoted = sum(promotes(make(rng, rows, 0.1), metric, score, seed=run) for run in range(some))
        yield Claim(
            "gate: a better challenger is promoted", f"{name}, {rows:,} rows, errors a tenth smaller", promoted, some, 0.5, 1
        )


def promotes(pair: Pair, metric: Metric, score: Callable[[pl.DataFrame], float], seed: int) -> bool:
    return promotion_gate.judge(*pair, score, metric, POLICY, "champion v1", seed).promote


def numbers(rng: np.random.Generator, rows: int, better: float, tail: float = math.inf, repeats: int = 1) -> Pair:
    """Both models' errors are a common part and one of their own. `tail`: degrees of freedom of Student's t."""

    def draw(size: int) -> np.ndarray:
        return rng.normal(size=size) if math.isinf(tail) else rng.standard_t(tail, size)

    entities = np.repeat(np.arange(rows // repeats), repeats)
    common = draw(rows)
    sides = [common + draw(rows // repeats)[entities] for _ in range(2)]
    frames = (pl.DataFrame({"entity": entities, "error": side}) for side in (sides[0] * (1 - better), sides[1]))
    first, second = frames
    return first, second


def classes(rng: np.random.Generator, rows: int, better: float) -> Pair:
    """A tenth positive; both models see the same signal with noise of their own."""
    label = (rng.random(rows) < 0.1).astype(float)
    signal = label + rng.normal(size=rows)
    frames = (
        pl.DataFrame(
            {"entity": np.arange(rows), "label": label, "error": 1 / (1 + np.exp(-signal - noise * rng.normal(size=rows)))}
        )
        for noise in (0.7 * (1 - better), 0.7)
    )
    first, second = frames
    return first, second


def rmse(frame: pl.DataFrame) -> float:
    return float(np.sqrt(np.mean(frame["error"].to_numpy() ** 2)))


def roc_auc(frame: pl.DataFrame) -> float:
    return scores.ranking(frame["label"].to_numpy() == 1, frame["error"].to_numpy())[0]


SETTINGS: tuple[
    tuple[str, int, Callable[[np.random.Generator, int, float], Pair], Metric, Callable[[pl.DataFrame], float]], ...
] = (
    ("RMSE, normal errors", 300, numbers, LOSS, rmse),
    ("RMSE, errors of Student's t, 4 degrees", 300, lambda rng, rows, better: numbers(rng, rows, better, tail=4), LOSS, rmse),
    ("RMSE, five rows per entity", 500, lambda rng, rows, better: numbers(rng, rows, better, repeats=5), LOSS, rmse),
    ("ROC AUC, a tenth positive", 400, classes, AUC, roc_auc),
    ("ROC AUC, a tenth positive", 100, classes, AUC, roc_auc),
)
