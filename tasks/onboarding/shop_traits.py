"""What is peculiar about the purchases of a shop, and what a draft does about it."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

FEW_USERS = 1_000
RESELLER = 0.2
"""Share of all lines of one user, of at least FEWEST, who is no usual user."""
FEWEST = 20
ROBOT_ITEMS, ROBOT_TIMES = 50, 20
"""Different items a day, and times as many as the median user: no person shops like that."""
ROBOTS = 0.1
"""At most this share of the users are robots."""
FEW_LINES = 5
"""An item with fewer lines says nothing about how long items are sold."""
NEWS_DAYS, SEASON_DAYS = 14, 120
TIMES = 3
"""A history of so many lifetimes shows that items come and go."""
MONTH = (27, 32)
"""Days between two orders of a monthly subscription, both inclusive."""
MONTHLY = 0.3
"""Share of the items bought three times or more that come monthly."""
SHARED, ORDERS, BUYERS, LONGEST, SAMPLED = 0.9, 10, 5, 50, 200_000
"""Bundle: items that are in the same orders in this share of both, in at least so many orders, of at least so many users and at
most so many lines; and the lines looked at."""
WINDOWS = (28, 14, 7, 3, 1)
"""Lengths of a window in days, for a catalogue that turns over."""


@dataclass(frozen=True)
class Traits:
    """`notes`: one line each. `horizon_days`: a window that suits the shop; None: the usual. `bundles`: there are some."""

    notes: tuple[str, ...] = ()
    horizon_days: int | None = None
    bundles: bool = False


def find_traits(lines: pl.DataFrame) -> Traits:
    """`lines`: user, item, day and order, without nulls, one row each."""
    if lines.is_empty():
        return Traits()
    life, history = _lifetime(lines), _span(lines["day"])
    news = life is not None and life <= NEWS_DAYS and history >= TIMES * life
    monthly, pairs = _monthly_share(lines), _bundled_pairs(lines)
    horizon = next(days for days in WINDOWS if days <= max(life // 2, 1)) if news and life else None
    notes = [*_few_users(lines), *_resellers(lines), *_robots(lines)]
    if news:
        notes.append(f"half of the purchases are of items that are sold for {life} days: windows have {horizon} days")
    elif life is not None and life <= SEASON_DAYS and history >= TIMES * life:
        notes.append(
            f"half of the purchases are of items that are sold for {life} days: each training chooses how many days of "
            "popularity count; train at least once a season"
        )
    if monthly >= MONTHLY and not news and history >= 5 * 31:  # two windows to judge by, one to search, one to learn from
        horizon = 31
        notes.append(
            f"{monthly:.0%} of the items bought three times come monthly: windows have 31 days, so that each holds one"
        )
    if pairs:
        notes.append(f"{pairs:,} pairs of items are nearly always bought together: the source co_visitation is on")
    return Traits(tuple(notes), horizon, pairs > 0)


def _span(days: pl.Series) -> int:
    numbers = days.to_physical()
    return int(numbers.max()) - int(numbers.min()) + 1  # type: ignore[arg-type]


def _few_users(lines: pl.DataFrame) -> Iterator[str]:
    if (users := lines["user"].n_unique()) < FEW_USERS:
        yield f"{users:,} users: differences between models are hard to see; the simplest that is about as good serves"


def _resellers(lines: pl.DataFrame) -> Iterator[str]:
    counts = lines["user"].value_counts(sort=True)
    user, most = counts.row(0)
    if counts.height >= FEWEST and most >= RESELLER * lines.height:
        yield (
            f"one user ({user}) has {most / lines.height:.0%} of all lines: he counts as one user in all that is learned; "
            "leave him out by features.where if he is no customer"
        )


def _robots(lines: pl.DataFrame) -> Iterator[str]:
    daily = lines.group_by("user", "day").agg(pl.col("item").n_unique()).group_by("user").agg(pl.col("item").median())
    usual = float(daily["item"].median() or 1)  # type: ignore[arg-type]
    robots = daily.filter((pl.col("item") >= ROBOT_ITEMS) & (pl.col("item") >= ROBOT_TIMES * usual)).sort("user")
    if 0 < robots.height <= ROBOTS * daily.height:
        yield (
            f"{robots.height:,} users take {robots['item'].min():,.0f} different items a day or more, others {usual:,.0f} "
            f"(such as {robots['user'][0]}): robots? If so, leave them out by features.where"
        )


def _lifetime(lines: pl.DataFrame) -> int | None:
    """Days between an item's first and last sale, both inclusive: the median over lines. None: most items are sold rarely."""
    day = pl.col("day").to_physical().cast(pl.Int64)
    items = lines.group_by("item").agg(pl.len(), life=day.max() - day.min() + 1).filter(pl.col("len") >= FEW_LINES)
    if 2 * int(items["len"].sum()) < lines.height:
        return None
    ordered = items.sort("life")
    half = int((ordered["len"].cum_sum() < ordered["len"].sum() / 2).sum())
    return int(ordered["life"][half])


def _monthly_share(lines: pl.DataFrame) -> float:
    """Of the user-item pairs of three orders or more: the share all of whose gaps are a month, but for one in ten."""
    day = pl.col("day").to_physical().cast(pl.Int64)
    days = lines.select("user", "item", day=day).unique().sort("user", "item", "day")
    gaps = days.with_columns(gap=pl.col("day").diff().over("user", "item")).drop_nulls("gap")
    pairs = gaps.group_by("user", "item").agg(pl.len(), monthly=pl.col("gap").is_between(*MONTH).mean())
    return float((pairs.filter(pl.col("len") >= 2)["monthly"] >= 0.9).mean() or 0)  # type: ignore[arg-type]


def _bundled_pairs(lines: pl.DataFrame) -> int:
    orders = lines.select("user", "order", "item").unique()
    if orders.height > SAMPLED:
        orders = orders.filter(pl.struct("user", "order").hash(0) % orders.height < SAMPLED)
    orders = orders.filter(pl.len().over("user", "order") <= LONGEST)
    count = orders.group_by("item").len("orders").filter(pl.col("orders") >= ORDERS)
    common = orders.join(count, on="item")
    both = common.join(common, on=["user", "order"], suffix="_other").filter(pl.col("item") < pl.col("item_other"))
    most = pl.max_horizontal("orders", "orders_other").first()
    pairs = both.group_by("item", "item_other").agg(pl.len(), most.alias("most"), users=pl.col("user").n_unique())
    return pairs.filter((pl.col("len") >= SHARED * pl.col("most")) & (pl.col("users") >= BUYERS)).height
