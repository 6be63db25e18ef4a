"""The ledger: each prediction once, late labels in any order, labels as of a time, and cohorts that outlive their rows."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
import sqlalchemy.event

from evergreen.monitoring.ledger import blocks, schema
from evergreen.monitoring.ledger import predictions as ledgers
from evergreen.monitoring.ledger.cohorts import Cohort
from evergreen.monitoring.ledger.label_matching import Label, LabelCounts, RejectedLabel
from evergreen.monitoring.ledger.predictions import Ledger, Prediction
from evergreen.monitoring.ledger.records import Estimate
from evergreen.tasks.core.errors import ProjectError
from tests import ROOT

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
"""A Monday."""
DAY = date(2017, 10, 8)


@pytest.fixture
def ledger(address: str) -> Ledger:
    return Ledger(address)


def prediction(number: int, **changed: Any) -> Prediction:
    base: dict[str, Any] = {
        "id": f"p{number}", "problem": "redeem", "version": 1, "variant": "champion", "at": NOON + timedelta(minutes=number),
        "entity": str(number), "cutoff": None, "features": {"spend": number / 2, "shop": "a"},
        "outputs": {"prediction": number % 2, "probability_0": 0.75, "probability_1": 0.25},
    }  # fmt: skip
    return Prediction(**{**base, **changed})


def frame(rows: int, first: int = 0) -> pl.DataFrame:
    numbers = pl.Series("household", range(first, first + rows))
    return pl.DataFrame({"household": numbers, "spend": numbers / 2, "prediction": numbers * 1.0})


def counted(**counts: Any) -> LabelCounts:
    return LabelCounts(**{**dict.fromkeys(("matched", "pending", "duplicate", "changed"), 0), **counts})


def labels(ledger: Ledger, **wanted: Any) -> list[Any]:
    return ledger.read("redeem", **wanted).rows["label"].to_list()


def test_a_prediction_counts_once_and_comes_back_as_it_was(ledger, address):
    sent = [prediction(number) for number in range(3)]
    assert ledger.append([*sent, sent[0]]) == 3
    assert ledger.append([sent[2], prediction(3)]) == 1
    assert ledger.append([prediction(0, problem="spend")]) == 1
    found = Ledger(address).read("redeem")
    assert found.rows["id"].to_list() == ["p0", "p1", "p2", "p3"]
    assert found.rows["at"].to_list() == [NOON + timedelta(minutes=number) for number in range(4)]
    assert found.rows["prediction"].to_list() == [0, 1, 0, 1]
    assert found.rows["probability_1"].to_list() == [0.25] * 4
    assert found.features.to_dict(as_series=False) == {"spend": [0.0, 0.5, 1.0, 1.5], "shop": ["a"] * 4}
    assert found.rows.select("label", "label_at").null_count().row(0) == (4, 4)


def test_an_empty_ledger_returns_no_rows_with_all_columns(ledger):
    found = ledger.read("redeem")
    assert found.rows.columns == ["id", "version", "variant", "at", "cutoff", "entity", "label", "label_at"]
    assert found.rows.is_empty()
    assert found.features.is_empty()
    assert ledger.cohorts("redeem") == []
    assert ledger.append([]) == 0


def test_a_window_is_open_at_its_begin_and_closed_at_its_end(ledger):
    ledger.append(prediction(number, version=1 + number % 2) for number in range(6))
    first, last = NOON + timedelta(minutes=1), NOON + timedelta(minutes=4)
    assert ledger.read("redeem", since=first, until=last).rows["id"].to_list() == ["p2", "p3", "p4"]
    assert ledger.read("redeem", since=first, until=last, version=2).rows["id"].to_list() == ["p3"]


def test_shadow_predictions_are_read_only_on_request(ledger):
    ledger.append([prediction(0), prediction(1, variant="shadow"), prediction(2, variant="candidate")])
    assert ledger.read("redeem").rows["id"].to_list() == ["p0", "p2"]
    assert ledger.read("redeem", variants=["shadow"]).rows["id"].to_list() == ["p1"]


def test_rows_with_different_columns_and_types_are_read_together(ledger):
    ledger.append([prediction(0, features={"a": 1, "b": "x", "none": None})])
    ledger.append([prediction(1, features={"a": 1.5, "c": True}, outputs={"items": ["7", "8"], "scores": [0.5, 0.25]})])
    ledger.append([prediction(2, features={"a": math.nan, "b": 3}, version=2)])
    ledger.append([prediction(number, features={"a": number}) for number in range(3, 90)])
    found = ledger.read("redeem")
    assert found.features[:3].to_dict(as_series=False) == {
        "a": [1.0, 1.5, None], "b": ["x", None, "3"], "none": [None] * 3, "c": [None, True, None]
    }  # fmt: skip
    assert found.features["a"][3:].to_list() == list(range(3, 90))
    assert found.rows["items"].to_list()[:2] == [None, ["7", "8"]]


def test_predictions_are_read_without_their_features(ledger):
    ledger.append([prediction(0)])
    assert ledger.read("redeem", features=False).features.width == 0


def test_a_frame_is_written_in_parts_and_once(ledger, monkeypatch):
    monkeypatch.setattr(ledgers, "BLOCK_ROWS", 70)
    given: dict[str, Any] = {"at": NOON, "key": "household", "cutoff": DAY, "features": ["spend"]}
    assert ledger.append_frame("redeem", 3, frame(200), **given) == 200
    assert ledger.append_frame("redeem", 3, frame(200, first=100), **given) == 100
    assert ledger.append_frame("redeem", 4, frame(1), **given) == 1
    found = ledger.read("redeem", version=3)
    assert found.rows["prediction"].to_list() == list(range(300))
    assert found.features["spend"].to_list() == [number / 2 for number in range(300)]
    assert set(found.rows["cutoff"]) == {DAY}
    assert found.rows["entity"][299] == "299"


def test_rows_without_an_entity_are_identified_by_their_values(ledger):
    rows = pl.concat([frame(3), frame(2)])
    given: dict[str, Any] = {"at": NOON, "features": ["spend"]}
    assert ledger.append_frame("redeem", 1, rows, **given) == 5
    assert ledger.append_frame("redeem", 1, rows, **given) == 0
    assert ledger.append_frame("redeem", 1, rows, at=NOON + timedelta(hours=1), features=["spend"]) == 5
    assert ledger.append_frame("redeem", 1, rows, at=NOON, key="household") == 5


def test_a_frame_may_bring_its_own_ids_and_no_features(ledger):
    ledger.append_frame("redeem", 1, frame(2).with_columns(name=pl.Series(["x", "y"])), at=NOON, id="name")
    found = ledger.read("redeem")
    assert (found.rows["id"].to_list(), found.features.width) == (["x", "y"], 0)


def test_a_label_matches_by_id_whether_it_arrives_before_or_after_its_prediction(ledger):
    ledger.append([prediction(0)])
    given = [Label(1, id="p0"), Label(0, id="p1"), Label(1, id="nobody")]
    assert ledger.add_labels("redeem", given) == counted(matched=1, pending=2)
    ledger.append([prediction(1), prediction(2)])
    assert labels(ledger) == [1, 0, None]


def test_a_label_matches_by_entity_and_time(ledger):
    ledger.append([prediction(0, cutoff=DAY), prediction(1, cutoff=DAY), prediction(2), prediction(3, at=NOON)])
    ledger.append([prediction(4, entity="0", cutoff=DAY, version=2)])
    given = [
        Label(1, entity="0", at=DAY),
        Label(1, entity="1", at=NOON.date()),  # its cutoff is the day before: another prediction
        Label(1, entity="2", at=NOON.date()),
        Label(0, entity="3", at=NOON.replace(microsecond=700)),
        Label(1, entity="3", at=NOON + timedelta(seconds=1)),
    ]
    assert ledger.add_labels("redeem", given) == counted(matched=3, pending=2)
    assert dict(ledger.read("redeem").rows.select("id", "label").iter_rows()) == {
        "p0": 1,
        "p1": None,
        "p2": 1,
        "p3": 0,
        "p4": 1,
    }


def test_the_same_label_again_is_a_duplicate_and_another_value_changes_it(ledger):
    ledger.append([prediction(0)])
    assert ledger.add_labels("redeem", [Label(1, id="p0"), Label(1.0, id="p0")]) == counted(matched=1, duplicate=1)
    assert ledger.add_labels("redeem", [Label(0, id="p0")]) == counted(changed=1)
    assert labels(ledger) == [0]
    assert ledger.add_labels("redeem", [Label(0, id="p0")]) == counted(duplicate=1)


def test_the_label_known_last_counts_in_any_order_of_arrival_and_the_other_stays_on_record(ledger):
    ledger.append([prediction(0)])
    later, earlier = NOON + timedelta(days=9), NOON + timedelta(days=2)
    ledger.add_labels("redeem", [Label(1, id="p0", known_at=later)])
    assert ledger.add_labels("redeem", [Label(0, id="p0", known_at=earlier)]) == counted(changed=1)
    assert labels(ledger) == [1]
    assert labels(ledger, known_at=later - timedelta(seconds=1)) == [0]
    assert labels(ledger, known_at=earlier - timedelta(seconds=1)) == [None]
    assert ledger.read("redeem").rows["label_at"].to_list() == [later]


def test_a_correction_counts_when_the_clock_goes_back(ledger):
    ledger.append([prediction(0)])
    ahead = datetime.now(UTC) + timedelta(days=3)
    ledger.add_labels("redeem", [Label(1, id="p0", known_at=ahead)])
    ledger.add_labels("redeem", [Label(0, id="p0")])
    assert labels(ledger) == [0]


def test_predictions_are_complete_when_the_clock_goes_back(ledger):
    ledger.append([prediction(number, at=NOON - timedelta(hours=number)) for number in range(3)])
    ledger.append([prediction(3, at=NOON - timedelta(days=1))])
    assert ledger.read("redeem").rows["id"].to_list() == ["p3", "p2", "p1", "p0"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (Label(1), "names no prediction: it needs an id, or an entity and a time"),
        (Label(1, entity="7"), "names no prediction: it needs an id, or an entity and a time"),
        (Label(None, id="p0"), "has no value"),
        (Label(math.nan, id="p0"), "has no value"),
        (Label(object, id="p0"), "value = <class 'object'>: is neither a number, a text, true or false, nor a list of such"),
        (Label(1, id="p" * 256), "id = pppppppppppppppppppp…: is longer than 255 characters"),
    ],
)
def test_an_invalid_label_is_rejected_with_its_reason_and_stops_no_other(ledger, label, reason):
    ledger.append([prediction(0)])
    assert ledger.add_labels("redeem", [label, Label(1, id="p0")]) == counted(matched=1, rejected=(RejectedLabel(0, reason),))
    assert labels(ledger) == [1]


def test_labels_are_numbers_texts_or_lists(ledger):
    ledger.append(prediction(number) for number in range(3))
    for value in (2.5, "yes", ["7", "8"]):
        ledger.add_labels("redeem", [Label(value, id="p1")])
        assert labels(ledger, since=NOON, until=NOON + timedelta(minutes=1)) == [value]


def test_days_without_a_label_and_the_newest_days_are_looked_up_again(ledger):
    ledger.append(prediction(number, cutoff=DAY + timedelta(days=number), entity="7") for number in range(5))
    ledger.append([prediction(9, entity=None)])
    ledger.add_labels("redeem", [Label(1, entity="7", at=DAY + timedelta(days=day)) for day in (0, 1, 3)])
    found = ledger.unlabelled("redeem", until=DAY + timedelta(days=3), recheck_after=DAY + timedelta(days=2))
    assert found.rows() == [("7", DAY + timedelta(days=2)), ("7", DAY + timedelta(days=3))]


class Score:
    """The share of labels that are 1, and an estimate that never changes."""

    def realised(self, found: ledgers.Predictions) -> Estimate:
        known = found.rows["label"].drop_nulls()
        mean = float(known.mean()) if len(known) else None  # pyright: ignore[reportArgumentType]
        return Estimate(score=mean, low=None, high=None, rows=len(known))

    def estimated(self, found: ledgers.Predictions, until: datetime, earlier: Sequence[ledgers.Predictions]) -> Estimate:
        return Estimate(score=0.5, low=0.25, high=0.75, rows=1)


score = Score()


def weeks(ledger: Ledger) -> None:
    """Two predictions in one week, one of them by another version; one in the next. Two labels."""
    ledger.append([prediction(0), prediction(1, version=2), prediction(2), prediction(3, at=NOON + timedelta(days=7))])
    ledger.add_labels("redeem", [Label(1, id="p0", known_at=NOON), Label(1, id="p3", known_at=NOON)])


def test_a_cohort_is_one_week_of_one_version(ledger):
    weeks(ledger)
    monday, next_ = NOON.date(), NOON.date() + timedelta(days=7)
    assert ledger.cohorts("redeem") == [Cohort(monday, 1, 2, 1), Cohort(monday, 2, 1, 0), Cohort(next_, 1, 1, 1)]
    assert ledger.cohorts("redeem", since=next_ + timedelta(days=3)) == [Cohort(next_, 1, 1, 1)]
    scored = ledger.cohorts("redeem", score)[0]
    assert (scored.score, scored.estimation_error) == (Estimate(score=1.0, low=None, high=None, rows=1), -0.5)


def test_sunday_ends_a_week_and_monday_begins_one(ledger):
    last = datetime(2017, 10, 15, 23, 59, 59, 999_999, tzinfo=UTC)
    ledger.append([prediction(0, at=last), prediction(1, at=last + timedelta(microseconds=1))])
    assert [(str(each.week), each.predictions, each.matured) for each in ledger.cohorts("redeem")] == [
        ("2017-10-09", 1, 0), ("2017-10-16", 1, 0)
    ]  # fmt: skip
    ledger.add_labels("redeem", [Label(1, id="p0")])
    assert [each.matured for each in ledger.cohorts("redeem")] == [1, 0]


def test_compacted_predictions_leave_their_cohorts_and_nothing_else(ledger):
    weeks(ledger)
    ledger.add_labels("redeem", [Label(1, id="late", known_at=NOON), Label(1, id="new")])
    before = ledger.cohorts("redeem", score)
    assert ledger.compact("redeem", NOON.date() + timedelta(days=6), score) == 0
    assert ledger.compact("redeem", NOON.date() + timedelta(days=9), score) == 3
    assert ledger.compact("redeem", NOON.date() + timedelta(days=9), score) == 0
    assert ledger.read("redeem").rows["id"].to_list() == ["p3"]
    assert ledger.cohorts("redeem", score) == before
    with ledger._engine.connect() as link:
        assert link.execute(sa.select(schema.LABELS.c.id).order_by("number")).scalars().all() == ["p3", "new"]
        assert link.execute(sa.select(sa.func.count()).select_from(schema.BLOCKS)).scalar() == 1
    ledger.append([prediction(8)])
    assert ledger.compact("redeem", NOON.date() + timedelta(days=9), score) == 1
    found = ledger.cohorts("redeem", score)[0]
    assert (found.predictions, found.score, found.matured) == (3, before[0].score, 1)


def test_compacting_one_problem_keeps_the_rows_of_others(ledger):
    ledger.append([prediction(0), prediction(0, problem="spend")])
    ledger.add_labels("spend", [Label(3, id="p0", known_at=NOON)])
    ledger.compact("redeem", NOON.date() + timedelta(days=30))
    assert ledger.read("spend").rows["label"].to_list() == [3]


def test_concurrent_writers_count_each_prediction_and_label_once(address):
    ledger, sent = Ledger(address), [prediction(number) for number in range(200)]
    counted: list[int] = []
    results: list[LabelCounts] = []

    def write(order: int) -> None:
        own = Ledger(address)
        for first in range(0, 200, 40):
            counted.append(own.append(sent[first : first + 40][::order]))
            results.append(own.add_labels("redeem", [Label(1, id=each.id) for each in sent[first : first + 40]]))

    writers = [threading.Thread(target=write, args=(order,)) for order in (1, -1, 1)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert sum(counted) == 200
    assert sum(each.matched for each in results) == 200
    assert sum(each.duplicate for each in results) == 400
    assert labels(ledger) == [1] * 200


def test_concurrent_compactions_count_each_row_once(address):
    ledger = Ledger(address)
    ledger.append(prediction(number) for number in range(300))
    gone: list[int] = []
    both = [threading.Thread(target=lambda: gone.append(Ledger(address).compact("redeem", date(2018, 1, 1)))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(gone) == [0, 300]
    assert [each.predictions for each in ledger.cohorts("redeem")] == [300]


def test_a_killed_writer_leaves_all_of_a_part_or_none(tmp_path):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    ledger = Ledger(address)
    code = f"""
