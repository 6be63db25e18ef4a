"""Counterfactual monitoring runs of the backtest: drift, performance and new labels of a model in a past window."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.drift import detection, past_windows, reference_data
from evergreen.monitoring.drift.past_windows import PastWindow
from evergreen.monitoring.drift.reference_data import Reference
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Drift, Estimate, Performance, Window
from evergreen.monitoring.performance.measurement import measure
from evergreen.monitoring.retraining.backtest import TrainedModel, to_moment
from evergreen.monitoring.retraining.backtest_models import CounterfactualModels
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.core import intervals
from evergreen.tasks.core.paths import JUDGED
from evergreen.tasks.problems.base import Model, Part
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.problems.tabular.rows import Rows

TIMESTAMP = pl.Datetime("us", "UTC")
MATURE_WINDOWS = 4
"""Newest mature windows that realised and estimated scores are computed from."""
NOT_REQUESTED = "the policy does not ask for it"


@dataclass(eq=False)
class CounterfactualWorld(CounterfactualModels):
    """The whole of `monitoring.retraining.backtest.Counterfactual`."""

    predicted: dict[tuple[str, date, bool], Predictions] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    examined: dict[tuple[str, date], tuple[Drift, PastWindow | None]] = field(default_factory=dict)

    def monitor(self, champion: TrainedModel, version: int, day: date, policy: Retrain) -> Window:
        since = self.day_before() if day == self.days[0] else self.days[list(self.days).index(day) - 1]
        no_drift = Drift(changes=(), reference_rows=0, alarm=False, skipped=NOT_REQUESTED)
        return Window(
            problem=self.problem,
            version=version,
            since=to_moment(since),
            until=to_moment(day),
            rows=self._count_rows(day, labelled=False),
            new_labels=self._count_new_labels(champion, day),
            drift=self._drift(champion, version, day) if policy.on_drift else no_drift,
            performance=self._performance(champion, version, day, policy) if self._has_labels else None,
        )

    @cached_property
    def _folder_of_runs(self) -> str:
        """Results of monitoring runs depend on the section monitor too."""
        return f"monitoring-{hashlib.sha256(self.section.monitor.model_dump_json().encode()).hexdigest()[:8]}"

    @property
    def _has_labels(self) -> bool:
        return isinstance(self.kind, Labelled)

    def _count_new_labels(self, champion: TrainedModel, day: date) -> int:
        """Labels of the windows so far that are known at the end of `day` and were not when the champion was trained."""
        known_until = self.summary(champion.name).known_until
        new = [each for each in self.days if each <= day and known_until < self.past.labelled_on(each) <= day]
        return sum(self._count_rows(each, self._has_labels) for each in new)

    def _count_rows(self, day: date, labelled: bool) -> int:
        """Predictions of the window; `labelled`: those with a label."""
        rows, part = self.past.window(day)
        return len(rows.at([part], labelled=labelled))

    def _drift(self, champion: TrainedModel, version: int, day: date) -> Drift:
        def compute() -> dict[str, Any]:
            return self._examine(champion, version, day)[0].model_dump(mode="json")

        return Drift.model_validate(self.cache.json(f"{self._folder_of_runs}/drift/{champion.name}/{day}", compute))

    def _examine(self, champion: TrainedModel, version: int, day: date) -> tuple[Drift, PastWindow | None]:
        """As a monitoring run does, after those of the windows before that the champion served."""
        if (champion.name, day) not in self.examined:
            served = [each for each in self.days if champion.day < each < day][-past_windows.MOST :]
            past = [seen for each in served if (seen := self._examine(champion, version, each)[1])]
            window, monitor = self._predict(champion, version, day, labelled=False), self.section.monitor
            reference = self._reference(champion, version)
            self.examined[champion.name, day] = detection.examine(reference, window, monitor, self.seed, past)
        return self.examined[champion.name, day]

    def _reference(self, champion: TrainedModel, version: int) -> Reference:
        """As a training leaves it: the training data, and predictions of test rows, where there are such."""
        if champion.name not in self.references:
            model, training_set = self.load(champion.name), self.training_sets[champion.name]
            rows, trained_on = training_set.rows, training_set.refit or training_set.train
            tested_on = (training_set.test,) if training_set.test is not None else training_set.train
            self.references[champion.name] = reference_data.of_predicted(
                self.problem,
                version,
                self.kind.name,
                self._to_predictions(None, version, rows, trained_on, champion.day, labelled=True),
                judged=self._to_predictions(model, version, rows, tested_on, champion.day, labelled=True),
                importance=self.kind.importance(model),
                roles=rows.roles,
                rows=self.section.monitor.reference_rows,
                seed=self.seed,
            )
        return self.references[champion.name]

    def _performance(self, champion: TrainedModel, version: int, day: date, policy: Retrain) -> Performance:
        if policy.on_performance_drop is None:
            none = Estimate(score=None, low=None, high=None, rows=0, reason=NOT_REQUESTED)
            return Performance(
                metric=self.realised_metric.name,
                greater_is_better=self.realised_metric.greater_is_better,
                expected=none,
                realised=none,
                realised_until=None,
                estimated=none,
                matured=0.0,
            )

        def compute() -> dict[str, Any]:
            served = [each for each in self.days if champion.day < each < day]
            mature = [each for each in served if self.past.labelled_on(each) <= day]
            windows = [
                (to_moment(each), self._predict(champion, version, each, labelled=True)) for each in mature[-MATURE_WINDOWS:]
            ]
            windows.append((to_moment(day), self._predict(champion, version, day, self.past.labelled_on(day) <= day)))
            expected = self._expected(champion, mature)
            found = measure(self.kind, self.section, expected, windows, self._test_rows(champion), self.seed)
            assert found is not None
            return found.model_dump(mode="json")

        path = f"{self._folder_of_runs}/performance/{champion.name}/{day}"
        return Performance.model_validate(self.cache.json(path, compute))

    def _test_rows(self, champion: TrainedModel) -> pl.DataFrame | None:
        """The rows of its evaluation, with its predictions."""
        training_set = self.training_sets[champion.name]
        if training_set.test is None:
            return None
        return self.kind.predict(self.load(champion.name, JUDGED), training_set.rows, training_set.test, self.section)

    def _expected(self, champion: TrainedModel, mature: list[date]) -> Estimate:
        """The evaluation score; of the first model, which has none, the score in the first window with labels."""
        expected = self.summary(champion.name).expected
        if expected.score is not None or not mature:
            return expected
        scores = self.score_window(champion.name, mature[0])[self.realised_metric.name].to_numpy()
        low, high, _ = intervals.interval(scores[0], scores[1:].tolist(), 0.95, self.realised_metric.scale)
        if not np.isfinite([scores[0], low, high]).all():
            return expected
        return Estimate(score=float(scores[0]), low=low, high=high, rows=self._count_rows(mature[0], self._has_labels))

    def _predict(self, champion: TrainedModel, version: int, day: date, labelled: bool) -> Predictions:
        key = (champion.name, day, labelled)
        if key not in self.predicted:
            rows, part = self.past.window(day)
            model = self.load(champion.name)
            self.predicted[key] = self._to_predictions(model, version, rows, (part,), day, labelled)
        return self.predicted[key]

    def _to_predictions(
        self, model: Model | None, version: int, rows: Rows, parts: Sequence[Part], day: date, labelled: bool
    ) -> Predictions:
        """The rows as the ledger would return them; `labelled`: those with a label alone, and with it.

        Without `model` there are no outputs.
        """
        chosen = rows.at(parts, labelled=labelled and self._has_labels)
        count = len(chosen)
        cutoff = chosen.cutoff if chosen.cutoff is not None else pl.Series([None] * count, dtype=pl.Date)
        label = chosen.target if labelled else pl.Series([None] * count, dtype=chosen.target.dtype)
        label_at = to_moment(self.past.labelled_on(day)) if labelled else None
        frame = pl.DataFrame(
            {
                "id": [f"{day}/{place}" for place in range(count)],
                "version": pl.Series([version] * count, dtype=pl.Int64),
                "variant": ["batch"] * count,
                "at": _moments(chosen.time, day, count),
                "cutoff": cutoff,
                "entity": chosen.entity.cast(pl.String),
                **(self.kind.predict_rows(model, chosen.features) if model is not None else {}),
                "label": label,
                "label_at": pl.Series([label_at] * count, dtype=TIMESTAMP),
            }
        )
        return Predictions(frame, pl.from_pandas(chosen.features, nan_to_null=True))


def _moments(time: pl.Series | None, day: date, count: int) -> pl.Series:
    """Of each row its own time, as in the ledger; else the end of `day`."""
    end = pl.Series([to_moment(day)] * count, dtype=TIMESTAMP)
    if time is None:
        return end
    return time.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").fill_null(end)
