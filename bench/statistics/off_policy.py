"""Off-policy estimates of lists (monitoring.rollout.off_policy): how often intervals hold what is expected."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from evergreen.monitoring.rollout.off_policy import ESTIMATORS, estimate

RUNS = 300
K, ITEMS = 5, 30


def shop(seed: int, users: int = 400, swap: float = 0.3, alternates: int = 2) -> tuple[pl.DataFrame, float]:
    """Served lists of the items 0 to K - 1, each with the chance `swap` replaced by one of its own alternates.

    And the value of the list that is judged, which holds an alternate in the place of every other item.
    """
    draw = np.random.default_rng(seed)
    chance = 0.05 + 0.4 * draw.random(ITEMS)  # that a user buys an item that is shown to him
    wanted = [rank if rank % 2 else K + alternates * rank for rank in range(K)]
    rows = []
    for user in range(users):
        taste = draw.choice([0.5, 1.5])  # users differ: lists of one user are alike
        for _ in range(2):
            items, chances = [], []
            for rank in range(K):
                away = draw.random() < swap
                items.append(K + alternates * rank + int(draw.integers(alternates)) if away else rank)
                chances.append(swap / alternates if away else 1 - swap)
            bought = [item for item in items if draw.random() < chance[item] * taste]
            rows.append(
                (f"u{user}", [f"{item}" for item in items], chances, [f"{item}" for item in wanted], [*map(str, bought)])
            )
    schema = ["entity", "items", "propensities", "wanted", "label"]
    return pl.DataFrame(rows, schema=schema, orient="row"), float(chance[wanted].sum())


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(20, round(RUNS * scale))
    for users in (60, 120, 400, 1000):
        found = [(estimate(pairs), expected) for run in range(runs) for pairs, expected in [shop(seed * RUNS + run, users)]]
        for method in range(len(ESTIMATORS)):
            each = [(one.estimates[method], expected) for one, expected in found if one and not one.why]
            held = sum(
                one.low is not None and one.high is not None and one.low <= expected <= one.high for one, expected in each
            )
            setting = f"{ESTIMATORS[method]}: {users} users, two lists each"
            yield Claim("95 % interval of the hits of lists that nobody saw", setting, held, len(each), 0.93, 0.97)
