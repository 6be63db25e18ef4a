"""Labels from a file, and from the project's own data once a horizon has passed."""

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from evergreen.flows import settings
from evergreen.flows.cli.main import app
from evergreen.monitoring.ledger import labels, rejected_labels
from evergreen.monitoring.ledger.label_matching import RejectedLabel
from evergreen.monitoring.ledger.labels import Columns
from evergreen.monitoring.ledger.predictions import Ledger, Prediction
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Params, Tabular
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import DataError, ParamsError, SourceError
from evergreen.tasks.core.paths import Layout
from tests.contracts import World, build, keep, localised

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
PLAIN = Tabular.model_validate(
    {
        "question": "?",
        "features": {"table": "t", "target": "churned", "entity": "customer", "time": "day", "columns": {"x": "number"}},
    }
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'own.db'}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small store, with its tables and with the features of what is bought next where its project keeps them."""
    made = build("recommend", tmp_path_factory.mktemp("labels"))
    known, layout = loading.load(made.folder / "params.yaml"), Layout(made.folder)
    keep(made.frames, layout, "recommend")
    layout.table("t").parent.mkdir(parents=True)
    for name in known.ingest:
        rows = localised(pl.scan_parquet(made.folder / "data-in" / f"{name}.parquet"), known, name)
        table_parts.write(rows, layout.table(name))
    return made


@pytest.fixture
def known(world: World) -> Params:
    return loading.load(world.folder / "params.yaml")


def prediction(id: str, entity: str | None = None, at: datetime = NOON, **changed: Any) -> Prediction:
    base = {
        "problem": "churn",
        "version": 1,
        "variant": "champion",
        "cutoff": None,
        "features": {},
        "outputs": {"prediction": 1},
    }
    return Prediction(**{**base, "id": id, "entity": entity, "at": at, **changed})


def told(ledger: Ledger, rows: dict[str, list[Any]], kind: Any = "classification", **columns: Any) -> dict[str, Any]:
    found = labels.label(
        ledger, "churn", problems.predictions(kind), PLAIN, pl.DataFrame(rows, strict=False), Columns(**columns)
    )
    return {name: value for name in found.__slots__ if (value := getattr(found, name))}


def of(ledger: Ledger, problem: str = "churn") -> dict[str, Any]:
    return dict(ledger.read(problem).rows.select("id", "label").iter_rows())


def test_a_file_names_predictions_by_id_and_uses_the_usual_names(ledger):
    ledger.append([prediction("a"), prediction("b")])
    for name in ("truth", "target", "label", "value", "churned"):
        assert told(ledger, {"id": ["a", "x" + name], name: ["yes", "no"]})["pending"] == 1
    assert of(ledger) == {"a": "yes", "b": None}


def test_a_file_names_predictions_by_entity_and_day_or_moment(ledger):
    ledger.append([prediction("a", "7"), prediction("b", "8"), prediction("c", "9")])
    assert told(ledger, {"customer": [7, 8.0], "day": ["2017-10-09"] * 2, "churned": [1, 0]}) == {"matched": 2}
    assert told(ledger, {"customer": ["9"], "at": ["2017-10-09T14:00:00+02:00"], "churned": [1]}) == {"matched": 1}
    assert of(ledger) == {"a": 1, "b": 0, "c": 1}


def test_columns_may_be_named(ledger):
    ledger.append([prediction("a", "7")])
    rows = {"who": ["7"], "when": [date(2017, 10, 9)], "what": ["1"], "since": ["2017-11-01"]}
    assert told(ledger, rows, entity="who", time="when", label="what", known="since") == {"matched": 1}
    found = ledger.read("churn").rows
    assert (found["label"][0], found["label_at"][0]) == (1, datetime.combine(date(2017, 11, 1), time.max, UTC))


def test_rows_that_say_nothing_are_refused_by_their_place_and_stop_no_other(ledger):
    ledger.append([prediction("a"), prediction("b", "7")])
    rows = {
        "id": ["a", None, None, None, "b"],
        "customer": [None, "7", "7", None, None],
        "at": [None, "yesterday", None, "2017-10-09", None],
        "label": ["1", "1", "1", "1", None],
    }
    needs = "names no prediction: it needs an id, or an entity and a time"
    assert told(ledger, rows) == {
        "matched": 1,
        "rejected": (
            RejectedLabel(1, "at = yesterday: is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM:SS)"),
            RejectedLabel(2, needs),
            RejectedLabel(3, needs),
            RejectedLabel(4, "has no value"),
        ),
    }


def test_the_newest_rejected_labels_are_kept_as_they_were_sent_with_the_rule(ledger, monkeypatch):
    monkeypatch.setattr(rejected_labels, "MOST", 3)
    ledger.append([prediction("a")])
    kind = problems.predictions("classification")
    labels.write(ledger, "other", kind, [{"id": 7}])
    labels.write(
        ledger, "churn", kind, [{"id": "a", "value": "1"}, "odd", {"id": "\ud800", "value": 1}, {"value": "x" * 9_000}]
    )
    labels.write(ledger, "churn", kind, [{"id": "b", "value": None}])
    kept = ledger.rejected_labels("churn")
    assert [each.label[:24] for each in kept] == [
        '{"id": "\\ud800", "value"',
        '{"value": "' + "x" * 13,
        '{"id": "b", "value": nul',
    ]
    assert kept[-1].reason == "has no value"
    assert len(kept[1].label) == rejected_labels.MAX_CHARACTERS
    assert len(ledger.rejected_labels("other")) == 1


def test_the_same_file_again_repeats_and_a_corrected_one_changes(ledger):
    ledger.append([prediction("a")])
    assert told(ledger, {"id": ["a"], "label": ["1"]}) == {"matched": 1}
    assert told(ledger, {"id": ["a"], "label": [1.0]}) == {"duplicate": 1}
    assert told(ledger, {"id": ["a"], "label": [0]}) == {"changed": 1}
    assert of(ledger) == {"a": 0}


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ({"id": ["a"]}, {}, "columns id: none is called label, target, truth, value, churned; name it with --label"),
        ({"label": [1], "customer": ["7"]}, {}, "which prediction is a row about.* It needs id, or customer and cutoff or at"),
        ({"id": ["a"], "outcome": [1]}, {"label": "outcom"}, "--label outcom: no such column; did you mean outcome"),
    ],
)
def test_a_file_without_the_columns_is_refused(ledger, rows, columns, says):
    with pytest.raises(DataError, match=says):
        told(ledger, rows, **columns)


def test_clustering_has_no_labels(ledger):
    with pytest.raises(ParamsError, match="churn: is a problem of clustering, which has no labels"):
        told(ledger, {"id": ["a"], "label": [1]}, kind="clustering")


# Labels that cannot be true

TODAY = datetime(2017, 12, 1, tzinfo=UTC)
DAYS = "is neither a day (YYYY-MM-DD) nor a time (YYYY-MM-DDTHH:MM:SS)"
FAR = "lies in the future or before 1970"
NO_CLASS = "is no class; a class is a text, a number, true or false"
NO_KEY = "holds a NUL or half a character, which no database stores"


@pytest.mark.parametrize(
    ("kind", "label", "reason"),
    [
        ("classification", {"value": "perhaps"}, "value = perhaps: is none of the classes no, yes"),
        ("classification", {"value": 1}, "value = 1: is none of the classes no, yes"),
        ("classification", {"value": ["yes"]}, f"value = ['yes']: {NO_CLASS}"),
        ("classification", {"value": {"yes": 1}}, f"value = {{'yes': 1}}: {NO_CLASS}"),
        ("regression", {"value": "much"}, "value = much: is no finite number"),
        ("regression", {"value": True}, "value = True: is no finite number"),
        ("regression", {"value": [1.0]}, "value = [1.0]: is no finite number"),
        ("regression", {"value": math.inf}, "value = inf: is no finite number"),
        ("regression", {"value": 10**400}, "is no finite number"),
        ("recommendation", {"value": [["a"]]}, "value = [['a']]: is no list of items; an item is a text or a number"),
        ("recommendation", {"value": {"a": 1}}, "value = {'a': 1}: is no list of items; an item is a text or a number"),
        ("regression", {"value": " "}, "has no value"),
        ("regression", {}, "has no value"),
        ("regression", {"value": 1, "id": None}, "names no prediction: it needs an id, or an entity and a time"),
        ("regression", {"value": 1, "id": ["a"]}, "id = ['a']: must be a text or a number"),
        ("regression", {"value": 1, "id": True}, "id = True: must be a text or a number"),
        ("regression", {"value": 1, "id": "a\0"}, f"id = 'a\\x00': {NO_KEY}"),
        ("regression", {"value": 1, "id": "\ud800"}, f"id = '\\ud800': {NO_KEY}"),
        ("regression", {"value": 1, "known_at": "soon"}, f"known_at = soon: {DAYS}"),
        ("regression", {"value": 1, "known_at": "2017-02-30"}, f"known_at = 2017-02-30: {DAYS}"),
        ("regression", {"value": 1, "known_at": "2018-01-01"}, f"known_at = 2018-01-01: {FAR}"),
        ("regression", {"value": 1, "known_at": "9999-12-31T23:59:59-23:59"}, f"known_at = 9999-12-31T23:59:59-23:59: {FAR}"),
        ("regression", {"value": 1, "known_at": "0001-01-01T00:00:00+14:00"}, f"known_at = 0001-01-01T00:00:00+14:00: {FAR}"),
        ("regression", {"value": 1, "known_at": "2017-10-08"}, "lies before its prediction, of 2017-10-09 12:00:00+00:00"),
        (
            "regression",
            {"value": 1, "id": None, "entity": "7", "at": "2017-10-09", "known_at": "2017-10-08T23:59:59+00:00"},
            "known_at = 2017-10-08 23:59:59+00:00: lies before its prediction, of 2017-10-09",
        ),
        ("regression", {"value": 1, "truth": 2}, "truth: unknown field; a label has at, entity, id, known_at, value"),
    ],
)
def test_a_label_that_cannot_be_true_is_rejected_with_the_rule_and_hides_no_other(ledger, kind, label, reason):
    outputs = (
        {"prediction": 1, "probability_yes": 0.5, "probability_no": 0.5} if kind == "classification" else {"prediction": 1}
    )
    ledger.append([prediction("a", outputs=outputs), prediction("b", outputs=outputs)])
    good = {"classification": "yes", "regression": 2.5, "recommendation": ["7"]}[kind]
    rows = [{"id": "b", "value": good}, {"id": "a", **label}, "no label", {"id": "c", "value": good}]
    found = labels.write(ledger, "churn", problems.predictions(kind), rows, TODAY)
    assert (found.matched, found.pending) == (1, 1)
    assert [each.index for each in found.rejected] == [1, 2]
    assert reason in found.rejected[0].reason
    assert found.rejected[1].reason.startswith("no label: is no label; a label is an object with at, entity, id, ")
    assert of(ledger) == {"a": None, "b": good}


def test_labels_of_one_batch_that_contradict_are_all_rejected_unless_their_times_order_them(ledger):
    ledger.append([prediction("a"), prediction("b"), prediction("c")])
    rows = [
        *({"id": "a", "value": value} for value in (1, 1, 0)),
        *({"id": "b", "value": 1} for _ in range(2)),
        *({"id": "c", "value": value, "known_at": f"2017-10-{day}"} for value, day in ((0, 20), (1, 21))),
    ]
    found = labels.write(ledger, "churn", problems.predictions("regression"), rows, TODAY)
    assert [each.index for each in found.rejected] == [0, 1, 2]
    assert found.rejected[0].reason == (
        "value = 1.0: another label of this batch contradicts it; send one of them, or known_at with each"
    )
    assert of(ledger) == {"a": None, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("spelt", "sent", "stored"),
    [
        (("0", "1"), [1, 1.0, "1", "1.0", True, "true"], 1),
        (("false", "true"), [True, "true", "True", "TRUE"], "true"),
        (("no", "yes"), ["yes"], "yes"),
        (("1.5", "2"), [1.5, "1.5"], "1.5"),
        (("²", "a"), ["²"], "²"),
    ],
)
def test_a_class_is_stored_as_predictions_spell_it_however_it_is_sent(ledger, spelt, sent, stored):
    outputs = {"prediction": 1, **{f"probability_{each}": 0.5 for each in spelt}}
    ledger.append(prediction(f"p{place}", outputs=outputs) for place in range(len(sent)))
    rows = [{"id": f"p{place}", "value": value} for place, value in enumerate(sent)]
    assert not labels.write(ledger, "churn", problems.predictions("classification"), rows, TODAY).rejected
    assert set(of(ledger).values()) == {stored}


VALUES = st.sampled_from(["1", "0", "2.5", "x", "", "nan", "1e400"])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.sampled_from(["a", "b", "7"]) | st.none(), "value": VALUES},
            optional={
                "at": st.sampled_from(["2017-10-09", "noon", "9999-12-31", "0001-01-01"]),
                "known_at": st.sampled_from(["2017-10-01", "2017-11-01", "2018-06-01", "2017-11-01T07:00:00+02:00"]),
                "entity": st.sampled_from(["7", "8", ""]),
            },
        ),
        max_size=8,
    )
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_a_file_and_a_request_accept_the_same(rows: list[dict[str, Any]]):
    names = ("id", "value", "at", "known_at", "entity")
    columns = {name: pl.Series([row.get(name) for row in rows], dtype=pl.String) for name in names}
    kind, found = problems.predictions("regression"), []
    for way in ("file", "request"):
        with TemporaryDirectory() as folder:
            own = Ledger(f"sqlite:///{folder}/own.db")
            own.append([prediction("a", "7"), prediction("b", "8")])
            if way == "file":
                counts = labels.label(own, "churn", kind, PLAIN, pl.DataFrame(columns).rename({"entity": "customer"}))
            else:
                counts = labels.write(own, "churn", kind, rows)
            found.append((counts, of(own)))
            own._engine.dispose()
    assert found[0] == found[1]


# Of the project's own data


def scored(ledger: Ledger, problem: str, entities: list[Any], cutoff: date, at: datetime | None = None) -> None:
    rows = pl.DataFrame({"who": entities, "prediction": [0.5] * len(entities)})
    moment = datetime.combine(cutoff, time.max, UTC)
    ledger.append_frame(problem, 1, rows, at=at or moment, key="who", cutoff=None if at else cutoff, id="who" if at else None)


@pytest.mark.parametrize("problem", ["redeem", "spend"])
def test_predictions_get_the_labels_of_training_once_their_horizon_has_passed(world, known, ledger, problem, tmp_path):
    section, as_of = known.section(problem), known.project.as_of
    tables = {name: pl.scan_parquet(Layout(world.folder).table(name)) for name in known.ingest}
    times = {name: known.ingest[name].time for name in tables}
    rows = pl.concat(problems.kind(known.kind(problem)).build(tables, times, section, as_of).values())
    cutoffs = rows["cutoff"].unique().sort()[-3:].to_list()
    for cutoff in cutoffs:
        scored(ledger, problem, rows.filter(cutoff=cutoff)["household_id"].to_list(), cutoff)
    labelled = rows.filter(pl.col("cutoff").is_in(cutoffs[:-1]))
    assert labels.collect(known, problem, Layout(world.folder), ledger, as_of) == labelled.height
    assert labels.collect(known, problem, Layout(world.folder), ledger, as_of) == 0
    found = ledger.read(problem).rows
    keys = labelled.select(entity=pl.col("household_id").cast(pl.String), cutoff="cutoff", target="target")
    both = found.join(keys, on=["entity", "cutoff"])
    assert both["label"].cast(float).to_list() == both["target"].to_list()
    assert found.filter(cutoff=cutoffs[-1])["label"].null_count() == found.filter(cutoff=cutoffs[-1]).height
    ripe = [datetime.combine(day + timedelta(days=28), time.max, UTC) for day in both["cutoff"]]
    assert both["label_at"].to_list() == ripe


def test_a_prediction_of_any_day_has_a_label_once_its_horizon_has_passed_and_none_before(world, known, ledger):
    day = known.project.as_of - timedelta(days=28)
    asked = datetime.combine(day, time(9), UTC)
    scored(ledger, "spend", ["1", "2", "424242", "nobody"], day, at=asked)
    scored(ledger, "spend", [3], day, at=asked + timedelta(days=1))
    layout = Layout(world.folder)
    assert labels.collect(known, "spend", layout, ledger, known.project.as_of - timedelta(days=1)) == 0
    assert labels.collect(known, "spend", layout, ledger, known.project.as_of) == 3
    rows = pl.read_parquet(layout.table("transactions"))
    after = rows.filter(pl.col("transaction_timestamp").dt.date() > day, pl.col("household_id") == 1)
    assert of(ledger, "spend")["1"] == pytest.approx(after["sales_value"].sum())
    assert {name: of(ledger, "spend")[name] for name in ("424242", "nobody", "3")} == {"424242": 0, "nobody": None, "3": None}


def test_a_label_that_its_table_corrected_is_changed(world, known, ledger, tmp_path):
    day = known.project.as_of - timedelta(days=30)
    scored(ledger, "redeem", [1], day)
    labels.collect(known, "redeem", Layout(world.folder), ledger, known.project.as_of)
    was = of(ledger, "redeem")
    (copy := Layout(tmp_path / "copy")).table("t").parent.mkdir(parents=True)
    for name in known.ingest:
        rows = pl.read_parquet(Layout(world.folder).table(name))
        if name == "coupon_redemptions":
            rows = rows.filter(pl.col("household_id") != 1)
            more = rows[:1].with_columns(household_id=pl.lit(1, pl.Int64), redemption_date=pl.lit(day + timedelta(days=3)))
            rows = pl.concat([rows, more], how="vertical_relaxed") if not next(iter(was.values())) else rows
        rows.write_parquet(copy.table(name))
    assert labels.collect(known, "redeem", copy, ledger, known.project.as_of) == 1
    assert list(of(ledger, "redeem").values()) == [1 - value for value in was.values()]


def test_a_label_may_be_known_later_than_its_horizon_ends(world, known, ledger):
    section = known.section("redeem")
    late = section.model_copy(update={"monitor": section.monitor.model_copy(update={"label_delay_days": 40})})
    params_ = known.model_copy(update={"sections": {**known.sections, "redeem": late}})
    for days in (30, 40):
        scored(ledger, "redeem", [1], known.project.as_of - timedelta(days=days))
    assert labels.collect(params_, "redeem", Layout(world.folder), ledger, known.project.as_of) == 1
    assert ledger.read("redeem").rows["label"].null_count() == 1


def test_purchases_of_users_are_the_labels_of_their_lists(world, known, ledger):
    cutoff = known.project.as_of - timedelta(days=28)
    rows = pl.DataFrame({"who": [6, 7, 424_242], "items": [[1003]] * 3, "scores": [[0.5]] * 3})
    ledger.append_frame(
        "recommend", 1, rows, at=datetime.combine(cutoff, time.max, UTC), key="who", cutoff=cutoff, outputs=["items", "scores"]
    )
    assert labels.collect(known, "recommend", Layout(world.folder), ledger, known.project.as_of) == 3
    lines = world.frames["lines"].filter(pl.col("day") > cutoff)
    wanted = [sorted(lines.filter(pl.col("user") == user)["item"].unique()) for user in (6, 7)]
    assert ledger.read("recommend").rows["label"].to_list() == [*wanted, []]


def test_a_served_list_gets_the_purchases_after_its_moment_by_the_local_day(world, known, ledger):
    """At 15:30 UTC it is the next day in Tokyo."""
    as_of = known.project.as_of
    at = datetime.combine(as_of - timedelta(days=29), time(15, 30), UTC)
    ledger.append([Prediction("p", "recommend", 1, "champion", at, "6", None, {}, {"items": [1003]})])
    tokyo = {name: each.model_copy(update={"local_timezone": "Asia/Tokyo"}) for name, each in known.ingest.items()}
    assert labels.collect(known.model_copy(update={"ingest": tokyo}), "recommend", Layout(world.folder), ledger, as_of) == 1
    lines = world.frames["lines"].filter(pl.col("user") == 6, pl.col("day") > as_of - timedelta(days=28))
    assert ledger.read("recommend").rows["label"].to_list() == [sorted(lines["item"].unique())]


def test_nothing_is_looked_up_where_nothing_can_be(world, known, ledger, tmp_path):
    scored(ledger, "segments", [1], known.project.as_of - timedelta(days=60))
    assert labels.collect(known, "segments", Layout(world.folder), ledger, known.project.as_of) == 0
    assert labels.collect(known, "redeem", Layout(tmp_path), ledger, known.project.as_of) == 0
    scored(ledger, "redeem", [1], known.project.as_of - timedelta(days=60))
    with pytest.raises(SourceError, match=r"\.parquet: is missing, so no label can be read"):
        labels.collect(known, "redeem", Layout(tmp_path), ledger, known.project.as_of)


# By command


def test_labels_and_cohorts_by_command(world, monkeypatch, tmp_path):
    monkeypatch.setenv("EVERGREEN_DATABASE", f"sqlite:///{tmp_path / 'own.db'}")
    ledger = settings.ledger(Layout(world.folder))
    scored(ledger, "spend", list(range(40)), date(2017, 7, 2))
    rows = {"household_id": [*range(39), 99], "cutoff": ["2017-07-02"] * 39 + ["soon"], "label": [0.25] * 39 + [1.0]}
    pl.DataFrame(rows).write_csv(tmp_path / "late.csv")
    words = ["labels", "spend", "--data", str(tmp_path / "late.csv"), "--root", str(world.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "row 40: at = soon: is neither a day" in done.output
    assert "39" in done.output
    again = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (again["duplicate"], again["rejected"][0]["row"]) == (39, 39)
    kept = json.loads(CliRunner().invoke(app, ["labels", "spend", "--rejected", "--json", "--root", str(world.folder)]).stdout)
    assert [json.loads(each["label"])["at"] for each in kept["rejected"]] == ["soon", "soon"]
    assert "evergreen labels spend --rejected" in done.output
    shown = ["cohorts", "spend", "--root", str(world.folder)]
    (cohort,) = json.loads(CliRunner().invoke(app, [*shown, "--json"]).stdout)["cohorts"]
    assert (cohort["week"], cohort["version"], cohort["predictions"], cohort["matured"]) == ("2017-06-26", 1, 40, 39)
    assert cohort["score"]["score"] == pytest.approx(0.25)
    table = CliRunner().invoke(app, shown).output
    assert "2017-06-26" in table
    assert "98%" in table
    assert json.loads(CliRunner().invoke(app, [*shown, "--version", "2", "--json"]).stdout)["cohorts"] == []
