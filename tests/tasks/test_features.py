"""Point-in-time features: every function by hand, every bound, and nothing after the cutoff."""

import doctest
import math
import re
import statistics
from datetime import date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evergreen.tasks import features, problems
from evergreen.tasks.config import loading
from evergreen.tasks.config.params import Features
from evergreen.tasks.core.errors import DataError, LeakError, ParamsError, SourceError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.problems.tabular import entity_partitions
from evergreen.tasks.problems.tabular import point_in_time as point_in_time_module
from evergreen.tasks.problems.tabular.point_in_time import list_cutoffs, point_in_time
from tests import store

D0 = date(2024, 1, 1)
"""Day 0 of the tables below."""
TIMES = {"sales": "at", "goods": None, "people": None, "invitations": None, "offers": "begins", "joined": "at"}
FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "n_unique", "days_since_last", "days_since_first")


def day(number: int) -> date:
    return D0 + timedelta(days=number)


def sales(*rows: tuple) -> pl.LazyFrame:
    """Events (person, day number, amount, item); the last minute of the day still belongs to it."""
    columns = {"person": pl.Int64, "number": pl.Int64, "amount": pl.Float64, "item": pl.String}
    frame = pl.LazyFrame(list(rows), schema=columns, orient="row")
    at = pl.lit(datetime(2024, 1, 1, 23, 59)) + pl.duration(days="number")
    return frame.with_columns(at=at).drop("number")


def section(**parts) -> Features:
    """Cutoffs at day 10 (labelled) and 15 (as_of) with horizon 5 unless told otherwise."""
    base = {"entity": "person", "horizon_days": 5, "cutoffs": {"first": str(day(10)), "every_days": 7}, "windows_days": [3]}
    return Features.model_validate(base | parts)


def build(tables: dict[str, pl.LazyFrame], as_of: int = 15, **parts) -> pl.DataFrame:
    return point_in_time(tables, TIMES, section(**parts), day(as_of))


def at(rows: pl.DataFrame, cutoff: int, person: int) -> dict:
    return rows.row(by_predicate=(pl.col("cutoff") == day(cutoff)) & (pl.col("person") == person), named=True)


def aggregate(function: str, **parts) -> dict:
    column = {} if function == "count" or function.startswith("days") else {"column": "amount"}
    return {"name": function, "table": "sales", "function": function} | column | parts


# Windows and functions


def test_every_function_by_hand():
    table = sales((1, 5, 100.0, "a"), (1, 8, 2.0, "a"), (1, 9, 4.0, "b"), (1, 9, 4.0, "b"), (1, 10, 6.0, "a"), (2, 9, 5.0, "c"))
    rows = build({"sales": table}, aggregates=[aggregate(each) for each in FUNCTIONS])
    found = at(rows, 10, 1)
    assert {name: found[name] for name in found if name not in ("person", "cutoff", "target")} == pytest.approx(
        {
            "count_3d": 4, "sum_3d": 16, "mean_3d": 4, "min_3d": 2, "max_3d": 6, "std_3d": statistics.stdev([2, 4, 4, 6]),
            "n_unique_3d": 3, "days_since_last": 0, "days_since_first": 5,
        }
    )  # fmt: skip
    assert at(rows, 10, 2)["std_3d"] is None
    assert at(rows, 10, 2)["days_since_last"] == 1
    assert rows.schema["count_3d"] == pl.Float64


def test_without_events_counts_and_sums_are_zero_and_the_rest_is_missing():
    rows = build({"sales": sales((1, 2, 5.0, "a"))}, aggregates=[aggregate(each, where="amount > 9") for each in FUNCTIONS])
    found = at(rows, 10, 1)
    assert [found[name] for name in ("count_3d", "sum_3d", "n_unique_3d")] == [0, 0, 0]
    assert [found[name] for name in ("mean_3d", "min_3d", "max_3d", "std_3d", "days_since_last", "days_since_first")] == [
        None
    ] * 6


@pytest.mark.parametrize(("number", "counted"), [(7, 0), (8, 1), (10, 1), (11, 0)])
def test_a_window_of_three_days_is_the_cutoff_day_and_the_two_before_it(number, counted):
    rows = build({"sales": sales((1, 1, 1.0, "a"), (1, number, 1.0, "a"))}, aggregates=[aggregate("count")])
    assert at(rows, 10, 1)["count_3d"] == counted


