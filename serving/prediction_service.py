"""All that a worker does with requests, whatever protocol they came in: predictions, lists, events, labels, periodic work."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evergreen.serving import parity_check
from evergreen.serving.background_work import BackgroundWork
from evergreen.serving.list_predictor import ListPredictor
from evergreen.serving.loaded_model import ListModel, RowModel
from evergreen.serving.metrics import Metrics
from evergreen.serving.parity_check import ParityCheck
from evergreen.serving.prediction_writer import PredictionWriter
from evergreen.serving.protocols import RowPrediction
from evergreen.serving.row_predictor import RowPredictor
from evergreen.serving.serving_versions import NotFoundError, ServiceUnavailableError, ServingVersions, Watcher
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import RequestError

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.label_matching import LabelCounts
    from evergreen.monitoring.ledger.predictions import Ledger
    from evergreen.monitoring.ledger.spool import Spool
    from evergreen.serving.event_log import EventCounts, Withdrawal
    from evergreen.serving.fresh_features import FreshFeatures

FLUSH_SECONDS = 0.05
"""Interval of writing predictions to the spool, unless serve.durable."""
REFRESH_SECONDS = 0.5
"""Interval of reading what other processes received: half of the second within which they all know it."""
SAVE_SECONDS = 1.0


class PredictionService:
    """`spool`: where predictions are written; None: nowhere. `ledger`: stores labels; None: labels are rejected."""

    def __init__(
        self, params: Params, watcher: Watcher, spool: "Spool | None", ledger: "Ledger | None", metrics: Metrics
    ) -> None:
        self.params, self.metrics, self._ledger = params, metrics, ledger
        self._background = BackgroundWork()
        self.versions = ServingVersions(params, watcher)
        self._writer = PredictionWriter(spool, params.serve.durable, self._background)
        self._parity = ParityCheck(params.serve.parity_share, metrics, self._background)
        self._rows = RowPredictor(params.serve, self.versions, self._writer, self._parity, metrics, self._background)
        self.lists = ListPredictor(params, self.versions, self._writer, metrics, self._background)

    def predict_one(self, problem: str, row: Mapping[str, Any], received: Any = None) -> Awaitable[RowPrediction]:
        """See RowPredictor.predict_one."""
        serving = self.versions.serving_set(problem)
        if isinstance(serving.champion, RowModel):
            return self._rows.predict_one(serving, row, received)
        return self._predict_single(problem, row)

    def predict_json(self, problem: str, body: bytes) -> Awaitable[RowPrediction] | None:
        """See RowPredictor.predict_json."""
        return self._rows.predict_json(self.versions.serving_set(problem), body)

    async def _predict_single(self, problem: str, row: Mapping[str, Any]) -> RowPrediction:
        return (await self.predict_rows(problem, [row]))[0]

    async def predict_rows(
        self, problem: str, rows: Sequence[Mapping[str, Any]], version: int | None = None, explain: bool = False
    ) -> list[RowPrediction]:
        """See RowPredictor.predict_rows; for a recommender a row names a user."""
        serving = self.versions.serving_set(problem)
        if len(rows) > self.params.serve.max_rows:
            raise RequestError("rows", f"at most {self.params.serve.max_rows} per request (serve.max_rows)", len(rows))
        if isinstance(serving.champion, ListModel):
            return await self.lists.predict_rows(problem, serving.champion, rows, version, explain)
        return await self._rows.predict_rows(problem, serving, rows, version, explain)

    async def record_events(self, problem: str, events: Sequence[Mapping[str, Any]]) -> "EventCounts":
        """Store purchases of a recommender, or rows of the tables that features are computed from; once this returns they are
        durable, and the next answer of this process uses them."""
        if fresh := self._fresh(problem):
            return await self._background.run(self._background.database, fresh.record, events)
        return await self.lists.record_events(problem, events)

    async def withdraw_events(self, problem: str, ids: Sequence[str]) -> "Withdrawal":
        """Withdraw events by id; once this returns, the next answer of this process is as if they had never been."""
        if fresh := self._fresh(problem):
            return await self._background.run(self._background.database, fresh.withdraw, ids)
        return await self.lists.withdraw_events(problem, ids)

    def _fresh(self, problem: str) -> "FreshFeatures | None":
        champion = self.versions.serving_set(problem).champion
        found = champion.online_features if isinstance(champion, RowModel) else None
        return found if found and found.fresh is True else None

    async def record_labels(self, problem: str, labels: Sequence[object]) -> "LabelCounts":
        """Store labels of earlier predictions, as received; once this returns they are durable.

        See monitoring.ledger.labels.write.
        """
        if problem not in self.params.problems:
            raise NotFoundError(f"{problem[:64]}: unknown problem; there are {', '.join(self.params.problems)}")
        if self._ledger is None:
            raise ServiceUnavailableError("serve.ledger is false: there are no stored predictions to label")
        from evergreen.monitoring.ledger import labels as ledger_labels
        from evergreen.tasks import problems

        kind = problems.predictions(self.params.kind(problem))
        return await self._background.run(self._background.database, ledger_labels.write, self._ledger, problem, kind, labels)

    def start(self) -> None:
        """Start the periodic work, in the running event loop."""
        self._background.repeat(FLUSH_SECONDS, self._writer.flush)
        self._background.repeat(REFRESH_SECONDS, self._refresh)
        self._background.repeat(SAVE_SECONDS, self._save_metrics)
        self._background.repeat(parity_check.INTERVAL_SECONDS, self._parity.compare)

    async def stop(self) -> None:
        """Stop the periodic work and write queued predictions."""
        await self._background.stop()
        await self._writer.close()
        self._count_batches()
        self.metrics.save()
        self._background.close()

    async def _refresh(self) -> None:
        """Read events and features of other processes."""
        database = self._background.database
        for model in self.versions.all_loaded():
            if isinstance(model, ListModel):
                await self._background.run(database, model.recommender.refresh)
            elif isinstance(model, RowModel) and model.online_features:
                await self._background.run(database, model.online_features.refresh)

    async def _save_metrics(self) -> None:
        """For the other workers, of which one answers /metrics."""
        self._count_batches()
        await self._background.run(self._background.database, self.metrics.saving())

    def _count_batches(self) -> None:
        for model in self.versions.all_loaded():
            if isinstance(model, RowModel) and model.batcher:
                for size, times in model.batcher.sizes.items():
                    self.metrics.count_batch(model.problem, size, times)
                model.batcher.sizes.clear()
