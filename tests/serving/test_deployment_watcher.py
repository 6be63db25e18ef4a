"""What answers while a server runs: loaded beside, checked, swapped in one piece; what cannot answer is never swapped in."""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from evergreen.serving import deployment_watcher
from evergreen.serving.deployment_watcher import Lineup, Tally, Watch
from evergreen.tasks.config.operations import Rollout, Serve
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.release.mlflow_store import Version
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.rollouts import Rollouts
from evergreen.tasks.release.server_reports import EDGES, RequestCounts
from tests.tasks.release.test_deployments import Names, verdict
from tests.tasks.release.test_rollouts import CANARY, Known

FINE = [{"prediction": 1.0, "probability_a": 0.5}]


class Served:
    """A version in memory that says `said` to its own example."""

    def __init__(self, problem: str, version: int, said: Any = FINE) -> None:
        self.problem, self.version, self.said = problem, version, said

    def check(self) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


class Shelf:
    """Loads versions; `broken`: version -> what comes instead."""

    def __init__(self) -> None:
        self.broken: dict[int, Any] = {}
        self.asked: list[int] = []

    def load(self, problem: str, version: int) -> Served:
        self.asked.append(version)
        found = self.broken.get(version, FINE)
        if isinstance(found, OSError | ModelError):
            raise found
        return Served(problem, version, found)


class Problems(Known):
    problems = ("redeem", "spend")
    serve = Serve()


class Aliases(Names):
    """Those of redeem; spend has none."""

    def version(self, problem: str, which: int | str) -> Version | None:
        return None if problem == "spend" and isinstance(which, str) else super().version(problem, which)


