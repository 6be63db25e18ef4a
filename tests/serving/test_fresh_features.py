"""Features as new as the last event equal those that the batch computation builds from the same rows."""

import re
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evergreen.flows import settings as addresses
from evergreen.monitoring.ledger import spool
from evergreen.serving.fresh_features import FreshFeatures
from evergreen.serving.row_log import RowLog
from evergreen.serving.row_validation import RowValidator
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Features, Params
from evergreen.tasks.core.errors import ModelError, ParamsError, RequestError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.tabular.point_in_time import CUTOFF, TARGET, point_in_time
from tests.contracts import localised
from tests.projects import Deployed
from tests.serving import live

D0 = date(2024, 1, 1)
PARAMS = """\
project: {name: shop}
ingest:
  sales: {csv: sales.csv, time: at, stored_timezone: UTC, local_timezone: America/New_York}
  goods: {csv: goods.csv}
  offers: {csv: offers.csv}
  campaigns: {csv: campaigns.csv, time: begins}
  people: {csv: people.csv}
  visits: {csv: visits.csv, time: at}
validate:
  sales:
    unique: [person, receipt]
    expectations:
      - {type: expect_column_values_to_be_between, kwargs: {column: amount, min_value: -100}}
  offers: {unique: [person, campaign]}
problems: {buys: classification}
buys:
  question: Who buys?
  answers: {features: fresh}
  features:
    entity: person
    horizon_days: 3
    cutoffs: {first: "2024-01-05", every_days: 5}
    population: {table: sales, within_days: 20}
    target: {table: sales, function: any}
    windows_days: [3, 14]
    aggregates:
      - {name: n, table: sales}
      - {name: total, table: sales, column: amount, function: sum}
      - {name: mean, table: sales, column: amount, function: mean}
      - {name: spread, table: sales, column: amount, function: std}
      - {name: low, table: sales, column: amount, function: min}
      - {name: high, table: sales, column: amount, function: max, where: amount > 0}
      - {name: kinds, table: sales, column: item, function: n_unique}
      - {name: own, table: sales, column: amount, function: sum, where: brand = 'own', join: [goods, item]}
      - {name: recent, table: sales, function: days_since_last}
      - {name: tenure, table: sales, function: days_since_first, where: amount > 1}
      - {name: offers, table: offers, join: [campaigns, campaign]}
      - {name: running, table: offers, join: [campaigns, campaign], where: ends > cutoff, windows_days: [30]}
      - {name: early, table: sales, column: amount, function: sum, where: at < cutoff}
      - {name: early_mean, table: sales, column: amount, function: mean, where: at < cutoff}
      - {name: early_std, table: sales, column: amount, function: std, where: at < cutoff}
      - {name: early_low, table: sales, column: amount, function: min, where: at < cutoff and amount > 0}
      - {name: early_kinds, table: sales, column: item, function: n_unique, where: at < cutoff}
      - {name: since_early, table: sales, function: days_since_last, where: at < cutoff}
    ratios:
      - {name: trend, numerator: total_3d, denominator: total_14d}
    shares:
      - {name: share, table: sales, category: item, value: amount, top: 2}
    calendar: [week_of_year]
    attributes: [{table: people, columns: [town]}]
"""
SALES = {"person": pl.Int64, "receipt": pl.Int64, "at": pl.Datetime("us"), "item": pl.String, "amount": pl.Float64}
OFFERS = {"person": pl.Int64, "campaign": pl.String}
TODAY = 24
"""Days after D0 at which the questions are asked."""
TOLD = "{table: visits, function: any}"
NEW_YORK = ZoneInfo("America/New_York")
NOON = datetime(2024, 1, 25, 17, tzinfo=UTC)


def at(day: int) -> datetime:
    return datetime(2024, 1, 1, 12) + timedelta(days=day)


