"""Who bought what when: the histories a recommender reads, kept apart from what it learned.

Ids are integers or text, as in the tables. Days are whole numbers since 1970-01-01, local time.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

EPOCH = date(1970, 1, 1)
Sparse = Any
"""A scipy.sparse.csr_array, users x items, float32; the library's type hints do not know its operators."""


def to_day(cutoff: date) -> int:
    return (cutoff - EPOCH).days


def to_date(day: int) -> date:
    return EPOCH + timedelta(days=int(day))


def codes(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Position of each of `ids` in the sorted `known`; -1 where it is not there.

    >>> codes(np.array([5, 4, 9]), np.array([4, 5]))
    array([ 1,  0, -1])
    """
    if not len(known):
        return np.full(len(ids), -1)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place, -1)


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once. NumPy's own takes ten times as long on whole numbers."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


@dataclass(eq=False)
class Histories:
    """One entry per user, basket and item in `user`, `item`, `basket` and `day`, sorted by day.

    `users` and `items` are the sorted ids; `user` and `item` are positions in them.
    """

    users: np.ndarray
    items: np.ndarray
    user: np.ndarray
    item: np.ndarray
    basket: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "Histories":
        """From the columns user, basket, item and day (a date). A line given twice counts once, on its first day."""
        lines = frame.sort("day", "user", "basket", "item").unique(
            ["user", "basket", "item"], keep="first", maintain_order=True
        )
        user, item, basket = (_ids(lines[name]) for name in ("user", "item", "basket"))
        users, items = distinct(user), distinct(item)
        day = lines["day"].cast(pl.Date).cast(pl.Int32).to_numpy()
        return cls(users, items, _narrow(codes(user, users)), _narrow(codes(item, items)), basket, day)

    def __len__(self) -> int:
        return len(self.day)

    def between(self, first: int, last: int) -> "Histories":
        """The lines of the days `first` to `last`, both inclusive; users and items keep their positions."""
        here = slice(*np.searchsorted(self.day, [first, last + 1]))
        return Histories(self.users, self.items, self.user[here], self.item[here], self.basket[here], self.day[here])

    def until(self, day: int) -> "Histories":
        """What was known at the end of `day`: later users and items are gone, and positions count those that are left."""
        lines = self.until_positions(day)
        users, user = _compact(lines.user, len(self.users))
        items, item = _compact(lines.item, len(self.items))
        return Histories(self.users[users], self.items[items], user, item, lines.basket, lines.day)

    def until_positions(self, day: int) -> "Histories":
        """The lines up to `day`; users and items keep their positions."""
        return self.between(np.iinfo(np.int32).min, day)

    def frame(self) -> pl.DataFrame:
        """The columns that `of` takes."""
        return pl.DataFrame(
            {"user": self.users[self.user], "basket": self.basket, "item": self.items[self.item], "day": self.day}
        ).with_columns(pl.col("day").cast(pl.Date))

    def and_then(self, events: pl.DataFrame) -> "Histories":
        """These histories and newer lines, in the columns of `of`; a line that is known already changes nothing."""
        return Histories.of(pl.concat([self.frame(), events.select("user", "basket", "item", "day")], how="vertical_relaxed"))

    def catalogue(self, min_users: int) -> np.ndarray:
        """Sorted ids of the items that at least `min_users` users bought."""
        pairs = distinct(self.user.astype(np.int64) * max(len(self.items), 1) + self.item)
        return self.items[np.bincount(pairs % max(len(self.items), 1), minlength=len(self.items)) >= min_users]

    def matrix(self, catalogue: np.ndarray, weight: np.ndarray | None = None) -> Sparse:
        """Users x `catalogue`: number of lines, or their summed `weight`; items outside the catalogue are left out."""
        column = codes(self.items, catalogue)[self.item]
        kept = column >= 0
        value = np.ones(kept.sum(), np.float32) if weight is None else weight[kept].astype(np.float32)
        shape = (len(self.users), len(catalogue))
        return sparse.coo_array((value, (self.user[kept], column[kept])), shape=shape).tocsr()


def _ids(column: pl.Series) -> np.ndarray:
    """Whole numbers stay what they are; everything else becomes text of fixed width, which needs no Python objects."""
    return column.to_numpy() if column.dtype.is_integer() else column.cast(pl.String).to_numpy().astype(str)


def _compact(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the numbers below `size` occur, and the values as positions in those."""
    there = np.zeros(size, bool)
    there[values] = True
    return np.flatnonzero(there), (np.cumsum(there, dtype=np.int32) - 1)[values]


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32)
