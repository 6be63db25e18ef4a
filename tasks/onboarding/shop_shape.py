"""The shape of a shop, from its purchases: whom training can judge models by, and whether anybody buys an item again."""

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import polars as pl

from evergreen.tasks.onboarding.shop_traits import Traits, find_traits

PLANS = ((28, 3), (28, 2), (14, 3), (14, 2), (7, 3), (7, 2), (7, 1))
"""Length of a window in days and number of windows to judge by, best first; the first for which the history is long enough."""
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
    horizon_days: int
    windows: int
    """To judge by; the search needs one more, and models learn from at least one before."""
    traits: Traits = field(default_factory=Traits)

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from the usual, and why."""
        judged = f"models are judged by features.judge_by = {self.judge_by}: {self.why}"
        shown = f"lists show new items only (lists.show = discover): {self.repeats}"
        short = f"the history is short: {self.windows} windows of {self.horizon_days} days judge models, not 3 of 28"
        return (
            *([short] if self._is_short and self.judge_by == "calendar" else []),
            *([judged] if self.judge_by != "calendar" else []),
            *([shown] if self.discover else []),
            *self.traits.notes,
        )

    @property
    def _is_short(self) -> bool:
        return (self.horizon_days, self.windows) != PLANS[0] and self.horizon_days != self.traits.horizon_days


def find_shape(purchases: pl.LazyFrame, user: str, item: str, basket: str | None, time: str) -> ShopShape:
    """`purchases`: one row per line, with a date or time in `time`."""
    day = pl.col(time).cast(pl.Datetime).dt.date()
    order = day if basket is None or basket == time else pl.col(basket)
    lines = purchases.select(user=user, item=item, day=day, order=order).drop_nulls().collect()
    pairs = lines.group_by("user", "item").agg(pl.col("order").n_unique())
    share = float((pairs["order"] > 1).mean() or 0.0)  # type: ignore[arg-type]
    traits = find_traits(lines)
    days, windows = _plan(lines, traits.horizon_days)
    judge_by, why = _judge_by(lines, days, windows + 1)
    again = f"{share:.1%} of the items of a user were bought again"
    return ShopShape(judge_by, why, share < FEW_REPEATS, again, days, windows, traits)


def count_windows(orders: int) -> int:
    """Windows to judge by in a shop without dates whose users made at most `orders` orders."""
    return min(max(orders - 4, 1), PLANS[0][1])


def _plan(lines: pl.DataFrame, wanted: int | None) -> tuple[int, int]:
    """Of PLANS the first whose windows, one for the search and one to learn from fit into the history.

    `wanted`: a length of window that suits the shop; plans with it come first.
    """
    plans = (*((wanted, count) for count in (3, 2) if wanted), *PLANS)
    history = (lines["day"].to_physical().max() or 0) - (lines["day"].to_physical().min() or 0) + 1  # type: ignore[operator]
    return next((plan for plan in plans if history // plan[0] - 1 >= plan[1] + 2), PLANS[-1])


def _judge_by(lines: pl.DataFrame, days: int, windows: int) -> tuple[str, str]:
    users = lines.group_by("user").agg(pl.col("order").n_unique(), lines=pl.len(), first=pl.col("day").min())
    active = min(_active(lines, users, days, back) for back in range(windows))
    seen = f"{active:,} of {users.height:,} users with a history buy in the emptiest of the last {windows} windows"
    if active >= min(ENOUGH_USERS, max(users.height // 4, 1)):
        return "calendar", seen
    again, more = (users["order"] > 1).sum(), (users["lines"] > 1).sum()
    if 2 * again >= more:
        return "last_orders", f"{seen}; {again:,} have two orders or more"
    return "last_lines", f"{seen}; only {again:,} have two orders, {more:,} two lines"


def _active(lines: pl.DataFrame, users: pl.DataFrame, days: int, back: int) -> int:
    """Users with a purchase in a window and one before it; the newest window is `back` = 0."""
    newest: Any = lines["day"].max()
    end: date = newest - timedelta(days=days * back)
    begin = end - timedelta(days=days)
    inside = lines.filter((pl.col("day") > begin) & (pl.col("day") <= end)).select("user").unique()
    return inside.join(users.filter(pl.col("first") <= begin), on="user", how="semi").height
