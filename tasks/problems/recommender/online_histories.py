"""Histories that go on while they are read: a new basket costs its own lines, not all that were ever bought."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.recommender.user_histories import Histories, Lines, codes

NEWER = 20_000
"""Lines that wait beside the others; more of them are merged in one go."""
MANY = 1_000
"""So many lines at once are merged, not looked at one by one."""
LINE = ["user", "basket", "item", "day"]

Newer = Mapping[tuple[Any, Any], int]
"""(basket, item) of one user -> the first day of the line."""


@dataclass(eq=False)
class OnlineHistories:
    """`base` and the lines that came since, `newer`: user -> lines, none of them in `base`. Neither ever changes."""

    base: Histories
    newer: Mapping[Any, Newer] = field(default_factory=dict)
    waiting: int = 0
    """Number of lines in `newer`."""
    last_day: int = np.iinfo(np.int32).min
    """The newest day of all lines."""
    _users: np.ndarray | None = field(default=None, init=False, repr=False)
    _merged: Histories | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, histories: "Histories | OnlineHistories") -> "OnlineHistories":
        if isinstance(histories, OnlineHistories):
            return histories
        return cls(histories, last_day=int(histories.day[-1])) if len(histories) else cls(histories)

    def __len__(self) -> int:
        return len(self.base) + self.waiting

    @property
    def users(self) -> np.ndarray:
        """Sorted ids of the users of both."""
        if self._users is None:
            ids = np.array(list(self.newer)) if self.newer else self.base.users[:0]
            fresh = ids[codes(ids, self.base.users) < 0]
            self._users = np.union1d(self.base.users, fresh) if len(fresh) else self.base.users
        return self._users

    @property
    def items(self) -> np.ndarray:
        """Sorted ids of the items of `base`."""
        return self.base.items

    def merged(self) -> Histories:
        """All in one."""
        if self._merged is None:
            self._merged = self.base.and_then(self._waiting()) if self.waiting else self.base
        return self._merged

    def frame(self) -> pl.DataFrame:
        return self.merged().frame()

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> Lines:
        """See Histories.lines; `positions`: in `users`."""
        if not self.newer:
            return self.base.lines(positions, catalogue)
        ids = self.users[positions]
        place = codes(ids, self.base.users)
        there = np.flatnonzero(place >= 0)
        row, column, day, weight = self.base.lines(place[there], catalogue)
        found: list[Lines] = [(there[row], column, day, weight)]
        for at, each in enumerate(ids.tolist()):
            if each in self.newer:
                found.append(_lines(at, self.newer[each], catalogue))
        return found[0] if len(found) == 1 else _concatenate(found)

    def and_then(self, events: pl.DataFrame) -> "OnlineHistories":
        """These and newer lines, in the columns of Histories.of; a line that is known already changes nothing.

        Ids of users and items take the type that those of `base` have. Raises DataError for one that cannot.
        """
        if not len(self.base) or events.height > MANY or self.waiting > NEWER:
            return OnlineHistories.of(self.merged().and_then(typed(events, self.base)))
        newer, count, last = dict(self.newer), self.waiting, self.last_day
        for user, mine in _by_user(events, self.base).items():
            known, had = self._known(user), newer.get(user, {})
            if any(day < {**had, **known}.get(line, day) for line, day in mine.items()):
                return OnlineHistories.of(self.merged().and_then(typed(events, self.base)))
            now = {**had, **{line: min(day, had.get(line, day)) for line, day in mine.items() if line not in known}}
            if now:
                newer[user], count, last = now, count + len(now) - len(had), max(last, *now.values())
        return OnlineHistories(self.base, newer, count, last)

    def _known(self, user: Any) -> dict[tuple[Any, Any], int]:
        """(basket, item) -> day of the lines of `user` in `base`."""
        position = codes(np.array([user]), self.base.users)
        if position[0] < 0:
            return {}
        place = self.base.places(position)[1]
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
        made = cls(online.base, online.newer, online.waiting, online.last_day, position, basket, day, online)
        known = online.users
        if position >= 0:
            made._users = known[[position]]
        else:  # an id that is nobody's
            made._users = np.array([known.min(initial=0) - 1]) if known.dtype.kind in "iu" else np.array([""])
        return made

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> Lines:
        """See Histories.lines; the only position is 0."""
        assert self.whole is not None
        mine = np.full(len(positions), self.position)
        past = self.whole.lines(mine[mine >= 0], catalogue)
        column = codes(self.basket, catalogue) if len(positions) else np.zeros(0, np.int64)
        return _concatenate([past, (np.zeros(len(column), np.int64), column, np.full(len(column), self.day), None)])


def as_id(value: Any, known: np.ndarray) -> Any:
    """`value` as the ids in `known` are: 7, 7.0 and "7" are the same whole number. None where it cannot be one."""
    if known.dtype.kind not in "iu":
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
            bad = events[name].filter(turned.is_null())[0]
            raise DataError(f"{name} = {bad}: ids are whole numbers here, such as {known[0]}")
        events = events.with_columns(turned)
    basket = events["basket"].cast(pl.Int64 if like.basket.dtype.kind in "iu" else pl.String, strict=False)
    return (events if basket.null_count() else events.with_columns(basket)).select(LINE)


def _by_user(events: pl.DataFrame, like: Histories) -> dict[Any, dict[tuple[Any, Any], int]]:
    """User -> (basket, item) -> first day."""
    found: dict[Any, dict[tuple[Any, Any], int]] = {}
    days = typed(events, like).with_columns(pl.col("basket").cast(pl.String), pl.col("day").cast(pl.Date).cast(pl.Int32))
    for user, basket, item, day in days.iter_rows():
        mine = found.setdefault(user, {})
        mine[basket, item] = min(day, mine.get((basket, item), day))
    return found


def _lines(row: int, newer: Newer, catalogue: np.ndarray) -> Lines:
    column = codes(np.array([item for _, item in newer]), catalogue)
    return np.full(len(column), row), column, np.fromiter(newer.values(), np.int64, len(column)), None


def _concatenate(found: list[Lines]) -> Lines:
    """Lines of the same rows in one, each row's by day. Where some have weights, the others weigh 1."""
    row, column, day = (np.concatenate(each) for each in zip(*(part[:3] for part in found), strict=True))
    by = np.lexsort((day, row))
    weights = [weight for _, _, _, weight in found]
    if all(weight is None for weight in weights):
        return row[by], column[by], day[by], None
    sizes = [len(part[0]) for part in found]
    filled = [np.ones(size, np.float32) if each is None else each for size, each in zip(sizes, weights, strict=True)]
    return row[by], column[by], day[by], np.concatenate(filled)[by]


def merged(histories: Histories | OnlineHistories) -> Histories:
    return histories.merged() if isinstance(histories, OnlineHistories) else histories
