"""Predictions for rows of features: version chosen, micro-batched, written to the spool, shadowed.

Runs in the event loop's thread and hands slow work to threads.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from evergreen.serving import explanation
from evergreen.serving.background_work import BackgroundWork
from evergreen.serving.batching import MicroBatcher
from evergreen.serving.loaded_model import LoadedModel, ParsedRow, RowModel
from evergreen.serving.metrics import Metrics
from evergreen.serving.parity_check import ParityCheck
from evergreen.serving.prediction_writer import PredictionWriter
from evergreen.serving.protocols import RowPrediction
from evergreen.serving.serving_versions import ServiceUnavailableError, ServingVersions, entity_of
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import RequestError
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX

if TYPE_CHECKING:
    from evergreen.serving.serving_set import ServingSet, Variant

    Serving = ServingSet[LoadedModel]

log = logging.getLogger(__name__)
Row = Mapping[str, Any]
Output = Mapping[str, Any]


class RowPredictor:
    """Predicts with the versions that serve."""

    def __init__(
        self,
        policy: Serve,
        versions: ServingVersions,
        writer: PredictionWriter,
        parity: ParityCheck,
        metrics: Metrics,
        background: BackgroundWork,
    ) -> None:
        self._policy, self._versions, self._writer = policy, versions, writer
        self._parity, self._metrics, self._background = parity, metrics, background

    async def predict_one(self, serving: "Serving", row: Row, received: Any = None) -> RowPrediction:
        """The prediction for one row. `received`: the row's JSON, written to the spool instead of the parsed row if possible.

        Raises RequestError for an invalid row, ServiceUnavailableError if no version can predict.
        """
        champion = serving.champion
        id_ = self._writer.new_id()
        if serving.candidate is None:
            model, variant = champion, "champion"
        else:
            model, variant = serving.choose(entity_of(champion, row), id_)
        assert isinstance(model, RowModel)
        model, variant, parsed = _parse(serving, model, variant, row)
        self._metrics.count_unseen(model.problem, model.unseen(parsed))
        features = received if received is not None and parsed.given is row else parsed.given
        return await self._predict_parsed(serving, id_, model, variant, parsed, row, features)

    def predict_json(self, serving: "Serving", body: bytes) -> Awaitable[RowPrediction] | None:
        """The prediction for a row from its JSON, without rows in between; None for a body that `predict_one` must look at."""
        model = serving.champion
        if serving.candidate is not None or not isinstance(model, RowModel) or b"\n" in body:
            return None
        parsed = model.read(body)
        if parsed is None:
            return None
        id_, received = self._writer.new_id(), orjson.Fragment(body)
        return self._predict_parsed(serving, id_, model, "champion", parsed, None, received)

    async def _predict_parsed(
        self,
        serving: "Serving",
        id_: str,
        model: RowModel,
        variant: "Variant",
        parsed: ParsedRow,
        row: Row | None,
        features: Any,
    ) -> RowPrediction:
        """`row`: as received, None where it has the features alone. `features`: for the spool."""
        output, model, variant = await self._predict(serving, model, variant, parsed, row)
        if self._writer.spool:
            self._writer.write(id_, model, variant, parsed.entity, features, _stored(output, parsed), parsed.cutoff)
            if self._writer.durable:
                await self._writer.until_durable()
        self._parity.maybe_sample(model, parsed, output)
        if serving.candidate is not None:
            self._follow_up(serving, [parsed.features if row is None else row], [id_])
        return RowPrediction(id_, model.version, variant, output)

    async def predict_rows(
        self, problem: str, serving: "Serving", rows: Sequence[Row], version: int | None = None, explain: bool = False
    ) -> list[RowPrediction]:
        """The predictions for `rows`, in order. `version`: a loaded version; None: the one chosen for each row.

        Raises RequestError for the first invalid row, with its number, and then predicts none.
        """
        chosen = [self._choose(problem, serving, row, version) for row in rows]
        parsed = list[ParsedRow]()
        for place, (id_, model, variant) in enumerate(chosen):
            model, variant, one = _parse_numbered(serving, model, variant, rows, place, version)
            chosen[place] = id_, model, variant
            parsed.append(one)
            self._metrics.count_unseen(model.problem, model.unseen(one))
        if len(rows) <= self._policy.batch_rows:
            each_row = zip(chosen, parsed, rows, strict=True)
            found = await asyncio.gather(
                *(self._predict(serving, model, variant, one, row) for (_, model, variant), one, row in each_row)
            )
        else:
            found = await self._predict_many(serving, chosen, parsed, rows)
        predictions = []
        for (id_, _, _), one, (output, model, variant) in zip(chosen, parsed, found, strict=True):
            self._writer.write(id_, model, variant, one.entity, one.features, _stored(output, one), one.cutoff)
            self._parity.maybe_sample(model, one, output)
            reasons = None
            if explain:
                reasons = await self._background.run(self._background.other, explanation.contributions, model, one)
            predictions.append(RowPrediction(id_, model.version, variant, output, reasons))
        if serving.candidate is not None and version is None and rows:
            self._follow_up(serving, rows, [id_ for id_, _, _ in chosen])
        await self._writer.until_durable()
        return predictions

    def _choose(self, problem: str, serving: "Serving", row: Row, version: int | None) -> "tuple[str, RowModel, Variant]":
        id_ = self._writer.new_id()
        if version is not None:
            model, variant = self._versions.version(problem, version)
        else:
            model, variant = serving.choose(entity_of(serving.champion, row), id_)
        assert isinstance(model, RowModel)
        return id_, model, variant

    async def _predict(
        self, serving: "Serving", model: RowModel, variant: "Variant", parsed: ParsedRow, row: Row | None
    ) -> "tuple[Output, RowModel, Variant]":
        """The output, and the version that made it: if a candidate fails, the champion predicts."""
        try:
            output = await self._batcher(model).add(parsed)
            _require_finite(output)
        except Exception as error:
            serving.record(variant, True)
            self._metrics.failures[model.problem, model.version, variant] += 1
            champion = serving.champion
            if model is champion or not isinstance(champion, RowModel):
                raise ServiceUnavailableError(f"{model.problem}: v{model.version} failed to predict") from error
            log.warning("%s v%d: failed to predict; the champion did instead: %r", model.problem, model.version, error)
            row = parsed.features if row is None else row
            return await self._predict(serving, champion, "champion", champion.parse(row), row)
        serving.record(variant)
        self._metrics.rows[model.problem, model.version, variant] += 1
        return output, model, variant

    async def _predict_many(
        self,
        serving: "Serving",
        chosen: "Sequence[tuple[str, RowModel, Variant]]",
        parsed: Sequence[ParsedRow],
        rows: Sequence[Row],
    ) -> "list[tuple[Output, RowModel, Variant]]":
        """Many rows of one request, in a thread, so that other requests do not wait."""
        found: list[Any] = [None] * len(parsed)
        for model in {model for _, model, _ in chosen}:
            places = [place for place, each in enumerate(chosen) if each[1] is model]
            part = [parsed[place] for place in places]
            try:
                outputs = await self._background.run(self._background.other, model.predict, part)
                for output in outputs:
                    _require_finite(output)
            except Exception:  # noqa: BLE001 - then each row is predicted alone
                outputs = []
            if not outputs:
                for place in places:
                    found[place] = await self._predict(serving, model, chosen[place][2], parsed[place], rows[place])
                continue
            for place, output in zip(places, outputs, strict=True):
                variant = chosen[place][2]
                serving.record(variant)
                self._metrics.rows[model.problem, model.version, variant] += 1
                found[place] = (output, model, variant)
            self._metrics.count_batch(model.problem, len(places))
        return found

    def _batcher(self, model: RowModel) -> "MicroBatcher[ParsedRow]":
        if model.batcher is None:
            policy = self._policy
            executor = None if model.compiled else self._background.models
            model.batcher = MicroBatcher(model.predict, policy.batch_rows, policy.batch_wait_ms / 1000, executor)
        return model.batcher

    def _follow_up(self, serving: "Serving", rows: Sequence[Row], ids: Sequence[str]) -> None:
        """What a rollout needs after the response to `rows`: the shadow's predictions, and a probe of the latencies."""
        if serving.shadow:
            for row, id_ in zip(rows, ids, strict=True):
                self._background.start(self._shadow(serving, row, id_))
        if serving.counts.probes.due():
            self._background.start(self._probe(serving, rows[0]))

    async def _probe(self, serving: "Serving", row: Row) -> None:
        """Time both versions on the same row, where they predict otherwise too: in the loop, or a pipeline in its thread."""
        champion, candidate = serving.champion, serving.candidate
        assert isinstance(champion, RowModel)
        assert isinstance(candidate, RowModel)
        calls = [partial(_predict_alone, each, row) for each in (champion, candidate)]
        with suppress(Exception):  # a request that fails is counted where it is answered
            if champion.compiled and candidate.compiled:
                serving.counts.probes.measure(*calls)
            else:
                await self._background.run(self._background.models, serving.counts.probes.measure, *calls)

    async def _shadow(self, serving: "Serving", row: Row, id_: str) -> None:
        """The shadow's prediction, for the ledger only. `id_`: of the champion's prediction."""
        model = serving.candidate
        assert isinstance(model, RowModel)
        failed = True
        try:
            parsed = model.parse(row)
            output = await self._batcher(model).add(parsed)
            _require_finite(output)
            failed = False
            stored = _stored(output, parsed)
            self._writer.write(id_ + SHADOW_SUFFIX, model, "shadow", parsed.entity, parsed.features, stored, parsed.cutoff)
            self._metrics.rows[model.problem, model.version, "shadow"] += 1
        except Exception as error:  # noqa: BLE001 - a shadow must not affect the response
            self._metrics.failures[model.problem, model.version, "shadow"] += 1
            log.warning("%s v%d: the shadow failed to predict: %r", model.problem, model.version, error)
        serving.record("shadow", failed)


