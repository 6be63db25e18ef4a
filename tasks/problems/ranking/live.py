"""Histories that go on while they are read: a new basket costs its own lines, not all that were ever bought."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tasks.problems.ranking.histories import Histories, codes, to_ids

NEWER = 20_000
"""Lines that wait beside the others; more of them are merged in one go."""
LINE = ["user", "basket", "item"]


@dataclass(eq=False)
class Live:
    """`base` and the lines that came since, `newer`: none of them is in `base`. Neither ever changes."""

    base: Histories
    newer: Histories
    _users: np.ndarray | None = field(default=None, init=False, repr=False)
    _merged: Histories | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, histories: "Histories | Live") -> "Live":
        return histories if isinstance(histories, Live) else cls(histories, histories.between(1, 0))

    def __len__(self) -> int:
        return len(self.base) + len(self.newer)

    @property
    def users(self) -> np.ndarray:
        """Sorted ids of the users of both."""
        if self._users is None:
            unknown = codes(self.newer.users, self.base.users) < 0
            fresh = self.newer.users[unknown]
            self._users = np.union1d(self.base.users, fresh) if len(fresh) else self.base.users
        return self._users

    @property
    def last_day(self) -> int:
        return max((int(part.day[-1]) for part in (self.base, self.newer) if len(part)), default=np.iinfo(np.int32).min)

    def merged(self) -> Histories:
        """All in one."""
        if self._merged is None:
            self._merged = self.base.and_then(self.newer.frame()) if len(self.newer) else self.base
        return self._merged

    def frame(self) -> pl.DataFrame:
        return self.merged().frame()

    def lines(self, positions: np.ndarray, catalogue: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See Histories.lines; `positions`: in `users`."""
        if not len(self.newer):
            return self.base.lines(positions, catalogue)
        ids, found = self.users[positions], []
        for part in (self.base, self.newer):
            position = codes(ids, part.users)
            there = np.flatnonzero(position >= 0)
            row, column, day = part.lines(position[there], catalogue)
            found.append((there[row], column, day))
        row, column, day = (np.concatenate(each) for each in zip(*found, strict=True))
        by = np.lexsort((day, row))
        return row[by], column[by], day[by]

    def and_then(self, events: pl.DataFrame) -> "Live":
        """These and newer lines, in the columns of Histories.of; a line that is known already changes nothing."""
        known = self._known(events)
        asked = pl.concat([known, self.newer.frame(), events.select(*LINE, "day")], how="vertical_relaxed")
        lines = Histories.of(asked).frame()
        newer = lines.join(known, on=[*LINE, "day"], how="anti", maintain_order="left") if same(lines, known) else None
        if newer is None or len(newer) + len(known) > len(lines) or len(newer) > NEWER:
            # Ids of another type, a known line that turns out to be of an earlier day, or many lines: all is made anew.
            return Live.of(self.merged().and_then(events))
        return Live(self.base, Histories.of(newer))

    def _known(self, events: pl.DataFrame) -> pl.DataFrame:
        """The lines in `base` of the users of `events`."""
        users = to_ids(events["user"].unique().drop_nulls())
        if (users.dtype.kind in "iu") != (self.base.users.dtype.kind in "iu"):
            return self.base.between(1, 0).frame()
        position = codes(users, self.base.users)
        return self.base.part(self.base.places(position[position >= 0])[1]).frame()


def same(lines: pl.DataFrame, known: pl.DataFrame) -> bool:
    """Whether ids are of the same types."""
    return lines.schema == known.schema


def merged(histories: Histories | Live) -> Histories:
    return histories.merged() if isinstance(histories, Live) else histories
