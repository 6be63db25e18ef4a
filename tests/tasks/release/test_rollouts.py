"""Rollouts: decisions beside the others, whole after any kill, each step taken once; what servers write for all to judge on."""

import math
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
import sqlalchemy as sa

from evergreen.flows import settings, steps
from evergreen.flows.operations import rollouts as rolls
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Ledger, Prediction
from evergreen.monitoring.rollout import bets, controller
from evergreen.monitoring.rollout.losses import compared
from evergreen.monitoring.rollout.overlap import measure_overlap
from evergreen.monitoring.rollout.sequential_tests import Judgement, error_excess
from evergreen.tasks import problems
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import database
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.problems.prediction_type import Labelled
from evergreen.tasks.problems.recommendation.overlap import rank_biased_overlap
from evergreen.tasks.release.deployments import Deployment, make_decision
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.rollout_state import SHADOW_SUFFIX, RolloutState
from evergreen.tasks.release.rollouts import Rollouts
from evergreen.tasks.release.server_reports import RequestCounts, ServerReport, SideBySide
from tests.kills import KilledError
from tests.tasks.release.test_deployments import Names, verdict

ROUNDS = int(os.environ.get("EVERGREEN_TEST_ROUNDS", "20"))
"""Rounds of processes that act on one rollout at once."""
CANARY = Rollout(strategy="canary", steps=(0.1, 0.5), step_minutes=30, min_requests=100)
GOOD, BAD = RequestCounts(100_000, 100, {80: 99_900}), RequestCounts(2_000, 400, {80: 1_600})


class Section:
    """What of a problem's section is read."""

    class gate:  # noqa: N801
        metric = None

    rollout = CANARY


class Known:
    """Params of problems that all are of one kind."""

    def kind(self, problem: str) -> str:
        return "classification"

    def section(self, problem: str) -> type[Section]:
        return Section


PARAMS = cast(Params, Known())


@pytest.fixture
def names() -> Names:
    return Names(6)


@pytest.fixture
def rollouts(address: str, names: Names) -> Iterator[Rollouts]:
    """Version 1 is champion."""
    found = Rollouts(address)
    enter(found, names, 1)
    yield found
    for engine in (found.reports._engine, found.deployments._engine):
        engine.dispose()


def enter(rollouts: Rollouts, names: Names, version: int, promote: bool = True, policy: Rollout = CANARY) -> Deployment:
    return rollouts.apply_verdict(cast(Registry, names), "redeem", version, verdict(promote), "flow", policy)


def advance(rollouts: Rollouts, names: Names, minutes: float = 0.0, ledger: Ledger | None = None) -> Any:
    """As if so many minutes had gone by since the step began."""
    stands = rollouts.current("redeem")
    now = (stands.since if stands else datetime.now(UTC)) + timedelta(minutes=minutes)
    return controller.advance(PARAMS, cast(Registry, names), rollouts, "redeem", ledger, now)


def answered(rollouts: Rollouts, new: RequestCounts = GOOD, old: RequestCounts = GOOD, server: str = "a") -> None:
    """All of it in 60 slices of equal size."""
    stands = rollouts.require("redeem")
    for is_new, count in ((False, old), (True, new)):
        rollouts.reports.write_counts(stands.id, stands.step, is_new, server, count)
    excess = [error_excess(old, new, CANARY.max_error_increase)] * 60
    found = SideBySide(tuple(bets.grow(excess).tolist()), sum(excess), pairs=100, slower=3)
    rollouts.reports.write_side_by_side(stands.id, stands.step, server, found)


def told(rollouts: Rollouts) -> list[tuple[str, int, int | None]]:
    return [(each.action, each.version, each.previous) for each in rollouts.deployments.history("redeem")]


def test_the_first_champion_comes_at_once_and_the_next_version_goes_on_trial(rollouts: Rollouts, names: Names):
    assert names.aliases == {"champion": 1}
    made = enter(rollouts, names, 2)
    assert (made.action, made.version, made.previous, made.reason) == ("begin", 2, 1, "promoted: better")
    assert names.aliases == {"champion": 1}, "until the rollout ends"
    stands = rollouts.require("redeem")
    assert (stands.champion, stands.candidate, stands.strategy, stands.step, stands.share) == (1, 2, "canary", 0, 0.1)
    assert stands.verdict == verdict().model_dump()