def _parse(serving: "Serving", model: RowModel, variant: "Variant", row: Row) -> "tuple[RowModel, Variant, ParsedRow]":
    """The row as the chosen version takes it. If a candidate rejects it and the champion does not, the champion predicts.

    Raises RequestError for a row that the champion rejects too.
    """
    try:
        return model, variant, model.parse(row)
    except RequestError:
        champion = serving.champion
        if model is champion or not isinstance(champion, RowModel):
            raise
        parsed = champion.parse(row)
        serving.record(variant, True)
        return champion, "champion", parsed


def _parse_numbered(
    serving: "Serving", model: RowModel, variant: "Variant", rows: Sequence[Row], place: int, version: int | None
) -> "tuple[RowModel, Variant, ParsedRow]":
    """One of several rows; a requested `version` parses and predicts itself."""
    try:
        if version is not None:
            return model, variant, model.parse(rows[place])
        return _parse(serving, model, variant, rows[place])
    except RequestError as error:
        error.row = place
        raise


def _predict_alone(model: RowModel, row: Row) -> None:
    model.predict([model.parse(row)])


def _stored(output: Output, row: ParsedRow) -> Output:
    """The output as the ledger keeps it."""
    return {**output, "features_from": "fresh"} if row.fresh else output


def _require_finite(output: Output) -> None:
    for value in output.values():
        if type(value) is float and not math.isfinite(value):
            raise ValueError("the prediction is not a finite number")