@pytest.mark.parametrize(("number", "label"), [(10, 0), (11, 1), (15, 1)])
def test_a_label_is_the_days_one_to_horizon_after_the_cutoff(number, label):
    table = sales((1, 9, 1.0, "a"), (2, 9, 1.0, "a"), (2, 9 if label else 11, 1.0, "a"), (1, number, 1.0, "a"))
    rows = build({"sales": table}, target={"table": "sales", "function": "any"})
    assert at(rows, 10, 1)["target"] == label


def test_a_label_ends_with_the_horizon():
    table = sales((1, 9, 1.0, "a"), (2, 9, 1.0, "a"), (1, 16, 1.0, "a"), (2, 15, 1.0, "a"))
    rows = build({"sales": table}, as_of=22, target={"table": "sales", "function": "any"})
    assert rows.filter(pl.col("cutoff") == day(10))["target"].to_list() == [0, 1]


@pytest.mark.parametrize(("function", "answers"), [("any", [1, 0]), ("none", [0, 1]), ("sum", [7, 0]), ("count", [2, 0])])
def test_targets_by_hand(function, answers):
    table = sales((1, 9, 9.0, "a"), (2, 9, 9.0, "a"), (1, 11, 3.0, "a"), (1, 12, 4.0, "a"), (2, 12, 4.0, "z"))
    target = {"table": "sales", "function": function, "where": "item <> 'z'"} | (
        {"column": "amount"} if function == "sum" else {}
    )
    rows = build({"sales": table}, target=target)
    assert rows.filter(pl.col("cutoff") == day(10))["target"].to_list() == answers
    assert rows.filter(pl.col("cutoff") == day(15))["target"].to_list() == [None, None]


def test_cutoffs_count_from_the_first_to_the_last_complete_label_and_end_with_as_of():
    assert list_cutoffs(section(), day(28)) == [day(10), day(17), day(28)]
    assert list_cutoffs(section(), day(29)) == [day(10), day(17), day(24), day(29)]
    assert list_cutoffs(section(), day(15)) == [day(10), day(15)]


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(point_in_time_module).failed == 0


def test_rows_are_sorted_by_cutoff_and_entity_and_unique():
    rows = build({"sales": sales((3, 9, 1.0, "a"), (1, 9, 1.0, "a"), (2, 14, 1.0, "a"), (1, 10, 1.0, "a"))})
    assert rows.select("cutoff", "person").rows() == [(day(10), 1), (day(10), 3), (day(15), 1), (day(15), 2), (day(15), 3)]
    assert rows.schema["target"] == pl.Float64


def test_only_the_population_gets_rows():
    table = sales((1, 1, 1.0, "a"), (2, 7, 1.0, "a"), (3, 6, 1.0, "a"), (4, 12, 1.0, "a"))
    rows = build({"sales": table}, population={"table": "sales", "within_days": 4})
    assert rows.filter(pl.col("cutoff") == day(10))["person"].to_list() == [2]
    assert rows.filter(pl.col("cutoff") == day(15))["person"].to_list() == [4]


@st.composite
def histories(draw):
    row = st.tuples(st.integers(1, 3), st.integers(0, 24), st.integers(-5, 9).map(float), st.sampled_from("abcd"))
    return [(1, 1, 1.0, "a"), (2, 3, 2.0, "b"), (1, 8, 3.0, "b"), *draw(st.lists(row, min_size=1, max_size=40))]


BY_HAND = {
    "count": len, "sum": sum, "mean": statistics.fmean, "min": min, "max": max, "n_unique": lambda values: len(set(values)),
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else None,
}  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(histories(), st.sampled_from(["amount > 0", "amount > 0 and cutoff is not null"]))
def test_any_history_gives_what_looking_at_each_row_gives(history, condition):
    chosen = [aggregate(each, where=condition, windows_days=[2, 9]) for each in BY_HAND]
    rows = build({"sales": sales(*history)}, as_of=24, aggregates=chosen, cutoffs={"first": str(day(4)), "every_days": 3})
    for row in rows.iter_rows(named=True):
        for window in (2, 9):
            ages = [((row["cutoff"] - day(number)).days, person, amount) for person, number, amount, _ in history]
            values = [amount for age, person, amount in ages if person == row["person"] and 0 <= age < window and amount > 0]
            for function, compute in BY_HAND.items():
                expected = compute(values) if values else 0 if function in ("count", "sum", "n_unique") else None
                assert row[f"{function}_{window}d"] == (None if expected is None else pytest.approx(expected)), (row, function)


