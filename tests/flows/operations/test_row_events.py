"""Training reads the rows that servers received: from the log through ingest and validate to the features."""

import json
import logging
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from evergreen.flows import settings
from evergreen.flows.cli import events, refresh
from evergreen.flows.operations import event_snapshots, row_events
from evergreen.serving.fresh_features import FreshFeatures
from evergreen.tasks import features, ingest, validate
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import DataError, ModelError, ParamsError
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data.snapshot import facts_file, sources_changed
from evergreen.tasks.problems.tabular.point_in_time import CUTOFF, TARGET
from evergreen.tasks.release import lineage
from evergreen.tasks.release.lineage import Stages

FIRST = date(2024, 1, 1)
DAYS = 40
PARAMS = """\
project: {name: shop}
ingest:
  sales: {parquet: sales.parquet, time: at}
  goods: {parquet: goods.parquet}
validate:
  sales:
    unique: [person, receipt]
    references: {item: {to: goods.item}}
problems: {buys: classification, amount: regression}
buys: &buys
  question: Who buys?
  answers: {features: fresh}
  features:
    entity: person
    horizon_days: 2
    cutoffs: {first: "2024-01-10", every_days: 5}
    target: {table: sales, function: any}
    windows_days: [3, 14]
    aggregates:
      - {name: n, table: sales}
      - {name: total, table: sales, column: amount, function: sum}
      - {name: spread, table: sales, column: amount, function: std}
      - {name: recent, table: sales, function: days_since_last}
amount: *buys
"""
LAST = FIRST + timedelta(days=DAYS - 1)


