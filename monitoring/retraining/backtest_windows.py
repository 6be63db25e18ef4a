"""The past of a problem in windows: whom a model answered in each, when the truth came, what a training could learn from.

Nothing here looks past the day it is asked about: labels count from the day on which they were complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Protocol

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems import splits
from evergreen.tasks.problems.base import Fold, Part, Splits
from evergreen.tasks.problems.tabular import holdout_split
from evergreen.tasks.problems.tabular.tabular_kind import Rows


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a training on some day learns from, and what judges it."""

    rows: Rows
    train: tuple[Part, ...]
    test: Part | None
    """None: nothing is left to judge by."""
    refit: tuple[Part, ...] | None
    """What the model that serves learns from, where that is more than the one that is judged does."""
    seen: date
    """Last day that the one that is judged knows anything of."""
    begins: date | None
    """Last day before what `test` is about."""


class Timeline(Protocol):
    """One row per entity and window, or per case."""

    @property
    def days(self) -> Sequence[date]:
        """The last day of each window, ascending."""
        ...

    def window(self, day: date) -> tuple[Rows, Part]:
        """The rows that are answered in the window that ends on `day`: those of the part."""
        ...

    def known(self, day: date) -> date:
        """When the truth of that window is complete."""
        ...

    def newest(self) -> date:
        """The last day of which there is data."""
        ...

    def first(self) -> Lesson:
        """What was labelled one window before the first, all of it. Raises DataError where that is nothing."""
        ...

    def lesson(self, day: date, policy: Retrain) -> Lesson | None:
        """What a retraining at the end of `day` learns from; None where there is too little to learn and to judge."""
        ...


@dataclass(frozen=True, eq=False)
class Cutoffs:
    """Rows made from events, at weekly (or other) cutoffs: a window is what is answered at its cutoff."""

    rows: Rows
    section: Tabular
    days: Sequence[date]
    end: date
    """Last day of the data; targets that it leaves incomplete are null."""
    step_days: int
    """Between windows."""
    every_days: int
    """Distance of the cutoffs that a training learns from."""

    def window(self, day: date) -> tuple[Rows, Part]:
        return self.rows, day

    def known(self, day: date) -> date:
        return day + self._horizon

    def newest(self) -> date:
        return self.end

    @property
    def _horizon(self) -> timedelta:
        return timedelta(days=self.rows.horizon_days)

    def first(self) -> Lesson:
        eve = self.days[0] - timedelta(days=self.step_days)
        train = self._labelled(eve, 1)
        if not train:
            raise DataError(f"on {eve}, before the first window, no cutoff is labelled yet. Begin later: --from.")
        return Lesson(self.rows, tuple(train), None, None, eve, None)

    def lesson(self, day: date, policy: Retrain) -> Lesson | None:
        cutoffs = self._labelled(day, self.every_days)
        try:
            fold = splits.split_by_time(cutoffs, self.rows.horizon_days, 1, self._history(policy))[0]
        except DataError:
            return None
        assert isinstance(fold.test, date)
        return Lesson(self.rows, fold.train, fold.test, None, fold.test, fold.test)

    def _labelled(self, day: date, every_days: int) -> list[date]:
        """Cutoffs whose labels are complete on `day`, at least `every_days` apart, the newest among them."""
        assert self.rows.cutoff is not None
        found: list[date] = []
        for each in self.rows.cutoff.unique().sort(descending=True):
            if each <= day - self._horizon and (not found or each <= found[-1] - timedelta(days=every_days)):
                found.append(each)
        return found[::-1]

    def _history(self, policy: Retrain) -> int | None:
        own = self.section.train.history_days
        return min(policy.window_days, own or policy.window_days) if policy.window == "sliding" else own


@dataclass(frozen=True, eq=False)
class Lines:
    """A plain table with a time: a window is what came between its days."""

    rows: Rows
    section: Tabular
    days: Sequence[date]
    step_days: int
    dates: np.ndarray
    """The day of each row, datetime64[D]."""
    delay_days: int
    """Until the truth of a row is known."""

    def window(self, day: date) -> tuple[Rows, Part]:
        last = np.datetime64(day)
        inside = (self.dates <= last) & (self.dates > last - np.timedelta64(self.step_days, "D"))
        return self._of(window=inside), "window"

    def known(self, day: date) -> date:
        return day + timedelta(days=self.delay_days)

    def newest(self) -> date:
        return self.dates.max().astype(date)

    def first(self) -> Lesson:
        eve = self.days[0] - timedelta(days=self.step_days)
        known = self._known(eve)
        if not known.any():
            raise DataError(f"up to {eve}, before the first window, no row is labelled. Begin later: --from.")
        return Lesson(self._of(train=known), ("train",), None, None, eve, None)

    def lesson(self, day: date, policy: Retrain) -> Lesson | None:
        """As a training does with features.time: the last window of the newest test_share of rows judges."""
        features = self.section.features
        assert features.by_cutoff is False
        known = self._known(day)
        if policy.window == "sliding":
            known &= self.dates > np.datetime64(day) - np.timedelta64(policy.window_days, "D")
        if not known.any():
            return None
        moments = np.sort(self.dates[known])
        newest = moments[moments >= moments[min(round(len(moments) * (1 - features.test_share)), len(moments) - 1)]]
        begin = newest[round((self.section.evaluate.windows - 1) * len(newest) / self.section.evaluate.windows)]
        test = known & (self.dates >= begin)
        train = known & (self.dates < begin - np.timedelta64(features.gap_days, "D"))
        if not train.any():
            return None
        before = begin.astype(date) - timedelta(days=1)
        refit = ("known",) if self.section.train.refit else None
        return Lesson(self._of(train=train, test=test, known=known), ("train",), "test", refit, before, before)

    def _known(self, day: date) -> np.ndarray:
        labelled = self.rows.target.is_not_null().to_numpy()
        return labelled & (self.dates <= np.datetime64(day) - np.timedelta64(self.delay_days, "D"))

    def _of(self, **masks: np.ndarray) -> Rows:
        """The rows, with parts of these names; the fold that Rows ask for names them too."""
        named = tuple(masks)
        fold = Fold(named[:1], named[-1])
        return replace(self.rows, parts=holdout_split.Parts(Splits((), (fold,)), masks))


def windows(first: date, last: date, step_days: int) -> list[date]:
    """Every `step_days` back from `last`, as long as that is `first` or later; ascending.

    >>> [str(each) for each in windows(date(2024, 1, 2), date(2024, 1, 22), 7)]
    ['2024-01-08', '2024-01-15', '2024-01-22']
    """
    return [last - timedelta(days=step_days * back) for back in range((last - first).days // step_days, -1, -1)]


def days_of(frame: pl.DataFrame) -> np.ndarray:
    """The day of each row of a plain table, datetime64[D]. Raises DataError for rows without time."""
    if missing := frame[holdout_split.TIME].null_count():
        raise DataError(f"features.time: {missing:,} rows have no time, so they cannot be lived through; mend them.")
    return pd.DatetimeIndex(frame[holdout_split.TIME].to_pandas()).to_numpy().astype("datetime64[D]")