# Nothing after the cutoff

LEAKY = {
    "aggregates": [
        *(aggregate(each, windows_days=[3, 9] if not each.startswith("days") else None) for each in FUNCTIONS),
        {"name": "late", "table": "sales", "where": "amount > 0 and at <= cutoff"},
        {"name": "dear", "table": "sales", "join": ["goods", "item"], "where": "price > 1"},
        {"name": "offers", "table": "invitations", "join": ["offers", "offer"], "where": "ends > cutoff", "windows_days": [20]},
    ],
    "ratios": [{"name": "each", "numerator": "sum_3d", "denominator": "count_3d"}],
    "shares": [{"name": "share", "table": "sales", "category": "item", "value": "amount", "top": 2, "window_days": 9}],
    "calendar": ["month", "week_of_year", "day_of_year"],
    "attributes": [{"table": "people", "columns": ["age", "town"]}],
    "cutoffs": {"first": str(day(6)), "every_days": 4},
}
GOODS = pl.LazyFrame({"item": ["a", "b", "c"], "price": [1.0, 2.0, 3.0]})
PEOPLE = pl.LazyFrame({"person": [1, 3], "age": [40, 50], "town": ["Oslo", None]})


def leaky_tables(history, begins=(2, 5, 12)) -> dict[str, pl.LazyFrame]:
    offers = {"offer": [1, 2, 3], "begins": [day(each) for each in begins], "ends": [day(each + 6) for each in begins]}
    invitations = pl.LazyFrame({"person": [1, 1, 2, 3], "offer": [1, 2, 2, 3]})
    return {
        "sales": sales(*history),
        "goods": GOODS,
        "people": PEOPLE,
        "invitations": invitations,
        "offers": pl.LazyFrame(offers),
    }


@settings(max_examples=12, deadline=None)
@given(histories(), st.randoms(use_true_random=False), st.sampled_from([6, 10, 14, 18]))
def test_moving_future_events_changes_no_feature(history, random, cutoff):
    moved = [row for row in history if row[1] <= cutoff]
    for person, number, amount, _ in history:
        if number > cutoff and random.random() < 0.8:
            moved.append((person, random.randint(cutoff + 1, 24), amount + random.randint(0, 9), random.choice("abcz")))
    moved.append((random.randint(1, 4), cutoff + 1, 1000.0, "z"))
    tables = leaky_tables(history), leaky_tables(moved, begins=(2, 5, 12 if cutoff >= 12 else 24))
    before, after = (build(each, as_of=24, **LEAKY).filter(pl.col("cutoff") <= day(cutoff)) for each in tables)
    assert before["cutoff"].max() == day(cutoff)
    assert_frame_equal(before, after)


def test_the_largest_categories_are_those_before_the_first_cutoff():
    table = sales((1, 9, 5.0, "a"), (1, 9, 3.0, "b"), (1, 9, 1.0, "c"), (1, 14, 999.0, "d"))
    share = {"name": "share", "table": "sales", "category": "item", "value": "amount", "top": 2, "window_days": 9}
    rows = build({"sales": table}, shares=[share])
    assert rows.columns[3:] == ["share_a", "share_b"]
    assert [at(rows, 10, 1)[name] for name in ("share_a", "share_b")] == pytest.approx([5 / 9, 3 / 9])


def test_shares_of_nothing_are_missing():
    share = {"name": "share", "table": "sales", "category": "item", "value": "amount", "window_days": 2}
    assert at(build({"sales": sales((1, 5, 2.0, "a"))}, shares=[share]), 10, 1)["share_a"] is None


@pytest.mark.parametrize(
    "condition",
    ["amount > avg(amount)", "count(*) > 1", "sum(amount) over (partition by item) > 1", "amount > max(amount) - 1"],
)
def test_a_condition_on_other_events_is_a_leak(condition):
    with pytest.raises(
        LeakError, match=r"features.aggregates.count.where = .*: looks at other events, also those after the cutoff"
    ):
        build({"sales": sales((1, 9, 1.0, "a"))}, aggregates=[aggregate("count", where=condition)])