import polars as pl
from datetime import UTC, datetime
from evergreen.monitoring.ledger import predictions
predictions.BLOCK_ROWS = 500
rows = pl.DataFrame({{"key": range(200_000), "prediction": 1.0}})
predictions.Ledger({address!r}).append_frame("redeem", 1, rows, at=datetime(2017, 10, 9, tzinfo=UTC), key="key")
"""
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    end = time.monotonic() + 60
    while (found := ledger.read("redeem", features=False).rows.height) < 1000 and time.monotonic() < end:
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    assert 1000 <= found < 200_000
    there = ledger.read("redeem").rows.height
    assert there % 500 == 0
    rows = pl.DataFrame({"key": range(200_000), "prediction": 1.0})[: there + 500]
    assert ledger.append_frame("redeem", 1, rows, at=datetime(2017, 10, 9, tzinfo=UTC), key="key") == 500


def test_a_full_database_is_named_in_the_error_and_keeps_its_rows(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}")
    ledger.append([prediction(0)])

    @sa.event.listens_for(ledger._engine, "connect")
    def small(link: Any, _record: Any) -> None:
        link.execute(f"PRAGMA max_page_count = {link.execute('PRAGMA page_count').fetchone()[0]}")

    ledger._engine.dispose()
    with pytest.raises(ProjectError, match=r"the database of predictions cannot be used: .*full.*Check the address"):
        ledger.append_frame("redeem", 1, frame(5000), at=NOON, key="household")
    assert ledger.read("redeem").rows["id"].to_list() == ["p0"]


@pytest.mark.postgres
def test_a_restarted_server_is_reconnected(postgres):
    ledger = Ledger(postgres)
    ledger.append([prediction(0)])
    with ledger._engine.connect() as link, pytest.raises(sa.exc.OperationalError, match="terminat"):
        link.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))
    other = sa.create_engine(postgres)
    with other.connect() as link:  # the connection that waits in the pool is cut too
        link.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid()"
            )
        )
    assert ledger.append([prediction(1)]) == 1
    assert ledger.read("redeem").rows.height == 2
    other.dispose()


def test_a_label_by_id_looks_for_no_entity_and_one_by_entity_for_no_id(ledger):
    asked = list[str]()
    sqlalchemy.event.listen(ledger._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    ledger.add_labels("churn", [Label(1, id="a")])
    assert [each for each in asked if "entity IN" in each] == []
    ledger.add_labels("churn", [Label(1, entity="7", at=date(2017, 10, 9))])
    assert len([each for each in asked if ".id IN" in each]) == 2  # of labels and of predictions, for the first label


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([], {}),
        ([{}, {}], {}),
        ([{"a": 1, "b": 2}, {"a": 3, "b": 4}], {"a": [1, 3], "b": [2, 4]}),
        ([{"a": 1, "b": 2}, {"b": 4, "a": 3}], {"a": [1, 3], "b": [2, 4]}),
        ([{"a": 1}, {}, {"c": 5, "a": 6}], {"a": [1, None, 6], "c": [None, None, 5]}),
    ],
)
def test_rows_become_columns_whatever_the_order_of_their_keys(rows, columns):
    found = blocks.to_columns(rows)
    assert (found, list(found)) == (columns, list(columns))
