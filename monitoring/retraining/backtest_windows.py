"""Past windows for the backtest: the rows of each window, when their labels were known, and the training data of each day.

Nothing here uses data after the day in question: a label counts from the day on which it was complete.
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
from evergreen.tasks.problems.base import Data, Fold, Part, Splits
from evergreen.tasks.problems.tabular import holdout_split
from evergreen.tasks.problems.tabular.rows import Rows


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The training and evaluation data of one day."""

    rows: Data
    train: tuple[Part, ...]
    test: Part | None
    """None: no rows are left for the evaluation."""
    refit: tuple[Part, ...] | None
    """Training data of the model that serves, where it is more than that of the evaluated one."""
    known_until: date
    """Last day covered by the training data of the evaluated model."""
    test_after: date | None
    """Last day before the period of `test`."""


class PastWindows(Protocol):
    """One row per entity and window, or per case."""

    @property
    def days(self) -> Sequence[date]:
        """The last day of each window, ascending."""
        ...

    def window(self, day: date) -> tuple[Data, Part]:
        """The rows that are predicted in the window that ends on `day`: those of the part."""
        ...

    def entities(self) -> pl.Series:
        """The entities of all windows, in any order."""
        ...

    def labelled_on(self, day: date) -> date:
        """The day on which the labels of that window are complete."""
        ...

    def last_day(self) -> date:
        """The last day of the data."""
        ...

    def first(self) -> TrainingSet:
        """All rows labelled one window before the first. Raises DataError where there are none."""
        ...

    def training_set(self, day: date, policy: Retrain) -> TrainingSet | None:
        """The data of a retraining at the end of `day`; None where too few rows are labelled."""
        ...


@dataclass(frozen=True, eq=False)
class EventWindows:
    """Rows built from events: a window holds the predictions of one cutoff."""

    rows: Rows
    section: Tabular
    days: Sequence[date]
    end: date
    """Last day of the data; targets that are incomplete then are null."""
    step_days: int
    """Between windows."""
    grid: frozenset[date]
    """The cutoffs that trainings learn from."""

    def window(self, day: date) -> tuple[Rows, Part]:
        return self.rows, day

    def entities(self) -> pl.Series:
        return self.rows.entity

    def labelled_on(self, day: date) -> date:
        return day + self._horizon

    def last_day(self) -> date:
        return self.end

    @property
    def _horizon(self) -> timedelta:
        return timedelta(days=self.rows.horizon_days)

    def first(self) -> TrainingSet:
        day = self.days[0] - timedelta(days=self.step_days)
        train = self._labelled_cutoffs(day)
        if not train:
            raise DataError(f"on {day}, before the first window, no cutoff is labelled yet. Begin later: --from.")
        return TrainingSet(self.rows, tuple(train), None, None, day, None)

    def training_set(self, day: date, policy: Retrain) -> TrainingSet | None:
        cutoffs = [each for each in self._labelled_cutoffs(day) if each in self.grid]
        try:
            fold = splits.split_by_time(cutoffs, self.rows.horizon_days, 1, self._history_days(policy))[0]
        except DataError:
            return None
        assert isinstance(fold.test, date)
        return TrainingSet(self.rows, fold.train, fold.test, None, fold.test, fold.test)

    def _labelled_cutoffs(self, day: date) -> list[date]:
        """Cutoffs whose labels are complete on `day`, ascending."""
        assert self.rows.cutoff is not None
        return [each for each in self.rows.cutoff.unique().sort() if each <= day - self._horizon]

    def _history_days(self, policy: Retrain) -> int | None:
        own = self.section.train.history_days
        return min(policy.window_days, own or policy.window_days) if policy.window == "sliding" else own


@dataclass(frozen=True, eq=False)
class TableWindows:
    """A plain table with a time: a window holds the rows of its days."""

    rows: Rows
    section: Tabular
    days: Sequence[date]
    step_days: int
    dates: np.ndarray
    """The day of each row, datetime64[D]."""
    delay_days: int
    """Until the label of a row is known."""

    def window(self, day: date) -> tuple[Rows, Part]:
        last = np.datetime64(day)
        inside = (self.dates <= last) & (self.dates > last - np.timedelta64(self.step_days, "D"))
        return self._with_parts(window=inside), "window"

    def entities(self) -> pl.Series:
        return self.rows.entity

    def labelled_on(self, day: date) -> date:
        return day + timedelta(days=self.delay_days)

    def last_day(self) -> date:
        return self.dates.max().astype(date)

    def first(self) -> TrainingSet:
        day = self.days[0] - timedelta(days=self.step_days)
        labelled = self._labelled(day)
        if not labelled.any():
            raise DataError(f"up to {day}, before the first window, no row is labelled. Begin later: --from.")
        return TrainingSet(self._with_parts(train=labelled), ("train",), None, None, day, None)

    def training_set(self, day: date, policy: Retrain) -> TrainingSet | None:
        """As a training with features.time: the last window of the newest test_share of rows is the test set."""
        features = self.section.features
        assert features.by_cutoff is False
        labelled = self._labelled(day)
        if policy.window == "sliding":
            labelled &= self.dates > np.datetime64(day) - np.timedelta64(policy.window_days, "D")
        if not labelled.any():
            return None
        moments = np.sort(self.dates[labelled])
        newest = moments[moments >= moments[min(round(len(moments) * (1 - features.test_share)), len(moments) - 1)]]
        begin = newest[round((self.section.evaluate.windows - 1) * len(newest) / self.section.evaluate.windows)]
        test = labelled & (self.dates >= begin)
        train = labelled & (self.dates < begin - np.timedelta64(features.gap_days, "D"))
        if not train.any():
            return None
        before = begin.astype(date) - timedelta(days=1)
        refit = ("labelled",) if self.section.train.refit else None
        rows = self._with_parts(train=train, test=test, labelled=labelled)
        return TrainingSet(rows, ("train",), "test", refit, before, before)

    def _labelled(self, day: date) -> np.ndarray:
        labelled = self.rows.target.is_not_null().to_numpy()
        return labelled & (self.dates <= np.datetime64(day) - np.timedelta64(self.delay_days, "D"))

    def _with_parts(self, **masks: np.ndarray) -> Rows:
        """The rows, with parts of these names, also in the fold that Rows need."""
        names = tuple(masks)
        fold = Fold(names[:1], names[-1])
        return replace(self.rows, parts=holdout_split.Parts(Splits((), (fold,)), masks))


def windows(first: date, last: date, step_days: int) -> list[date]:
    """Every `step_days` back from `last` down to `first`; ascending.

    >>> [str(each) for each in windows(date(2024, 1, 2), date(2024, 1, 22), 7)]
    ['2024-01-08', '2024-01-15', '2024-01-22']
    """
    return [last - timedelta(days=step_days * back) for back in range((last - first).days // step_days, -1, -1)]


def row_days(frame: pl.DataFrame) -> np.ndarray:
    """The day of each row of a plain table, datetime64[D]. Raises DataError for rows without time."""
    if missing := frame[holdout_split.TIME].null_count():
        raise DataError(f"features.time: {missing:,} rows have no time, so they belong to no window; fix them.")
    return pd.DatetimeIndex(frame[holdout_split.TIME].to_pandas()).to_numpy().astype("datetime64[D]")