@pytest.mark.parametrize(
    "condition",
    ["upper(item) = 'A'", "item in ('a', 'b')", "amount between 0.5 and 2", "item like 'a%'", "extract(year from at) = 2024",
     "not (abs(amount) > 9)", "coalesce(amount, 0) > 0", "case when amount > 0 then true else false end"],
)  # fmt: skip
def test_a_condition_on_one_event_is_taken(condition):
    rows = build({"sales": sales((1, 9, 1.0, "a"))}, aggregates=[aggregate("count", where=condition)])
    assert at(rows, 10, 1)["count_3d"] == 1


def test_facts_younger_than_a_cutoff_are_a_leak():
    joined = pl.LazyFrame({"person": [1], "level": [3], "at": [day(12)]})
    tables = {"sales": sales((1, 9, 1.0, "a")), "joined": joined}
    message = rf"feature level uses rows of joined from after cutoff {day(10)} \(latest {day(12)}\)"
    with pytest.raises(LeakError, match=message):
        build(tables, population={"table": "sales", "within_days": 9}, attributes=[{"table": "joined", "columns": ["level"]}])


def test_facts_older_than_every_cutoff_are_joined():
    tables = {"sales": sales((1, 9, 1.0, "a")), "joined": pl.LazyFrame({"person": [1], "level": [3], "at": [day(10)]})}
    rows = build(
        tables, population={"table": "sales", "within_days": 9}, attributes=[{"table": "joined", "columns": ["level"]}]
    )
    assert rows["level"].to_list() == [3.0, 3.0]


# Joins, ratios, calendar, attributes, keep


