"""Nothing learns from a row that breaks a rule, nothing is lost, and every stop says where, which value, what to do."""

import logging
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.tasks import ingest, validate
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params, Rules
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout, read_json
from tests import ROOT, store

BETWEEN = "expect_column_values_to_be_between"


def rule(type: str = BETWEEN, severity: str = "error", name: str | None = None, **kwargs: Any) -> dict[str, Any]:
    return {"type": type, "severity": severity, "name": name, "kwargs": kwargs}


def rules(*expectations: dict[str, Any], **settings: Any) -> Rules:
    return Rules.model_validate({"max_bad_share": 1, "expectations": expectations, **settings})


def check(table: pl.DataFrame | dict[str, list], given: Rules, **settings: Any) -> validate.Checked:
    return validate.check("sales", pl.DataFrame(table), given, **settings)


def project(root: Path, tables: dict[str, pl.DataFrame], **given: dict[str, Any]) -> Params:
    """A project of these tables, ingested, and its params with the rules `given`."""
    root.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(root / f"{name}.parquet")
    sources = {name: {"parquet": f"{name}.parquet"} for name in tables}
    raw = {"project": {"name": "test", "as_of": "2024-12-31"}, "ingest": sources, "validate": given, "problems": {}}
    params = Params.model_validate(raw)
    ingest.run(params, None, Layout(root))
    return params


# Rows


def test_rows_that_break_a_rule_go_to_quarantine_with_its_name():
    seen = check(
        {"quantity": [5, -1, 3, -2], "id": [1, 2, 3, 4]}, rules(rule(column="quantity", min_value=0, name="not below 0"))
    )
    assert seen.kept["id"].to_list() == [1, 3]
    assert seen.quarantined.to_dict(as_series=False) == {"quantity": [-1, -2], "id": [2, 4], "_rule": ["not below 0"] * 2}
    assert seen.problems == ()


def test_a_row_that_breaks_two_rules_is_counted_once_and_names_both():
    both = rules(rule(column="a", min_value=0, name="low"), rule(column="b", max_value=9, name="high"))
    seen = check({"a": [-1, 1, 1], "b": [99, 99, 1]}, both)
    assert seen.quarantined["_rule"].to_list() == ["low; high", "high"]
    assert (seen.counts.kept, seen.counts.quarantined) == (1, 2)


def test_a_rule_about_two_columns_finds_its_rows():
    greater = "expect_column_pair_values_a_to_be_greater_than_b"
    seen = check({"a": [1.0, 2.0, 0.5], "b": [1.0, 3.0, 0.1]}, rules(rule(greater, column_A="a", column_B="b", or_equal=True)))
    assert seen.quarantined.drop("_rule").row(0) == (2.0, 3.0)


def test_a_warning_is_reported_and_its_rows_are_kept():
    seen = check({"a": [-1, 1]}, rules(rule(column="a", min_value=0, severity="warning"), max_bad_share=0))
    assert (seen.counts.kept, seen.counts.warnings, seen.problems) == (2, 1, ())
    assert seen.outcomes[-1].examples == ({"row": 1, "values": {"a": -1}},)


def test_a_rule_that_holds_for_most_rows_as_asked_keeps_them_all():
    seen = check({"a": [-1, *range(99)]}, rules(rule(column="a", min_value=0, mostly=0.9)))
    assert (seen.outcomes[-1].passed, seen.outcomes[-1].failed, seen.counts.kept) == (True, 1, 100)


def test_infinite_numbers_and_not_a_number_are_found_without_being_asked_for():
    seen = check({"price": [1.0, float("inf"), float("nan"), None]}, rules())
    assert seen.kept["price"].to_list() == [1.0, None]
    assert seen.quarantined["_rule"].to_list() == ["price is finite"] * 2
    assert seen.outcomes[0].examples == ({"row": 2, "values": {"price": "inf"}}, {"row": 3, "values": {"price": "nan"}})


def test_a_row_without_its_time_is_quarantined():
    seen = check({"at": [datetime(2024, 1, 1), None]}, rules(), time="at")
    assert seen.quarantined["_rule"].to_list() == ["at is present"]


def test_of_equal_keys_the_first_row_stays():
    seen = check({"id": [1, 1, 2], "day": [1, 1, 1], "v": ["first", "second", "third"]}, rules(unique=["id", "day"]))
    assert seen.kept["v"].to_list() == ["first", "third"]
    assert seen.quarantined["_rule"].to_list() == ["id + day unique"]