def project(folder: Path, **project_params: Any) -> tuple[Layout, Params]:
    """A shop whose twenty people buy every third day, until LAST."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (
            person,
            f"{person}-{day}",
            datetime.combine(FIRST + timedelta(days=day), datetime.min.time()),
            "ab"[person % 2],
            day / 7,
        )
        for day in range(DAYS)
        for person in range(20)
        if (day + person) % 3 == 0
    ]
    columns = {"person": pl.Int64, "receipt": pl.String, "at": pl.Datetime("us"), "item": pl.String, "amount": pl.Float64}
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "sales.parquet")
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(folder / "goods.parquet")
    layout = Layout(folder)
    more = "".join(f", {name}: {value}" for name, value in project_params.items())
    layout.params.write_text(PARAMS.replace("name: shop", f"name: shop{more}"))
    params = loading.load(layout.params)
    read(layout, params)
    return layout, params


def read(layout: Layout, params: Params) -> None:
    event_snapshots.update(layout, params)
    for step in (ingest.run, validate.run):
        step(params, None, layout)


def send(layout: Layout, params: Params, *rows: dict[str, Any], problem: str = "buys") -> Any:
    path = layout.root / "new.parquet"
    pl.DataFrame(list(rows)).write_parquet(path)
    return row_events.record(layout, params, problem, path, None)


def sale(person: int, receipt: str, day: date = LAST, item: str = "a", amount: float = 2.5) -> dict[str, Any]:
    return {
        "person": person,
        "receipt": receipt,
        "at": datetime.combine(day, datetime.min.time()),
        "item": item,
        "amount": amount,
    }


def sales(layout: Layout) -> pl.DataFrame:
    return pl.read_parquet(layout.table("sales"))


def test_a_row_that_a_server_received_is_in_the_next_features_and_counted(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    before = sales(layout)
    assert not layout.source_lock.exists()
    assert not (layout.table("sales").parent / "received.json").exists()
    stored = before.row(0, named=True)
    counts = send(layout, params, sale(3, "new"), sale(99, "new person"), stored)
    assert (counts.accepted, counts.rejected) == (3, ())
    assert not sources_changed(params, layout)
    event_snapshots.update(layout, params)
    assert sources_changed(params, layout)
    read(layout, params)
    assert not sources_changed(params, layout)
    after = sales(layout)
    assert_frame_equal(after[: len(before)], before)
    assert after[len(before) :]["receipt"].to_list() == ["new", "new person"]  # what the table holds too counts once
    facts = read_json(facts_file(layout))["tables"]["sales"]
    assert (facts["received"], facts["waiting"], facts["rows"]) == (2, 0, len(after))
    features.run(params, "amount", layout)  # told to another problem, but of the same table
    assert read_json(layout.features("amount") / "received.json") == {"sales": 2}
    newest = pl.read_parquet(layout.newest_rows("amount")).filter(pl.col(CUTOFF) == LAST)
    assert newest.filter(pl.col("person") == 99)["n_3d"].to_list() == [1]
    lock = read_json(layout.source_lock)
    assert list(lock["received"]) == ["data/received/sales.parquet"]
    assert not event_snapshots.update(layout, params)


def test_the_features_of_the_training_are_to_the_bit_those_that_the_server_answered_with(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    amounts = [0.1, 0.2, 1e9, 0.3, -1e9]
    send(layout, params, *(sale(each % 2, f"x{each}", amount=amount) for each, amount in enumerate(amounts)))
    noon = datetime.combine(LAST, datetime.min.time(), UTC) + timedelta(hours=12)
    served = FreshFeatures(params, "buys", layout, settings.row_log(layout), lambda: noon)
    read(layout, params)
    features.run(params, "buys", layout)
    rows = pl.read_parquet(layout.newest_rows("buys")).filter(pl.col(CUTOFF) == LAST)
    found = pl.DataFrame(
        [served.lookup(str(person))[0] for person in rows["person"]], rows.drop("person", CUTOFF, TARGET).schema
    )
    assert_frame_equal(found, rows.drop("person", CUTOFF, TARGET), check_exact=True)
    served.refresh()  # the tables hold the rows now
    again = pl.DataFrame([served.lookup(str(person))[0] for person in rows["person"]], found.schema)
    assert_frame_equal(again, found, check_exact=True)


def test_a_withdrawn_row_is_in_no_later_training(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    before = sales(layout)
    send(layout, params, sale(3, "new"), sale(4, "other") | {"event_id": "till-1"})
    read(layout, params)
    assert len(sales(layout)) == len(before) + 2
    found = row_events.withdraw(layout, params, "buys", ["till-1", "sales 3 new"])
    assert found.withdrawn == 2
    assert event_snapshots.update(layout, params)
    read(layout, params)
    assert_frame_equal(sales(layout), before)
    assert "received" not in read_json(facts_file(layout))["tables"]["sales"]


def test_a_row_that_breaks_a_rule_is_set_aside_and_stops_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    layout, params = project(tmp_path / "shop")
    send(layout, params, sale(3, "good"), sale(4, "bad", item="unknown"))
    noon = datetime.combine(LAST, datetime.min.time(), UTC) + timedelta(hours=12)
    served = FreshFeatures(params, "buys", layout, settings.row_log(layout), lambda: noon)
    counted = served.lookup("4")[0]["n_3d"]
    with caplog.at_level(logging.WARNING):
        read(layout, params)
    assert "validate: sales: 1 rows that the server received are set aside" in caplog.text
    aside = pl.read_parquet(layout.quarantine("sales"))
    assert aside.select("receipt", "_rule").rows() == [("bad", "item known in goods")]
    assert sales(layout)["receipt"][-1] == "good"
    table = read_json(layout.validation / "results.json")["tables"]["sales"]
    assert (table["passed"], table["received"], table["received_quarantined"]) == (True, 2, 1)
    served.refresh()
    assert served.lookup("4")[0]["n_3d"] == counted - 1  # as in the training


def test_bad_rows_of_the_export_stop_the_run_as_before(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    send(layout, params, sale(4, "bad", item="unknown"))
    path = layout.root / "sales.parquet"
    pl.read_parquet(path).with_columns(item=pl.lit("unknown")).write_parquet(path)
    with pytest.raises(Exception, match=r"max_bad_share \(now 0\) above 1\."):
        read(layout, params)


@pytest.mark.parametrize(("people", "day"), [(20, LAST + timedelta(days=2)), (4, LAST)])
def test_later_rows_move_the_last_day_if_they_are_of_enough_entities(
    tmp_path: Path, people: int, day: date, caplog: pytest.LogCaptureFixture
):
    layout, params = project(tmp_path / "shop")
    send(layout, params, *(sale(person, "late", LAST + timedelta(days=2)) for person in range(people)))
    with caplog.at_level(logging.WARNING):
        read(layout, params)
    assert read_json(facts_file(layout))["as_of"] == str(day)
    late = sales(layout).filter(pl.col("receipt") == "late")
    assert len(late) == (people if day > LAST else 0)
    assert ("sales: 4 rows that the server received after 2024-02-09 wait" in caplog.text) == (day == LAST)


def test_rows_after_a_fixed_last_day_wait(tmp_path: Path):
    layout, params = project(tmp_path / "shop", as_of=f'"{LAST}"')
    path = layout.root / "rows.csv"
    path.write_text(f"person,receipt,at,item,amount\n3,now,{LAST},a,1\n")
    row_events.record(layout, params, "buys", path, None)
    layout.params.write_text(layout.params.read_text().replace(str(LAST), str(LAST - timedelta(days=1))))
    params = loading.load(layout.params)
    read(layout, params)
    facts = read_json(facts_file(layout))["tables"]["sales"]
    assert (facts["received"], facts["waiting"]) == (0, 1)
    assert sales(layout)["receipt"].to_list().count("now") == 0


def test_a_table_must_be_named_where_there_are_several(tmp_path: Path):
    layout, _ = project(tmp_path / "shop")
    layout.params.write_text(layout.params.read_text().replace("features: fresh", "features: batch"))
    other = "      - {name: goods, table: goods}\n"
    layout.params.write_text(layout.params.read_text().replace("      - {name: recent", f"{other}      - {{name: recent"))
    with pytest.raises(ParamsError, match=r"--table is missing: must be one of sales, goods, the tables of events of buys$"):
        row_events.record(layout, loading.load(layout.params), "buys", layout.root / "sales.parquet", None)


def test_a_csv_file_is_read_by_the_columns_of_the_table(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    path = layout.root / "rows.csv"
    path.write_text("person,receipt,at,item,amount\n3,007,2024-02-09,a,1.5\nsix,1,2024-02-09,a,1\n7,2,,b,\n")
    found = row_events.record(layout, params, "buys", path, "sales")
    assert (found.accepted, [each.reason for each in found.rejected]) == (2, ["person = six: must be a whole number"])
    rows = settings.row_log(layout).of_problems(["buys"])["row"]
    assert json.loads(rows[0]) == {"person": 3, "receipt": "007", "at": "2024-02-09T00:00:00", "item": "a", "amount": 1.5}
    assert json.loads(rows[1])["amount"] is None


def test_a_column_that_the_export_lost_leaves_its_rows_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    layout, params = project(tmp_path / "shop")
    send(layout, params, sale(3, "new"))
    path = layout.root / "sales.parquet"
    whole = pl.read_parquet(path)
    whole.drop("amount").with_columns(receipt=pl.int_range(pl.len())).write_parquet(path)
    event_snapshots.update(layout, params)
    ingest.run(params, None, layout)
    assert "sales: 1 received rows do not fit the columns of the export any more" in caplog.text
    assert len(pl.read_parquet(layout.raw("sales"))) == len(whole)


def test_a_truncated_snapshot_is_written_again(tmp_path: Path):
    layout, params = project(tmp_path / "shop")
    send(layout, params, sale(3, "new"))
    event_snapshots.update(layout, params)
    whole = layout.received("sales").read_bytes()
    for withdrawn in (False, True):
        layout.received("sales").write_bytes(whole[:-100])
        if withdrawn:
            row_events.withdraw(layout, params, "buys", ["sales 3 new"])
        event_snapshots.update(layout, params)
        assert len(pl.read_parquet(layout.received("sales"))) == (0 if withdrawn else 1)


def test_a_clone_without_the_snapshot_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    layout, params = project(tmp_path / "shop")
    send(layout, params, sale(3, "new"))
    read(layout, params)
    layout.received("sales").unlink()
    ingest.run(params, None, layout)
    assert "ingest: data/received/sales.parquet: not here, so the tables are read without what servers received" in caplog.text


def test_dvc_sees_received_rows_once_they_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    layout, params = project(tmp_path / "shop")
    lineage.set_up(layout)
    stage = "{cmd: 'true', deps: [sales.parquet], outs: [{data/raw: {persist: true}}]}"
    (layout.root / "dvc.yaml").write_text(f"stages: {{ingest: {stage}}}\n")
    stages = Stages(layout)
    stages.commit("ingest")
    send(layout, params, sale(3, "new"))
    assert stages.fresh("ingest")
    refresh.refresh(root=layout.root, as_json=False)
    assert "sources.lock changed; dvc repro reads the sources again" in capsys.readouterr().err
    assert "sources.lock" in (layout.root / "dvc.yaml").read_text()
    assert not stages.fresh("ingest")
    read(layout, params)
    stages.commit("ingest")
    refresh.refresh(root=layout.root, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"changed": False}
    assert stages.fresh("ingest")


def test_the_command_line_sends_and_withdraws_rows(tmp_path: Path, capsys: pytest.CaptureFixture):
    layout, _ = project(tmp_path / "shop")
    path = layout.root / "rows.csv"
    path.write_text(f"event_id,person,receipt,at,item,amount\ntill-1,3,new,{LAST},a,1\n")
    command = {"root": layout.root, "as_json": True}
    events.events("buys", path, **command)
    assert json.loads(capsys.readouterr().out)["accepted"] == 1
    events.events("buys", withdraw=["till-1"], **command)
    assert json.loads(capsys.readouterr().out)["withdrawn"] == 1
    with pytest.raises(DataError, match="no event has the id till-2; the others are withdrawn"):
        events.events("buys", withdraw=["till-2"], **command)
    with pytest.raises(ParamsError, match="needs either --data FILE or --withdraw ID"):
        events.events("buys", table="sales", **command)


@pytest.mark.parametrize(
    ("change", "table", "error", "said"),
    [
        (("", ""), "goods", ParamsError, "--table = goods: must be one of sales, the tables of events of buys"),
        (("", ""), "sale", ParamsError, "did you mean sales?"),
        (("unique: [person, receipt]", "max_bad_share: 0"), "sales", ParamsError, "validate.sales.unique: is missing"),
        (("", ""), "sales", ModelError, "data/tables/sales.parquet is missing"),
    ],
)
def test_a_table_that_takes_no_rows_is_named(
    tmp_path: Path, change: tuple[str, str], table: str, error: type[Exception], said: str
):
    layout, params = project(tmp_path / "shop")
    layout.params.write_text(layout.params.read_text().replace(*change).replace("features: fresh", "features: batch"))
    if error is ModelError:
        shutil.rmtree(layout.table("sales"))
    params = loading.load(layout.params)
    with pytest.raises(error) as raised:
        row_events.record(layout, params, "buys", layout.root / "sales.parquet", table)
    assert said in str(raised.value)
