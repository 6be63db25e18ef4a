"""Rollout state, beside a registry that is a plain object: what is asked of MLflow itself is in test_registry.py."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.release.deployments import TABLE, Deployment, Deployments, make_decision
from evergreen.tasks.release.mlflow_store import Version
from evergreen.tasks.release.model_registry import Registry
from evergreen.tasks.release.promotion_gate import Verdict
from tests.kills import KilledError

NOON = datetime(2026, 5, 3, 12, tzinfo=UTC)


class Names:
    """The aliases of a registry with `count` versions of every problem; `before` and `after` are called around a move, and
    `reads` before an alias is read."""

    def __init__(self, count: int) -> None:
        self.numbers = range(1, count + 1)
        self.aliases: dict[str, int] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.reads: Callable[[], None] = lambda: None

    def version(self, problem: str, which: int | str) -> Version | None:
        if isinstance(which, str):
            self.reads()
        number = which if isinstance(which, int) else self.aliases.get(which, 0)
        names = tuple(name for name, each in self.aliases.items() if each == number)
        made = Version(problem=problem, version=number, run_id="", created=NOON, aliases=names, tags={}, metrics={})
        return made if number in self.numbers else None

    def require(self, problem: str, version: int) -> Version:
        if found := self.version(problem, version):
            return found
        raise ModelError(f"{problem} v{version}: no such version")

    def set_alias(self, problem: str, alias: str, version: int) -> None:
        self.before()
        self.aliases[alias] = version
        self.after()

    def drop_alias(self, problem: str, alias: str) -> None:
        self.aliases.pop(alias, None)


def kill() -> None:
    raise KilledError("kill -9")


@pytest.fixture
def names() -> Names:
    return Names(4)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def deployments(request: pytest.FixtureRequest, tmp_path: Path) -> Deployments:
    """An empty table, in a file and on a server."""
    if request.param == "sqlite":
        return Deployments(f"sqlite:///{tmp_path / 'my shop' / 'evergreen.db'}")
    return Deployments(request.getfixturevalue("postgres"))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a minute later than the one before, from noon on."""

    class Clock(datetime):
        ticks = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.ticks += 1
            return NOON + timedelta(minutes=cls.ticks - 1)

    monkeypatch.setattr("evergreen.tasks.release.deployments.datetime", Clock)


def verdict(promote: bool = True, high: float = 0.3) -> Verdict:
    numbers = {"candidate": 0.9, "other": 0.7, "gain": 0.2, "low": 0.1, "high": high}
    said = (
        {"decision": "better", "reason": "promoted: better"}
        if promote
        else {"decision": "worse", "reason": "not promoted: worse"}
    )
    return Verdict(**said, promote=promote, metric="roc_auc", rows=99, against="champion v1", **numbers)  # type: ignore[arg-type]


def deploy(deployments: Deployments, names: Names, version: int, promote: bool = True, problem: str = "redeem") -> Deployment:
    return deployments.deploy(cast(Registry, names), problem, version, verdict(promote), "flow")


def roll_back(deployments: Deployments, names: Names, to: int | None = None, reason: str = "complaints") -> Deployment:
    return deployments.rollback(cast(Registry, names), "redeem", to, "ann", reason)


def told(deployments: Deployments) -> list[tuple[str, int, int | None]]:
    return [(each.action, each.version, each.previous) for each in deployments.history("redeem")]


def test_a_promoted_version_becomes_champion_and_is_challenger_no_more(deployments: Deployments, names: Names):
    names.aliases["challenger"] = 1
    made = deploy(deployments, names, 1)
    assert names.aliases == {"champion": 1}
    assert deployments.history("redeem") == [made]
    assert (made.action, made.version, made.previous, made.by, made.at) == ("deploy", 1, None, "flow", NOON)
    assert made.reason == "promoted: better"
    assert made.evidence == verdict().model_dump()


def test_a_refused_version_leaves_the_champion_and_a_row(deployments: Deployments, names: Names):
    deploy(deployments, names, 1)
    assert deploy(deployments, names, 2, promote=False).reason == "not promoted: worse"
    assert names.aliases == {"champion": 1}
    assert deployments.champion("redeem") == 1
    assert told(deployments) == [("deploy", 1, None), ("refuse", 2, 1)]


def test_the_same_decision_again_changes_nothing_and_returns_what_stands(deployments: Deployments, names: Names):
    first = deploy(deployments, names, 1)
    assert deploy(deployments, names, 1) == first
    refused = deploy(deployments, names, 2, promote=False)
    assert deploy(deployments, names, 2, promote=False) == refused
    assert deploy(deployments, names, 1, promote=False) == first, "a verdict on the champion itself"
    assert told(deployments) == [("deploy", 1, None), ("refuse", 2, 1)]


def test_a_version_that_is_not_registered_leaves_no_trace(deployments: Deployments, names: Names):
    with pytest.raises(ModelError, match="redeem v9: no such version"):
        deploy(deployments, names, 9)
    assert deployments.history("redeem") == []
    assert names.aliases == {}