def write(layout: Layout, sales: pl.DataFrame, offers: pl.DataFrame) -> None:
    """The tables as validate leaves them; what is known of people, goods and campaigns never changes."""
    layout.table("any").parent.mkdir(parents=True, exist_ok=True)
    sales.write_parquet(layout.table("sales"))
    offers.write_parquet(layout.table("offers"))
    pl.DataFrame({"item": ["a", "b"], "brand": ["own", "other"]}).write_parquet(layout.table("goods"))
    pl.DataFrame({"person": [1, 2], "town": ["Rome", None]}).write_parquet(layout.table("people"))
    days = {"begins": [D0, D0 + timedelta(days=9)], "ends": [D0 + timedelta(days=30), D0 + timedelta(days=12)]}
    pl.DataFrame({"campaign": ["c1", "c2"], **days}).write_parquet(layout.table("campaigns"))
    facts = layout.raw("any").parent / "sources.json"
    facts.parent.mkdir(parents=True, exist_ok=True)
    facts.write_text(f'{{"as_of": "{D0 + timedelta(days=20)}", "tables": {{}}}}')


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    path = tmp_path_factory.mktemp("shop") / "params.yaml"
    path.write_text(PARAMS)
    return loading.load(path)


def fresh(params: Params, folder: Path, now: datetime = NOON) -> FreshFeatures:
    return FreshFeatures(params, "buys", Layout(folder), RowLog(f"sqlite:///{folder}/events.db"), lambda: now)


def as_event(row: dict[str, Any]) -> dict[str, Any]:
    """A sale as a till sends it: its time in UTC."""
    return {"table": "sales", "row": row | {"at": (row["at"] + timedelta(hours=5)).isoformat() + "Z"}}


def batch(params: Params, layout: Layout, sales: pl.DataFrame, offers: pl.DataFrame) -> pl.DataFrame:
    """What the features step builds as of today."""
    section = params.section("buys").features
    assert isinstance(section, Features)
    tables = {name: pl.scan_parquet(layout.table(name)) for name in section.tables} | {
        "sales": sales.lazy(),
        "offers": offers.lazy(),
    }
    today = D0 + timedelta(days=TODAY)
    rows = point_in_time(tables, {name: params.ingest[name].time for name in tables}, section, today)
    return rows.filter(pl.col(CUTOFF) == today)


SALE = st.tuples(
    st.integers(1, 4), st.integers(8, TODAY), st.sampled_from("abc"), st.none() | st.floats(-50, 1e6, allow_subnormal=False)
)
OFFER = st.tuples(st.integers(1, 4), st.sampled_from(["c1", "c2", "unknown"]))
ALWAYS = [(1, 1, "a", 3.0), (2, 2, "b", 4.0), (1, 6, "a", 0.1), (3, 14, "a", 2.0)]
"""Both labels occur. The categories of shares are those up to the first cutoff, day 4: no drawn sale moves them."""


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(SALE, max_size=30), st.lists(OFFER, max_size=6, unique=True), st.data())
def test_features_of_received_rows_equal_the_batch_computation_to_the_bit(
    params: Params, tmp_path_factory: pytest.TempPathFactory, drawn: list, invited: list, data: st.DataObject
):
    layout = Layout(tmp_path_factory.mktemp("fresh"))
    lines = [*ALWAYS, *drawn]
    rows = [(who, number, at(day), item, amount) for number, (who, day, item, amount) in enumerate(lines)]
    sales, offers = pl.DataFrame(rows, SALES, orient="row"), pl.DataFrame(invited, OFFERS, orient="row")
    known = data.draw(st.integers(len(ALWAYS), len(rows)))
    told = data.draw(st.integers(0, len(invited)))
    write(layout, sales[:known], offers[:told])
    features = fresh(params, layout.root)
    events = [{**as_event(row), "id": f"{number:03}"} for number, row in enumerate(sales[known:].to_dicts())]
    first = data.draw(st.integers(0, len(events)))
    received = [events[:first], [*events[first:], as_event(sales.row(0, named=True))]]  # the table has the last one
    received.append([{"table": "offers", "row": row} for row in offers[told:].to_dicts()])
    assert [features.record(each).rejected for each in received] == [(), (), ()]
    expected = batch(params, layout, sales, offers)
    found = [features.lookup(str(person)) for person in expected["person"]]
    assert sorted(features.keys()) == sorted(map(str, expected["person"]))
    assert {cutoff for _, cutoff in found} == {D0 + timedelta(days=TODAY)}
    names = [name for name in expected.columns if name not in ("person", CUTOFF, TARGET)]
    seen = pl.DataFrame([row for row, _ in found], {name: expected.schema[name] for name in names})
    assert_frame_equal(seen, expected.select(names), check_exact=True)
    assert_frame_equal(fresh(params, layout.root)._frame, expected.select(names), check_exact=True)  # after a restart


