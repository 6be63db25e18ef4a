"""Purchase histories of users, separate from the fitted model.

Ids are integers or text, as in the tables. Days are whole numbers since 1970-01-01, local time.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from evergreen.model_types import stored_type

EPOCH = date(1970, 1, 1)
Lines = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]
"""row, column of a catalogue, day and weight (None: 1 each), each row's lines by day; and the sorted ids of the items outside
the catalogue, of which the first has column -1, the second -2 …"""
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


def take(values: np.ndarray, column: np.ndarray, late: np.ndarray) -> np.ndarray:
    """`values` of columns of a catalogue, behind which those of `late` items follow; costs nothing per item of the catalogue.

    >>> take(np.array([4, 5]), np.array([2, 0]), np.array([3])).tolist()
    [3, 4]
    """
    if not len(late):
        return values[column]
    outside = column >= len(values)
    found = np.empty((len(column), *values.shape[1:]), np.result_type(values, late))
    found[~outside], found[outside] = values[column[~outside]], late[column[outside] - len(values)]
    return found


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once. NumPy's own takes ten times as long on whole numbers."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


@stored_type
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
    weight: np.ndarray | None = None
    """Of each line, float32; see features.weight. None: 1 each."""
    _starts: np.ndarray | None = field(default=None, init=False, repr=False)
    """Of each user in `_order`, which holds the places of the lines, user after user; built when first asked for."""
    _order: np.ndarray | None = field(default=None, init=False, repr=False)
    _columns: tuple[tuple[np.ndarray, np.ndarray], ...] = field(default=(), init=False, repr=False)
    """The last two catalogues asked for, each with the column in it of each of `items`."""

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "Histories":
        """From the columns user, basket, item and day (a date). A line given twice counts once, on its first day.

        A column `step`, if there, orders the lines of a day; a column `weight` weighs them.
        """
        steps = ["step"] if "step" in frame.columns else []
        lines = frame.sort("day", *steps, "user", "basket", "item").unique(
            ["user", "basket", "item"], keep="first", maintain_order=True
        )
        user, item, basket = (to_ids(lines[name]) for name in ("user", "item", "basket"))
        users, items = distinct(user), distinct(item)
        day = lines["day"].cast(pl.Date).cast(pl.Int32).to_numpy()
        weight = lines["weight"].cast(pl.Float32).to_numpy() if "weight" in lines.columns else None
        return cls(users, items, _narrow(codes(user, users)), _narrow(codes(item, items)), basket, day, weight)

    def __len__(self) -> int:
        return len(self.day)

    @property
    def id_kind(self) -> str:
        """Of the users' ids, as NumPy's dtypes have it."""
        return self.users.dtype.kind

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Position of each user, -1 for an unknown one."""
        return codes(ids, self.users)

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Of the users at `positions`."""
        return self.users[positions]

    def newest(self, positions: np.ndarray) -> np.ndarray:
        """Day of the newest line of each of the users at `positions`; the earliest day there is for one without lines."""
        row, place = self.places(positions)
        found = np.full(len(positions), np.iinfo(np.int32).min, np.int64)
        np.maximum.at(found, row, self.day[place])
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def count_users(self, after: date, until: date) -> int:
        """Users with a line after `after` and up to `until`."""
        return len(distinct(self.user[(self.day > to_day(after)) & (self.day <= to_day(until))]))

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row in `positions`, place) of every line of the users at `positions`, user after user, each by day.

        Costs what these users bought, whatever the others did.
        """
        if self._starts is None or self._order is None:
            self._order = np.argsort(self.user, kind="stable").astype(np.int32)
            self._starts = np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=len(self.users)))])
        first, sizes = self._starts[positions], self._starts[positions + 1] - self._starts[positions]
        return np.repeat(np.arange(len(positions)), sizes), self._order[ranges(first, sizes)]

    def columns(self, catalogue: np.ndarray) -> np.ndarray:
        """Column in `catalogue` of each of `items`, -1 outside; kept for those asked for again and again."""
        for known, columns in self._columns:
            if known is catalogue:
                return columns
        columns = codes(self.items, catalogue)
        self._columns = (*self._columns[-1:], (catalogue, columns))
        return columns

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> "Lines":
        """The lines of the users at `positions`, which `row` counts."""
        row, place = self.places(positions)
        item = self.item[place]
        column, late = self.columns(catalogue)[item], self.items[:0]
        if column.min(initial=0) < 0:
            outside = column < 0
            found = distinct(item[outside])
            column[outside], late = -1 - np.searchsorted(found, item[outside]), self.items[found]
        return row, column, self.day[place], self._weights(place), late

    def _weights(self, places: np.ndarray | slice) -> np.ndarray | None:
        return None if self.weight is None else self.weight[places]

    def between(self, first: int, last: int) -> "Histories":
        """The lines of the days `first` to `last`, both inclusive; users and items keep their positions."""
        return self.part(slice(*np.searchsorted(self.day, [first, last + 1])))

    def part(self, places: np.ndarray | slice) -> "Histories":
        """Some of the lines; users and items keep their positions."""
        user, item, basket, day = (each[places] for each in (self.user, self.item, self.basket, self.day))
        return Histories(self.users, self.items, user, item, basket, day, self._weights(places))

    def of_users(self, positions: np.ndarray) -> "Histories":
        """The lines of the users at the ascending `positions` alone, who are numbered from 0 on; items keep their positions."""
        row, place = self.places(positions)
        by = np.argsort(place)
        cut = self.part(place[by])
        own = row[by].astype(np.int32)
        return Histories(self.users[positions], self.items, own, cut.item, cut.basket, cut.day, cut.weight)

    def until(self, day: int) -> "Histories":
        """What was known at the end of `day`: later users and items are gone, and positions count those that are left."""
        return self.until_positions(day).compact()

    def compact(self) -> "Histories":
        """Without users and items that have no line: positions count those that are left."""
        users, user = _compact(self.user, len(self.users))
        items, item = _compact(self.item, len(self.items))
        return Histories(self.users[users], self.items[items], user, item, self.basket, self.day, self.weight)

    def with_items(self, ids: np.ndarray) -> "Histories":
        """With the items `ids` too, although nobody bought them."""
        items = np.union1d(self.items, ids)
        item = _narrow(codes(self.items, items))[self.item]
        return Histories(self.users, items, self.user, item, self.basket, self.day, self.weight)

    def until_positions(self, day: int) -> "Histories":
        """The lines up to `day`; users and items keep their positions."""
        return self.between(np.iinfo(np.int32).min, day)

    def frame(self) -> pl.DataFrame:
        """The columns that `of` takes."""
        columns = {"user": self.users[self.user], "basket": self.basket, "item": self.items[self.item], "day": self.day}
        weight = {} if self.weight is None else {"weight": self.weight}
        return pl.DataFrame(columns | weight).with_columns(pl.col("day").cast(pl.Date))

    def and_then(self, events: pl.DataFrame) -> "Histories":
        """These histories and newer lines, in the columns of `of`; a line that is known already changes nothing.

        A newer line without a weight weighs 1.
        """
        known, newer = self.frame(), events.select("user", "basket", "item", "day")
        if self.weight is not None:
            newer = newer.with_columns(weight=pl.lit(1, pl.Float32))
        return Histories.of(pl.concat([known, newer], how="vertical_relaxed"))

    def catalogue(self, min_users: int) -> np.ndarray:
        """Sorted ids of the items that at least `min_users` users bought."""
        pairs = distinct(self.user.astype(np.int64) * max(len(self.items), 1) + self.item)
        return self.items[np.bincount(pairs % max(len(self.items), 1), minlength=len(self.items)) >= min_users]

    def matrix(self, catalogue: np.ndarray, weight: np.ndarray | None = None) -> Sparse:
        """Users x `catalogue`: sums of the lines' weights, each times `weight`; items outside the catalogue are left out.

        Without weights: the number of lines. Lines of weight 0 leave no entry.
        """
        column, shape = self.columns(catalogue)[self.item], (len(self.users), len(catalogue))
        if self.weight is None:
            return matrix(self.user, column, shape, weight)
        found = matrix(self.user, column, shape, self.weight if weight is None else self.weight * weight)
        found.eliminate_zeros()
        return found


def matrix(row: np.ndarray, column: np.ndarray, shape: tuple[int, int], weight: np.ndarray | None = None) -> Sparse:
    """Number of entries per row and column, or their summed `weight`; a column of -1 is left out."""
    kept = column >= 0
    value = np.ones(kept.sum(), np.float32) if weight is None else weight[kept].astype(np.float32)
    return sparse.coo_array((value, (row[kept], column[kept])), shape=shape).tocsr()


def ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whole numbers from each of `first` on, as many as `sizes` says, one after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def to_ids(column: pl.Series) -> np.ndarray:
    """Whole numbers stay what they are; everything else becomes text of fixed width, which needs no Python objects."""
    return column.to_numpy() if column.dtype.is_integer() else column.cast(pl.String).to_numpy().astype(str)


def _compact(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the numbers below `size` occur, and the values as positions in those."""
    there = np.zeros(size, bool)
    there[values] = True
    return np.flatnonzero(there), (np.cumsum(there, dtype=np.int32) - 1)[values]


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32)
