"""Looks and retrainings in a database: each once, whoever writes them and however often."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from evergreen.monitoring.ledger.decisions import Begun, Looks, end_of, evidence, look_id
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.core.errors import ProjectError
from tests.monitoring.retraining.test_policy import window


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'var' / 'evergreen.db'}"
        return
    found = request.getfixturevalue("postgres")
    yield found
    engine = sa.create_engine(found)
    with engine.begin() as link:
        for name in ("looks", "retrainings"):
            link.execute(sa.text(f"drop table if exists {name}"))
    engine.dispose()


def decided(at: float = 7, retrain: bool = False, reason: str = "no retraining: calm", alarm: bool = False) -> Decision:
    found = window(at, alarm)
    return Decision(
        problem="redeem", at=found.until, retrain=retrain, ground="drift" if retrain else None, reason=reason, window=found
    )


def begun(id: str = "one", problem: str = "redeem") -> Begun:
    return Begun(
        id=id, problem=problem, at=end_of(date(2017, 6, 8)), as_of=date(2017, 6, 8), ground="drift", reason="drift in price",
        by="policy", begun=datetime(2026, 1, 2, 3, tzinfo=UTC),
    )  # fmt: skip


def test_the_same_look_twice_is_one_row_with_what_was_found_last(address: str) -> None:
    looks = Looks(address)
    looks.keep(decided())
    assert looks.keep(decided(reason="no retraining: still calm")).reason == "no retraining: still calm"
    assert [each.decision.reason for each in looks.looks("redeem")] == ["no retraining: still calm"]
    assert looks.looks("spend") == []


def test_a_decision_to_retrain_stays_when_the_same_look_is_made_again(address: str) -> None:
    looks = Looks(address)
    looks.keep(decided(retrain=True, reason="retrain: drift", alarm=True))
    stands = looks.keep(decided(reason="no retraining: the last one was 0 days ago"))
    assert (stands.retrain, stands.reason) == (True, "retrain: drift")
    assert stands.window.drift.alarms[0].column == "recency"


def test_windows_come_in_order_with_this_one_last_and_once(address: str) -> None:
    looks = Looks(address)
    for at in (21, 7, 14):
        looks.keep(decided(at))
    assert [each.until.day for each in looks.before(window(14))] == [8, 22, 15]


def test_two_monitors_at_once_leave_one_row_per_look(address: str) -> None:
    errors: list[BaseException] = []

    def monitor() -> None:
        try:
            looks = Looks(address)
            for at in range(1, 6):
                looks.keep(decided(at))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    _together(monitor, 4)
    assert errors == []
    assert len(Looks(address).looks("redeem")) == 5


def test_a_retraining_is_claimed_once_however_many_claim_it(address: str) -> None:
    found: list[str] = []
    _together(lambda: found.append(Looks(address).claim(begun())[0]), 6)
    assert sorted(found) == ["new", *["unfinished"] * 5]


def test_a_finished_retraining_is_done_and_an_unfinished_one_is_found(address: str) -> None:
    looks = Looks(address)
    looks.claim(begun("one"))
    looks.claim(begun("two", "spend"))
    assert [each.id for each in looks.unfinished(["redeem", "spend"])] == ["one", "two"]
    done = begun("one").model_copy(
        update={
            "ended": datetime(2026, 1, 2, 4, tzinfo=UTC),
            "version": 3,
            "promoted": False,
            "cpu_minutes": 1.5,
            "outcome": "worse",
        }
    )
    looks.finish(done)
    assert looks.claim(begun("one")) == ("done", done)
    assert [each.id for each in looks.unfinished(["redeem", "spend"])] == ["two"]
    past = looks.retrainings("redeem")[0].past()
    assert (past.at, past.ground, past.cpu_minutes, past.promoted) == (end_of(date(2017, 6, 8)), "drift", 1.5, False)


def test_a_look_has_the_same_id_wherever_it_is_made() -> None:
    moment = end_of(date(2017, 6, 8))
    assert look_id("shop", "redeem", moment) == look_id("shop", "redeem", moment.astimezone())
    assert len({look_id(*each, moment) for each in (("shop", "redeem"), ("shop", "spend"), ("mill", "redeem"))}) == 3


def test_an_event_carries_the_reason_and_the_columns_in_plain_json() -> None:
    told = evidence(decided(retrain=True, reason="retrain: drift", alarm=True))
    assert told["alarms"] == ["recency"]
    assert (told["at"], told["retrain"], told["version"], told["score"]) == ("2017-06-08T00:00:00Z", True, 1, None)


def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a file")
    with pytest.raises(ProjectError, match=r"the database of looks cannot be used: .*Check the address"):
        Looks(f"sqlite:///{tmp_path / 'here' / 'evergreen.db'}")


def _together(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
