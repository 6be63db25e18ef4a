"""Realised figures of lists, their alarm, and rollouts of recommenders by user: true rates where users differ and ask often."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from bench.statistics.rollout import ALPHA, ever_worse
from evergreen.monitoring.ledger.records import Estimate, Performance
from evergreen.monitoring.performance.realised import realised
from evergreen.monitoring.rollout.sequential_tests import Losses
from evergreen.tasks.config.params import Recommend
from evergreen.tasks.problems.recommendation.predictions import PREDICTIONS

FEATURES = {"table": "t", "user": "u", "item": "i", "basket": "b", "horizon_days": 7}
SECTION = Recommend.model_validate({"question": "?", "features": FEATURES})
RUNS, MANY = 300, 40_000
CALM = 0.025
"""One-sided error of a 95 % interval."""


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    yield from intervals(max(20, round(RUNS * scale)), seed)
    yield from calm_alarms(max(20, round(RUNS * scale)), seed)
    yield from rollouts(max(20, round(RUNS * scale)), seed)


def week(random: np.random.Generator, users: int, most: int) -> pl.DataFrame:
    """Rows of `as_predicted`. Users differ in how good their lists are, in how often they ask (1 to `most` lists) and in what
    they are shown; one in three buys nothing."""
    user = np.repeat(np.arange(users), random.integers(1, most + 1, users))
    good = random.beta(2, 4, users)[user]
    score = np.where(random.random(len(user)) < good, random.random(len(user)), 0.0)
    bought = (random.random(users) < 2 / 3)[user]
    own = random.geometric(0.02, (users, 10))[user]
    items = np.where(random.random(own.shape) < 0.2, random.geometric(0.02, own.shape), own)
    return pl.DataFrame(
        {
            "entity": user.astype(str),
            "label": pl.Series([["x"]]).new_from_index(0, len(user)),
            "prediction": pl.Series(np.where(bought, score, np.nan), nan_to_null=True),
            "hit_rate": pl.Series(np.where(bought, score > 0, np.nan), nan_to_null=True),
            "items": pl.Series(items).cast(pl.List(pl.String)),
        }
    )


def intervals(runs: int, seed: int) -> Iterator[Claim]:
    for users in (120, 300, 1000):
        for most in (1, 20):
            random = np.random.default_rng([seed, users, most])
            true = PREDICTIONS.realised_scores(week(random, MANY, most), SECTION)
            found = [realised(PREDICTIONS, SECTION, week(random, users, most), run) for run in range(runs)]
            for name, value in true.items():
                each = [one if name == "ndcg" else one.more[name] for one in found]
                held = sum(one.low is not None and one.high is not None and one.low <= value <= one.high for one in each)
                given = sum(one.low is not None for one in each)
                setting = f"{name}: {users} users, 1 to {most} lists"
                yield Claim("95 % interval of a realised figure of lists", setting, held, given, 0.93, 0.97)


def calm_alarms(runs: int, seed: int) -> Iterator[Claim]:
    """Windows as good as the evaluation: how often the score is surely worse than expected."""
    none = Estimate(score=None, low=None, high=None, rows=0)
    for users, most in ((300, 1), (300, 20), (1000, 1)):
        random = np.random.default_rng([seed, users, most, 1])
        alarms = 0
        for run in range(runs):
            expected, now = (realised(PREDICTIONS, SECTION, week(random, users, each), run) for each in (1, most))
            found = Performance(
                metric="ndcg",
                greater_is_better=True,
                expected=expected,
                realised=now,
                realised_until=None,
                estimated=none,
                matured=1.0,
            )
            loss = found.degradation()
            alarms += loss is not None and loss[1] > 0
        setting = f"{users} users, 1 to {most} lists"
        yield Claim("lists: surely worse than expected in one window, though they are not", setting, alarms, runs, 0, CALM)


def rollouts(runs: int, seed: int) -> Iterator[Claim]:
    """A user stays with one version, asks 1 to 20 times, and all of a user's lists resemble each other."""
    for share in (0.05, 0.5):
        for worse, low, high in ((0.0, 0.0, ALPHA), (0.1, 0.5, 1.0)):
            random = np.random.default_rng([seed, round(100 * share), round(100 * worse), 2])
            found = sum(ever_worse(_losses(random, 5_000, share, worse)) for _ in range(runs))
            what = f"lists {worse:g} worse in NDCG" if worse else "the same version"
            yield Claim(
                f"rollout of a recommender: {what}, rolled back", f"5,000 users, share {share:.0%}", found, runs, low, high
            )


def _losses(random: np.random.Generator, users: int, share: float, worse: float) -> Losses:
    rows = week(random, users, 20).with_columns(pl.col("prediction").fill_null(0.0))
    mean = rows.group_by("entity").agg(pl.col("prediction").mean())["prediction"].to_numpy()
    candidate = random.random(users) < share
    return Losses(1 - np.clip(mean - worse * candidate * (mean > 0), 0, 1), candidate, np.zeros(users, int), 1.0)