def test_a_joined_table_gives_the_day_on_which_an_event_was_known():
    chosen = [
        {"name": "invited", "table": "invitations", "join": ["offers", "offer"], "windows_days": [9]},
        {
            "name": "running",
            "table": "invitations",
            "join": ["offers", "offer"],
            "windows_days": [20],
            "where": "ends > cutoff",
        },
    ]
    rows = build(leaky_tables([(person, 9, 1.0, "a") for person in (1, 2, 3)]), as_of=15, aggregates=chosen)
    # offers begin on days 2, 5, 12 and end on days 8, 11, 18
    assert [at(rows, 10, person)["invited_9d"] for person in (1, 2, 3)] == [2, 1, 0]
    assert [at(rows, 10, person)["running_20d"] for person in (1, 2, 3)] == [1, 1, 0]
    assert [at(rows, 15, person)["running_20d"] for person in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize(("sold", "begins", "counted"), [(9, 5, 1), (5, 9, 1), (9, 12, 0), (12, 5, 0)])
def test_an_event_joined_to_dated_facts_counts_once_both_are_known(sold, begins, counted):
    offers = pl.LazyFrame({"item": ["a"], "begins": [day(begins)]})
    tables = {"sales": sales((1, 1, 1.0, "b"), (1, sold, 1.0, "a")), "offers": offers}
    rows = build(tables, as_of=15, aggregates=[aggregate("count", join=["offers", "item"])])
    assert at(rows, 10, 1)["count_3d"] == counted


def test_an_unknown_item_keeps_its_event_and_an_unknown_person_gets_no_facts():
    tables = {"sales": sales((2, 9, 1.0, "unheard of")), "goods": GOODS, "people": PEOPLE}
    chosen = [
        aggregate("count", join=["goods", "item"]),
        aggregate("count", name="dear", join=["goods", "item"], where="price > 1"),
    ]
    found = at(build(tables, aggregates=chosen, attributes=[{"table": "people", "columns": ["age", "town"]}]), 10, 2)
    assert (found["count_3d"], found["dear_3d"], found["age"], found["town"]) == (1, 0, None, None)


def test_a_person_who_is_only_in_the_target_gets_no_row():
    tables = {"sales": sales((1, 9, 1.0, "a"), (2, 9, 1.0, "a"), (2, 11, 1.0, "a"), (9, 12, 1.0, "a"))}
    rows = build(tables, population={"table": "sales", "within_days": 5}, target={"table": "sales", "function": "any"})
    assert rows.filter(pl.col("cutoff") == day(10))["person"].to_list() == [1, 2]


def test_keys_of_another_integer_width_and_text_keys_match():
    people = PEOPLE.with_columns(pl.col("person").cast(pl.Int16))
    facts = [{"table": "people", "columns": ["age"]}]
    assert at(build({"sales": sales((1, 9, 1.0, "a")), "people": people}, attributes=facts), 10, 1)["age"] == 40
    text = {"sales": sales((1, 9, 1.0, "a")), "people": PEOPLE}
    text = {name: frame.with_columns(pl.col("person").cast(pl.String)) for name, frame in text.items()}
    assert build(text, attributes=facts)["age"].to_list() == [40, 40]


def test_ratios_divide_by_a_feature_or_a_number_and_nothing_by_zero():
    ratios = [
        {"name": "each", "numerator": "sum_3d", "denominator": "count_3d"},
        {"name": "half", "numerator": "sum_3d", "denominator": 2},
        {"name": "quarter", "numerator": "half", "denominator": 2},
    ]
    rows = build(
        {"sales": sales((1, 9, 3.0, "a"), (1, 9, 5.0, "a"))}, aggregates=[aggregate("sum"), aggregate("count")], ratios=ratios
    )
    assert [at(rows, 10, 1)[name] for name in ("each", "half", "quarter")] == [4, 4, 2]
    assert [at(rows, 15, 1)[name] for name in ("each", "half")] == [None, 0]


def test_calendar_facts_come_round():
    rows = build({"sales": sales((1, 9, 3.0, "a"))}, calendar=["month", "day_of_year", "week_of_year"])
    found = at(rows, 10, 1)
    assert found["month"] == 1
    assert found["day_of_year_sin"] == pytest.approx(math.sin(2 * math.pi * 11 / 365.2425))
    assert found["week_of_year_cos"] == pytest.approx(math.cos(2 * math.pi * 2 / 52.1775))


def test_keep_chooses_and_orders():
    rows = build({"sales": sales((1, 9, 3.0, "a"))}, aggregates=[aggregate("sum"), aggregate("count")], keep=["count_3d"])
    assert rows.columns == ["person", "cutoff", "target", "count_3d"]


# What cannot be

ONE = {"sales": sales((1, 9, 1.0, "a"), (2, 9, 1.0, "a"), (1, 12, 1.0, "a")), "goods": GOODS, "people": PEOPLE}
AGES = [{"table": "people", "columns": ["age"]}]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"entity": "persn"}, "features.entity = persn: no such column in sales; did you mean person"),
        ({"aggregates": [aggregate("sum", column="amont")]},
         r"features.aggregates.sum.column = amont: no such column in sales; did you mean amount\?"),
        ({"aggregates": [aggregate("sum", column="item")]}, "= item: is String in sales; numbers are needed"),
        ({"aggregates": [aggregate("count", where="amount >")]}, "where = amount >: is no SQL condition: unable to parse"),
        ({"aggregates": [aggregate("count", where="amont > 0")]}, "count.where = amont: no such column in sales; did you mean"),
        ({"aggregates": [aggregate("count", where="amount > 'x'")]}, "does not fit the columns: cannot compare string with"),
        ({"aggregates": [aggregate("count", where="amount")]}, "gives Float64; a condition gives true or false"),
        ({"aggregates": [aggregate("count", join=["goods", "itm"])]}, "join of sales with goods = itm: no such column"),
        ({"aggregates": [aggregate("sum"), aggregate("sum")]}, "features: sum_3d: 2 features have this name .*rename"),
        ({"aggregates": [aggregate("days_since_last", name="target")]}, "target: 2 features have this name"),
        ({"aggregates": [{"name": "facts", "table": "people"}]}, "ingest.people.time: is missing, .*; name the column"),
        ({"aggregates": [aggregate("sum")], "ratios": [{"name": "r", "numerator": "sum_4d", "denominator": 2}]},
         r"features.ratios.r.numerator = sum_4d: no such feature before it; did you mean sum_3d\?"),
        ({"aggregates": [aggregate("sum")], "keep": ["sum_7d"]}, "features.keep = sum_7d: no such feature; did you mean"),
        ({"shares": [{"name": "s", "table": "sales", "category": "itme", "value": "amount"}]},
         "features.shares.s.category = itme: no such column in sales; did you mean item"),
        ({"attributes": [{"table": "people", "columns": ["agee"]}]}, "attributes.people = agee: no such column in people"),
        ({"target": {"table": "sales", "function": "sum", "column": "item"}}, "features.target.column = item: is String"),
    ],
)  # fmt: skip
def test_what_params_cannot_mean_is_refused(parts, message):
    with pytest.raises(ParamsError, match=message):
        build(ONE, **({"population": {"table": "sales", "within_days": 9}} | parts))