def test_full_duplicates_are_dropped_and_rows_keep_their_numbers():
    seen = check({"a": [1, 1, -5, 2, -5]}, rules(rule(column="a", min_value=0), drop_duplicates=True))
    assert (seen.counts.duplicates, seen.counts.kept, seen.counts.quarantined) == (2, 2, 1)
    assert seen.outcomes[-1].examples == ({"row": 3, "values": {"a": -5}},), (
        "the first of its copies, by its number in the file"
    )


def test_missing_keys_of_text_and_number_are_both_found():
    there = "expect_column_values_to_not_be_null"
    seen = check({"a": [1, None, 3], "b": ["x", "y", None]}, rules(rule(there, column="a"), rule(there, column="b")))
    assert seen.kept.rows() == [(1, "x")]


def test_bounds_of_times_may_be_written_as_text():
    days = [date(2023, 12, 31), date(2024, 1, 1)]
    seen = check({"day": days}, rules(rule(column="day", min_value="2024-01-01")))
    assert seen.kept["day"].to_list() == days[1:]
    with pytest.raises(ParamsError, match=r"validate.sales.expectations.0.kwargs.min_value = soon: must be a date or time"):
        check({"day": days}, rules(rule(column="day", min_value="soon")))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(-3, 3)),
            st.one_of(st.none(), st.floats(width=32)),
            st.sampled_from([None, "x", "y"]),
        ),
        max_size=30,
    ),
    st.booleans(),
    st.sampled_from([(), ("k",), ("k", "t")]),
    st.sampled_from([None, "k > 0"]),
)
def test_kept_and_quarantined_and_duplicates_are_the_rows_that_were_read(rows, drop, unique, where):
    table = pl.DataFrame(rows, schema={"k": pl.Int64, "x": pl.Float64, "t": pl.String}, orient="row")
    known = {"keys": pl.DataFrame({"k": [1, 2]})}
    reference = {"k": {"to": "keys.k", "where": where}}
    seen = check(table, rules(drop_duplicates=drop, unique=unique, references=reference), known=known)
    assert len(seen.kept) + len(seen.quarantined) + seen.counts.duplicates == len(table)
    assert seen.counts.duplicates == (len(table) - table.n_unique() if drop and len(table) else 0)
    assert seen.kept.schema == table.schema
    back = pl.concat([seen.kept, seen.quarantined.drop("_rule")])
    assert back.n_unique() == table.n_unique()
    bad = table.filter(pl.col("x").is_nan() | pl.col("x").is_infinite())
    assert not len(seen.kept.join(bad, on=table.columns, how="semi", nulls_equal=True))
    assert not seen.kept.select(unique).is_duplicated().any() if unique else True


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=20))
def test_the_same_holds_for_rules_of_great_expectations(values):
    seen = check({"a": values}, rules(rule(column="a", min_value=0), rule("expect_column_values_to_be_unique", column="a")))
    kept = [value for value in values if value >= 0 and values.count(value) == 1]
    assert seen.kept["a"].to_list() == kept
    assert seen.counts.quarantined == len(values) - len(kept)


# References and derived columns


def test_values_that_the_other_table_does_not_know_are_quarantined():
    known = {"products": pl.DataFrame({"id": [1, 2], "department": ["FUEL", "DELI"]})}
    table = {"product": [1, 9, 9, None], "quantity": [5, 1, 0, 1]}
    seen = check(table, rules(references={"product": {"to": "products.id", "where": "quantity > 0"}}), known=known)
    assert seen.quarantined.rows() == [(9, 1, "product known in products")]
    assert (seen.outcomes[0].checked, seen.outcomes[0].failed) == (3, 1)


def test_rules_may_look_at_brought_and_derived_columns_that_are_not_kept():
    known = {"products": pl.DataFrame({"id": [1, 2, 2], "department": ["FUEL", "DELI", "DELI"]})}
    seen = check(
        {"product": [1, 2, 2], "quantity": [5000, 5000, 1]},
        rules(
            rule(column="pieces", max_value=1000),
            references={"product": {"to": "products.id", "join_columns": ["department"]}},
            derived={"pieces": "CASE WHEN department = 'FUEL' THEN 0 ELSE quantity END"},
        ),
        known=known,
    )
    assert seen.kept.rows() == [(1, 5000), (2, 1)]
    assert seen.kept.columns == ["product", "quantity"]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ({"to": "products.idd"}, "products.idd has no column idd; did you mean id"),
        ({"to": "products.id", "join_columns": ["departmnt"]}, "has no column departmnt; did you mean department"),
        (
            {"to": "products.department"},
            "its type is Int64, that of products.department is String; declare the same type under ingest",
        ),
    ],
)
def test_a_reference_that_cannot_be_followed_stops_the_run(reference, says):
    known = {"products": pl.DataFrame({"id": [1], "department": ["DELI"]})}
    seen = check({"product": [1]}, rules(references={"product": reference}), known=known)
    assert says in seen.problems[0]


