"""What the ranker knows of a candidate: facts of the user, of the item and of the two together, all up to a day.

Facts of items are learned once and kept; facts of users and of pairs come from the histories at hand.
"""

from dataclasses import dataclass

import numpy as np

from tasks.problems.ranking.histories import Histories, Sparse, codes, distinct, matrix
from tasks.problems.ranking.live import Live
from tasks.problems.ranking.sources import SOURCES, decay, popularity

USER = ("visits", "visits_28d", "visit_gap", "days_since_visit", "days_known", "lines_per_visit", "repeat_share")
ITEM = ("users_7d", "users_28d", "users_56d", "trend", "users", "lines_per_user", "loyal_share", "days_sold", "category_users")
PAIR = (
    *("decayed_share", "bought", "bought_28d", "rate", "days_since", "days_between", "overdue", "days_since_first"),
    *("category_decayed", "category_share", "category_days_since"),
)
FEATURES = (*USER, *ITEM, *PAIR, *SOURCES, *(f"{source}_place" for source in SOURCES))
NEVER = 999.0
"""Days since something that never happened."""


@dataclass(eq=False)
class Lines:
    """The lines of some users, user after user, each from the first to the last day.

    `row` counts those users, `column` the catalogue (-1 outside), `ago` days before now.
    """

    row: np.ndarray
    column: np.ndarray
    ago: np.ndarray
    rows: int
    columns: int

    @classmethod
    def of(cls, histories: Histories | Live, positions: np.ndarray, catalogue: np.ndarray, day: int) -> "Lines":
        """`positions`: users, as positions in `histories.users`."""
        row, column, when = histories.lines(positions, catalogue)
        kept = when <= day
        return cls(row[kept], column[kept], (day - when[kept]).astype(np.float32), len(positions), len(catalogue))

    def counts(self) -> Sparse:
        """Users x catalogue: number of lines."""
        return matrix(self.row, self.column, (self.rows, self.columns))

    def decayed(self, half_life: float) -> Sparse:
        """Users x catalogue: purchases, each counting less the longer ago it is."""
        weight = decay(self.ago.astype(np.int64), half_life)
        return matrix(self.row, self.column, (self.rows, self.columns), weight)


def of_items(histories: Histories, catalogue: np.ndarray, category: np.ndarray, day: int) -> np.ndarray:
    """catalogue x ITEM at `day`. `category`: number of each item's category."""
    weekly, monthly, recent = (popularity(histories, catalogue, day - days + 1, day) for days in (7, 28, 56))
    bought = histories.until(day).matrix(catalogue)
    users = np.maximum(np.bincount(bought.indices, minlength=len(catalogue)), 1)
    again = np.bincount(bought.indices, bought.data > 1, minlength=len(catalogue))
    lines = np.bincount(bought.indices, bought.data, minlength=len(catalogue))
    column = codes(histories.items, catalogue)[histories.item]
    first = np.full(len(catalogue), day, np.int64)
    np.minimum.at(first, column[column >= 0], histories.day[column >= 0])
    trend = (2 * monthly + 1) / (recent + 1)
    aisle = np.bincount(category, recent)[category] if len(category) else recent
    return np.column_stack([weekly, monthly, recent, trend, users, lines / users, again / users, day - first, aisle])


def of_users(lines: Lines) -> np.ndarray:
    """users x USER; visits are days with a purchase."""
    visit = distinct(lines.row * 100_000 + lines.ago.astype(np.int64))
    row, ago = visit // 100_000, (visit % 100_000).astype(float)
    visits = np.bincount(row, minlength=lines.rows)
    lately = np.bincount(row, ago < 28, minlength=lines.rows)
    last, first = _extremes(row, ago, lines.rows)
    inside = lines.column >= 0
    count = np.bincount(lines.row[inside], minlength=lines.rows)
    items = np.bincount(distinct(lines.row[inside] * 10**9 + lines.column[inside]) // 10**9, minlength=lines.rows)
    gap = (first - last) / np.maximum(visits - 1, 1)
    return np.column_stack([visits, lately, gap, last, first, count / np.maximum(visits, 1), 1 - items / np.maximum(count, 1)])


def _extremes(group: np.ndarray, ago: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest `ago` per group; NEVER for an empty one."""
    least, most = np.full(groups, NEVER), np.full(groups, -1.0)
    np.minimum.at(least, group, ago)
    np.maximum.at(most, group, ago)
    return least, np.where(most < 0, NEVER, most)


def of_pairs(
    lines: Lines, user: np.ndarray, item: np.ndarray, category: np.ndarray, half_life: float, visits: np.ndarray
) -> np.ndarray:
    """pairs x PAIR of the parallel `user` (row in `lines`) and `item` (column of the catalogue). `visits`: per user."""
    inside = lines.column >= 0
    row, column, ago = lines.row[inside], lines.column[inside], lines.ago[inside]
    weight = decay(ago, half_life)
    total = np.maximum(np.bincount(row, weight, minlength=lines.rows), 1e-9)
    size = len(category)
    pair = _grouped(row * size + column, ago, weight, user * size + item)
    groups = int(category.max(initial=0)) + 1
    aisle = _grouped(row * groups + category[column], ago, weight, user * groups + category[item])
    bought, decayed, lately, last, first = pair
    between = np.where(bought > 1, (first - last) / np.maximum(bought - 1, 1), NEVER)
    mine = total[user]
    return np.column_stack(
        [
            *(decayed / mine, bought, lately, bought / np.maximum(visits[user], 1)),
            *(last, between, last / np.maximum(between, 1), first, aisle[1], aisle[1] / mine, aisle[3]),
        ]
    )


def _grouped(key: np.ndarray, ago: np.ndarray, weight: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Count, weight, count within 28 days, smallest and largest `ago` of the lines of each of the keys `wanted`."""
    known, group = np.unique(key, return_inverse=True)
    last, first = _extremes(group, ago, len(known))
    sums = [np.bincount(group, part, minlength=len(known)) for part in (np.ones(len(key)), weight, ago < 28)]
    place = codes(wanted, known)
    found = place >= 0
    return [
        np.where(found, part[place], empty) if len(known) else np.full(len(wanted), empty)
        for part, empty in zip([*sums, last, first], [0.0, 0.0, 0.0, NEVER, NEVER], strict=True)
    ]
