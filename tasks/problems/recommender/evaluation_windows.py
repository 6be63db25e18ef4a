"""Whom a cutoff judges and by what: by the calendar, or each user by the last orders or lines of his own.

By the calendar, a cutoff judges whoever buys in the days after it, by what he buys then. In a shop whose users come once or
seldom hardly anybody does. There a cutoff judges the users whose last order (or whose last lines) begins between it and the
next cutoff, by that order; what the user did before it is his history, also where that came after the cutoff. In both cases
models learn from nothing after the cutoff.
"""

from dataclasses import dataclass, field
from datetime import date

import numpy as np

from evergreen.tasks.problems.recommender.user_histories import Histories, distinct, to_date, to_day

MOST_WINDOWS = 8
"""Cutoffs when users are judged by their last orders or lines; each judges about as many users."""


@dataclass(eq=False)
class CalendarWindows:
    """`days`: length of a window."""

    histories: Histories
    as_of: date
    days: int

    @property
    def gap(self) -> int:
        """Fewest days between two cutoffs."""
        return self.days

    def end(self, cutoff: date) -> int:
        """The day on which the labels of `cutoff` are complete."""
        return to_day(cutoff) + self.days

    def cutoffs(self) -> list[date]:
        """Every `days` days backwards from the newest day with complete labels, as long as as many days lie before."""
        last, first = to_day(self.as_of) - self.days, int(self.histories.day[0])
        return [to_date(day) for day in range(last, first + self.days - 2, -self.days)][::-1]

    def before(self, cutoff: date) -> Histories:
        """The histories that lists are made from; users and items keep their positions."""
        return self.histories.until_positions(to_day(cutoff))

    def after(self, cutoff: date) -> Histories:
        """What the lists are judged by."""
        return self.histories.between(to_day(cutoff) + 1, self.end(cutoff))


@dataclass(eq=False)
class OwnWindows:
    """Each user is judged by his last `held_out` orders, or lines, and by nothing where he has no more than these.

    An order is a user's basket; the lines of one day are in the order of `histories`.
    """

    histories: Histories
    as_of: date
    held_out: int
    lines: bool
    gap: int = 1
    _target: np.ndarray = field(init=False, repr=False)
    """Whether each line is one that its user is judged by."""
    _begins: np.ndarray = field(init=False, repr=False)
    """Day on which these begin, per user; -1 for nobody to judge."""
    _cutoffs: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = self.histories
        by = np.argsort(known.user, kind="stable")
        user, basket, day = known.user[by], known.basket[by], known.day[by]
        new = np.ones(len(by), bool)
        new[1:] = (user[1:] != user[:-1]) | (basket[1:] != basket[:-1]) | (day[1:] != day[:-1]) | self.lines
        count = np.cumsum(new)
        starts = np.searchsorted(user, np.arange(len(known.users) + 1))
        first, last = count[starts[:-1]], count[starts[1:] - 1]
        enough = last - first >= self.held_out
        self._target = np.zeros(len(by), bool)
        self._target[by] = (count > last[user] - self.held_out) & enough[user]
        self._begins = np.full(len(known.users), -1)
        targets = np.flatnonzero(self._target)
        self._begins[known.user[targets][::-1]] = known.day[targets][::-1]
        self._cutoffs = self._spread(np.sort(self._begins[enough]))

    def _spread(self, begins: np.ndarray) -> list[int]:
        """Days between which about as many users are judged; the first has as many before it to learn from."""
        if not len(begins):
            return []
        edges = begins[len(begins) * np.arange(1, MOST_WINDOWS + 1) // (MOST_WINDOWS + 1)] - 1
        return [day for day in distinct(edges).tolist() if day >= self.histories.day[0]]

    def end(self, cutoff: date) -> int:
        """The day before which the next cutoff takes over."""
        later = [day for day in self._cutoffs if day > to_day(cutoff)]
        return later[0] if later else max(to_day(self.as_of), to_day(cutoff) + 1)

    def cutoffs(self) -> list[date]:
        return [to_date(day) for day in self._cutoffs]

    def before(self, cutoff: date) -> Histories:
        """Up to `cutoff`, and of the users to judge all before their last orders, moved so that the newest is of `cutoff`."""
        known, day = self.histories, to_day(cutoff)
        judged = self._judged(cutoff)
        own = judged[known.user]
        kept = np.flatnonzero((own & ~self._target) | (~own & (known.day <= day)))
        lines = known.part(kept)
        late = np.maximum(self._begins - day, 0)[lines.user] * own[kept]
        moved = np.minimum(lines.day - late, day).astype(lines.day.dtype)
        by = np.argsort(moved, kind="stable")
        ordered = lines.part(by)
        ordered.day = moved[by]
        return ordered

    def after(self, cutoff: date) -> Histories:
        return self.histories.part(np.flatnonzero(self._judged(cutoff)[self.histories.user] & self._target))

    def _judged(self, cutoff: date) -> np.ndarray:
        return (self._begins > to_day(cutoff)) & (self._begins <= self.end(cutoff))


Windows = CalendarWindows | OwnWindows
