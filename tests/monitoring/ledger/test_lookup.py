"""Single predictions and the newest ones: found without reading what lies around them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from evergreen.monitoring.ledger import label_matching, lookup
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.schema import IDS

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
DAY = NOON.date()
PART = 20
PARTS = 5


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Blocks of PART predictions, one per hour; each third prediction of the first two hours has a label, by id or entity."""
    made = Ledger(f"sqlite:///{tmp_path_factory.mktemp('lookup') / 'own.db'}")
    for part in range(PARTS):
        numbers = pl.Series("number", range(part * PART, part * PART + PART))
        frame = pl.DataFrame(
            {"number": numbers, "id": "p" + numbers.cast(pl.String), "entity": "e" + (numbers % 7).cast(pl.String)}
        )
        at = NOON + timedelta(hours=part)
        outputs = frame.with_columns(prediction=pl.col("number") * 1.0)
        made.append_frame("churn", 1, outputs, at=at, key="entity", id="id", features=("number",))
    made.add_labels("churn", [Label(place, id=f"p{place}") for place in range(0, 2 * PART, 3)])
    made.add_labels("churn", [Label(99, entity="e1", at=NOON)])
    return made


def test_the_newest_of_a_day_are_read_with_their_labels_and_the_day_is_counted(ledger: Ledger):
    found, total = lookup.read_day(ledger, "churn", DAY, 30)
    assert total == PARTS * PART
    assert found.rows["id"].to_list() == [f"p{number}" for number in range(70, 100)]
    everything, _ = lookup.read_day(ledger, "churn", DAY, 1_000)
    assert everything.rows["label"].count() == ledger.read("churn").rows["label"].count() > 14
    nothing, none = lookup.read_day(ledger, "churn", DAY - timedelta(days=1), 30)
    assert (nothing.rows.height, none) == (0, 0)


def test_the_newest_with_a_label_are_found_behind_those_without(ledger: Ledger):
    whole = ledger.read("churn")
    known = whole.rows["label"].is_not_null()
    for limit in (1, 5, 1_000):
        found = lookup.read_newest(ledger, "churn", 7, limit, labelled=True)
        assert found.rows["id"].to_list() == whole.rows.filter(known)["id"].to_list()[-limit:]
        assert found.features["number"].to_list() == whole.features.filter(known)["number"].to_list()[-limit:]
    newest = lookup.read_newest(ledger, "churn", 7, 25, labelled=False)
    assert newest.rows["id"].to_list() == whole.rows["id"].to_list()[-25:]
    assert newest.features.height == 25
    assert lookup.read_newest(ledger, "none", 7, 5, labelled=True).rows.is_empty()


@pytest.mark.parametrize("few", [label_matching.FEW, 0])
def test_blocks_without_a_label_are_not_read_where_a_day_has_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int):
    made = Ledger(f"sqlite:///{tmp_path / 'own.db'}")
    for part in range(PARTS):
        ids = pl.DataFrame({"id": [f"p{part * PART + place}" for place in range(PART)]})
        outputs = ids.with_columns(prediction=pl.lit(1.0), size=pl.lit(2))
        made.append_frame(
            "churn", 1, outputs, at=NOON + timedelta(hours=part), key=None, id="id", features=("size",), outputs=("prediction",)
        )
    made.add_labels("churn", [Label(1, id=each) for each in ("p25", "p21")])
    monkeypatch.setattr(lookup, "FEW", few)
    reads, read = [], made.read
    monkeypatch.setattr(made, "read", lambda *given, **named: reads.append(named["since"]) or read(*given, **named))
    assert lookup.read_newest(made, "churn", 7, 10, labelled=True).rows["id"].to_list() == ["p21", "p25"]
    assert len(reads) == (1 if few else PARTS)


def test_one_prediction_is_read_alone_with_its_features_and_label(ledger: Ledger):
    place = lookup.find_by_id(ledger, "churn", "p21")
    assert place is not None
    found = lookup.read_one(ledger, "churn", place)
    assert found.rows.select("id", "label").row(0) == ("p21", 21)
    assert found.features.row(0) == (21,)
    assert [each.id for each in lookup.find_by_entity(ledger, "churn", "e3", 2)] == ["p94", "p87"]


def test_labels_of_few_predictions_are_those_that_reading_the_days_gives(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    few = ledger.read("churn").rows
    monkeypatch.setattr(label_matching, "FEW", 0)
    assert few.equals(ledger.read("churn").rows)


def test_an_entity_is_looked_up_by_its_index(ledger: Ledger):
    """SQLite chooses the primary key for a plain condition, and reads a month of predictions for one entity."""
    with ledger.connect() as connection:
        query = sa.select(IDS.c.id).where(label_matching.is_for(connection, "churn", ["e1"]))
        compiled: Any = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert any("prediction_ids_by_entity (problem=? AND period=? AND entity=?)" in line for line in plan)
    assert not any(line.endswith("PRIMARY KEY (problem=? AND period=?)") for line in plan)
