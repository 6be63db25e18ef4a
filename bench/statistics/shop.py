"""Drift of a shop (monitoring.drift.shop_changes): alarms in calm windows, and the share of planted changes that are found."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import polars as pl

from bench.statistics.claim import Claim
from evergreen.monitoring.drift.shop_changes import examine
from evergreen.tasks.config.operations import Monitor

START = date(2023, 1, 2)
RUNS = 60
CALM_WEEKS = 10
CHANGE_AFTER = 2
"""Weeks of production before a planted change."""


@dataclass(frozen=True)
class Shop:
    users: int = 600
    items: int = 3000
    per_shopper: float = 6.0
    trained: int = 40
    """Weeks of purchases before production."""
    spread: float = 0.1
    """Standard deviation of the log of a week's activity."""
    related: float = 0.0
    """Autocorrelation of the weeks."""
    growth: float = 0.0
    """Of the users, a week."""
    season: float = 0.0
    """Amplitude of a year's wave in the log of activity."""
    turnover: float = 0.005
    """Share of the catalogue that is replaced in a week."""
    policy: Monitor = field(default_factory=Monitor)


@dataclass(frozen=True)
class Planted:
    replaced: float = 0.0
    """Share of the catalogue that is replaced at once."""
    activity: float = 1.0
    unknown: float = 0.0
    """Share of purchases that are of items nobody knows, from then on."""


CALM = {
    "weeks alike": Shop(spread=0.0),
    "weeks differ": Shop(spread=0.15),
    "weeks differ, autocorrelation 0.7": Shop(spread=0.15, related=0.7),
    "growth of 2 % a week": Shop(growth=0.02),
    "a season of 30 % that is not declared": Shop(season=0.3),
    "a season of 30 % that is declared": Shop(season=0.3, trained=104, policy=Monitor(season_days=364)),
    "3 % of the catalogue replaced each week": Shop(turnover=0.03),
    "60 users": Shop(users=60, spread=0.15),
    "12 weeks known": Shop(trained=12, spread=0.15),
}
FOUND = {
    "a third of the catalogue replaced": (Shop(), Planted(replaced=1 / 3)),
    "a third of the catalogue replaced, 60 users": (Shop(users=60), Planted(replaced=1 / 3)),
    "activity halved": (Shop(), Planted(activity=0.5)),
    "activity halved, weeks differ by 15 %": (Shop(spread=0.15), Planted(activity=0.5)),
    "unknown items from 1 to 15 %": (Shop(turnover=0.002), Planted(unknown=0.14)),
}


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    runs = max(10, round(RUNS * scale))
    for setting, shop in CALM.items():
        found = [alarms(shop, shop.trained + CALM_WEEKS, [seed, run], Planted()) for run in range(runs)]
        judged = [each for run in found for each in run if each is not None]
        yield Claim("alarms of a calm shop", setting, sum(judged), len(judged), 0.0, shop.policy.false_alarm_rate)
    for setting, (shop, planted) in FOUND.items():
        weeks = shop.trained + CHANGE_AFTER + 1
        found = [alarms(shop, weeks, [seed, run], planted)[-1] for run in range(runs)]
        yield Claim("a planted change is found in its first window", setting, sum(map(bool, found)), runs, 0.9, 1.0)


def alarms(shop: Shop, weeks: int, seed: list[int], planted: Planted) -> list[bool | None]:
    """Of each week of production whether it raises an alarm; None where too little is known."""
    lines = purchases(shop, weeks, np.random.default_rng(seed), planted)
    ends = [START + timedelta(days=7 * week - 1) for week in range(weeks + 1)]
    found = [examine(lines, end, end, ends[shop.trained], shop.policy) for end in ends[shop.trained + 1 :]]
    return [None if each.unknown else any(change.alarm for change in each.changes) for each in found]


def purchases(shop: Shop, weeks: int, draw: np.random.Generator, planted: Planted) -> pl.DataFrame:
    """user, item and day. Users differ in how often they come, items in how often they are bought (Zipf)."""
    rate = draw.gamma(1, 1, int(shop.users * (1 + shop.growth) ** weeks) + 1)
    chance = np.arange(1, shop.items + 1) ** -0.9
    chance /= chance.sum()
    ids, following, level, rows = draw.permutation(shop.items), shop.items, 0.0, []
    for week in range(weeks):
        after = week >= shop.trained + CHANGE_AFTER
        level = shop.related * level + draw.normal(0, shop.spread * np.sqrt(1 - shop.related**2))
        activity = np.exp(level + shop.season * np.sin(2 * np.pi * week / 52)) * (planted.activity if after else 1)
        at_once = planted.replaced if week == shop.trained + CHANGE_AFTER else 0
        gone = draw.random(shop.items) < shop.turnover + at_once
        ids[gone] = following + np.arange(gone.sum())
        following += int(gone.sum())
        users = rate[: int(shop.users * (1 + shop.growth) ** week)]
        there = np.flatnonzero(draw.random(len(users)) < 1 - np.exp(-0.7 * activity * users))
        user = np.repeat(there, 1 + draw.poisson(shop.per_shopper - 1, len(there)))
        item = ids[draw.choice(shop.items, len(user), p=chance)]
        if after:
            strange = draw.random(len(user)) < planted.unknown
            item = np.where(strange, 10**7 + week * 10**4 + draw.integers(0, 2000, len(user)), item)
        day = np.datetime64(START) + 7 * week + draw.integers(0, 7, len(user))
        rows.append(pl.DataFrame({"user": user, "item": item, "day": day.astype("datetime64[D]")}))
    return pl.concat(rows)
