"""Off-policy estimates of lists (monitoring.rollout.off_policy): how often intervals hold what is expected, and how often the
gate refuses a challenger by them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from evergreen.monitoring.rollout.off_policy import ESTIMATORS, estimate

RUNS = 300
K, ALTERNATES = 5, 2
SIZES = (60, 120, 500)
UNIFORM, SKEWED = (0.5, 0.5), (0.2, 0.8)
"""The chances of the two alternates of a rank, if one is shown. The judged list has the first."""


class Shop(NamedTuple):
    pairs: pl.DataFrame
    """As `estimate` takes them; `against`: the lists of the champion without exploration."""
    expected: float
    """The value of the list that is judged."""
    gain: float
    """By which it is better than that of the champion."""


def shop(
    seed: int, users: int = 400, swap: float = 0.3, shares: tuple[float, float] = UNIFORM, worse: float | None = None
) -> Shop:
    """Served lists of the items 0 to K - 1, each with the chance `swap` replaced by one of its own two alternates.

    The list that is judged has an alternate in the place of every other item. `worse`: by how much less likely each of these
    is bought than the item in whose place it stands; None: as it happens.
    """
    draw = np.random.default_rng(seed)
    chance = 0.05 + 0.4 * draw.random(K + ALTERNATES * K)  # that a user buys an item that is shown to him
    wanted = np.array([rank if rank % 2 else K + ALTERNATES * rank for rank in range(K)])
    if worse is not None:
        chance[:K] = np.maximum(chance[:K], 0.15)
        chance[wanted] = chance[:K] - worse * (wanted >= K)
    taste = np.repeat(draw.choice([0.5, 1.5], users), 2)[:, None]  # users differ: the two lists of one user are alike
    away, second = draw.random((2 * users, K)) < swap, draw.random((2 * users, K)) < shares[1]
    items = np.where(away, K + ALTERNATES * np.arange(K) + second, np.arange(K))
    chances = np.where(away, swap * np.where(second, shares[1], shares[0]), 1 - swap)
    bought = draw.random(items.shape) < chance[items] * taste
    text = items.astype(str).tolist()
    pairs = pl.DataFrame(
        {
            "entity": [f"u{row // 2}" for row in range(2 * users)],
            "items": text,
            "propensities": chances.tolist(),
            "wanted": [wanted.astype(str).tolist()] * (2 * users),
            "against": [[str(item) for item in range(K)]] * (2 * users),
            "label": [
                [item for item, hit in zip(*each, strict=True) if hit] for each in zip(text, bought.tolist(), strict=True)
            ],
        },
        schema_overrides={"label": pl.List(pl.String)},
    )
    return Shop(pairs, float(chance[wanted].sum()), float(chance[wanted].sum() - chance[:K].sum()))


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(20, round(RUNS * scale))
    yield from _coverage(runs, seed)
    yield from _refusals(runs, seed)


def _coverage(runs: int, seed: int) -> Iterator[Claim]:
    for users in SIZES:
        for name, shares in (("uniform", UNIFORM), ("skewed", SKEWED)):
            made = [shop(seed * RUNS + run, users, shares=shares) for run in range(runs)]
            found = [(estimate(each.pairs), each) for each in made]
            told = [(one, each) for one, each in found if one and not one.why]
            yield Claim("lists that nobody saw: not too few to tell", f"{users} users, {name} propensities", len(told), runs)
            if not told:
                continue
            for place, method in enumerate(ESTIMATORS):
                for what in ("hits", "gain"):
                    held = 0
                    for one, each in told:
                        by = one.estimates[place]
                        low, high = (by.low, by.high) if what == "hits" else (by.gain_low, by.gain_high)
                        true = each.expected if what == "hits" else each.gain
                        held += low is not None and high is not None and low <= true <= high
                    setting = f"{what}, {method}: {users} users, two lists each, {name} propensities"
                    yield Claim("95 % interval of lists that nobody saw", setting, held, len(told), 0.93, 0.97)


def _refusals(runs: int, seed: int) -> Iterator[Claim]:
    """How often the gate refuses by them; a run that cannot tell refuses nobody."""
    for users in SIZES:
        for name, shares in (("uniform", UNIFORM), ("skewed", SKEWED)):
            for worse, low, high in ((0.0, 0.0, 0.025), (0.1, 0.0, 1.0)):
                made = [shop(seed * RUNS + run, users, shares=shares, worse=worse) for run in range(runs)]
                refused = sum(found is not None and found.surely_worse for found in (estimate(each.pairs) for each in made))
                what = "equal to" if not worse else "0.3 hits worse than"
                setting = f"{users} users, {name} propensities"
                yield Claim(
                    f"challenger {what} the champion, refused by lists that nobody saw", setting, refused, runs, low, high
                )