def test_history_and_champion_can_be_asked_for_any_moment(deployments: Deployments, names: Names):
    first, second = deploy(deployments, names, 1), deploy(deployments, names, 2)
    back = roll_back(deployments, names)
    assert deployments.champion("redeem", NOON - timedelta(seconds=1)) is None
    moments = [first.at, second.at - timedelta(seconds=1), second.at, back.at, None]
    assert [deployments.champion("redeem", at) for at in moments] == [1, 1, 2, 1, 1]
    assert deployments.history("redeem", second.at) == [first, second]
    assert deployments.champion("redeem", second.at.replace(tzinfo=None)) == 2, "naive moments are UTC"
    assert deployments.champion("redeem", second.at.astimezone(tz=None)) == 2
    assert deployments.champion("spend") is None


def test_problems_do_not_see_each_other(deployments: Deployments, names: Names):
    deploy(deployments, names, 1)
    names.aliases.clear()
    deploy(deployments, names, 2, problem="spend")
    assert (deployments.champion("redeem"), deployments.champion("spend")) == (1, 2)


def test_rollbacks_go_down_the_pile_and_never_back_to_what_was_rolled_back(deployments: Deployments, names: Names):
    for version in (1, 2, 3):
        deploy(deployments, names, version)
    assert [roll_back(deployments, names).version for _ in range(2)] == [2, 1]
    with pytest.raises(ModelError, match="redeem: v1 is champion and nothing was deployed before it; name a version with --to"):
        roll_back(deployments, names)
    deploy(deployments, names, 4)
    assert roll_back(deployments, names).version == 1
    assert names.aliases == {"champion": 1}


def test_a_rollback_to_a_named_version_says_who_and_why(deployments: Deployments, names: Names):
    for version in (1, 2, 3):
        deploy(deployments, names, version)
    made = roll_back(deployments, names, to=1, reason="too many complaints")
    assert (made.action, made.version, made.previous, made.by, made.reason) == ("rollback", 1, 3, "ann", "too many complaints")
    assert roll_back(deployments, names, to=1) == made, "already there"
    with pytest.raises(ModelError, match="redeem v9: no such version"):
        roll_back(deployments, names, to=9)


def test_without_a_champion_nothing_can_be_rolled_back(deployments: Deployments, names: Names):
    with pytest.raises(ModelError, match="redeem: nothing is deployed to roll back; run evergreen train redeem"):
        roll_back(deployments, names)


def test_a_version_that_a_person_took_away_is_not_deployed_again_by_a_verdict(deployments: Deployments, names: Names):
    deploy(deployments, names, 1)
    deploy(deployments, names, 2)
    roll_back(deployments, names)
    made = deploy(deployments, names, 2)
    assert made.action == "refuse"
    assert made.reason == (
        "not promoted: v2 was rolled back by ann on 2026-05-03 (complaints); evergreen rollback redeem --to 2 brings it back"
    )
    assert names.aliases == {"champion": 1}
    roll_back(deployments, names, to=2, reason="it was the till")
    assert names.aliases == {"champion": 2}
    deploy(deployments, names, 3)
    assert deploy(deployments, names, 2).action == "deploy", "a person brought it back"


def test_a_table_that_refuses_every_decision_ends_with_one_line(tmp_path: Path):
    address = f"sqlite:///{tmp_path / 'old.db'}"
    engine = sa.create_engine(address)
    with engine.begin() as link:
        TABLE.create(link)
        link.exec_driver_sql(
            "CREATE TRIGGER old BEFORE INSERT ON deployments BEGIN SELECT RAISE(ABORT, 'NOT NULL failed'); END"
        )
    with pytest.raises(ProjectError, match="NOT NULL failed"):
        Deployments(address).try_append([make_decision("redeem", 1, "deploy", "ann", "first", None)], 0)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_deployment_killed_around_the_alias_is_whole_and_the_same_call_returns_it(
    deployments: Deployments, names: Names, moment: str
):
    deploy(deployments, names, 1)
    setattr(names, moment, kill)
    with pytest.raises(KilledError, match="kill -9"):
        deploy(deployments, names, 2)
    setattr(names, moment, lambda: None)
    assert deployments.champion("redeem") == 2
    made = deploy(deployments, names, 2)
    assert names.aliases == {"champion": 2}
    assert told(deployments) == [("deploy", 1, None), ("deploy", 2, 1)]
    assert (made.by, made.evidence) == ("flow", verdict().model_dump())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_rollback_killed_around_the_alias_and_called_again_goes_one_step_not_two(
    deployments: Deployments, names: Names, moment: str
):
    for version in (1, 2, 3):
        deploy(deployments, names, version)
    setattr(names, moment, kill)
    with pytest.raises(KilledError, match="kill -9"):
        roll_back(deployments, names)
    setattr(names, moment, lambda: None)
    assert deployments.champion("redeem") == 2
    if moment == "before":
        assert roll_back(deployments, names).version == 2
    deployments.update_alias(cast(Registry, names), "redeem")
    assert names.aliases == {"champion": 2}
    assert told(deployments)[3:] == [("rollback", 2, 3)]


