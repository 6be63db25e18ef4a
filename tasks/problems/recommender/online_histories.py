"""Histories that go on while they are read: a new basket costs its own lines, not all that were ever bought."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.recommender.user_histories import Histories, Lines, codes, distinct, take

NEWER = 20_000
"""Lines that wait beside the others; more of them are merged in one go."""
MANY = 1_000
"""So many lines at once are merged, not looked at one by one."""
LINE = ["user", "basket", "item", "day"]

Newer = Mapping[tuple[Any, Any], int]
"""(basket, item) of one user -> the first day of the line."""


@dataclass(eq=False)
class OnlineHistories:
    """`base` and the lines that came since, `newer`: user -> lines, none of them in `base`. Neither ever changes.

    Positions of users count those of `base`, then the `newcomers`: whoever has no line in `base`, as they came.
    """

    base: Histories
    newer: Mapping[Any, Newer] = field(default_factory=dict)
    waiting: int = 0
    """Number of lines in `newer`."""
    last_day: int = np.iinfo(np.int32).min
    """The newest day of all lines."""
    newcomers: Mapping[Any, int] = field(default_factory=dict)
    """User -> position."""
    _merged: Histories | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, histories: "Histories | OnlineHistories") -> "OnlineHistories":
        if isinstance(histories, OnlineHistories):
            return histories
        return cls(histories, last_day=int(histories.day[-1])) if len(histories) else cls(histories)

    def __len__(self) -> int:
        return len(self.base) + self.waiting

    @property
    def id_kind(self) -> str:
        """Of the users' ids, as NumPy's dtypes have it."""
        return self.base.id_kind

    @property
    def items(self) -> np.ndarray:
        """Sorted ids of the items of `base`."""
        return self.base.items

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Position of each user, -1 for an unknown one."""
        found = self.base.find(ids)
        if self.newcomers:
            unknown = np.flatnonzero(found < 0)
            found[unknown] = [self.newcomers.get(each, -1) for each in ids[unknown].tolist()]
        return found

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Of the users at `positions`."""
        known = self.base.users
        if positions.max(initial=-1) < len(known):
            return known[positions]
        return take(known, positions, np.array(list(self.newcomers)))

    def newest(self, positions: np.ndarray) -> np.ndarray:
        """Day of the newest line of each of the users at `positions`."""
        found = np.full(len(positions), np.iinfo(np.int32).min, np.int64)
        there = positions < len(self.base.users)
        found[there] = self.base.newest(positions[there])
        if not self.newer:
            return found
        later = [
            max(self.newer[each].values(), default=0) if each in self.newer else 0 for each in self.ids(positions).tolist()
        ]
        return np.maximum(found, later)

    def merged(self) -> Histories:
        """All in one."""
        if self._merged is None:
            self._merged = self.base.and_then(self._waiting()) if self.waiting else self.base
        return self._merged

    def frame(self) -> pl.DataFrame:
        return self.merged().frame()

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> Lines:
        """See Histories.lines."""
        if not self.newer:
            return self.base.lines(positions, catalogue)
        there = np.flatnonzero(positions < len(self.base.users))
        row, column, day, weight, late = self.base.lines(positions[there], catalogue)
        found: list[Lines] = [(there[row], column, day, weight, late)]
        for at, each in enumerate(self.ids(positions).tolist()):
            if each in self.newer:
                found.append(_lines(at, self.newer[each], catalogue))
        return found[0] if len(found) == 1 else _concatenate(found)

    def and_then(self, events: pl.DataFrame) -> "OnlineHistories":
        """These and newer lines, in the columns of Histories.of; a line that is known already changes nothing.

        Ids of users and items take the type that those of `base` have. Raises DataError for one that cannot.
        """
        if not len(self.base) or events.height > MANY or self.waiting > NEWER:
            return OnlineHistories.of(self.merged().and_then(typed(events, self.base)))
        newer, newcomers, count, last = dict(self.newer), self.newcomers, self.waiting, self.last_day
        for user, mine in _by_user(events, self.base).items():
            known, had = self._known(user, mine), newer.get(user, {})
            seen = {**had, **known}
            if any(day < seen.get(line, day) for line, day in mine.items()):
                return OnlineHistories.of(self.merged().and_then(typed(events, self.base)))
            now = {**had, **{line: min(day, had.get(line, day)) for line, day in mine.items() if line not in known}}
            if now:
                newer[user], count, last = now, count + len(now) - len(had), max(last, *now.values())
                if not had and self.base.find(np.array([user]))[0] < 0:
                    newcomers = {**newcomers, user: len(self.base.users) + len(newcomers)}
        return OnlineHistories(self.base, newer, count, last, newcomers)

    def _known(self, user: Any, asked: Newer) -> Newer:
        """Those lines of `user` in `base` whose items are among the asked."""
        position = self.base.find(np.array([user]))
        item = codes(np.array([each for _, each in asked]), self.base.items)
        item = distinct(item[item >= 0])
        if position[0] < 0 or not len(item):
            return {}
        place = self.base.places(position)[1]
        place = place[codes(self.base.item[place], item) >= 0]
        lines = zip(map(str, self.base.basket[place].tolist()), self.base.items[self.base.item[place]].tolist(), strict=True)
        return dict(zip(lines, self.base.day[place].tolist(), strict=True))

    def _waiting(self) -> pl.DataFrame:
        """The lines of `newer` in the columns of Histories.of."""
        rows = [(user, basket, item, day) for user, lines in self.newer.items() for (basket, item), day in lines.items()]
        user, basket, item, day = (pl.Series(name, each) for name, each in zip(LINE, zip(*rows, strict=True), strict=True))
        return typed(pl.DataFrame([user, basket, item, day.cast(pl.Int32).cast(pl.Date)]), self.base)


@dataclass(eq=False)
class Session(OnlineHistories):
    """One user with the current basket added to his history; nothing is stored.

    `position`: of the user in the histories, -1 for an anonymous user. `basket`: ids; each counts as a line of `day`.
    """

    position: int = -1
    basket: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    day: int = 0
    whole: OnlineHistories | None = None
    """The histories of all users."""

    @classmethod
    def on(cls, histories: Histories | OnlineHistories, position: int, basket: np.ndarray, day: int) -> "Session":
        online = OnlineHistories.of(histories)
        shared = (online.base, online.newer, online.waiting, online.last_day, online.newcomers)
        return cls(*shared, position, basket, day, online)

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """The only position is 0. An anonymous user has an id that is nobody's."""
        assert self.whole is not None
        if self.position >= 0:
            return self.whole.ids(np.full(len(positions), self.position))
        known = self.base.users
        nobody = np.array([known[:1].min(initial=0) - 1] if self.id_kind in "iu" else [""])
        return nobody[positions]

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> Lines:
        """See Histories.lines; the only position is 0."""
        assert self.whole is not None
        mine = np.full(len(positions), self.position)
        past = self.whole.lines(mine[mine >= 0], catalogue)
        column, late = _columns(self.basket if len(positions) else self.basket[:0], catalogue)
        return _concatenate([past, (np.zeros(len(column), np.int64), column, np.full(len(column), self.day), None, late)])


