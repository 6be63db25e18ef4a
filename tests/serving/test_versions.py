"""Who answers when a version fails, what a shadow leaves behind, and how rows share a batch: planted versions, no server."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.spool import Spool, drain
from evergreen.serving.batching import Batch
from evergreen.serving.deployment_watcher import Lineup
from evergreen.serving.loaded_model import Feature, Rows
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import Answering, UnavailableError, UnknownError
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ModelError, RequestError

Said = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


def version(number: int, said: Said) -> Rows:
    return Rows("dear", number, "regression", [Feature("size", "number")], [{"size": 1.0}], said, entity="owner")


def tells(value: float) -> Said:
    """A version that answers `value` times the size."""
    return lambda rows: [{"prediction": value * row["size"]} for row in rows]


def fails(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    raise OSError("a disk is gone")


class Desk:
    """What answers with one lineup, and a ledger that its journal is drained into."""

    def __init__(self, folder: Path, lineup: "Lineup[Any] | None", **policy: Any) -> None:
        self._folder = folder
        watch = SimpleNamespace(lineup=lambda problem: lineup if problem == "dear" else None)
        known = SimpleNamespace(serve=Serve(**policy), problems={"dear": "regression"})
        self.metrics = Metrics()
        journal = Spool(folder / "spool")
        self.answering = Answering(cast(Any, known), cast(Any, watch), journal, None, self.metrics)

    def run(self, work: Callable[[Answering], Any]) -> Any:
        async def whole() -> Any:
            self.answering.begin()
            try:
                found = await work(self.answering)
                await asyncio.sleep(0.05)
                return found
            finally:
                await self.answering.end()

        return asyncio.run(whole())

    def ledger(self) -> list[tuple[int, str, float]]:
        """Version, variant and answer of each prediction."""
        ledger = Ledger(f"sqlite:///{self._folder / 'ledger.db'}")
        drain(self._folder / "spool", ledger)
        rows = ledger.read("dear", variants=("champion", "candidate", "shadow")).rows
        return sorted(rows.select("version", "variant", "prediction").rows()) if rows.height else []


def test_a_candidate_that_fails_leaves_its_requests_to_the_champion_and_they_count_against_it(tmp_path):
    for broken in (fails, tells(math.nan), tells(math.inf)):
        lineup = Lineup(version(1, tells(2.0)), version(2, broken), share=1.0)
        folder = tmp_path / f"{id(broken)}"
        desk = Desk(folder, lineup)
        answer = desk.run(lambda answering: answering.row("dear", {"size": 3.0}))
        assert (answer.version, answer.variant, answer.said) == (1, "champion", {"prediction": 6.0})
        assert desk.metrics.failures == {("dear", 2, "candidate"): 1}
        assert (lineup.new.requests, lineup.new.errors, lineup.old.errors) == (1, 1, 0)
        assert desk.ledger() == [(1, "champion", 6.0)]


def test_a_champion_that_fails_is_a_503_and_its_reason_stays_within(tmp_path):
    desk = Desk(tmp_path, Lineup(version(1, fails)))
    with pytest.raises(UnavailableError, match=r"^dear: v1 gave no answer$"):
        desk.run(lambda answering: answering.row("dear", {"size": 3.0}))
    assert desk.ledger() == []


def test_a_shadow_answers_into_the_ledger_alone(tmp_path):
    lineup = Lineup(version(1, tells(2.0)), version(2, tells(5.0)), shadow=True)
    desk = Desk(tmp_path, lineup)
    one, many = desk.run(
        lambda answering: asyncio.gather(answering.row("dear", {"size": 3.0}), answering.rows("dear", [{"size": 1.0}]))
    )
    assert {one.version, many[0].version} == {1}
    assert desk.ledger() == [(1, "champion", 2.0), (1, "champion", 6.0), (2, "shadow", 5.0), (2, "shadow", 15.0)]
    assert lineup.new.requests == 2


def test_an_entity_is_answered_by_the_same_version_in_every_request(tmp_path):
    desk = Desk(tmp_path, Lineup(version(1, tells(1.0)), version(2, tells(2.0)), share=0.5, rollout=3))
    rows = [{"size": 1.0, "owner": owner} for owner in range(40)]

    async def twice(answering: Answering) -> tuple[list[int], list[int]]:
        together = [each.version for each in await answering.rows("dear", rows)]
        return together, [(await answering.row("dear", row)).version for row in rows]

    together, alone = desk.run(twice)
    assert together == alone
    assert set(alone) == {1, 2}


def test_more_rows_than_a_batch_are_answered_in_their_order_and_more_than_allowed_are_not(tmp_path):
    desk = Desk(tmp_path, Lineup(version(1, tells(1.0))), batch_rows=4, max_rows=50)
    found = desk.run(lambda answering: answering.rows("dear", [{"size": float(each)} for each in range(50)]))
    assert [each.said["prediction"] for each in found] == list(range(50))
    again = Desk(tmp_path / "b", Lineup(version(1, tells(1.0))), max_rows=50)
    with pytest.raises(RequestError, match="rows = 51: at most 50 at once"):
        again.run(lambda answering: answering.rows("dear", [{"size": 1.0}] * 51))


def test_what_is_not_there_is_said_by_name(tmp_path):
    with pytest.raises(UnknownError, match="cheap: no such problem; there are dear"):
        Desk(tmp_path / "a", None).run(lambda answering: answering.row("cheap", {}))
    with pytest.raises(UnavailableError, match="dear: no version answers"):
        Desk(tmp_path / "b", None).run(lambda answering: answering.row("dear", {}))
    desk = Desk(tmp_path / "c", Lineup(version(1, tells(1.0))))
    with pytest.raises(UnknownError, match="dear v7: is not loaded; loaded are v1"):
        desk.run(lambda answering: answering.rows("dear", [{"size": 1.0}], 7))


def test_a_version_that_fails_its_own_example_or_answers_no_number_never_serves():
    assert version(1, tells(2.0)).check() == [{"prediction": 2.0}]
    with pytest.raises(ModelError, match="dear v1: answers prediction = nan to its own example"):
        version(1, tells(math.nan)).check()
    with pytest.raises(ModelError, match="dear v1: does not answer its own example: 'width'"):
        version(1, lambda rows: [{"prediction": row["width"]} for row in rows]).check()


def test_rows_of_one_moment_share_batches_up_to_their_size_and_a_row_alone_does_not_wait():
    async def ask(count: int) -> tuple[list[Any], list[int]]:
        batch = Batch[int](lambda rows: [{"prediction": row} for row in rows], 8, 60.0)
        found = await asyncio.wait_for(asyncio.gather(*(batch.ask(each) for each in range(count))), 30)
        return [each["prediction"] for each in found], sorted(batch.sizes.elements())

    assert asyncio.run(ask(20)) == (list(range(20)), [4, 8, 8])
    assert asyncio.run(ask(1)) == ([0], [1])


@pytest.mark.parametrize("aside", [False, True])
def test_a_row_that_cannot_be_answered_spoils_no_other_of_its_batch(aside):
    def said(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{"prediction": 6 // row} for row in rows]

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batch = Batch(said, 8, 0.0, pool if aside else None)
            return await asyncio.gather(*(batch.ask(each) for each in (1, 0, 3)), return_exceptions=True)

    first, second, third = asyncio.run(ask())
    assert (first, third) == ({"prediction": 6}, {"prediction": 2})
    assert isinstance(second, ZeroDivisionError)


def test_workers_tell_of_each_other_and_of_those_that_are_gone(tmp_path):
    (tmp_path / "999999.json").write_text(
        '{"requests": [["predict", "dear", 200, 5]], "seconds": [["predict", "dear", [5' + ", 0" * 13 + ", 0.1]]]}"
    )
    metrics = Metrics(tmp_path)
    metrics.request("predict", "dear", 200, 0.003)
    metrics.save()
    text = metrics.text().decode()
    assert 'evergreen_requests_total{problem="dear",route="predict",status="200"} 6.0' in text
    assert 'evergreen_request_seconds_count{problem="dear",route="predict"} 6.0' in text
