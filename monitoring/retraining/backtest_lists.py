"""Past windows of a recommender for the backtest. The lists of a window are made on its last day, for those who buy after it.

A model learned when it was trained; its lists follow the purchases up to the day, as those of a server do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import polars as pl

from evergreen.monitoring.drift import shop_changes
from evergreen.monitoring.ledger.predictions import Predictions
from evergreen.monitoring.ledger.records import Drift
from evergreen.monitoring.retraining.backtest import TrainedModel, to_moment
from evergreen.monitoring.retraining.backtest_monitoring import TIMESTAMP, CounterfactualWorld
from evergreen.monitoring.retraining.backtest_windows import TrainingSet
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Recommend
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import MODEL
from evergreen.tasks.problems import splits
from evergreen.tasks.problems.base import Metric, Model
from evergreen.tasks.problems.recommender.interactions import InteractionData

FURTHER = ("ndcg", "hit_rate")
LOADED = 4
"""Most models in memory."""


@dataclass(frozen=True, eq=False)
class PurchaseWindows:
    """Purchases by the calendar: a window judges the lists of its last day by the `horizon_days` after it."""

    data: InteractionData
    section: Recommend
    days: Sequence[date]
    step_days: int
    """Between windows."""

    def window(self, day: date) -> tuple[InteractionData, date]:
        return self.data, day

    def entities(self) -> pl.Series:
        return pl.Series(self.data.histories.users)

    def labelled_on(self, day: date) -> date:
        return day + self._horizon

    def last_day(self) -> date:
        return self.data.as_of

    @property
    def _horizon(self) -> timedelta:
        return timedelta(days=self.data.horizon_days)

    def first(self) -> TrainingSet:
        day = self.days[0] - timedelta(days=self.step_days)
        train = self._labelled_cutoffs(day)
        if not train:
            raise DataError(f"on {day}, before the first window, no cutoff is labelled yet. Begin later: --from.")
        return TrainingSet(self.data, splits.recent(train, self.section.train.history_days), None, None, day, None)

    def training_set(self, day: date, policy: Retrain) -> TrainingSet | None:
        own = self.section.train.history_days
        history = min(policy.window_days, own or policy.window_days) if policy.window == "sliding" else own
        try:
            fold = splits.split_by_time(self._labelled_cutoffs(day), self.data.horizon_days, 1, history)[0]
        except DataError:
            return None
        assert isinstance(fold.test, date)
        return TrainingSet(self.data, fold.train, fold.test, None, fold.test, fold.test)

    def _labelled_cutoffs(self, day: date) -> list[date]:
        """Every horizon backwards from the newest whose labels are complete on `day`, as long as as many days lie before."""
        return replace(self.data.windows, as_of=day).cutoffs()


@dataclass(eq=False)
class CounterfactualShop(CounterfactualWorld):
    """The counterfactual world of a recommender: `past` holds PurchaseWindows."""

    @property
    def further(self) -> Sequence[Metric]:
        """What monitoring reports of a week, too."""
        return [each for each in self.kind.metrics if each.name in FURTHER and each.name != self.metric.name]

    def load(self, name: str, file: str = MODEL) -> Model:
        while len(self.loaded) >= LOADED:
            del self.loaded[next(iter(self.loaded))]
        return super().load(name, file)

    def score_without(self, rows: pl.DataFrame) -> pl.DataFrame:
        return super().score_without(rows.select(name for name, each in rows.schema.items() if not each.is_nested()))

    def _train(self, name: str, training_set: TrainingSet) -> None:
        super()._train(name, training_set)
        self._forget()

    def _judge(self, champion: TrainedModel, challenger: TrainedModel) -> dict[str, Any]:
        found = super()._judge(champion, challenger)
        self._forget()
        return found

    def _predict_window(self, name: str, day: date) -> pl.DataFrame:
        found = super()._predict_window(name, day)
        self._forget()
        return found

    def _forget(self) -> None:
        """Candidates of one model and day take a tenth of a gigabyte, and are needed once."""
        self.past.window(self.days[0])[0].forget()

    def _count_rows(self, day: date, labelled: bool) -> int:
        """Shoppers of the window; `labelled`: who bought in the horizon after it."""
        data, _ = self.past.window(day)
        if labelled:
            return len(data.targets(day).users)
        since = day - timedelta(days=self.section.monitor.window_days)
        return data.histories.count_users(since, day)

    def _drift(self, champion: TrainedModel, version: int, day: date) -> Drift:
        """Of the purchases; lists are not compared."""

        def compute() -> dict[str, Any]:
            known = self.past.window(day)[0].histories
            columns = {"user": known.user, "item": known.item, "day": pl.Series(known.day).cast(pl.Date)}
            lines = pl.DataFrame(columns)
            none = Drift(changes=(), reference_rows=lines.height, alarm=False)
            found = shop_changes.examine(lines, day, day, champion.day, self.section.monitor)
            return shop_changes.add(none, found).model_dump(mode="json")

        return Drift.model_validate(self.cache.json(f"{self._folder_of_runs}/drift/{champion.name}/{day}", compute))

    def _test_rows(self, champion: TrainedModel) -> None:
        """Of lists no score is estimated, so none are needed."""

    def _predict(self, champion: TrainedModel, version: int, day: date, labelled: bool) -> Predictions:
        """The lists as the ledger would return them, of those who bought after `day`."""
        lists = self._predict_window(champion.name, day).select(pl.col("entity").cast(pl.String), "items")
        bought = self.past.window(day)[0].bought(day).select(pl.col("entity").cast(pl.String), label="items")
        rows = lists.join(bought, on="entity", how="left", maintain_order="left")
        label = pl.col("label") if labelled else pl.lit(None, rows.schema["label"])
        label_at = to_moment(self.past.labelled_on(day)) if labelled else None
        moment = pl.lit(to_moment(day), TIMESTAMP)
        rows = rows.with_columns(
            id=pl.format("{}/{}", pl.lit(str(day)), pl.int_range(pl.len())),
            version=pl.lit(version, pl.Int64),
            variant=pl.lit("batch"),
            at=moment,
            cutoff=pl.lit(day),
            label=label,
            label_at=pl.lit(label_at, TIMESTAMP),
        )
        return Predictions(rows, pl.DataFrame())