@pytest.mark.parametrize(
    ("tables", "parts", "message"),
    [
        ({}, {"cutoffs": {"first": str(day(11))}},
         f"no cutoff from {day(11)} on has a complete label: .* Set cutoffs.first to {day(10)} or earlier"),
        ({}, {"population": {"table": "sales", "within_days": 1}}, "no person has an event in sales in the 1 days up to"),
        ({}, {"target": {"table": "sales", "function": "any", "where": "amount > 7"}},
         "target: any of sales is 0 on all 2 labelled rows, so there is nothing to learn"),
        ({"sales": sales((1, 9, 1.0, "a"), (1, 12, 1.0, "a"))}, {"target": {"table": "sales", "function": "any"}},
         "target: any of sales is 1 on all 1 labelled rows"),
        ({"people": PEOPLE.with_columns(pl.col("person").cast(pl.String))}, {"attributes": AGES},
         "person: is integer in sales and text in people, .*; set ingest.people.types.person to integer"),
        ({"people": pl.concat([PEOPLE, PEOPLE])}, {"attributes": AGES},
         r"data/tables/people.parquet: person: 2 values stand in several rows \(first 1\)"),
        ({"goods": pl.concat([GOODS, GOODS])}, {"aggregates": [aggregate("count", join=["goods", "item"])]},
         "goods.parquet: item: 3 values stand in several rows"),
        ({}, {"shares": [{"name": "s", "table": "sales", "category": "item", "value": "amount"}],
              "cutoffs": {"first": str(day(1)), "every_days": 1}}, f"shares.s: sales has no item up to cutoff {day(1)}"),
        ({"sales": sales()}, {}, "population: no person has an event in sales before any of 1 cutoffs"),
    ],
)  # fmt: skip
def test_data_that_cannot_give_rows_or_labels_stops_the_run(tables, parts, message):
    with pytest.raises(DataError, match=message):
        build(ONE | tables, **parts)


def test_a_time_column_that_is_text_is_refused():
    table = ONE["sales"].with_columns(pl.col("at").cast(pl.String))
    with pytest.raises(ParamsError, match=r"ingest.sales.time = at: is String, no time; set ingest.sales.types.at to datetime"):
        build({"sales": table})


# The step


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Layout:
    """The small store as a project whose tables count as checked."""
    layout = Layout(store.project(tmp_path_factory.mktemp("store"), households=60, weeks=20))
    store.make(layout.table("transactions").parent, households=60, weeks=20)
    return layout


@pytest.mark.parametrize("problem", ["redeem", "spend", "segments"])
def test_the_step_writes_two_folders_of_rows_and_returns_paths_and_numbers(project, problem):
    known = loading.load(project.params)
    result = features.run(known, problem, project)
    folders = project.features(problem), project.newest(problem)
    rows, newest = (pl.read_parquet(folder / "rows.parquet") for folder in folders)
    assert (result.folder, result.rows, result.as_of) == (
        str(project.features(problem)),
        {"rows": rows.height, "newest": newest.height},
        store.last_day(20),
    )
    assert [each.name for folder in folders for each in folder.iterdir()] == ["rows.parquet"] * 2
    assert not pl.concat([rows, newest]).select("household_id", "cutoff").is_duplicated().any()
    assert newest["cutoff"].unique().to_list() == [store.last_day(20)]
    last = store.last_day(20) - timedelta(days=known.section(problem).features.horizon_days)
    assert last - timedelta(days=28) < rows["cutoff"].max() <= last


def test_the_same_data_give_the_same_bytes(project):
    known = loading.load(project.params)
    made = []
    for _ in range(2):
        features.run(known, "spend", project)
        made.append((project.features("spend") / "rows.parquet").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("problem", ["redeem", "spend", "segments"])
def test_any_number_of_parts_gives_the_same_bytes(project, problem, monkeypatch):
    known, path = loading.load(project.params), project.features(problem) / "rows.parquet"
    made = set()
    for number in (1, 2, 7):
        monkeypatch.setattr(entity_partitions, "count", lambda events, number=number: number)
        features.run(known, problem, project)
        made.add(path.read_bytes())
    assert len(made) == 1


def test_events_too_old_for_every_window_are_left_out_and_change_no_row(project, monkeypatch):
    known = loading.load(project.params)
    features.run(known, "redeem", project)
    whole = pl.read_parquet(project.features("redeem") / "rows.parquet")
    left: list[tuple[int, int]] = []
    counted, listed = point_in_time_module._counted, point_in_time_module.list_cutoffs

    def counting(events, measures, cutoffs):
        found = counted(events, measures, cutoffs)
        left.append(tuple(each.select(pl.len()).collect().item() for each in (events, found)))
        return found

    monkeypatch.setattr(point_in_time_module, "_counted", counting)
    monkeypatch.setattr(point_in_time_module, "list_cutoffs", lambda section, as_of: listed(section, as_of)[-2:])
    features.run(known, "redeem", project)
    newest = pl.read_parquet(project.features("redeem") / "rows.parquet")
    assert newest.equals(whole.filter(pl.col("cutoff") >= newest["cutoff"].min()))
    assert any(kept < given for given, kept in left)


def test_parts_follow_from_the_memory_that_one_may_take(project, monkeypatch, caplog):
    assert entity_partitions.count(0) == 1
    assert entity_partitions.count(4_000_000) == 1
    assert entity_partitions.count(20_000_000) == 5
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "1")
    with caplog.at_level("INFO"):
        features.run(loading.load(project.params), "spend", project)
    parts = [each.message for each in caplog.records if each.message.startswith("part ")]
    assert len(parts) > 1
    assert re.fullmatch(rf"part 1 of {len(parts)}: \d+ rows, peak memory \d+ MB", parts[0])