def test_without_a_population_one_event_builds_the_row_of_its_entity_alone(params: Params, tmp_path: Path):
    text = PARAMS.replace("    population: {table: sales, within_days: 20}\n", "").replace(
        "{table: sales, function: any}", TOLD
    )
    (tmp_path / "params.yaml").write_text(text)
    known = loading.load(tmp_path / "params.yaml")
    layout = shop(tmp_path)
    pl.DataFrame({"person": [1, 8], "at": [at(3), at(4)]}).write_parquet(layout.table("visits"))
    features = fresh(known, tmp_path)
    assert sorted(features.keys()) == ["1", "2", "3", "8"]
    before = {key: features.lookup(key) for key in ("1", "2", "3", "8")}
    features.record([sale(100)])
    assert features.lookup("1") != before.pop("1")
    assert {key: features.lookup(key) for key in before} == before


def test_sorted_copies_are_shared_replaced_with_the_tables_and_not_needed(params: Params, tmp_path: Path, caplog):
    layout = shop(tmp_path)
    answer = fresh(params, tmp_path).lookup("1")
    folder = layout.var / "fresh" / "buys"
    copies = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert len(copies) == 5  # sales, sales with goods, offers with campaigns, and two of keys
    assert fresh(params, tmp_path).lookup("1") == answer
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == copies
    layout.table("sales").touch()
    assert fresh(params, tmp_path).lookup("1") == answer
    assert len(set(folder.glob("*.parquet")) - copies.keys()) == len(copies)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    assert fresh(params, tmp_path).lookup("1") == answer
    assert "The events of sales are kept in memory." in caplog.text


def shop(folder: Path) -> Layout:
    rows = [(who, number, at(day), item, amount) for number, (who, day, item, amount) in enumerate(ALWAYS)]
    write(Layout(folder), pl.DataFrame(rows, SALES, orient="row"), pl.DataFrame([], OFFERS, orient="row"))
    return Layout(folder)


def sale(receipt: Any, amount: Any = 10.0, **more: Any) -> dict[str, Any]:
    return {"table": "sales", "row": {"person": 1, "receipt": receipt, "item": "a", "amount": amount, **more}}


def test_a_row_counts_once_at_once_and_until_it_is_withdrawn(params: Params, tmp_path: Path):
    shop(tmp_path)
    here, there = fresh(params, tmp_path), fresh(params, tmp_path)
    before = here.lookup("1")[0]["n_3d"]
    assert before == 0
    counts = here.record([sale(100), sale(100), {**sale(101), "id": "till-1"}])
    assert (counts.accepted, counts.duplicate) == (2, 1)
    assert here.lookup("1")[0]["n_3d"] == 2
    assert here.lookup("1")[0]["recent"] == 0
    assert there.lookup("1")[0]["n_3d"] == 0
    there.refresh()  # another process, within a second
    assert there.lookup("1")[0] == here.lookup("1")[0]
    assert here.withdraw(["till-1", "nobody"]).withdrawn == 1
    there.refresh()
    assert there.lookup("1")[0]["n_3d"] == here.lookup("1")[0]["n_3d"] == 1


