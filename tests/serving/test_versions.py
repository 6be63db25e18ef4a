"""Fallback to the champion, shadows and micro-batching, with planted versions and no server."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.spool import Spool, drain
from evergreen.serving.batching import MicroBatcher
from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import RowModel
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.serving_set import ServingSet, StepCounts
from evergreen.serving.serving_versions import NotFoundError, ServiceUnavailableError
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ModelError, RequestError

Predict = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


def version(number: int, predict: Predict) -> RowModel:
    return RowModel("dear", number, "regression", [Feature("size", "number")], [{"size": 1.0}], predict, entity="owner")


def times(value: float) -> Predict:
    """Predicts `value` times the size."""
    return lambda rows: [{"prediction": value * row["size"]} for row in rows]


def fails(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    raise OSError("a disk is gone")


class Setup:
    """A service with one serving set, and a ledger for its spool."""

    def __init__(self, folder: Path, serving_set: "ServingSet[Any] | None", **policy: Any) -> None:
        self._folder = folder
        watch = SimpleNamespace(serving_set=lambda problem: serving_set if problem == "dear" else None)
        known = SimpleNamespace(serve=Serve(**policy), problems={"dear": "regression"})
        self.metrics = Metrics()
        spool = Spool(folder / "spool")
        self.service = PredictionService(cast(Any, known), cast(Any, watch), spool, None, self.metrics)

    def run(self, work: Callable[[PredictionService], Any]) -> Any:
        async def whole() -> Any:
            self.service.start()
            try:
                found = await work(self.service)
                await asyncio.sleep(0.05)
                return found
            finally:
                await self.service.stop()

        return asyncio.run(whole())

    def ledger(self) -> list[tuple[int, str, float]]:
        """Version, variant and value of each prediction."""
        ledger = Ledger(f"sqlite:///{self._folder / 'ledger.db'}")
        drain(self._folder / "spool", ledger)
        rows = ledger.read("dear", variants=("champion", "candidate", "shadow")).rows
        return sorted(rows.select("version", "variant", "prediction").rows()) if rows.height else []


def test_the_champion_predicts_for_a_candidate_that_fails_and_the_failure_is_counted(tmp_path):
    for broken in (fails, times(math.nan), times(math.inf)):
        serving_set = ServingSet(version(1, times(2.0)), version(2, broken), share=1.0)
        folder = tmp_path / f"{id(broken)}"
        setup = Setup(folder, serving_set)
        answer = setup.run(lambda service: service.predict_one("dear", {"size": 3.0}))
        assert (answer.version, answer.variant, answer.output) == (1, "champion", {"prediction": 6.0})
        assert setup.metrics.failures == {("dear", 2, "candidate"): 1}
        assert (
            serving_set.counts.candidate.requests,
            serving_set.counts.candidate.errors,
            serving_set.counts.champion.errors,
        ) == (1, 1, 0)
        assert setup.ledger() == [(1, "champion", 6.0)]


def test_a_champion_that_fails_is_a_503_without_the_reason(tmp_path):
    setup = Setup(tmp_path, ServingSet(version(1, fails)))
    with pytest.raises(ServiceUnavailableError, match=r"^dear: v1 failed to predict$"):
        setup.run(lambda service: service.predict_one("dear", {"size": 3.0}))
    assert setup.ledger() == []


def test_a_shadow_predicts_for_the_ledger_only(tmp_path):
    serving_set = ServingSet(version(1, times(2.0)), version(2, times(5.0)), shadow=True)
    setup = Setup(tmp_path, serving_set)
    one, many = setup.run(
        lambda service: asyncio.gather(
            service.predict_one("dear", {"size": 3.0}), service.predict_rows("dear", [{"size": 1.0}])
        )
    )
    assert {one.version, many[0].version} == {1}
    assert setup.ledger() == [(1, "champion", 2.0), (1, "champion", 6.0), (2, "shadow", 5.0), (2, "shadow", 15.0)]
    assert serving_set.counts.candidate.requests == 2


@pytest.mark.parametrize("shadow", [False, True])
def test_both_versions_are_timed_on_the_rows_of_a_rollout(tmp_path, shadow):
    def slow(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.02)
        return times(2.0)(rows)

    serving_set = ServingSet(
        version(1, times(2.0)), version(2, slow), share=0.0, shadow=shadow, counts=StepCounts(max_ratio=2.0)
    )
    setup = Setup(tmp_path, serving_set)

    async def ask(service: PredictionService) -> None:
        for _ in range(3):
            await service.predict_one("dear", {"size": 3.0})
        await service.predict_rows("dear", [{"size": 3.0}, {"size": 4.0}])
        while serving_set.counts.probes.pairs < 4:
            await asyncio.sleep(0.01)

    setup.run(lambda service: asyncio.wait_for(ask(service), 30))
    assert serving_set.counts.probes.slower == 4
    assert [variant for _, variant, _ in setup.ledger()].count("champion") == 5, "a probe is no prediction"


def test_no_probe_outside_a_rollout_and_one_that_fails_harms_nothing(tmp_path):
    alone = ServingSet(version(1, times(2.0)))
    Setup(tmp_path / "a", alone).run(lambda service: service.predict_one("dear", {"size": 3.0}))
    broken = ServingSet(version(1, times(2.0)), version(2, fails), share=0.0)
    found = Setup(tmp_path / "b", broken).run(lambda service: service.predict_one("dear", {"size": 3.0}))
    assert found.output == {"prediction": 6.0}
    assert (alone.counts.probes.pairs, broken.counts.probes.pairs) == (0, 0)


def test_an_entity_gets_the_same_version_in_every_request(tmp_path):
    setup = Setup(tmp_path, ServingSet(version(1, times(1.0)), version(2, times(2.0)), share=0.5, rollout=3))
    rows = [{"size": 1.0, "owner": owner} for owner in range(40)]

    async def twice(service: PredictionService) -> tuple[list[int], list[int]]:
        together = [each.version for each in await service.predict_rows("dear", rows)]
        return together, [(await service.predict_one("dear", row)).version for row in rows]

    together, alone = setup.run(twice)
    assert together == alone
    assert set(alone) == {1, 2}


def test_more_rows_than_a_batch_keep_their_order_and_more_than_the_limit_are_an_error(tmp_path):
    setup = Setup(tmp_path, ServingSet(version(1, times(1.0))), batch_rows=4, max_rows=50)
    found = setup.run(lambda service: service.predict_rows("dear", [{"size": float(each)} for each in range(50)]))
    assert [each.output["prediction"] for each in found] == list(range(50))
    again = Setup(tmp_path / "b", ServingSet(version(1, times(1.0))), max_rows=50)
    with pytest.raises(RequestError, match="rows = 51: at most 50 per request"):
        again.run(lambda service: service.predict_rows("dear", [{"size": 1.0}] * 51))


def test_an_unknown_problem_or_version_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="cheap: unknown problem; there are dear"):
        Setup(tmp_path / "a", None).run(lambda service: service.predict_one("cheap", {}))
    with pytest.raises(ServiceUnavailableError, match="dear: no version serves it"):
        Setup(tmp_path / "b", None).run(lambda service: service.predict_one("dear", {}))
    setup = Setup(tmp_path / "c", ServingSet(version(1, times(1.0))))
    with pytest.raises(NotFoundError, match="dear v7: is not loaded; loaded: v1"):
        setup.run(lambda service: service.predict_rows("dear", [{"size": 1.0}], 7))


def test_a_version_that_fails_or_predicts_nan_fails_its_self_check():
    assert version(1, times(2.0)).self_check() == [{"prediction": 2.0}]
    with pytest.raises(ModelError, match="dear v1: self-check failed: prediction = nan is not a finite number"):
        version(1, times(math.nan)).self_check()
    with pytest.raises(ModelError, match="dear v1: self-check failed: 'width'"):
        version(1, lambda rows: [{"prediction": row["width"]} for row in rows]).self_check()


def test_concurrent_rows_share_batches_and_a_single_row_does_not_wait():
    async def ask(count: int) -> tuple[list[Any], list[int]]:
        batch = MicroBatcher[int](lambda rows: [{"prediction": row} for row in rows], 8, 60.0)
        found = await asyncio.wait_for(asyncio.gather(*(batch.add(each) for each in range(count))), 30)
        return [each["prediction"] for each in found], sorted(batch.sizes.elements())

    assert asyncio.run(ask(20)) == (list(range(20)), [4, 8, 8])
    assert asyncio.run(ask(1)) == ([0], [1])


@pytest.mark.parametrize("aside", [False, True])
def test_a_row_that_fails_spoils_no_other_row_of_its_batch(aside):
    def predict(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{"prediction": 6 // row} for row in rows]

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batch = MicroBatcher(predict, 8, 0.0, pool if aside else None)
            return await asyncio.gather(*(batch.add(each) for each in (1, 0, 3)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == ({"prediction": 6}, {"prediction": 2})
    assert isinstance(second, ZeroDivisionError)


def test_a_worker_reports_the_counts_of_all_workers_and_of_dead_ones(tmp_path):
    (tmp_path / "999999.json").write_text(
        '{"requests": [["predict", "dear", 200, 5]], "seconds": [["predict", "dear", [5' + ", 0" * 14 + ", 0.1]]]}"
    )
    metrics = Metrics(tmp_path)
    metrics.count_request("predict", "dear", 200, 0.003)
    metrics.save()
    text = metrics.text().decode()
    assert 'evergreen_requests_total{problem="dear",route="predict",status="200"} 6.0' in text
    assert 'evergreen_request_duration_seconds_count{problem="dear",route="predict"} 6.0' in text