def test_an_entity_with_half_of_the_events_is_named_once_and_the_rows_stay_the_same(monkeypatch, caplog):
    rows = [(7 if place % 2 else place, place % 16, float(place), f"i{place % 5}") for place in range(12_000)]
    wanted = {"aggregates": [aggregate("sum"), aggregate("std"), aggregate("n_unique")]}
    tables = {"sales": sales(*rows)}
    population = {"population": {"table": "sales", "within_days": 9}}
    whole = build(tables, **wanted, **population)
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", "1")
    with caplog.at_level("INFO"):
        assert build(tables, **wanted, **population).equals(whole)
    (told,) = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert told.startswith(
        "person = 7: has 6,000 of 12,000 events, for which its part takes about 1 MB, more than EVERGREEN_MEMORY_MB = 1. An "
    )
    assert len([each for each in caplog.records if each.message.startswith("part ")]) == 3


@pytest.mark.parametrize("value", ["much", "0", "-5", "nan", "inf"])
def test_memory_that_is_no_number_of_megabytes_is_refused(value, monkeypatch):
    monkeypatch.setenv("EVERGREEN_MEMORY_MB", value)
    with pytest.raises(
        ParamsError, match=rf"EVERGREEN_MEMORY_MB = {value}: is no number of megabytes from 1 on; .* or unset it"
    ):
        entity_partitions.count(10)


def test_a_run_that_fails_leaves_the_old_features_and_names_the_problem(project):
    known = loading.load(project.params)
    features.run(known, "spend", project)
    before = (project.features("spend") / "rows.parquet").read_bytes()
    part = known.section("spend")
    for changed, error, message in [
        (
            {"column": "sale_value"},
            ParamsError,
            r"params.yaml: spend.features.target.column = sale_value: .* mean sales_value\?",
        ),
        ({"where": "quantity < -9"}, DataError, "spend: target: sum of transactions is 0 on all"),
    ]:
        target = part.features.target.model_copy(update=changed)
        wrong = part.model_copy(update={"features": part.features.model_copy(update={"target": target})})
        with pytest.raises(error, match=message):
            features.run(known.model_copy(update={"sections": {"spend": wrong}}), "spend", project)
    assert (project.features("spend") / "rows.parquet").read_bytes() == before
    assert [each.name for each in project.features("spend").parent.iterdir() if each.name.startswith(".")] == []


def test_a_missing_table_says_which_step_makes_it(tmp_path):
    layout = Layout(store.project(tmp_path, households=20, weeks=20))
    with pytest.raises(SourceError, match=r"data/tables/transactions.parquet: is missing. Run the steps before this one"):
        features.run(loading.load(layout.params), "spend", layout)


def test_the_rows_of_one_cutoff_are_read_alone(project):
    known = loading.load(project.params)
    features.run(known, "redeem", project)
    kind, section, folder = problems.kind("classification"), known.section("redeem"), project.features("redeem")
    whole = kind.load(folder, section)
    days = kind.days(folder)
    assert days == whole.cutoff.unique().sort().to_list()
    alone, wanted = kind.load_at(folder, section, days[-1]), whole.at([days[-1]])
    assert alone.entity.equals(wanted.entity)
    assert alone.target.equals(wanted.target)
    assert alone.features.equals(wanted.features.reset_index(drop=True))