def test_wrong_sql_is_answered_with_its_place():
    with pytest.raises(ParamsError, match=r"validate.sales.derived.twice = quantty \* 2: .*quantty.* Write SQL on quantity"):
        check({"quantity": [1]}, rules(derived={"twice": "quantty * 2"}))


def test_tables_are_checked_after_those_they_refer_to_and_a_circle_is_refused(tmp_path):
    tables = {"sales": pl.DataFrame({"id": [1, 2]}), "products": pl.DataFrame({"id": [1, 2], "price": [1.0, float("inf")]})}
    refers = {"references": {"id": {"to": "products.id"}}, "max_bad_share": 1}
    params = project(tmp_path, tables, sales=refers, products={"max_bad_share": 1})
    counts = validate.run(params, None, Layout(tmp_path)).tables
    assert (list(counts), counts["sales"].quarantined, counts["products"].quarantined) == (["sales", "products"], 1, 1)
    params = project(tmp_path, tables, sales=refers, products={"references": {"id": {"to": "sales.id"}}})
    with pytest.raises(ParamsError, match="sales -> products -> sales is circular"):
        validate.run(params, None, Layout(tmp_path))


# What stops a run


def test_more_bad_rows_than_allowed_stop_the_run_and_the_line_says_all_that_is_needed():
    seen = check(
        {"quantity": [1, -4, 2, -1]}, rules(rule(column="quantity", min_value=0, name="not below 0"), max_bad_share=0.25)
    )
    assert seen.problems == (
        'data/raw/sales.parquet: quantity: 2 of 4 rows break "not below 0" (rows 2, 4: -4; -1). '
        "Fix the export and read it again (evergreen train --refresh), "
        "or raise validate.sales.max_bad_share (now 0.25) above 0.5.",
    )


def test_as_many_as_allowed_do_not():
    assert check({"a": [1, -4, 2, 1]}, rules(rule(column="a", min_value=0), max_bad_share=0.25)).problems == ()


def test_a_rule_about_the_whole_table_stops_the_run_or_warns():
    mean = "expect_column_mean_to_be_between"
    seen = check({"a": [1, 2]}, rules(rule(mean, column="a", min_value=5)))
    assert seen.problems == (
        'data/raw/sales.parquet: a: rule "column_mean_to_be_between a" failed: observed 1.5. '
        "Fix the export and read it again (evergreen train --refresh), or change the rule under validate.sales.expectations.",
    )
    assert check({"a": [1, 2]}, rules(rule(mean, column="a", min_value=5, severity="warning"))).problems == ()
    count = check({"a": [1, 2]}, rules(rule("expect_table_row_count_to_be_between", min_value=5)))
    assert "observed 2" in count.problems[0]


def test_a_missing_column_is_an_error_and_not_bad_rows():
    seen = check({"quantity": [1, 2]}, rules(rule(column="quantty", min_value=0)))
    assert (seen.counts.quarantined, seen.counts.kept) == (0, 2)
    assert "the table has no column quantty; did you mean quantity?" in seen.problems[0]
    unique = check({"quantity": [1, 2]}, rules(unique=["quantty"]))
    assert "did you mean quantity?" in unique.problems[0]


def test_a_rule_that_does_not_fit_the_type_is_an_error_and_not_bad_rows():
    seen = check({"name": ["a", "b"]}, rules(rule(column="name", min_value=0)))
    assert seen.counts.quarantined == 0
    assert seen.problems[0].startswith(
        'data/raw/sales.parquet: rule "column_values_to_be_between name": cannot be computed, name is String'
    )
    assert ".." not in seen.problems[0]


@pytest.mark.parametrize(
    ("expectation", "says"),
    [
        (rule("expect_column_value_to_be_between", column="a"), f"type = .*: no such expectation; did you mean {BETWEEN}"),
        (rule(column="a", min_valeu=0), "kwargs: min_valeu: unknown argument; did you mean min_value"),
        (rule(column="a"), r"kwargs: min_value and max_value cannot both be None \(expect_column"),
        (rule("expect_column_values_to_be_in_set", column="a"), "kwargs: value_set: field required"),
    ],
)
def test_a_rule_that_is_none_is_refused_before_anything_is_read(tmp_path, expectation, says):
    params = Params.model_validate(
        {
            "project": {"name": "test"},
            "ingest": {"t": {"csv": "nowhere.csv"}},
            "validate": {"t": {"expectations": [rule(column="a", min_value=0), expectation]}},
            "problems": {},
        }
    )
    with pytest.raises(ParamsError, match=f"params.yaml: validate.t.expectations.1.{says}"):
        validate.run(params, None, Layout(tmp_path))