def test_a_new_customer_is_known_and_one_whose_rows_are_withdrawn_is_not(params: Params, tmp_path: Path):
    shop(tmp_path)
    features = fresh(params, tmp_path)
    with pytest.raises(RequestError, match="person = '9': no features at 2024-01-25"):
        features.lookup("9")
    features.record([{**sale(7), "id": "x", "row": sale(7)["row"] | {"person": 9}}])
    assert features.lookup("9")[0]["tenure"] == 0
    assert features.keys()[-1] == "9"
    features.withdraw(["x"])
    with pytest.raises(RequestError, match="no features"):
        features.lookup("9")


def test_a_new_day_moves_the_cutoff_and_newer_tables_are_read(params: Params, tmp_path: Path):
    layout, now = shop(tmp_path), [NOON]
    features = FreshFeatures(params, "buys", layout, RowLog(f"sqlite:///{tmp_path}/events.db"), lambda: now[0])
    features.record([sale(100)])
    assert features.lookup("1")[0]["recent"] == 0
    now[0] += timedelta(days=2)
    features.refresh()
    assert features.lookup("1")[1] == D0 + timedelta(days=TODAY + 2)
    assert features.lookup("1")[0]["recent"] == 2
    sales = pl.read_parquet(layout.table("sales"))
    more = pl.DataFrame([(1, 100, at(TODAY), "a", 10.0), (1, 101, at(TODAY), "a", 5.0)], SALES, orient="row")
    write(layout, pl.concat([sales, more]), pl.DataFrame([], OFFERS, orient="row"))
    features.refresh()
    assert features.lookup("1")[0]["n_14d"] == 2  # the received one and that of the table are one


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"table": "goods", "row": {}}, "table = goods: must be one of sales, offers"),
        ({**sale(1), "when": 1}, "when: unknown key; an event has table, id, row"),
        ({"table": "sales", "row": 7}, "row: must be an object with the columns of sales"),
        (sale(1, amuont=2), r"amuont: unknown column of sales; did you mean amount\?"),
        (sale(1, person=None), "person: is missing; a row of sales needs it"),
        (sale(1.5), "receipt = 1.5: must be a whole number"),
        (sale(1, amount="much"), "amount = much: must be a finite number"),
        (sale(1, amount=float("nan")), "amount = nan: must be a finite number"),
        (sale(1, amount=-101), "amount = -101: must be at least -100"),
        (sale(1, item="\0"), r"item = \\x00: must be a text without NUL"),
        (sale(1, at="soon"), r"at = soon: is neither a day \(YYYY-MM-DD\) nor a time"),
        (sale(1, at="2024-01-26T05:30:00Z"), "at = 2024-01-26T05:30:00Z: is in the future"),
        ({**sale(1), "id": ""}, "id = '': must be a text of 1 to 255 characters"),
    ],
)
def test_a_row_that_breaks_a_rule_is_rejected_and_stops_no_other(params: Params, event: dict, reason: str):
    validator = RowValidator(params, "person", {"sales": pl.Schema(SALES), "offers": pl.Schema(OFFERS)}, NEW_YORK)
    rows, rejected = validator.validate([event, sale(55)], NOON)
    assert [each.id for each in rows] == ["sales 1 55"]
    assert re.search(reason, rejected[0].reason)
    assert rejected[0].event is event


def test_times_are_read_in_the_zone_of_the_business(params: Params, tmp_path: Path):
    shop(tmp_path)
    features = fresh(params, tmp_path, datetime(2024, 1, 26, 3, tzinfo=UTC))  # the evening of the 25th in New York
    features.record([sale(101), sale(102, at="2024-01-26T02:00:00Z"), sale(103, at="2024-01-26T02:00:00")])
    assert features.lookup("1")[1] == date(2024, 1, 25)
    assert features.lookup("1")[0]["n_3d"] == 3


