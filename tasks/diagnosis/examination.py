"""An examination: refits on the folds of the search, within a number of CPU seconds. Rows of the test window stay unseen."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks import problems
from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.diagnosis.recommendation import sees_few
from evergreen.tasks.problems.base import Config, Fold, Kind
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.model_families import BLEND
from evergreen.tasks.problems.tabular.row_subset import ROWS
from evergreen.tasks.problems.tabular.rows import Rows

MAX_FOLDS = 3
"""Most folds of the search that are used."""
SCORED_ROWS = 3_000
"""Most training rows, and most validation rows, that a fit is scored on."""
TIMED_ROWS = (500, 2_000)
"""Rows of the first two fits: their time says how many rows can be afforded."""
DECISION_SHARE = 0.6
"""Share of the time for the facts that decide the step; the rest is for validation curves, bias and variance."""
CURVE_SHARES = (0.125, 0.25, 0.5)
"""Points of the learning curve below all rows."""
GROUPS = 50
"""Most groups of entities that are left out in turn for an interval."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """One configuration, fitted on each fold: its scores, and the predictions of the validation rows."""

    train: list[dict[str, float]]
    validation: list[dict[str, float]]
    predictions: list[pl.DataFrame]

    @property
    def skill(self) -> float:
        return bootstrap.mean([skill(each) for each in self.validation])

    @property
    def train_skill(self) -> float:
        return bootstrap.mean([skill(each) for each in self.train])


def skill(scores: Mapping[str, float]) -> float:
    """0 for guessing, 1 for perfect: 2 ROC AUC - 1 for classes, R² for numbers."""
    return 2 * scores["roc_auc"] - 1 if "roc_auc" in scores else scores["r2"]


class Examination:
    """The rows and folds of a problem, and the CPU time that is left.

    The facts that decide the step get DECISION_SHARE of the time, on as many folds as can be afforded with all of their rows,
    else on as many rows of the newest fold.
    """

    def __init__(self, kind: Kind, data: Rows, section: Tabular, seed: int, seconds: float) -> None:
        self.kind, self.data, self.section, self.seed = kind, data, section, seed
        self.prediction_type = problems.predictions(kind.name)
        self.start, self.seconds = time.process_time(), seconds
        self.left_out: set[str] = set()
        self.failed = ""
        self.folds = [self._split(fold) for fold in _newest_folds(kind, data, section)]
        self.all_rows = min(len(train) for train, _ in self.folds)
        self.rows = self.all_rows
        self.seconds_per_fit, self.seconds_per_row = 0.0, 0.0
        """CPU seconds of one fit: fixed, and for each of its rows; measured by `plan`."""

    @property
    def spent(self) -> float:
        return time.process_time() - self.start

    def _split(self, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """Training rows, in a random order of their entities, and validation rows."""
        train = row_subset.by_entity(self.data, row_subset.places(self.data, fold.train), self.seed)
        validation = row_subset.by_entity(self.data, row_subset.places(self.data, (fold.test,)), self.seed)[:SCORED_ROWS]
        return train, np.sort(validation)

    def plan(self, config: Config) -> Config:
        """Choose folds and rows so that the examination fits into its time.

        Returns what to examine: `config`; the member with the largest weight where there is no time for enough rows of a blend.
        """
        self._plan(config)
        if config["model"] == BLEND and sees_few(self.rows, self.all_rows):
            config = max(zip(config["weights"], config["members"], strict=True), key=lambda each: each[0])[1]
            self._plan(config)
        return config

    def _plan(self, config: Config) -> None:
        """By the time of two small fits, or of one where that is long already."""
        fits, whole_fits = 3.5 + len(CURVE_SHARES), 3.5 + sum(CURVE_SHARES)
        sizes = [min(size, self.all_rows) for size in TIMED_ROWS]
        sizes[0] = min(sizes[0], -(-sizes[1] // 2))
        took = [self._time(config, sizes[0])]
        if fits * took[0] < DECISION_SHARE * self.seconds - self.spent:
            took.append(self._time(config, sizes[1]))
        self.seconds_per_row = (
            max(took[-1] - took[0], 0.0) / max(sizes[1] - sizes[0], 1) if len(took) > 1 else took[0] / sizes[0]
        )
        self.seconds_per_fit = max(took[0] - sizes[0] * self.seconds_per_row, 0.0)
        budget = DECISION_SHARE * self.seconds - self.spent
        per_fold = fits * self.seconds_per_fit + whole_fits * self.all_rows * self.seconds_per_row
        for count in range(len(self.folds), 0, -1):
            if count == 1 or count * per_fold <= budget:
                self.folds = self.folds[-count:]
                break
        if len(self.folds) == 1:
            self.rows = self._affordable_rows(budget - fits * self.seconds_per_fit, whole_fits)

    def _time(self, config: Config, rows: int) -> float:
        started = time.process_time()
        train, validation = self.folds[-1]
        self.fit(config, train[:rows], validation)
        return time.process_time() - started

    def _affordable_rows(self, seconds: float, fits: float) -> int:
        rows = seconds / fits / max(self.seconds_per_row, 1e-9)
        return min(self.all_rows, max(TIMED_ROWS[0], int(min(rows, self.all_rows))))

    def shortened(self, fits: int, name: str) -> "Examination | None":
        """The same for `fits` more fits in the time left: on the newest fold, with as many rows as can be afforded.

        None, and `name` in `left_out`, where there is too little time.
        """
        left = self.seconds - self.spent - fits * self.seconds_per_fit
        if left < fits * TIMED_ROWS[0] * self.seconds_per_row:
            self.left_out.add(name)
            return None
        other = copy.copy(self)
        other.folds, other.rows = self.folds[-1:], min(self.rows, self._affordable_rows(left, fits))
        return other

    def evaluate(self, config: Config, name: str = "", share: float = 1.0) -> Fit | None:
        """Fit and score every fold, on `share` of the rows; None where it cannot be fitted.

        With `name`: None, and the name in `left_out`, where the time is over.
        """
        if name and self.spent > self.seconds:
            self.left_out.add(name)
            return None
        fits = []
        for train, validation in self.folds:
            fit = self.fit(config, train[: max(2, round(share * self.rows))], validation)
            if fit is None:
                return None
            fits.append(fit)
        return Fit(*(list(each) for each in zip(*fits, strict=True)))

    def fit(self, config: Config, train: np.ndarray, validation: np.ndarray, without: Sequence[str] = ()) -> Any:
        """(training scores, validation scores, predictions of `validation`), or None where it cannot be fitted.

        `without`: columns to leave out.
        """

        def rows(places: np.ndarray) -> Rows:
            chosen = row_subset.subset(self.data, places)
            return row_subset.without(chosen, without) if without else chosen

        try:
            fitted_rows, judged = rows(train), rows(validation)
            model = self.kind.fit(fitted_rows, [ROWS], config, self.section, self.seed)
            predictions = self.kind.predict(model, judged, ROWS, self.section)
            known = self.kind.predict(model, rows(train[:SCORED_ROWS]), ROWS, self.section)
            return self.kind.score(known, self.section), self.kind.score(predictions, self.section), predictions
        except Exception as error:  # noqa: BLE001  # too few rows of a class, a family that needs more: the others go on
            self.failed = f"{type(error).__name__}: {error}"
            return None

    def skill_gain(self, fit: Fit, other: Fit) -> tuple[float, float, float]:
        """How much more skill `other` has on the same rows, with the interval over entities."""
        count = len(fit.predictions)
        gains = []
        for frames in intervals.leave_out([*fit.predictions, *other.predictions], self.seed, GROUPS):
            skills = [skill(self.kind.score(frame, self.section)) for frame in frames]
            gains.append(bootstrap.mean(skills[count:]) - bootstrap.mean(skills[:count]))
        gain = other.skill - fit.skill
        low, high, _ = intervals.interval(gain, gains, CONFIDENCE)
        return gain, low, high


def _newest_folds(kind: Kind, data: Rows, section: Tabular) -> Sequence[Fold]:
    """The newest folds where they are in time order, else the first ones: those of one cross-validation."""
    folds = kind.splits(data, section).folds
    return folds[-MAX_FOLDS:] if kind.begins(data, folds[-1].test) else folds[:MAX_FOLDS]
