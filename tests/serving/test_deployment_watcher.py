"""Versions are loaded beside the serving ones, checked, and swapped atomically; one that fails never receives traffic."""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from evergreen.serving import deployment_watcher, rollout_counts, version_loader
from evergreen.serving.deployment_watcher import DeploymentWatcher
from evergreen.serving.serving_set import PROBED_FIRST, PROBED_LATER, LatencyProbes, ServingSet
from evergreen.tasks.config.operations import Rollout, Serve
from evergreen.tasks.core.errors import ModelError, ProjectError, RegistryError
from evergreen.tasks.release.mlflow_store import Version
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.rollouts import Rollouts
from evergreen.tasks.release.server_reports import EDGES
from tests.tasks.release.test_deployments import Names, verdict
from tests.tasks.release.test_rollouts import CANARY, Known, raise_

FINE = [{"prediction": 1.0, "probability_a": 0.5}]


class Model:
    """A version whose self-check gives `outputs`."""

    def __init__(self, problem: str, version: int, outputs: Any = FINE) -> None:
        self.problem, self.version, self.outputs = problem, version, outputs

    def self_check(self) -> Any:
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return self.outputs


class Models:
    """Loads versions. `broken`: version -> its outputs, or the error of loading it."""

    def __init__(self) -> None:
        self.broken: dict[int, Any] = {}
        self.loaded: list[int] = []

    def load(self, problem: str, version: int) -> Model:
        self.loaded.append(version)
        outputs = self.broken.get(version, FINE)
        if isinstance(outputs, OSError | ModelError):
            raise outputs
        return Model(problem, version, outputs)


class Problems(Known):
    problems = ("redeem", "spend")
    serve = Serve()


class Aliases(Names):
    """Aliases of redeem; spend has none."""

    def version(self, problem: str, which: int | str) -> Version | None:
        return None if problem == "spend" and isinstance(which, str) else super().version(problem, which)


@pytest.fixture
def names() -> Names:
    return Aliases(9)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def rollouts(tmp_path: Path, names: Names) -> Rollouts:
    """redeem's champion is version 1; spend has no deployment."""
    found = Rollouts(f"sqlite:///{tmp_path / 'evergreen.db'}")
    enter(found, names, 1)
    return found


