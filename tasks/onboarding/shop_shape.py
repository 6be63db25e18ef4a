"""The shape of a shop, from its purchases: whom training can judge models by, and whether anybody buys an item again."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl

WINDOW_DAYS = 28
WINDOWS = 4
"""Newest windows that training needs: three to judge by, one for the search."""
ENOUGH_USERS = 100
"""Users with a history who buy in a window, where there are more than four times as many users."""
FEW_REPEATS = 0.02
"""Below this share of items bought again, lists of items that the user never bought are the only sensible ones."""


@dataclass(frozen=True)
class ShopShape:
    """`judge_by`: see features.judge_by. `discover`: nobody buys an item again."""

    judge_by: str
    why: str
    discover: bool
    repeats: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from the usual, and why."""
        judged = f"models are judged by features.judge_by = {self.judge_by}: {self.why}"
        shown = f"lists show new items only (lists.show = discover): {self.repeats}"
        return (*([judged] if self.judge_by != "calendar" else []), *([shown] if self.discover else []))


def find_shape(purchases: pl.LazyFrame, user: str, item: str, basket: str | None, time: str) -> ShopShape:
    """`purchases`: one row per line, with a date or time in `time`."""
    day = pl.col(time).cast(pl.Datetime).dt.date()
    order = day if basket is None or basket == time else pl.col(basket)
    lines = purchases.select(user=user, item=item, day=day, order=order).drop_nulls().collect()
    pairs = lines.group_by("user", "item").agg(pl.col("order").n_unique())
    share = float((pairs["order"] > 1).mean() or 0.0)  # type: ignore[arg-type]
    judge_by, why = _judge_by(lines)
    return ShopShape(judge_by, why, share < FEW_REPEATS, f"{share:.1%} of the items of a user were bought again")


def _judge_by(lines: pl.DataFrame) -> tuple[str, str]:
    users = lines.group_by("user").agg(pl.col("order").n_unique(), lines=pl.len(), first=pl.col("day").min())
    active = min(_active(lines, users, back) for back in range(WINDOWS))
    seen = f"{active:,} of {users.height:,} users with a history buy in the emptiest of the last {WINDOWS} windows"
    if active >= min(ENOUGH_USERS, max(users.height // 4, 1)):
        return "calendar", seen
    again, more = (users["order"] > 1).sum(), (users["lines"] > 1).sum()
    if 2 * again >= more:
        return "last_orders", f"{seen}; {again:,} have two orders or more"
    return "last_lines", f"{seen}; only {again:,} have two orders, {more:,} two lines"


def _active(lines: pl.DataFrame, users: pl.DataFrame, back: int) -> int:
    """Users with a purchase in a window and one before it; the newest window is `back` = 0."""
    newest: Any = lines["day"].max()
    end: date = newest - timedelta(days=WINDOW_DAYS * back)
    begin = end - timedelta(days=WINDOW_DAYS)
    inside = lines.filter((pl.col("day") > begin) & (pl.col("day") <= end)).select("user").unique()
    return inside.join(users.filter(pl.col("first") <= begin), on="user", how="semi").height