def test_a_fault_leaves_the_features_before(params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    layout = shop(tmp_path)
    features = fresh(params, tmp_path)
    layout.table("sales").write_bytes(b"no parquet")
    for _ in range(3):
        features.refresh()
    assert features.lookup("1")[0]["n_14d"] == 0
    assert caplog.text.count("buys: the features stay as they are") == 1


def test_without_its_tables_there_are_none(params: Params, tmp_path: Path):
    with pytest.raises(ModelError, match=r"buys: fresh features need data/tables/campaigns\.parquet"):
        fresh(params, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "unique: [person, receipt]",
            "max_bad_share: 0.1",
            r"validate\.sales\.unique: is missing; buys\.answers\.features = fresh",
        ),
        ("features: fresh", "features: newest", r"buys\.answers\.features = newest: must be 'batch' or 'fresh'"),
    ],
)
def test_params_that_cannot_be_fresh_are_refused(tmp_path: Path, old: str, new: str, reason: str):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace(old, new))
    with pytest.raises(ParamsError, match=reason):
        loading.load(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_truncated_copy_is_made_anew_and_a_truncated_table_is_named(params: Params, tmp_path: Path):
    layout = shop(tmp_path)
    answer = fresh(params, tmp_path).lookup("1")
    for path in (layout.var / "fresh" / "buys").glob("*.parquet"):
        truncate(path)
    assert fresh(params, tmp_path).lookup("1") == answer
    truncate(layout.table("sales"))
    with pytest.raises(ModelError, match=r"buys: .*/data/tables/sales.parquet: is damaged: truncated parquet file. Remove it"):
        fresh(params, tmp_path)


@pytest.mark.slow
def test_a_purchase_moves_the_next_answer_and_the_ledger_keeps_that_it_was_fresh(deployed: Deployed, tmp_path: Path):
    layout = deployed(tmp_path / "a shop", ("redeem",))
    text = layout.params.read_text().replace("\nredeem:\n", "\nredeem:\n  answers: {features: fresh}\n")
    unique = "  coupon_redemptions: {unique: [household_id, redemption_date]}\n"
    unique += "  campaigns: {unique: [household_id, campaign_id]}\n"
    layout.params.write_text(text.replace("validate:\n", f"validate:\n{unique}", 1))
    known = loading.load(layout.params)
    layout.table("any").parent.mkdir(parents=True)
    for name in known.section("redeem").features.tables:
        localised(pl.scan_parquet(layout.root / "data-in" / f"{name}.parquet"), known, name).sink_parquet(layout.table(name))
    today = known.project.as_of
    home = pl.read_parquet(layout.newest_rows("redeem"))["household_id"][0]
    with live.serving(layout) as server:
        ask = {"household_id": home}
        before = server.client.post("/v1/predict/redeem", json=ask).json()
        row = {"household_id": home, "redemption_date": str(today), "coupon_upc": 1, "campaign_id": 1}
        table = pl.read_parquet_schema(layout.table("coupon_redemptions"))
        event = {"id": "till-1", "table": "coupon_redemptions", "row": {name: row[name] for name in row if name in table}}
        told = server.client.post("/v1/events/redeem", json=event)
        assert told.json() == {"accepted": 1, "duplicate": 0, "rejected": []}, told.text
        after = server.client.post("/v1/predict/redeem", json=ask).json()
        assert after["probability_1"] > before["probability_1"]
        undone = server.client.post("/v1/events/redeem/withdraw", json={"ids": ["till-1"]})
        assert undone.json()["withdrawn"] == 1
        again = server.client.post("/v1/predict/redeem", json=ask).json()
        assert again["probability_1"] == before["probability_1"]
        described = server.client.get("/openapi.json").json()
        assert {"/v1/events/redeem", "/v1/events/redeem/withdraw"} <= described["paths"].keys()
        assert server.client.post("/v1/events/spend", json={}).status_code == 404
    ledger = addresses.ledger(layout)
    assert spool.drain(addresses.spool_folder(layout), ledger) == 3
    kept = ledger.read("redeem")
    assert set(kept.rows["features_from"]) == {"fresh"}
    assert set(kept.rows[CUTOFF]) == {today}