def test_the_same_rule_twice_is_checked_twice():
    seen = check({"a": [-1]}, rules(rule(column="a", min_value=0, name="one"), rule(column="a", min_value=0, name="two")))
    assert seen.quarantined["_rule"].to_list() == ["one; two"]


# A run


def test_a_run_that_stops_writes_its_report_and_leaves_the_good_tables(tmp_path):
    positive = {"expectations": [rule(column="a", min_value=0, name="not below 0")]}
    layout = Layout(tmp_path)
    validate.run(project(tmp_path, {"t": pl.DataFrame({"a": [1]})}, t=positive), None, layout)
    params = project(tmp_path, {"t": pl.DataFrame({"a": [1, -1]}), "u": pl.DataFrame({"b": [float("inf")]})}, t=positive)
    with pytest.raises(
        DataError, match=r't.parquet: a: 1 of 2 rows break "not below 0" .* And 1 more: see reports/validation/results'
    ):
        validate.run(params, None, layout)
    assert pl.read_parquet(layout.table("t"))["a"].to_list() == [1]
    assert not layout.table("u").exists()
    report = read_json(layout.validation / "results.json")
    assert (report["passed"], len(report["problems"])) == (False, 2)
    assert report["tables"]["t"]["quarantined"] == 1
    assert sorted(each.name for each in (tmp_path / "data").iterdir()) == ["quarantine", "raw", "tables"]


def test_without_ingest_the_step_says_what_comes_first(tmp_path):
    params = project(tmp_path, {"t": pl.DataFrame({"a": [1]})})
    shutil.rmtree(Layout(tmp_path).raw("t"))
    with pytest.raises(ProjectError, match=r"data/raw/t.parquet: not there. Run ingest first: python -P -m evergreen ingest"):
        validate.run(params, None, Layout(tmp_path))


def test_a_page_that_cannot_be_drawn_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ValidationResultsPageRenderer, "render", lambda *_: 1 / 0)
    params = project(tmp_path, {"t": pl.DataFrame({"a": [1]})}, t={"expectations": [rule(column="a", min_value=0)]})
    with caplog.at_level(logging.WARNING):
        validate.run(params, None, Layout(tmp_path))
    assert "t: Great Expectations could not render its page: division by zero" in caplog.text
    assert read_json(tmp_path / "reports/validation/results.json")["tables"]["t"]["page"] is None


def test_the_small_store_passes_with_its_dirt_in_quarantine(tmp_path):
    root = store.project(tmp_path / "a store", households=60, weeks=12)
    params, layout = load(root / "params.yaml"), Layout(root)
    ingest.run(params, None, layout)
    result = validate.run(params, None, layout)
    lines, coupons = result.tables["transactions"], result.tables["coupons"]
    assert lines.quarantined > 0
    assert lines.warnings == 1
    assert coupons.duplicates == coupons.read // 21
    quarantined = pl.read_parquet(layout.quarantine("transactions"))
    assert set(quarantined["_rule"]) == {"quantity above 0"}
    assert (quarantined["quantity"] == 0).all()
    report = read_json(root / result.results)["tables"]["transactions"]
    (warning,) = [each for each in report["rules"] if not each["passed"] and each["severity"] == "warning"]
    assert warning["failed"] == pl.read_parquet(layout.raw("transactions")).filter(pl.col("quantity") > 1000).height
    page = (layout.validation / report["page"]).read_text()
    assert "Expectation" in page


def test_the_rules_of_the_worked_example_fit_its_tables(tmp_path):
    """The project's own rules on the small store: each one is computed, and none stops the run but by its share."""
    root = store.project(tmp_path / "store", households=60, weeks=12)
    small, own = load(root / "params.yaml"), load(ROOT / "params.yaml")
    params = small.model_copy(update={"validate_": own.validate_})
    loose = {name: each.model_copy(update={"max_bad_share": 1.0}) for name, each in own.validate_.items()}
    ingest.run(params, None, Layout(root))
    result = validate.run(params.model_copy(update={"validate_": loose}), None, Layout(root))
    assert set(result.tables) == set(own.ingest)
    report = read_json(root / result.results)["tables"]
    assert not [rule for table in report.values() for rule in table["rules"] if rule["problem"]]
    failed = {rule["name"] for rule in report["transactions"]["rules"] if not rule["passed"]}
    assert {"line not empty", "match within coupon", "quantity above 0", "coupon within sales"} <= failed
    assert "week agrees with local time" not in failed