def as_id(value: Any, known: np.ndarray | str) -> Any:
    """`value` as the ids in `known` are, or those of such a kind of NumPy's: 7, 7.0 and "7" are the same whole number.

    None where it cannot be one.
    """
    if (known if isinstance(known, str) else known.dtype.kind) not in "iu":
        return None if value is None or value == "" else str(value)
    try:
        number = int(value)
        whole = isinstance(value, str) or number == value
        return number if whole and -(2**63) <= number < 2**63 else None
    except (TypeError, ValueError, OverflowError):
        return None


def typed(events: pl.DataFrame, like: Histories) -> pl.DataFrame:
    """`events` with ids of the types of `like`. Raises DataError for one that is none."""
    if not len(like):
        return events.select(LINE)
    for name, known in (("user", like.users), ("item", like.items)):
        kind = pl.Int64 if known.dtype.kind in "iu" else pl.String
        turned = events[name].cast(kind, strict=False)
        if turned.null_count():
            raise _no_id(name, events[name].filter(turned.is_null())[0], known)
        events = events.with_columns(turned)
    basket = events["basket"].cast(pl.Int64 if like.basket.dtype.kind in "iu" else pl.String, strict=False)
    return (events if basket.null_count() else events.with_columns(basket)).select(LINE)


def _by_user(events: pl.DataFrame, like: Histories) -> dict[Any, dict[tuple[Any, Any], int]]:
    """User -> (basket, item) -> first day. Without Polars' queries, which take longer than a basket."""
    found: dict[Any, dict[tuple[Any, Any], int]] = {}
    users, items = (_typed(events[name].to_list(), name, known) for name, known in (("user", like.users), ("item", like.items)))
    baskets, days = map(str, events["basket"].to_list()), events["day"].cast(pl.Date).cast(pl.Int32).to_list()
    for user, basket, item, day in zip(users, baskets, items, days, strict=True):
        mine = found.setdefault(user, {})
        mine[basket, item] = min(day, mine.get((basket, item), day))
    return found


def _typed(given: list[Any], name: str, known: np.ndarray) -> list[Any]:
    """As the ids in `known` are. Raises DataError for one that cannot be."""
    found = [as_id(each, known) for each in given]
    if None in found:
        raise _no_id(name, given[found.index(None)], known)
    return found


def _no_id(name: str, value: Any, known: np.ndarray) -> DataError:
    return DataError(f"{name} = {value}: ids are whole numbers here, such as {known[0]}")


def _lines(row: int, newer: Newer, catalogue: np.ndarray) -> Lines:
    column, late = _columns(np.array([item for _, item in newer]), catalogue)
    return np.full(len(column), row), column, np.fromiter(newer.values(), np.int64, len(column)), None, late


def _columns(items: np.ndarray, catalogue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and late items, as Lines has them."""
    column = codes(items, catalogue)
    late = distinct(items[column < 0])
    column[column < 0] = -1 - np.searchsorted(late, items[column < 0])
    return column, late


def _concatenate(found: list[Lines]) -> Lines:
    """Lines of the same rows in one, each row's by day. Where some have weights, the others weigh 1."""
    late = distinct(np.concatenate([each for *_, each in found if len(each)] or [found[0][-1]]))
    parts = [(row, _renumbered(column, mine, late), day) for row, column, day, _, mine in found]
    row, column, day = (np.concatenate(each) for each in zip(*parts, strict=True))
    by = np.lexsort((day, row))
    weights = [weight for _, _, _, weight, _ in found]
    if all(weight is None for weight in weights):
        return row[by], column[by], day[by], None, late
    sizes = [len(part[0]) for part in found]
    filled = [np.ones(size, np.float32) if each is None else each for size, each in zip(sizes, weights, strict=True)]
    return row[by], column[by], day[by], np.concatenate(filled)[by], late


def _renumbered(column: np.ndarray, mine: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Columns whose late items are `mine`, a part of `late`."""
    if not len(mine):
        return column
    place = np.searchsorted(late, mine)
    return np.where(column < 0, -1 - place[np.maximum(-1 - column, 0)], column)


def merged(histories: Histories | OnlineHistories) -> Histories:
    return histories.merged() if isinstance(histories, OnlineHistories) else histories