@pytest.fixture
def names() -> Names:
    return Aliases(9)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def rollouts(tmp_path: Path, names: Names) -> Rollouts:
    """redeem's champion is version 1; nothing is deployed of spend."""
    found = Rollouts(f"sqlite:///{tmp_path / 'evergreen.db'}")
    enter(found, names, 1)
    return found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("COUNT_SECONDS", "JUDGE_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(deployment_watcher, name, 0.0)
    return iter(())


def enter(rollouts: Rollouts, names: Names, version: int, policy: Rollout = CANARY) -> None:
    rollouts.apply_verdict(cast(Registry, names), "redeem", version, verdict(), "flow", policy)


def roll_back(rollouts: Rollouts, names: Names, to: int | None = None) -> None:
    rollouts.deployments.rollback(cast(Registry, names), "redeem", to, "ann", "complaints")


def watching(rollouts: Rollouts, names: Names, shelf: Shelf) -> "Watch[Served]":
    """One that has looked once."""
    found = Watch(cast(Any, Problems()), cast(Registry, names), rollouts, shelf.load)
    found.look()
    return found


def lineup(found: "Watch[Served]") -> "Lineup[Served]":
    made = found.lineup("redeem")
    assert made is not None
    return made


def versions(found: "Watch[Served]") -> tuple[int, int | None]:
    made = lineup(found)
    return made.champion.version, made.candidate.version if made.candidate else None


def test_the_champion_answers_and_what_is_not_deployed_does_not(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    assert versions(found) == (1, None)
    assert found.lineup("spend") is None
    assert found.troubles == {}
    assert lineup(found).pick("h1", "r1") == (lineup(found).champion, "champion")


def test_a_look_without_news_loads_nothing_and_leaves_the_lineup_as_it_is(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    before = lineup(found)
    for _ in range(3):
        found.look()
    assert lineup(found) is before
    assert shelf.asked == [1]


def test_what_is_deployed_for_the_first_time_answers_from_the_next_look_on(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    rollouts.apply_verdict(cast(Registry, names), "spend", 4, verdict(), "flow", CANARY)
    found.look()
    assert found.lineup("spend") is not None


def test_a_candidate_answers_its_share_and_is_promoted_without_being_loaded_again(
    rollouts: Rollouts, names: Names, shelf: Shelf
):
    found = watching(rollouts, names, shelf)
    enter(rollouts, names, 2)
    found.look()
    assert versions(found) == (1, 2)
    assert lineup(found).share == 0.1
    candidate = lineup(found).candidate
    rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    found.look()
    assert lineup(found).champion is candidate
    assert shelf.asked == [1, 2]


def test_an_aborted_candidate_answers_nothing_any_more_and_is_let_go(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    enter(rollouts, names, 2)
    found.look()
    rollouts.abort("redeem", "ann", "no")
    found.look()
    assert versions(found) == (1, None)
    assert found.standing == {}
    enter(rollouts, names, 3)
    found.look()
    rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    found.look()
    roll_back(rollouts, names)
    found.look()
    assert versions(found) == (1, None)
    assert shelf.asked == [1, 2, 3], "the champion before is kept, for a rollback at once"


@pytest.mark.parametrize("spare", [True, False])
def test_what_a_rollback_would_return_to_is_loaded_when_there_is_nothing_else_to_do(
    rollouts: Rollouts, names: Names, shelf: Shelf, spare: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Problems, "serve", Serve(spare=spare))
    enter(rollouts, names, 2, Rollout())
    shelf.broken[1] = OSError("no file")
    found = watching(rollouts, names, shelf)
    assert shelf.asked == [2], "what answers comes first"
    for _ in range(3):
        found.look()
    assert shelf.asked == ([2, 1] if spare else [2]), "once, though it failed"
    assert found.troubles == {}
    shelf.broken.clear()
    enter(rollouts, names, 3, Rollout())
    for _ in range(2):
        found.look()
    roll_back(rollouts, names)
    found.look()
    assert versions(found) == (2, None)
    assert shelf.asked == ([2, 1, 3] if spare else [2, 3])


def test_two_servers_follow_a_rollback_while_they_run(rollouts: Rollouts, names: Names, tmp_path: Path):
    enter(rollouts, names, 2, Rollout())
    servers = [
        Watch(cast(Any, Problems()), cast(Registry, names), Rollouts(f"sqlite:///{tmp_path / 'evergreen.db'}"), Shelf().load)
        for _ in range(2)
    ]
    for each in servers:
        each.start()
    try:
        held = [lineup(each).champion for each in servers]
        assert [each.version for each in held] == [2, 2]
        assert len(rollouts.reports.servers("redeem")) == 2
        roll_back(rollouts, names)
        until(lambda: all(versions(each) == (1, None) for each in servers))
        assert [each.said for each in held] == [FINE, FINE], "who holds the old one, finishes on it"
    finally:
        for each in servers:
            each.stop()
    assert rollouts.reports.servers("redeem") == []


def until(holds: Any) -> None:
    """Wait; a machine that is busy may take its time."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (ModelError("its sha256 differs"), "its sha256 differs"),
        (OSError("no file"), "OSError: no file"),
        ([{"prediction": math.nan}], "redeem v2: answers prediction = nan to its own example"),
        ([{"prediction": [1]}], "redeem v2: answers prediction: list to its own example, where v1 answers"),
    ],
)
def test_a_champion_that_cannot_answer_leaves_the_old_one_in_its_place(
    rollouts: Rollouts, names: Names, shelf: Shelf, broken: Any, why: str
):
    found = watching(rollouts, names, shelf)
    shelf.broken[2] = broken
    enter(rollouts, names, 2, Rollout())
    found.look()
    assert versions(found) == (1, None)
    assert found.troubles["redeem"].startswith(f"v2 is champion and cannot answer: {why}")
    assert found.troubles["redeem"].endswith("; v1 goes on answering")
    assert rollouts.reports.servers("redeem")[0].error == found.troubles["redeem"]
    shelf.broken.clear()
    found.look()
    assert versions(found) == (2, None), "it is tried again"
    assert found.troubles == {}
    assert rollouts.reports.servers("redeem")[0].error is None


def test_a_rollback_from_a_champion_that_never_answered_needs_no_loading(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    shelf.broken[2] = OSError("no file")
    enter(rollouts, names, 2, Rollout())
    found.look()
    roll_back(rollouts, names)
    asked = list(shelf.asked)
    for _ in range(3):
        found.look()
    assert shelf.asked == asked
    assert found.troubles == {}
    assert versions(found) == (1, None)


@pytest.mark.parametrize(
    ("broken", "why", "looks"),
    [
        (ModelError("its sha256 differs"), "its sha256 differs", deployment_watcher.ATTEMPTS),
        ([{"prediction": 1.0, "probability_a": math.inf}], "redeem v2: answers probability_a = inf to its own example", 1),
        (ValueError("no row"), "ValueError: no row", 1),
    ],
)
def test_a_candidate_that_cannot_answer_never_takes_traffic_and_ends_its_rollout(
    rollouts: Rollouts, names: Names, shelf: Shelf, broken: Any, why: str, looks: int
):
    found = watching(rollouts, names, shelf)
    shelf.broken[2] = broken
    enter(rollouts, names, 2)
    for _ in range(looks):
        assert rollouts.current("redeem")
        found.look()
        assert versions(found) == (1, None)
    last = rollouts.deployments.history("redeem")[-1]
    assert (last.action, last.by, last.reason) == ("abort", "rollout", f"v2 never took traffic: {why}")
    found.look()
    assert found.standing == {}
    asked = list(shelf.asked)
    found.look()
    assert shelf.asked == asked


def test_of_nothing_that_answers_a_champion_that_cannot_be_loaded_is_the_trouble(
    rollouts: Rollouts, names: Names, shelf: Shelf
):
    shelf.broken[1] = OSError("no file")
    found = watching(rollouts, names, shelf)
    assert found.lineup("redeem") is None
    assert found.troubles == {"redeem": "v1 is champion and cannot answer: OSError: no file"}


def test_a_database_that_is_away_leaves_what_answers_as_it_is(
    rollouts: Rollouts, names: Names, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    found = watching(rollouts, names, shelf)

    def away() -> dict[str, int]:
        raise ProjectError("the database of deployments cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(rollouts.deployments, "newest", away)
        for _ in range(3):
            found.look()
    assert versions(found) == (1, None)
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [
        "the decisions cannot be read, and what answers stays as it is: the database of deployments cannot be used"
    ]
    enter(rollouts, names, 2)
    found.look()
    assert versions(found) == (1, 2)


def test_an_alias_that_was_moved_by_other_means_is_noticed(
    rollouts: Rollouts, names: Names, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deployment_watcher, "SETTLE_SECONDS", 0.0)
    found = watching(rollouts, names, shelf)
    names.aliases["champion"] = 3
    for _ in range(2):
        found.look()
    assert versions(found) == (3, None)


def test_answers_are_counted_and_judged_by_the_servers_themselves(rollouts: Rollouts, names: Names, shelf: Shelf):
    servers = [watching(rollouts, names, each) for each in (shelf, Shelf())]
    enter(rollouts, names, 2)
    for each in servers:
        each.look()
        for _ in range(200):
            lineup(each).note("champion", 0.001)
            lineup(each).note("candidate", 0.001, failed=True)
        each.look()
    servers[0].look()
    last = rollouts.deployments.history("redeem")[-1]
    assert last.action == "abort"
    assert last.reason.startswith("surely worse in errors; errors 100.00% against 0.00% (200 and 200 answers)")
    servers[1].look()
    servers[1].look()
    assert versions(servers[1]) == (1, None)
    begun = last.evidence["tests"][0]
    assert begun["new_rows"] == 200, "the first to see it does not wait for the other"


def test_steps_are_counted_apart_and_a_pause_goes_on_counting(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    enter(rollouts, names, 2)
    found.look()
    stands = rollouts.require("redeem")
    lineup(found).note("candidate", 0.002)
    rollouts.pause("redeem", "ann", "a holiday")
    found.look()
    lineup(found).note("candidate", 0.002)
    late = lineup(found)
    rollouts.try_step(rollouts.require("redeem"), "ann", "on", {})
    found.look()
    late.note("candidate", 0.002)
    lineup(found).note("candidate", 0.002)
    found.look()
    assert [rollouts.reports.counts(stands.id, step)[1].requests for step in (0, 1)] == [3, 1]


def test_before_blue_green_the_old_version_makes_the_count_it_is_judged_by(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    for _ in range(500):
        lineup(found).note("champion", 0.001)
    enter(rollouts, names, 2, Rollout(strategy="blue_green", step_minutes=30))
    found.look()
    assert lineup(found).pick("h1", "r1")[1] == "candidate"
    for place in range(200):
        lineup(found).note("candidate", 0.001, failed=place % 5 == 0)
    found.look()
    found.look()
    assert versions(found) == (1, None)
    reason = rollouts.deployments.history("redeem")[-1].reason
    assert reason.startswith("surely worse in errors; errors 20.00% against 0.00% (200 and 500 answers)")


def test_a_shadow_is_never_picked_and_is_counted_as_the_new_version(rollouts: Rollouts, names: Names, shelf: Shelf):
    found = watching(rollouts, names, shelf)
    enter(rollouts, names, 2, Rollout(strategy="shadow"))
    found.look()
    made = lineup(found)
    assert made.shadow
    assert made.candidate is not None
    assert {made.pick(f"h{place}", "r")[1] for place in range(100)} == {"champion"}
    made.note("shadow", 0.001)
    assert (made.old.requests, made.new.requests) == (0, 1)


def lined(share: float, rollout: int = 7) -> "Lineup[Served]":
    return Lineup(Served("redeem", 1), Served("redeem", 2), share, False, rollout)


def test_an_entity_keeps_its_variant_and_a_growing_share_only_adds():
    entities = [f"household {place}" for place in range(20_000)]
    chosen = [{each for each in entities if lined(share).pick(each, "any")[1] == "candidate"} for share in (0.05, 0.25, 0.5)]
    assert chosen[0] < chosen[1] < chosen[2]
    for got, share in zip(chosen, (0.05, 0.25, 0.5), strict=True):
        assert len(got) / 20_000 == pytest.approx(share, abs=0.01)
    assert {each for each in entities if lined(0.25).pick(each, "another request")[1] == "candidate"} == chosen[1]


def test_each_rollout_draws_anew_and_without_an_entity_the_request_decides():
    places = range(5_000)
    first, second = (
        {place for place in places if lined(0.2, each).pick(f"h{place}", "r")[1] == "candidate"} for each in (1, 2)
    )
    assert len(first & second) == pytest.approx(200, abs=60)
    assert sum(lined(0.2).pick(None, f"r{place}")[1] == "candidate" for place in places) == pytest.approx(1000, abs=120)


def test_a_tally_sorts_latencies_into_buckets_and_leaves_out_those_of_failures():
    tally = Tally()
    for seconds in (0.0, EDGES[0], EDGES[3], EDGES[3] * 1.01, 1e9):
        tally.add(seconds, failed=False)
    tally.add(0.5, failed=True)
    assert tally.read() == RequestCounts(6, 1, {0: 2, 3: 1, 4: 1, len(EDGES): 1})


def test_the_thread_outlives_a_look_that_fails(rollouts: Rollouts, names: Names, shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deployment_watcher, "POLL_SECONDS", 0.01)
    found, failed = watching(rollouts, names, shelf), threading.Event()
    look = found.look

    def once() -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        look()

    monkeypatch.setattr(found, "look", lambda: None)
    found.start()
    monkeypatch.setattr(found, "look", once)
    failed.wait(30)
    enter(rollouts, names, 2)
    until(lambda: versions(found) == (1, 2))
    found.stop()
