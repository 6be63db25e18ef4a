"""The upkeep of a ledger changes how it is stored and nothing that is read, however it is interrupted."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from polars.testing import assert_frame_equal

from evergreen.monitoring.ledger import pieces, schema, upkeep
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.pieces import Pieces
from evergreen.monitoring.ledger.predictions import Ledger, Prediction, Predictions
from evergreen.monitoring.ledger.records import Estimate

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
"""A Monday."""
TODAY = date(2017, 10, 30)
FIRST_WEEK_GOES = date(2017, 10, 16)


@pytest.fixture(autouse=True)
def without_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LEAST_REST", 0.0)


@pytest.fixture
def ledger(address: str) -> Ledger:
    return Ledger(address)


def prediction(number: int, **changed: Any) -> Prediction:
    """Six a day."""
    base: dict[str, Any] = {
        "id": f"p{number}", "problem": "churn", "version": 1, "variant": "champion", "at": NOON + timedelta(hours=4 * number),
        "entity": str(number % 5), "cutoff": None, "outputs": {"prediction": number},
        "features": {"spend": number, "shop": "a"},
    }  # fmt: skip
    return Prediction(**{**base, **changed})


def fill(ledger: Ledger, count: int = 60) -> None:
    """Each prediction in a block of its own, as a quiet server writes them; labels in all three ways, one of them corrected."""
    for number in range(count):
        ledger.append([prediction(number)])
    ledger.append([prediction(number, id=f"s{number}", version=2, variant="shadow") for number in range(6)])
    ledger.add_labels("churn", [Label(number % 2, id=f"p{number}", known_at=NOON) for number in range(0, count, 3)])
    ledger.add_labels(
        "churn",
        [
            Label(7, entity="1", at=NOON.date(), known_at=NOON),
            Label(8, entity="2", at=NOON + timedelta(hours=8), known_at=NOON),
        ],
    )
    ledger.add_labels("churn", [Label(5, id="p3", known_at=NOON + timedelta(days=1)), Label(0, id="late", known_at=NOON)])


def same(one: Predictions, two: Predictions) -> None:
    assert_frame_equal(one.rows, two.rows)
    assert_frame_equal(one.features, two.features)


def count(ledger: Ledger, table: sa.Table) -> int:
    with ledger.connect() as link:
        return link.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_tidy_merges_the_blocks_of_a_day_and_version_and_changes_nothing_that_is_read(ledger, monkeypatch):
    monkeypatch.setattr(upkeep, "MERGED_BLOCKS", 3)
    fill(ledger)
    before = [ledger.read("churn", known_at=known) for known in (None, NOON)]
    ledger.tidy("churn", TODAY)
    assert count(ledger, schema.BLOCKS) == 13  # eleven days, of the first two another version too
    for found, known in zip(before, (None, NOON), strict=True):
        same(ledger.read("churn", known_at=known), found)
    ledger.tidy("churn", TODAY)
    same(ledger.read("churn"), before[0])
    assert ledger.append([prediction(3)]) == 0


def test_labels_that_arrive_after_tidying_count_and_correct(ledger):
    fill(ledger)
    ledger.tidy("churn", TODAY)
    ledger.append([prediction(70, id="late")])
    sent = [Label(9, id="p3"), Label(4, id="p1"), Label(4, id="p1"), Label(6, entity="4", at=NOON.date())]
    assert ledger.add_labels("churn", sent).duplicate == 1
    for _ in range(2):
        found = dict(ledger.read("churn").rows.select("id", "label").iter_rows())
        assert [found[name] for name in ("p0", "p1", "p3", "p4", "late")] == [0, 4, 9, None, 0]
        ledger.tidy("churn", TODAY + timedelta(days=1))
    assert found["p2"] == 8


def test_today_is_left_alone(ledger):
    fill(ledger, 6)
    blocks = count(ledger, schema.BLOCKS)
    ledger.tidy("churn", NOON.date())
    assert count(ledger, schema.BLOCKS) == blocks


class Counting:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.weeks: list[str] = []
        self.learned: list[int] = []

    def realised(self, found: Predictions) -> Estimate:
        self.weeks.append(f"{found.rows['at'].dt.date().min()} v{found.rows['version'][0]}")
        return Estimate(score=float(found.rows["label"].count()), low=None, high=None, rows=found.rows.height)

    def estimated(self, found: Predictions, until: datetime, earlier: Sequence[Predictions]) -> Estimate:
        self.learned.append(sum(each.rows.height for each in earlier))
        return Estimate(score=0.5, low=None, high=None, rows=found.rows.height)


def test_only_cohorts_that_changed_are_scored_again_and_only_those_with_new_predictions_estimated_again(ledger):
    fill(ledger)
    first = Counting()
    found = ledger.cohorts("churn", first)
    assert first.weeks == ["2017-10-09 v1", "2017-10-16 v1", "2017-10-09 v2"]
    assert first.learned == [0, 39, 0]
    again = Counting()
    assert ledger.cohorts("churn", again) == ledger.cohorts("churn") == found
    assert again.weeks == []
    ledger.tidy("churn", TODAY)
    assert ledger.cohorts("churn", again) == found
    ledger.add_labels("churn", [Label(1, id="p40"), Label(1, id="nobody")])
    ledger.append([prediction(59, id="new")])
    ledger.cohorts("churn", again)
    assert (again.weeks, again.learned) == (["2017-10-16 v1"], [39])
    ledger.add_labels("churn", [Label(1, id="p41")])
    ledger.cohorts("churn", again)
    assert (again.weeks[1:], again.learned[1:]) == (["2017-10-16 v1"], [])


def test_cohorts_that_are_too_large_to_score_at_once_stay_as_they_were_and_say_so(ledger):
    fill(ledger)
    before = ledger.cohorts("churn", Counting())
    ledger.append([prediction(59, id="new")])
    found = ledger.cohorts("churn", Counting(), most_rows=5)
    assert [(each.predictions, each.changed) for each in found] == [(39, False), (6, False), (22, True)]
    assert [each.score for each in found] == [each.score for each in before]
    assert not any(each.changed for each in ledger.cohorts("churn", Counting(), most_rows=500))


def test_labelled_predictions_are_counted_from_cohorts_and_from_what_they_do_not_cover(ledger):
    fill(ledger)

    def both(**given: Any) -> tuple[int, int]:
        given = {
            "since": NOON - timedelta(days=30),
            "until": NOON + timedelta(days=30),
            "known_at": NOON + timedelta(days=9),
            **given,
        }
        rows = ledger.read("churn", features=False, **given).rows
        return ledger.count_labelled("churn", **given), rows["label"].count()

    bounds: list[dict[str, Any]] = [
        {},
        {"since": NOON + timedelta(hours=5)},
        {"until": NOON + timedelta(days=4)},
        {"known_at": NOON},
        {"known_at": NOON - timedelta(days=1)},
    ]
    expected = [both(**each) for each in bounds]
    assert all(one == two for one, two in expected)
    assert expected[0][0] == 22
    ledger.tidy("churn", TODAY)  # a window may begin or end inside a packed day
    assert [both(**each) for each in bounds] == expected
    ledger.cohorts("churn", Counting())
    assert [both(**each) for each in bounds] == expected


def test_a_piece_is_as_large_as_the_lock_may_be_held_and_others_write_as_long_after_it(ledger, monkeypatch):
    rests = list[float]()
    monkeypatch.setattr(pieces.time, "sleep", rests.append)
    one, now = Pieces(ledger.connect), [0.0]
    monkeypatch.setattr(pieces.time, "monotonic", lambda: now[0])
    sizes = [one.rows]
    for seconds in (0.01, 0.01, 0.01, 1.0, 1.0, 1.0):
        with one.write() as connection:
            assert connection.dialect.name in ("sqlite", "postgresql")
            now[0] += seconds
        sizes.append(one.rows)
    assert sizes == [100, 200, 400, 500, 25, 20, 20]
    assert [len(part) for part in one.cut(range(50))] == [20, 20, 10]
    assert rests == pytest.approx([0.01, 0.01, 0.01, 1.0, 1.0, 1.0] if connection.dialect.name == "sqlite" else [])


def test_a_compaction_that_is_killed_anywhere_counts_each_prediction_once(ledger, monkeypatch):
    monkeypatch.setattr(Pieces, "cut", lambda _, rows: schema.chunk(rows, 2))
    fill(ledger)
    before = ledger.cohorts("churn", Counting())
    steps, allowed = [0], [0]
    connect = Ledger.connect

    def killed(self: Ledger) -> Any:
        steps[0] += 1
        if steps[0] > allowed[0]:
            raise KeyboardInterrupt
        return connect(self)

    monkeypatch.setattr(Ledger, "connect", killed)
    done = False
    while not done:
        steps[0], allowed[0] = 0, allowed[0] + 7
        try:
            ledger.compact("churn", FIRST_WEEK_GOES, Counting())
            done = True
        except KeyboardInterrupt:
            pass
    monkeypatch.undo()
    found = ledger.cohorts("churn", Counting())
    assert [(each.week, each.version, each.predictions) for each in found] == [
        (each.week, each.version, each.predictions) for each in before
    ]
    assert ledger.read("churn").rows["id"].to_list() == [f"p{number}" for number in range(39, 60)]
    assert count(ledger, schema.IDS) == 21


def test_unlabelled_predictions_are_asked_for_before_and_after_tidying(ledger):
    fill(ledger)
    asked = ledger.unlabelled("churn", until=NOON.date() + timedelta(days=2), recheck_after=NOON.date() + timedelta(days=1))
    assert set(asked.columns) == {"entity", "day"}
    assert asked.filter(pl.col("day") == NOON.date() + timedelta(days=2)).height == 5
    assert ("1", NOON.date()) not in asked.rows()
    ledger.tidy("churn", TODAY)
    assert_frame_equal(
        ledger.unlabelled("churn", until=NOON.date() + timedelta(days=2), recheck_after=NOON.date() + timedelta(days=1)), asked
    )


def test_a_compacted_file_becomes_smaller(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}")
    rows = pl.DataFrame(
        {"who": range(20_000), "prediction": 1.0, "noise": [f"{number * 7919 % 99991:020}" for number in range(20_000)]}
    )
    ledger.append_frame("churn", 1, rows, at=NOON, key="who", features=["noise"])
    sizes = []
    for _ in range(2):
        with ledger._engine.connect() as link:
            link.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.append((tmp_path / "evergreen.db").stat().st_size)
        ledger.compact("churn", TODAY)
    assert sizes[1] < sizes[0] / 5