@pytest.fixture(autouse=True)
def without_intervals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name in (
        (deployment_watcher, "COUNT_SECONDS"),
        (deployment_watcher, "JUDGE_SECONDS"),
        (rollout_counts, "SLICE_SECONDS"),
        (version_loader, "RETRY_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    return iter(())


def enter(rollouts: Rollouts, names: Names, version: int, policy: Rollout = CANARY) -> None:
    rollouts.apply_verdict(cast(Registry, names), "redeem", version, verdict(), "flow", policy)


def roll_back(rollouts: Rollouts, names: Names, to: int | None = None) -> None:
    rollouts.deployments.rollback(cast(Registry, names), "redeem", to, "ann", "complaints")


def updated(rollouts: Rollouts, names: Names, models: Models) -> "DeploymentWatcher[Model]":
    """A watcher after one update."""
    watcher = DeploymentWatcher(cast(Any, Problems()), cast(Registry, names), rollouts, models.load)
    watcher.update()
    return watcher


def serving(watcher: "DeploymentWatcher[Model]") -> "ServingSet[Model]":
    made = watcher.serving_set("redeem")
    assert made is not None
    return made


def versions(watcher: "DeploymentWatcher[Model]") -> tuple[int, int | None]:
    made = serving(watcher)
    return made.champion.version, made.candidate.version if made.candidate else None


def test_the_champion_serves_and_an_undeployed_problem_does_not(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    assert versions(watcher) == (1, None)
    assert watcher.serving_set("spend") is None
    assert watcher.errors == {}
    assert serving(watcher).choose("h1", "r1") == (serving(watcher).champion, "champion")


def test_an_update_without_new_decisions_loads_nothing_and_keeps_the_serving_set(
    rollouts: Rollouts, names: Names, models: Models
):
    watcher = updated(rollouts, names, models)
    before = serving(watcher)
    for _ in range(3):
        watcher.update()
    assert serving(watcher) is before
    assert models.loaded == [1]


def test_a_first_deployment_serves_from_the_next_update_on(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    rollouts.apply_verdict(cast(Registry, names), "spend", 4, verdict(), "flow", CANARY)
    watcher.update()
    assert watcher.serving_set("spend") is not None


def test_a_candidate_serves_its_share_and_is_promoted_without_loading_again(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2)
    watcher.update()
    assert versions(watcher) == (1, 2)
    assert serving(watcher).share == 0.1
    candidate = serving(watcher).candidate
    rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    watcher.update()
    assert serving(watcher).champion is candidate
    assert models.loaded == [1, 2]


def test_an_aborted_candidate_stops_serving_and_is_evicted(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2)
    watcher.update()
    rollouts.abort("redeem", "ann", "no")
    watcher.update()
    assert versions(watcher) == (1, None)
    assert watcher.active_rollouts == {}
    enter(rollouts, names, 3)
    watcher.update()
    rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    watcher.update()
    roll_back(rollouts, names)
    watcher.update()
    assert versions(watcher) == (1, None)
    assert models.loaded == [1, 2, 3], "the previous champion stays in memory for an immediate rollback"


@pytest.mark.parametrize("preload", [True, False])
def test_the_previous_version_is_preloaded_once_there_is_nothing_else_to_do(
    rollouts: Rollouts, names: Names, models: Models, preload: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Problems, "serve", Serve(preload_previous=preload))
    enter(rollouts, names, 2, Rollout())
    models.broken[1] = OSError("no file")
    watcher = updated(rollouts, names, models)
    assert models.loaded == [2], "the serving version comes first"
    for _ in range(3):
        watcher.update()
    assert models.loaded == ([2, 1] if preload else [2]), "once, although it failed"
    assert watcher.errors == {}
    models.broken.clear()
    enter(rollouts, names, 3, Rollout())
    for _ in range(2):
        watcher.update()
    roll_back(rollouts, names)
    watcher.update()
    assert versions(watcher) == (2, None)
    assert models.loaded == ([2, 1, 3] if preload else [2, 3])


def test_two_servers_follow_a_rollback_while_they_run(rollouts: Rollouts, names: Names, tmp_path: Path):
    enter(rollouts, names, 2, Rollout())
    servers = [
        DeploymentWatcher(
            cast(Any, Problems()), cast(Registry, names), Rollouts(f"sqlite:///{tmp_path / 'evergreen.db'}"), Models().load
        )
        for _ in range(2)
    ]
    for each in servers:
        each.start()
    try:
        held = [serving(each).champion for each in servers]
        assert [each.version for each in held] == [2, 2]
        assert len(rollouts.reports.servers("redeem")) == 2
        roll_back(rollouts, names)
        until(lambda: all(versions(each) == (1, None) for each in servers))
        assert [each.outputs for each in held] == [FINE, FINE], "a request that began on the old version finishes on it"
    finally:
        for each in servers:
            each.stop()
    assert rollouts.reports.servers("redeem") == []


def until(holds: Any) -> None:
    """Waits up to 30 s."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("the condition never became true")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (ModelError("its sha256 differs"), "its sha256 differs"),
        (OSError("no file"), "OSError: no file"),
        ([{"prediction": math.nan}], "redeem v2: self-check failed: prediction = nan is not a finite number"),
        ([{"prediction": [1]}], "redeem v2: self-check failed: predicts prediction: list, but v1 predicts"),
    ],
)
def test_a_champion_that_cannot_serve_leaves_the_old_one_serving_and_is_retried(
    rollouts: Rollouts, names: Names, models: Models, broken: Any, why: str
):
    watcher = updated(rollouts, names, models)
    models.broken[2] = broken
    enter(rollouts, names, 2, Rollout())
    watcher.update()
    assert versions(watcher) == (1, None)
    assert watcher.errors["redeem"].startswith(f"v2 is champion but cannot serve: {why}")
    assert watcher.errors["redeem"].endswith("; v1 keeps serving")
    assert rollouts.reports.servers("redeem")[0].error == watcher.errors["redeem"]
    models.broken.clear()
    watcher.update()
    assert versions(watcher) == (2, None), "the load is retried"
    assert watcher.errors == {}
    assert rollouts.reports.servers("redeem")[0].error is None


def test_a_rollback_from_a_champion_that_never_served_loads_nothing(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    models.broken[2] = OSError("no file")
    enter(rollouts, names, 2, Rollout())
    watcher.update()
    roll_back(rollouts, names)
    loaded = list(models.loaded)
    for _ in range(3):
        watcher.update()
    assert models.loaded == loaded
    assert watcher.errors == {}
    assert versions(watcher) == (1, None)


@pytest.mark.parametrize(
    ("broken", "why", "updates"),
    [
        (ModelError("its sha256 differs"), "its sha256 differs", version_loader.ATTEMPTS),
        (
            [{"prediction": 1.0, "probability_a": math.inf}],
            "redeem v2: self-check failed: probability_a = inf is not a finite number",
            1,
        ),
        (ValueError("no row"), "ValueError: no row", 1),
    ],
)
def test_a_candidate_that_cannot_serve_never_receives_traffic_and_ends_its_rollout(
    rollouts: Rollouts, names: Names, models: Models, broken: Any, why: str, updates: int
):
    watcher = updated(rollouts, names, models)
    models.broken[2] = broken
    enter(rollouts, names, 2)
    for _ in range(updates):
        assert rollouts.current("redeem")
        watcher.update()
        assert versions(watcher) == (1, None)
    last = rollouts.deployments.history("redeem")[-1]
    assert (last.action, last.by, last.reason) == ("abort", "rollout", f"v2 never received traffic: {why}")
    watcher.update()
    assert watcher.active_rollouts == {}
    loaded = list(models.loaded)
    watcher.update()
    assert models.loaded == loaded


def test_without_a_serving_version_a_champion_that_cannot_be_loaded_is_an_error(
    rollouts: Rollouts, names: Names, models: Models
):
    models.broken[1] = OSError("no file")
    watcher = updated(rollouts, names, models)
    assert watcher.serving_set("redeem") is None
    assert watcher.errors == {"redeem": "v1 is champion but cannot serve: OSError: no file"}


def test_an_unavailable_database_leaves_the_serving_sets_as_they_are(
    rollouts: Rollouts, names: Names, models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    watcher = updated(rollouts, names, models)

    def unavailable() -> dict[str, int]:
        raise ProjectError("the database of deployments cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(rollouts.deployments, "newest", unavailable)
        heard = watcher.read_at
        for _ in range(3):
            watcher.update()
        assert watcher.read_at == heard, "it tells since when nothing was read"
    assert versions(watcher) == (1, None)
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [
        "cannot read the deployments; the serving sets stay as they are: the database of deployments cannot be used"
    ]
    enter(rollouts, names, 2)
    watcher.update()
    assert versions(watcher) == (1, 2)


def test_a_registry_that_is_away_is_told_once_and_tried_often_and_stops_no_decision(
    rollouts: Rollouts, names: Names, models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(deployment_watcher, "ALIAS_SECONDS", 0.0)
    models.broken[1] = RegistryError("MLflow: nothing listens there")

    def unavailable(*_: object) -> None:
        raise RegistryError("MLflow: nothing listens there")

    with monkeypatch.context() as patched:
        patched.setattr(rollouts.deployments, "update_alias", unavailable)
        watcher = updated(rollouts, names, models)
        for _ in range(5):
            watcher.update()
    assert watcher.away == {"redeem"}
    assert watcher.unread_since is None
    assert [each.message for each in caplog.records] == [
        "redeem: v1 cannot serve: MLflow: nothing listens there",
        "the aliases of the registry stay as they are: MLflow: nothing listens there",
    ]
    models.broken.clear()
    watcher.update()
    assert (versions(watcher), watcher.errors, watcher.away) == ((1, None), {}, set())


def test_a_rollout_that_cannot_be_judged_is_told_once_and_stops_no_other(
    rollouts: Rollouts, names: Names, models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    enter(rollouts, names, 2)
    watcher = updated(rollouts, names, models)
    watcher.active_rollouts["spend"] = watcher.active_rollouts["redeem"]
    judged = list[str]()

    def advance(params: object, registry: object, rollouts: object, problem: str, ledger: object) -> None:
        judged.append(problem)
        if problem == "redeem":
            raise ProjectError("no labels can be read")

    monkeypatch.setattr(deployment_watcher, "advance", advance)
    for _ in range(3):
        watcher._judge()
    assert judged == ["redeem", "spend"] * 3
    assert [each.message for each in caplog.records if "judged" in each.message] == [
        "redeem: the rollout cannot be judged now: no labels can be read"
    ]


def test_an_alias_that_another_tool_moved_changes_nothing_and_goes_back(
    rollouts: Rollouts, names: Names, models: Models, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deployment_watcher, "ALIAS_SECONDS", 0.0)
    watcher = updated(rollouts, names, models)
    names.aliases["champion"] = 3
    for _ in range(2):
        watcher.update()
    assert versions(watcher) == (1, None)
    assert names.aliases["champion"] == 1


def test_requests_are_counted_and_judged_by_the_servers_themselves(rollouts: Rollouts, names: Names, models: Models):
    servers = [updated(rollouts, names, each) for each in (models, Models())]
    enter(rollouts, names, 2)
    for each in servers:
        each.update()
    for _ in range(6):
        for each in servers:
            for _ in range(10):
                serving(each).record("champion")
                serving(each).record("candidate", failed=True)
            each.update()
    for each in servers * 2:
        each.update()
        assert versions(each) == (1, None)
    last = rollouts.deployments.history("redeem")[-1]
    assert last.action == "abort"
    assert last.reason.startswith("surely worse in errors; errors 100.00% against 0.00% (")
    assert 60 < last.evidence["tests"][0]["candidate_rows"] < 120, "of both servers; neither had enough alone"


def test_a_burst_in_one_slice_decides_nothing(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2)
    for failed in (False, True, *[False] * 5):
        watcher.update()
        for _ in range(100):
            serving(watcher).record("champion")
            serving(watcher).record("candidate", failed)
    watcher.update()
    assert versions(watcher) == (1, 2)


def test_a_slice_waits_for_requests_of_both_versions(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2)
    stands = rollouts.require("redeem")
    for variant in ("candidate", "candidate", "champion"):
        watcher.update()
        serving(watcher).record(variant, failed=variant == "candidate")
    assert rollouts.reports.side_by_side(stands.id, 0).growth == ()
    watcher.update()
    found = rollouts.reports.side_by_side(stands.id, 0)
    assert found.excess == pytest.approx(0.99 / 1.01), "one slice, in which all of the candidate's requests failed"


def test_steps_are_counted_separately_and_a_pause_keeps_counting(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2)
    watcher.update()
    stands = rollouts.require("redeem")
    serving(watcher).record("candidate")
    rollouts.pause("redeem", "ann", "a holiday")
    watcher.update()
    serving(watcher).record("candidate")
    late = serving(watcher)
    rollouts.try_step(rollouts.require("redeem"), "ann", "on", {})
    watcher.update()
    late.record("candidate")
    serving(watcher).record("candidate")
    watcher.update()
    assert [rollouts.reports.counts(stands.id, step)[1].requests for step in (0, 1)] == [3, 1]


def test_blue_green_compares_with_the_counts_from_before_the_rollout(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    for place in range(500):
        serving(watcher).record("champion", failed=place % 10 == 0)
    enter(rollouts, names, 2, Rollout(strategy="blue_green", step_minutes=30))
    watcher.update()
    assert serving(watcher).choose("h1", "r1")[1] == "candidate"
    stands = rollouts.require("redeem")
    restarted = updated(rollouts, names, Models())
    for each in (watcher, restarted):
        for _ in range(10):
            serving(each).record("candidate", failed=True)
            serving(each).record("champion", failed=False)
        before = rollouts.reports.side_by_side(stands.id, 0).excess
        each.update()
        found = rollouts.reports.side_by_side(stands.id, 0).excess - before
        assert found == pytest.approx((1 - 0.1 - 0.01) / 1.01), "a tenth of the champion's requests failed before"
    for _ in range(40):
        serving(watcher).record("candidate", failed=True)
        serving(watcher).record("champion", failed=False)
        watcher.update()
    assert versions(watcher) == (1, None)
    assert rollouts.deployments.history("redeem")[-1].reason.startswith("surely worse in errors; errors ")


def test_a_shadow_is_never_chosen_and_counts_as_the_candidate(rollouts: Rollouts, names: Names, models: Models):
    watcher = updated(rollouts, names, models)
    enter(rollouts, names, 2, Rollout(strategy="shadow"))
    watcher.update()
    made = serving(watcher)
    assert made.shadow
    assert made.candidate is not None
    assert {made.choose(f"h{place}", "r")[1] for place in range(100)} == {"champion"}
    made.record("shadow")
    assert (made.counts.champion.requests, made.counts.candidate.requests) == (0, 1)


def with_share(share: float, rollout: int = 7) -> "ServingSet[Model]":
    return ServingSet(Model("redeem", 1), Model("redeem", 2), share, False, rollout)


def test_an_entity_keeps_its_variant_and_a_growing_share_only_adds():
    entities = [f"household {place}" for place in range(20_000)]
    chosen = [
        {each for each in entities if with_share(share).choose(each, "any")[1] == "candidate"} for share in (0.05, 0.25, 0.5)
    ]
    assert chosen[0] < chosen[1] < chosen[2]
    for got, share in zip(chosen, (0.05, 0.25, 0.5), strict=True):
        assert len(got) / 20_000 == pytest.approx(share, abs=0.01)
    assert {each for each in entities if with_share(0.25).choose(each, "another request")[1] == "candidate"} == chosen[1]


def test_each_rollout_assigns_entities_anew_and_without_one_the_request_id_decides():
    places = range(5_000)
    first, second = (
        {place for place in places if with_share(0.2, each).choose(f"h{place}", "r")[1] == "candidate"} for each in (1, 2)
    )
    assert len(first & second) == pytest.approx(200, abs=60)
    assert sum(with_share(0.2).choose(None, f"r{place}")[1] == "candidate" for place in places) == pytest.approx(1000, abs=120)


def test_probes_count_latencies_and_the_rows_on_which_the_candidate_took_longer_than_allowed():
    probes = LatencyProbes(max_ratio=2.0)
    for champion, candidate in ((0.0, EDGES[0]), (EDGES[3], EDGES[3] * 1.01), (1.0, 2.0), (1.0, 2.1), (1e9, 1e9)):
        probes.add(champion, candidate)
    assert (probes.pairs, probes.slower) == (5, 2)
    assert [sum(each.values()) for each in probes.latency()] == [5, 5]
    assert probes.latency()[0] == {0: 1, 3: 1, bisect_left(EDGES, 1.0): 2, len(EDGES): 1}


def test_both_versions_go_first_equally_often_and_times_are_not_confused():
    probes, order = LatencyProbes(max_ratio=2.0), list[str]()
    for _ in range(4):
        probes.measure(lambda: order.append("champion"), lambda: (order.append("candidate"), time.sleep(0.01)))
    assert order[::2] == ["candidate", "champion"] * 2
    assert probes.slower == 4


def test_a_call_that_fails_is_no_pair():
    probes = LatencyProbes()
    with pytest.raises(OSError, match="no disk"):
        probes.measure(lambda: None, lambda: raise_(OSError("no disk")))
    assert probes.pairs == 0


def test_the_first_requests_are_all_probed_and_later_ones_now_and_then():
    probes = LatencyProbes()
    due = [probes.due() for _ in range(PROBED_FIRST + 10 * PROBED_LATER)]
    assert (sum(due[:PROBED_FIRST]), sum(due[PROBED_FIRST:])) == (PROBED_FIRST, 10)


def test_the_thread_survives_an_update_that_fails(
    rollouts: Rollouts, names: Names, models: Models, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deployment_watcher, "POLL_SECONDS", 0.01)
    watcher, failed = updated(rollouts, names, models), threading.Event()
    update = watcher.update

    def once() -> None:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        update()

    monkeypatch.setattr(watcher, "update", lambda: None)
    watcher.start()
    monkeypatch.setattr(watcher, "update", once)
    failed.wait(30)
    enter(rollouts, names, 2)
    until(lambda: versions(watcher) == (1, 2))
    watcher.stop()