def test_the_same_decision_again_changes_nothing(rollouts: Rollouts, names: Names):
    made = enter(rollouts, names, 2)
    assert enter(rollouts, names, 2) == made
    assert told(rollouts) == [("deploy", 1, None), ("begin", 2, 1)]


def test_a_direct_strategy_moves_the_champion_at_once_and_ends_what_is_under_way(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    assert enter(rollouts, names, 3, policy=Rollout()).action == "deploy"
    assert names.aliases == {"champion": 3}
    assert rollouts.current("redeem") is None


def test_a_newer_version_takes_the_place_of_the_one_on_trial(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    enter(rollouts, names, 3)
    assert told(rollouts)[1:] == [("begin", 2, 1), ("abort", 2, 1), ("begin", 3, 1)]
    assert rollouts.deployments.history("redeem")[2].reason == "replaced by v3, which is newer"
    assert rollouts.require("redeem").candidate == 3
    assert enter(rollouts, names, 2).action == "begin", "nothing was wrong with it"


def test_a_refused_version_leaves_the_one_on_trial_alone(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    assert enter(rollouts, names, 3, promote=False).action == "refuse"
    assert rollouts.require("redeem").candidate == 2
    answered(rollouts)
    assert advance(rollouts, names, 31).decision == "step"
    assert rollouts.require("redeem").step == 1


def test_a_version_on_trial_that_the_gate_now_refuses_is_taken_back(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    enter(rollouts, names, 2, promote=False)
    assert told(rollouts)[2:] == [("abort", 2, 1), ("refuse", 2, 1)]
    assert rollouts.current("redeem") is None


@pytest.mark.parametrize("to", [1, 3])
def test_a_rollback_ends_a_rollout_unless_it_changes_nothing(rollouts: Rollouts, names: Names, to: int):
    enter(rollouts, names, 2)
    rollouts.deployments.rollback(cast(Registry, names), "redeem", to, "ann", "complaints")
    assert names.aliases == {"champion": to}
    assert (rollouts.current("redeem") is None) == (to == 3)


@pytest.mark.parametrize("to", [None, 1])
def test_a_rollback_while_a_version_is_on_trial_goes_back_to_the_champion(rollouts: Rollouts, names: Names, to: int | None):
    enter(rollouts, names, 2, policy=Rollout())
    enter(rollouts, names, 3, policy=Rollout(strategy="blue_green"))
    made = rollouts.rollback(cast(Registry, names), "redeem", 2 if to else None, "ann", "complaints")
    assert (made.action, made.version, made.previous, made.reason) == ("abort", 3, 2, "complaints")
    assert rollouts.current("redeem") is None
    assert rollouts.rollback(cast(Registry, names), "redeem", to, "ann", "complaints").action == "rollback"
    assert names.aliases == {"champion": 1}


def test_a_canary_takes_step_after_step_to_the_promotion(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    for share in (0.1, 0.5):
        assert rollouts.require("redeem").share == share
        answered(rollouts)
        assert advance(rollouts, names, 29).reason.startswith("29 of 30 minutes; errors 0.10% against 0.10% (100,000 and ")
        assert advance(rollouts, names, 31).decision == "step"
    assert names.aliases == {"champion": 2}
    assert told(rollouts) == [("deploy", 1, None), ("begin", 2, 1), ("step", 2, 1), ("promote", 2, 1)]
    last = rollouts.deployments.history("redeem")[-1]
    assert last.by == "rollout"
    assert last.reason.startswith("100,000 requests, and nothing surely worse; errors 0.10% against 0.10%")
    assert {**verdict().model_dump(), "rollout": last.evidence["rollout"]} == last.evidence
    assert [each["name"] for each in last.evidence["rollout"]["tests"]] == ["errors", "latency"]
    assert rollouts.current("redeem") is None
    assert advance(rollouts, names) is None


def test_a_rollout_keeps_the_policy_that_it_began_with(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    enter(rollouts, names, 2, policy=CANARY.model_copy(update={"steps": (0.9,)}))
    assert rollouts.require("redeem").policy == CANARY


@pytest.mark.parametrize(("strategy", "share"), [("blue_green", 1.0), ("shadow", 0.0)])
def test_blue_green_and_shadow_have_one_step(rollouts: Rollouts, names: Names, strategy: Any, share: float):
    enter(rollouts, names, 2, policy=Rollout(strategy=strategy, step_minutes=5))
    assert rollouts.require("redeem").share == share
    answered(rollouts)
    advance(rollouts, names, 6)
    assert names.aliases == {"champion": 2}


def test_what_is_surely_worse_is_taken_back_at_once_and_only_a_person_brings_it_back(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    answered(rollouts, BAD)
    found = advance(rollouts, names, 0.1)
    assert found.reason.startswith("surely worse in errors; errors 20.00% against 0.10% (2,000 and 100,000 requests)")
    assert told(rollouts)[1:] == [("begin", 2, 1), ("abort", 2, 1)]
    last = rollouts.deployments.history("redeem")[-1]
    assert last.evidence == found.model_dump(mode="json")
    assert names.aliases == {"champion": 1}
    again = enter(rollouts, names, 2)
    assert again.action == "refuse"
    assert "v2 was rolled back in its rollout by rollout on" in again.reason
    assert again.reason.endswith("evergreen rollback redeem --to 2 brings it back")
    rollouts.deployments.rollback(cast(Registry, names), "redeem", 2, "ann", "it was the till")
    assert names.aliases == {"champion": 2}


def test_requests_of_all_servers_count_and_those_of_another_step_do_not(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    for server in ("a", "b"):
        answered(rollouts, RequestCounts(30, 3, {5: 20, 9: 7}), RequestCounts(70, 0, {5: 70}), server)
    answered(rollouts, RequestCounts(60, 6, {5: 40, 9: 14}), RequestCounts(70, 0, {5: 70}), "a")
    stands = rollouts.require("redeem")
    assert rollouts.reports.counts(stands.id, 0) == (RequestCounts(140, 0, {5: 140}), RequestCounts(90, 9, {5: 60, 9: 21}))
    assert rollouts.reports.counts(stands.id, 1) == (RequestCounts(), RequestCounts())
    assert rollouts.reports.counts(stands.id + 1, 0) == (RequestCounts(), RequestCounts())
    both = rollouts.reports.side_by_side(stands.id, 0)
    assert (both.pairs, both.slower, len(both.growth)) == (200, 6, len(bets.STAKES))
    assert rollouts.reports.side_by_side(stands.id, 1) == SideBySide()


def test_a_rollout_from_before_versions_were_compared_side_by_side_goes_on(rollouts: Rollouts, names: Names):
    """Its database lacks the table; its policy may wait for ever; its histograms are of requests."""
    old = {**CANARY.model_dump(mode="json"), "on_timeout": "hold"}
    made = make_decision("redeem", 2, "begin", "flow", "promoted: better", 1, {"policy": old})
    assert rollouts.deployments.try_append([made], rollouts.deployments.numbered("redeem")[-1][0])
    stands = rollouts.require("redeem")
    assert stands.policy == CANARY
    for is_new in (False, True):
        rollouts.reports.write_counts(stands.id, 0, is_new, "a", GOOD)
    with rollouts.reports._engine.begin() as link:
        link.execute(sa.text("DROP TABLE rollout_side_by_side"))
    again = Rollouts(str(rollouts.reports._engine.url.render_as_string(hide_password=False)))
    assert advance(again, names, 29).decision == "wait"
    assert advance(again, names, 31).decision == "step"


@pytest.mark.parametrize(("on_timeout", "ends"), [("promote", ("promote", 2)), ("abort", ("abort", 1))])
def test_a_rollout_ends_at_its_timeout_as_the_policy_says(rollouts: Rollouts, names: Names, on_timeout: Any, ends: Any):
    enter(rollouts, names, 2, policy=CANARY.model_copy(update={"on_timeout": on_timeout, "timeout_hours": 2.0}))
    advance(rollouts, names, 119)
    assert told(rollouts)[-1][0] == "begin"
    advance(rollouts, names, 121)
    assert (told(rollouts)[-1][0], names.aliases["champion"]) == ends


def test_a_paused_rollout_goes_no_step_on_until_it_is_resumed(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    answered(rollouts)
    assert rollouts.pause("redeem", "ann", "a holiday").state == "paused"
    assert rollouts.pause("redeem", "ann", "a holiday").state == "paused"
    stands = rollouts.require("redeem")
    assert stands.describe().endswith(f"v1 is champion; ends by {stands.ends:%Y-%m-%d %H:%M} UTC; paused by ann: a holiday")
    assert stands.ends == stands.begun + timedelta(hours=168)
    advance(rollouts, names, 1_000)
    assert rollouts.resume("redeem", "ann", "back").state == "running"
    assert advance(rollouts, names, 29).decision == "wait"
    assert advance(rollouts, names, 31).decision == "step"
    assert [each[0] for each in told(rollouts)] == ["deploy", "begin", "pause", "resume", "step"]


@pytest.mark.parametrize("state", ["seems worse", "paused"])
def test_a_rollout_that_seems_worse_or_is_paused_is_rolled_back_at_its_timeout(rollouts: Rollouts, names: Names, state: str):
    enter(rollouts, names, 2, policy=CANARY.model_copy(update={"on_timeout": "promote"}))
    stands = rollouts.require("redeem")
    if state == "paused":
        rollouts.pause("redeem", "ann", "a holiday")
    else:
        answered(rollouts)
        rollouts.reports.write_side_by_side(stands.id, 0, "a", SideBySide(pairs=9, slower=5))
    advance(rollouts, names, 167 * 60)
    assert rollouts.current("redeem") is not None
    found = advance(rollouts, names, 168.5 * 60)
    assert found.decision == "abort"
    last = rollouts.deployments.history("redeem")[-1]
    assert (last.action, last.by) == ("abort", "rollout")
    assert last.reason.startswith("not complete after 168 hours (timeout_hours)")
    assert state in last.reason


def test_a_paused_rollout_is_still_taken_back_where_it_is_surely_worse(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    rollouts.pause("redeem", "ann", "a holiday")
    answered(rollouts, BAD)
    advance(rollouts, names)
    assert told(rollouts)[-1] == ("abort", 2, 1)


def test_a_person_promotes_or_aborts_at_any_moment(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    rollouts.abort("redeem", "ann", "no")
    assert rollouts.current("redeem") is None
    enter(rollouts, names, 3)
    made = rollouts.promote(cast(Registry, names), "redeem", "ann", "looks fine")
    assert (made.action, made.by, made.reason) == ("promote", "ann", "looks fine")
    assert names.aliases == {"champion": 3}
    for ask in (rollouts.pause, rollouts.resume, rollouts.abort):
        with pytest.raises(ModelError, match="redeem: no rollout is in progress; evergreen history redeem lists the decisions"):
            ask("redeem", "ann", "no")


def test_nothing_can_be_tried_beside_nothing(tmp_path: Path):
    found = Rollouts(f"sqlite:///{tmp_path / 'evergreen.db'}")
    with pytest.raises(ModelError, match="redeem: v2 has no champion to roll out beside"):
        found.begin("redeem", 2, CANARY, "ann", "try")


def test_a_rollout_outlives_its_process_and_problems_do_not_see_each_other(address: str, rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    again = Rollouts(address)
    assert again.current("redeem") == rollouts.current("redeem")
    assert again.current("spend") is None


def test_the_training_flow_begins_a_rollout_where_params_say_so(
    tmp_path: Path, rollouts: Rollouts, names: Names, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(settings, "rollouts", lambda layout: rollouts)
    monkeypatch.setattr(settings, "registry", lambda layout: names)
    monkeypatch.setattr(steps, "load", lambda path: PARAMS)
    assert steps.release(str(tmp_path), "redeem", 2, verdict().model_dump(), "flow") == "begin"
    assert names.aliases == {"champion": 1}
    found = rollouts.require("redeem")
    assert found.policy == CANARY
    assert rolls.describe(rollouts, "redeem") == found.describe()


def test_of_many_that_act_on_the_same_state_one_does(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    answered(rollouts)
    stands = rollouts.require("redeem")
    done: list[bool] = []
    act = [lambda: done.append(rollouts.try_step(stands, "rollout", "on", {}))] * 4
    act += [lambda: done.append(bool(rollouts.try_promote(cast(Registry, names), stands, "rollout", "on")))] * 4
    threads = [threading.Thread(target=each) for each in act]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(done) == [False] * 7 + [True]
    assert len(told(rollouts)) == 3


def test_a_decision_on_a_state_that_is_past_is_not_written(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    stands = rollouts.require("redeem")
    rollouts.deployments.rollback(cast(Registry, names), "redeem", 3, "ann", "complaints")
    assert not rollouts.try_step(stands, "rollout", "on", {})
    assert rollouts.try_promote(cast(Registry, names), stands, "rollout", "on") is None
    assert names.aliases == {"champion": 3}
    assert told(rollouts)[-1] == ("rollback", 3, 1)


def decide_after_look(rollouts: Rollouts, decide: Callable[[], object]) -> None:
    """Let `decide` come right after the gate's call has looked whether the version was rejected, once a rollout is on."""
    barred = rollouts.deployments.barred

    def look(problem: str, version: int) -> str | None:
        found = barred(problem, version)
        if rollouts.current(problem):
            decide()
        return found

    rollouts.deployments.barred = look  # type: ignore[method-assign]


def test_a_verdict_on_a_version_that_is_rejected_meanwhile_begins_no_rollout(rollouts: Rollouts, names: Names):
    """The rejection comes after the gate's call has looked, and before it writes."""
    enter(rollouts, names, 2)
    decide_after_look(rollouts, lambda: rollouts.abort("redeem", "bob", "no"))
    assert enter(rollouts, names, 2).action == "refuse"
    assert rollouts.current("redeem") is None


def test_a_verdict_on_a_version_that_is_promoted_meanwhile_begins_no_rollout_beside_itself(rollouts: Rollouts, names: Names):
    """A rollback would then end that rollout, and leave the version champion."""
    enter(rollouts, names, 2)
    decide_after_look(rollouts, lambda: rollouts.promote(cast(Registry, names), "redeem", "bob", "fine"))
    assert enter(rollouts, names, 2).action == "promote"
    assert told(rollouts)[1:] == [("begin", 2, 1), ("promote", 2, 1)]


@pytest.mark.parametrize("act", ["promote", "abort", "pause"])
def test_a_rollback_of_a_rollout_that_changes_meanwhile_leaves_its_champion(rollouts: Rollouts, names: Names, act: str):
    """It ended with an error after a promotion, and would go one version further after an abort."""
    enter(rollouts, names, 2, policy=Rollout())
    enter(rollouts, names, 3)
    before = rollouts.try_abort

    def try_late(*arguments: Any) -> bool:
        rollouts.try_abort = before  # type: ignore[method-assign]
        if act == "promote":
            rollouts.promote(cast(Registry, names), "redeem", "bob", "fine")
        else:
            getattr(rollouts, act)("redeem", "bob", "no")
        return before(*arguments)

    rollouts.try_abort = try_late  # type: ignore[method-assign]
    rollouts.rollback(cast(Registry, names), "redeem", None, "ann", "complaints")
    assert names.aliases == {"champion": 2}
    assert rollouts.current("redeem") is None


def test_a_promotion_is_not_of_a_rollout_that_began_after_it_was_asked_for(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    before = rollouts.try_promote

    def try_late(*arguments: Any) -> Deployment | None:
        enter(rollouts, names, 3)  # takes the place of v2
        return before(*arguments)

    rollouts.try_promote = try_late  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="that rollout has ended; the one of v3 is in progress now"):
        rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    assert names.aliases == {"champion": 1}


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_version_that_was_rejected_is_never_champion_whoever_acts_at_once(tmp_path: Path, seed: int):
    """A promotion, a rejection, a return to the champion and a look by the alias, at once, some of them killed."""
    draw = random.Random(seed)
    address, names = f"sqlite:///{tmp_path / 'evergreen.db'}", Names(6)
    rollouts = [Rollouts(address) for _ in range(4)]
    enter(rollouts[0], names, 1)
    enter(rollouts[0], names, 2)
    registry = cast(Registry, names)
    acts: list[Callable[[], Any]] = [
        lambda: rollouts[0].promote(registry, "redeem", "ann", "fine"),
        lambda: rollouts[1].abort("redeem", "bob", "no"),
        lambda: rollouts[2].rollback(registry, "redeem", 1, "eve", "complaints"),
        lambda: rollouts[3].deployments.update_alias(registry, "redeem"),
    ]
    fuse = Fuse(draw.randrange(8))
    names.before = names.after = fuse.burn

    def run(act: Callable[[], Any], wait: float) -> None:
        time.sleep(wait)
        with suppress(KilledError, ModelError):
            act()

    threads = [threading.Thread(target=run, args=(act, draw.random() / 200)) for act in acts]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    names.before = names.after = lambda: None
    rollouts[0].deployments.update_alias(registry, "redeem")
    actions = [action for action, _, _ in told(rollouts[0])]
    ends = [action for action in actions if action in ("abort", "promote", "rollback")]
    champion = 2 if ends[-1:] == ["promote"] else 1
    assert ends in ([], ["abort"], ["promote"], ["promote", "rollback"]), actions
    assert (names.aliases["champion"], rollouts[0].deployments.champion("redeem")) == (champion, champion)
    for each in rollouts:
        each.deployments._engine.dispose()
        each.reports._engine.dispose()


def raise_(error: BaseException) -> None:
    raise error


class Fuse:
    """Kills at one of the moments around each write: after a transaction that wrote, before the alias moves, after it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError("kill -9")

    @contextmanager
    def transaction(self, *arguments: Any) -> Iterator[Any]:
        with database_transaction(*arguments) as link:
            sqlite = cast(sqlite3.Connection, link.connection.driver_connection)
            before = sqlite.total_changes
            yield link
            wrote = sqlite.total_changes > before
        if wrote:
            self.burn()


database_transaction = database.transaction
ACTS: dict[str, Callable[[Rollouts, Names], Any]] = {
    "begin": lambda rollouts, names: enter(rollouts, names, 3),
    "replace": lambda rollouts, names: (enter(rollouts, names, 2), enter(rollouts, names, 3)),
    "finish": lambda rollouts, names: rollouts.promote(cast(Registry, names), "redeem", "ann", "fine"),
    "abort": lambda rollouts, names: rollouts.abort("redeem", "ann", "no"),
    "step": lambda rollouts, names: advance(rollouts, names, 31),
    "rollback": lambda rollouts, names: rollouts.deployments.rollback(cast(Registry, names), "redeem", 3, "ann", "no"),
    "direct": lambda rollouts, names: enter(rollouts, names, 4, policy=Rollout()),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_kill_at_any_moment_leaves_a_whole_before_or_a_whole_after(act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And the same act again leads to where it would have led."""
    first, made = Rollouts(f"sqlite:///{tmp_path / 'first.db'}"), Names(6)
    enter(first, made, 1)
    if act not in ("begin", "replace"):
        enter(first, made, 2)
        answered(first)
    whole, before = list[Any](), (told(first), {"champion": 1})
    for moment in range(60):
        with closing(sqlite3.connect(tmp_path / "first.db")) as old, closing(sqlite3.connect(tmp_path / f"{moment}.db")) as new:
            old.backup(new)
        names, fuse = Names(6), Fuse(moment)
        names.aliases["champion"] = 1
        rollouts = Rollouts(f"sqlite:///{tmp_path / f'{moment}.db'}")
        if moment == 0:  # never killed
            ACTS[act](rollouts, names)
            whole = [told(rollouts), names.aliases]
            continue
        with monkeypatch.context() as patched:
            patched.setattr("evergreen.tasks.core.database.transaction", fuse.transaction)
            names.before = names.after = fuse.burn
            with suppress(KilledError):
                ACTS[act](rollouts, names)
            names.before = names.after = lambda: None
        rollouts.deployments.update_alias(cast(Registry, names), "redeem")
        mended = told(rollouts), dict(names.aliases)
        newest = next(row for row in reversed(mended[0]) if row[0] in ("deploy", "rollback", "promote"))
        assert newest[1] == names.aliases["champion"], f"{act}, killed at {moment}: {mended}"
        assert mended in (before, (whole[0], whole[1])) or act == "replace", f"{act}, killed at {moment}: {mended}"
        if fuse.left > 0:
            assert moment > (3 if act in ("finish", "rollback", "direct") else 1), "there were moments to kill at"
            return
        if mended[0] != whole[0]:
            ACTS[act](rollouts, names)
        assert [told(rollouts), names.aliases] == whole, f"{act}, killed at {moment} and done again"
    raise AssertionError("there is no end of writes")


def test_a_promotion_called_again_after_a_kill_behind_the_alias_is_told_not_done_twice(rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2)
    names.after = lambda: raise_(KilledError("kill -9"))
    with pytest.raises(KilledError, match="kill -9"):
        rollouts.promote(cast(Registry, names), "redeem", "ann", "fine")
    names.after = lambda: None
    assert rollouts.promote(cast(Registry, names), "redeem", "ann", "fine").version == 2
    assert told(rollouts)[-1] == ("promote", 2, 1)


def test_what_servers_say_is_known_as_long_as_they_live(rollouts: Rollouts):
    now = datetime(2026, 5, 3, 12, tzinfo=UTC)
    said = [ServerReport(server=name, problem="redeem", champion=1, candidate=2, error=None, at=now) for name in ("a", "b")]
    for each in said:
        rollouts.reports.write(each)
    later = said[1].model_copy(update={"error": "a full disk", "at": now + timedelta(seconds=50)})
    rollouts.reports.write(later)
    assert rollouts.reports.servers("redeem", now) == [said[0], later]
    assert rollouts.reports.servers("redeem", now + timedelta(seconds=61)) == [later]
    rollouts.reports.remove("b", now)
    assert rollouts.reports.servers("redeem", now) == [said[0]]
    assert rollouts.reports.servers("spend", now) == []


def test_the_reports_of_killed_servers_go_when_another_one_stops_a_day_later(rollouts: Rollouts):
    now = datetime(2026, 5, 3, 12, tzinfo=UTC)
    rollouts.reports.write(ServerReport(server="a", problem="redeem", champion=1, candidate=2, error=None, at=now))
    rollouts.reports.remove("b", now + timedelta(hours=23))
    assert len(rollouts.reports.servers("redeem", now)) == 1
    rollouts.reports.remove("b", now + timedelta(hours=25))
    assert rollouts.reports.servers("redeem", now) == []


def predictions(stands: RolloutState, right: dict[str, float], shadow: bool = False) -> Iterator[Prediction]:
    """Predictions of both versions for 400 households; `right`: their probability of the true class."""
    for place in range(400):
        new = not shadow and place % 2 == 1
        at = stands.begun + timedelta(seconds=1 + place)
        for variant in ("champion", "shadow") if shadow else ("candidate" if new else "champion",):
            which = "candidate" if variant != "champion" else "champion"
            sure = right[which] + (place % 7) / 100
            answer = {"prediction": 1, "probability_0": 1 - sure, "probability_1": sure}
            name = f"r{place}{SHADOW_SUFFIX if variant == 'shadow' else ''}"
            version = stands.candidate if which == "candidate" else stands.champion
            yield Prediction(name, "redeem", version, cast(Any, variant), at, f"h{place}", None, {}, answer)


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize(("candidate", "ends"), [(0.3, "abort"), (0.7, "wait"), (0.85, "wait")])
def test_late_labels_roll_back_a_worse_candidate(
    address: str, rollouts: Rollouts, names: Names, shadow: bool, candidate: float, ends: str
):
    policy = Rollout(strategy="shadow" if shadow else "canary", steps=(0.5,), step_minutes=30)
    enter(rollouts, names, 2, policy=policy)
    stands = rollouts.require("redeem")
    ledger = Ledger(address)
    ledger.append(predictions(stands, {"champion": 0.7, "candidate": candidate}, shadow))
    assert advance(rollouts, names, 20, ledger).decision == "wait", "no label is known yet"
    ledger.add_labels("redeem", [Label(1, id=f"r{place}") for place in range(400)])
    found = advance(rollouts, names, 20, ledger)
    assert found.decision == ends
    assert found.tests[-1].name == "quality"
    assert found.tests[-1].candidate_rows == (400 if shadow else 200)


def test_the_lists_of_a_shadow_are_compared_by_their_overlap_and_it_decides_nothing():
    stands = SimpleNamespace(candidate=2, champion=1)
    lists = {"same": (["a", "b"], ["a", "b"]), "half": (["a", "b"], ["a", "c"]), "none": (["a", "b"], ["c", "d"])}
    rows = [
        (f"{user}{number}{suffix}", version, variant, user, items[version - 1])
        for number in range(30)
        for user, items in {f"{name} {number}": both for name, both in lists.items()}.items()
        for version, variant, suffix in ((1, "champion", ""), (2, "shadow", SHADOW_SUFFIX))
    ]
    frame = pl.DataFrame(rows, schema=["id", "version", "variant", "entity", "items"], orient="row")
    kind = problems.predictions("recommendation")
    found = measure_overlap(kind, frame, cast(Any, stands))
    assert found is not None
    assert (found.users, found.requests) == (90, 90)
    half = rank_biased_overlap(["a", "b"], ["a", "c"])
    assert found.mean == pytest.approx((1 + half) / 3)
    assert found.low is not None
    assert found.low < found.mean
    more = frame.filter(pl.col("entity") == "none 3").with_columns(pl.col("id").str.replace("none", "again"))
    again = measure_overlap(kind, pl.concat([frame, more]), cast(Any, stands))
    assert again is not None
    assert (again.mean, again.requests) == (pytest.approx(found.mean), 91)
    assert measure_overlap(kind, frame.filter(pl.col("variant") == "champion"), cast(Any, stands)) is None
    assert measure_overlap(problems.predictions("regression"), frame, cast(Any, stands)) is None
    judged = Judgement(decision="wait", reason="3 requests", tests=()).with_overlap(found)
    assert (judged.decision, judged.overlap) == ("wait", found)
    assert "; rank-biased overlap of the lists 0.517 [0.4" in judged.reason


def test_quality_is_not_compared_where_the_policy_does_not_want_it(address: str, rollouts: Rollouts, names: Names):
    enter(rollouts, names, 2, policy=CANARY.model_copy(update={"compare_quality": False}))
    found = advance(rollouts, names, 20, Ledger(address))
    assert [each.name for each in found.tests] == ["errors", "latency"]


def test_an_entity_counts_once_per_step_and_as_the_candidates_once_per_rollout(rollouts: Rollouts, names: Names):
    """With its losses that became known first, in the order in which they did."""
    enter(rollouts, names, 2)
    stands = rollouts.require("redeem")
    minute = [stands.begun + timedelta(minutes=each) for each in range(9)]
    rows = pl.DataFrame(
        [
            ("1", 1, "champion", minute[1], "a", 1.0, minute[5]),
            ("2", 1, "champion", minute[1], "a", 3.0, minute[5]),
            ("3", 1, "champion", minute[1], "a", 9.0, minute[6]),
            ("4", 2, "candidate", minute[1], "b", 2.0, minute[4]),
            ("5", 2, "candidate", minute[3], "b", 8.0, minute[7]),
            ("6", 2, "candidate", minute[3], "a", 6.0, minute[7]),
            ("7", 1, "champion", minute[3], None, 5.0, minute[8]),
            ("8", 1, "champion", minute[3], "d", float("nan"), minute[4]),
            ("9", 7, "candidate", minute[3], "c", 0.0, minute[4]),
        ],
        schema=["id", "version", "variant", "at", "entity", "prediction", "label_at"],
        orient="row",
    ).with_columns(label=0.0)
    found = compared(
        cast(Labelled, problems.predictions("regression")), "mae", rows, stands, [stands.begun, minute[2], minute[3]]
    )
    assert found is not None
    assert list(zip(found.loss, found.candidate, found.stratum, strict=True)) == [
        (2.0, True, 1),
        (2.0, False, 1),
        (6.0, True, 2),
        (5.0, False, 2),
    ]
    assert found.largest == math.inf
