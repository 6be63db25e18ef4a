"""A text column has the type, format and missing strings that its values show."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.tasks.config.params import Source
from evergreen.tasks.data.conversion import convert_types
from evergreen.tasks.data.type_inference import guess, infer_contract
from tests.corpus.readings import READINGS


def read(
    values: Sequence[str | None], name: str = "c", decimal: Literal[".", ","] = "."
) -> tuple[Source, list[Any], tuple[str, ...]]:
    table = pl.DataFrame({name: values}, schema={name: pl.String}).lazy()
    found = infer_contract(Source(csv="t.csv", decimal=decimal, separator=";"), table)
    rows, _ = convert_types("t", found.source, "csv t.csv", table)
    return found.source, rows.collect()[name].to_list(), found.notes


@pytest.mark.parametrize(("values", "kind", "found"), READINGS.values(), ids=READINGS.keys())
def test_a_column_is_read_as_people_mean_it(values, kind, found):
    source, rows, _ = read(values)
    assert (source.types["c"], rows) == (kind, found)


NAMED = {
    "order_date": (["45000", "45001", "45010"], "date", date(2023, 3, 15)),
    "created_at": (["1700000000", "1700000060", "1700000120"], "datetime", datetime(2023, 11, 14, 22, 13, 20)),
    "month": (["202401", "202402", "202403"], "date", date(2024, 1, 1)),
}


@pytest.mark.parametrize(("name", "values", "kind", "first"), [(name, *each) for name, each in NAMED.items()])
def test_integers_that_may_be_anything_are_dates_by_their_name_alone(name, values, kind, first):
    source, rows, notes = read(values, name)
    assert (source.types[name], rows[0]) == (kind, first)
    assert "its integers are read as dates" in notes[0]
    assert read(values, "quantity")[0].types["quantity"] == "integer"


@pytest.mark.parametrize(
    ("good", "kind"),
    [([str(each) for each in range(99)], "integer"), ([f"2024-01-{each % 28 + 1:02}" for each in range(99)], "date")],
)
def test_a_few_strings_that_are_none_are_named_counted_and_missing(good, kind):
    source, rows, notes = read([*good, "see note"])
    assert (source.types["c"], source.missing["c"], rows[-1]) == (kind, ("see note",), None)
    assert notes == (
        f"c: has type {kind} but for 'see note' (rows: about 1), which count as missing; to keep them, set its type to text",
    )
    source, rows, _ = read([*good, *["see note"] * 10])
    assert (source.types["c"], rows[-1]) == ("text", "see note")


def test_common_strings_for_missing_values_are_missing_in_numbers_and_levels_in_words():
    source, rows, notes = read(["1", "2", "-", "?"])
    assert (source.types["c"], source.null_values, source.missing, rows) == (
        "integer",
        ("?",),
        {"c": ("-",)},
        [1, 2, None, None],
    )
    assert not notes
    source, rows, _ = read(["red", "-", "None"])
    assert rows == ["red", "-", "None"]


def test_integers_beyond_64_bits_are_an_identifier_or_a_rounded_number_and_said_so():
    huge = [str(10**20 + each) for each in range(50)]
    source, rows, notes = read(huge)
    assert (source.types["c"], rows[0], notes) == ("text", huge[0], ("c: whole numbers beyond 64 bits are kept as text",))
    source, rows, notes = read(huge[:2] * 25)
    assert (source.types["c"], rows[0]) == ("number", 1e20)
    assert "rounded to 15 digits" in notes[0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["01/02/2024", "03/04/2024"], "is read by %m/%d/%Y; %d/%m/%Y fits as well"),
        (["1,234", "2,345"], "1,234 is read as 1234; if that is wrong, set its number_formats"),
        (["13/01/2024", "01/13/2024"], "formats .* contradict each other; kept as text"),
    ],
)
def test_what_can_be_read_in_two_ways_is_said(values, says):
    (note,) = read(values)[2]
    assert re.search(says, note)


def test_the_decimal_mark_of_the_file_decides_where_both_fit():
    assert read(["1,234", "2,345"], decimal=",")[1] == [1.234, 2.345]


def test_a_value_in_any_row_decides():
    values = [*["7"] * 30_000, "07"]
    values[15_001] = "8.5"
    assert read(values[:-1])[0].types["c"] == "number"
    assert read(values)[1][-1] == "07"


@pytest.mark.parametrize(("values", "found"), [(["1.234,5."], ["1.234,5."]), (["7'"], ["7'"]), (["1,", "2,5"], [1.0, 2.5])])
def test_marks_behind_a_number_are_no_unit(values, found):
    assert read(values)[1] == found


TOKENS = st.text("0123456789.,-+/:%$€ aAeETZ", max_size=12)


@given(st.lists(TOKENS, min_size=1, max_size=30))
def test_any_text_is_read_without_an_error_and_nothing_but_named_strings_is_lost(values):
    source, rows, _ = read(list(values))
    missing = {"", *source.null_values, *source.missing.get("c", ())}
    assert [each is None for each in rows] == [value.strip() in missing for value in values]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_that_a_program_wrote_come_back(values):
    assert [float(each) for each in read([repr(each) for each in values])[1]] == values


def test_a_guess_needs_no_rows():
    assert guess("c", Counter()).type == "text"