def test_an_alias_moved_by_another_tool_goes_back_to_the_champion(
    deployments: Deployments, names: Names, caplog: pytest.LogCaptureFixture
):
    deploy(deployments, names, 1)
    names.aliases["champion"] = 3
    deployments.update_alias(cast(Registry, names), "redeem")
    assert names.aliases == {"champion": 1}
    assert told(deployments) == [("deploy", 1, None)]
    assert "the alias champion stood at v3, moved by another tool; it goes back to v1" in caplog.text
    assert "evergreen rollback redeem --to 3 deploys v3" in caplog.text


def test_an_alias_that_another_process_moves_between_two_readings_is_not_another_tools(
    deployments: Deployments, names: Names, caplog: pytest.LogCaptureFixture
):
    deploy(deployments, names, 1)
    steps = [lambda: deploy(deployments, names, 2)]
    names.reads = lambda: steps.pop()() if steps else None
    deployments.update_alias(cast(Registry, names), "redeem")
    assert names.aliases == {"champion": 2}
    assert "another tool" not in caplog.text


def test_an_alias_that_a_late_process_set_two_champions_ago_is_not_another_tools(
    deployments: Deployments, names: Names, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergreen.tasks.release.deployments.LATE", timedelta(minutes=10))  # the clock takes a minute per look
    for version in (1, 2, 3):
        deploy(deployments, names, version)
    names.aliases["champion"] = 1
    deployments.update_alias(cast(Registry, names), "redeem")
    assert names.aliases == {"champion": 3}
    assert "another tool" not in caplog.text


def test_a_rollback_beside_a_promotion_is_not_taken_for_one_that_was_killed(deployments: Deployments, names: Names):
    """The record ends with a rollback to v1 when it is read; v3 is deployed before the alias is read."""
    deploy(deployments, names, 1)
    deploy(deployments, names, 2)
    roll_back(deployments, names)
    steps = [lambda: deploy(deployments, names, 3)]
    names.reads = lambda: steps.pop()() if steps else None
    assert roll_back(deployments, names).previous == 3
    assert told(deployments)[2:] == [("rollback", 1, 2), ("deploy", 3, 1), ("rollback", 1, 3)]


def test_an_empty_record_adopts_the_alias_once(deployments: Deployments, names: Names):
    names.aliases["champion"] = 3
    for _ in range(2):
        deployments.update_alias(cast(Registry, names), "redeem")
    (made,) = deployments.history("redeem")
    assert (made.version, made.by) == (3, "unknown")
    assert made.reason == "no decision was recorded, and the registry's alias champion stood at v3"


def test_a_champion_that_the_registry_lost_keeps_serving(
    deployments: Deployments, names: Names, caplog: pytest.LogCaptureFixture
):
    deploy(deployments, names, 4)
    names.numbers, names.aliases = range(1, 3), {"champion": 2}
    deployments.update_alias(cast(Registry, names), "redeem")
    assert (deployments.champion("redeem"), names.aliases) == (4, {"champion": 2})
    assert "v4 is champion and is not in the registry" in caplog.text


def test_an_alias_that_was_late_is_moved_on_when_the_champion_changed_meanwhile(deployments: Deployments, names: Names):
    """Another process promotes v3 between this one's decision for v2 and its move of the alias."""
    deploy(deployments, names, 1)
    steps = [lambda: None, lambda: deploy(deployments, names, 3)]
    names.before = lambda: steps.pop()() if steps else None
    assert deploy(deployments, names, 2).version == 2
    assert names.aliases == {"champion": 3}
    assert told(deployments) == [("deploy", 1, None), ("deploy", 2, 1), ("deploy", 3, 2)]


def test_of_two_decisions_on_one_state_one_is_written(deployments: Deployments, names: Names):
    deploy(deployments, names, 1)
    newest = deployments.newest()["redeem"]
    made = [make_decision("redeem", version, "begin", "flow", "try", 1) for version in (2, 3)]
    assert [deployments.try_append([each], newest) for each in made] == [True, False]
    assert deployments.try_promote(cast(Registry, names), "redeem", 3, newest, "flow", "late", {}) is None
    assert told(deployments) == [("deploy", 1, None), ("begin", 2, 1)]
    assert names.aliases == {"champion": 1}


def test_undefined_numbers_are_stored_as_none(deployments: Deployments, names: Names):
    deployments.deploy(cast(Registry, names), "redeem", 1, verdict(high=math.nan), "flow")
    assert deployments.history("redeem")[0].evidence["high"] is None


def test_two_of_them_at_one_address_see_the_same(tmp_path: Path, names: Names):
    one, two = (Deployments(f"sqlite:///{tmp_path / 'evergreen.db'}") for _ in range(2))
    deploy(one, names, 1)
    assert two.champion("redeem") == 1


def test_an_address_that_cannot_be_used_is_one_line_without_its_password(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProjectError, match=r"sqlite:///.*evergreen\.db: the database of deployments cannot be used: "):
        Deployments(f"sqlite:///{tmp_path / 'file' / 'evergreen.db'}")
    with pytest.raises(
        ProjectError, match=r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x: the database of deployments cannot be"
    ):
        Deployments("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    with pytest.raises(ProjectError, match="the address of the database of deployments: "):
        Deployments("no address")
