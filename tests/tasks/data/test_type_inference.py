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


def read(
    values: Sequence[str | None], name: str = "c", decimal: Literal[".", ","] = "."
) -> tuple[Source, list[Any], tuple[str, ...]]:
    table = pl.DataFrame({name: values}, schema={name: pl.String}).lazy()
    found = infer_contract(Source(csv="t.csv", decimal=decimal, separator=";"), table)
    rows, _ = convert_types("t", found.source, "csv t.csv", table)
    return found.source, rows.collect()[name].to_list(), found.notes


READINGS: dict[str, tuple[list[str], str, list[Any]]] = {
    "integers": (["1", "2"], "integer", [1, 2]),
    "integers with signs": (["+1", "-2"], "integer", [1, -2]),
    "integers that a gap made floats": (["3067.0", "12.0"], "integer", [3067, 12]),
    "numbers": (["1.5", "2"], "number", [1.5, 2.0]),
    "exponents": (["1e5", "2E-3"], "number", [1e5, 2e-3]),
    "codes with leading zeros": (["01", "02", "10"], "text", ["01", "02", "10"]),
    "codes with a letter": (["1", "2", "2A"] * 9, "text", ["1", "2", "2A"] * 9),
    "codes with one prefix": (["A12", "A15"], "text", ["A12", "A15"]),
    "sizes": (["3XL", "5XL"], "text", ["3XL", "5XL"]),
    "versions": (["1.10", "1.2", "2.0.1"], "text", ["1.10", "1.2", "2.0.1"]),
    "addresses": (["10.0.0.1", "10.0.0.2"], "text", ["10.0.0.1", "10.0.0.2"]),
    "ranges": (["10-20", "20-30"], "text", ["10-20", "20-30"]),
    "phone numbers": (["555-1234", "555-9999"], "text", ["555-1234", "555-9999"]),
    "times of day": (["10:30", "11:45"], "text", ["10:30", "11:45"]),
    "flags": (["True", "false"], "boolean", [True, False]),
    "flags beside a word": (["True", "False", "unknown"], "text", ["True", "False", "unknown"]),
    "yes and no": (["yes", "no"], "text", ["yes", "no"]),
    "dollars": (["$1,234.50", "$3", "-$7.5"], "number", [1234.5, 3.0, -7.5]),
    "euros behind": (["1.234,50 €", "12 €"], "number", [1234.5, 12.0]),
    "Swiss francs": (["CHF 1'234.50", "CHF 9"], "number", [1234.5, 9.0]),
    "thousands": (["1,234,567", "12"], "integer", [1234567, 12]),
    "Indian thousands": (["12,34,567.5", "1"], "number", [1234567.5, 1.0]),
    "French thousands": (["1 234,5", "12"], "number", [1234.5, 12.0]),
    "thin spaces": (["1\u202f234,5", "12"], "number", [1234.5, 12.0]),
    "decimal commas": (["1,5", "2,25"], "number", [1.5, 2.25]),
    "percent": (["5%", "7.5 %"], "number", [5.0, 7.5]),
    "accounting": (["(1,200.50)", "300"], "number", [-1200.5, 300.0]),
    "a sign behind": (["5-", "3"], "integer", [-5, 3]),
    "typographic minus": (["−5", "3"], "integer", [-5, 3]),
    "a unit": (["3 kg", "4.5 kg"], "number", [3.0, 4.5]),
    "degrees": (["5 °C", "-3 °C"], "number", [5.0, -3.0]),
    "two units": (["3 kg", "200 g"], "text", ["3 kg", "200 g"]),
    "two currencies": (["$3", "€5"], "text", ["$3", "€5"]),
    "ISO days": (["2024-01-31", "2024-02-01"], "date", [date(2024, 1, 31), date(2024, 2, 1)]),
    "ISO times": (["2024-01-31T10:00", "2024-02-01 11:30:15.5"], "datetime",
                  [datetime(2024, 1, 31, 10), datetime(2024, 2, 1, 11, 30, 15, 500_000)]),
    "zoned times": (["2024-01-31T10:00:00Z", "2024-01-31T10:00:00+0200"], "datetime",
                    [datetime(2024, 1, 31, 10), datetime(2024, 1, 31, 8)]),
    "German days": (["31.01.2024", "1.2.2024"], "date", [date(2024, 1, 31), date(2024, 2, 1)]),
    "two-digit years": (["31.01.24", "01.02.99"], "date", [date(2024, 1, 31), date(1999, 2, 1)]),
    "American days": (["01/31/2024", "02/01/2024"], "date", [date(2024, 1, 31), date(2024, 2, 1)]),
    "British days": (["31/01/2024", "01/02/2024"], "date", [date(2024, 1, 31), date(2024, 2, 1)]),
    "AM and PM": (["Jan 5, 2024 3:04 PM", "Feb 6, 2024 11:00 AM"], "datetime",
                  [datetime(2024, 1, 5, 15, 4), datetime(2024, 2, 6, 11)]),
    "names of days": (["Mon, 05 Feb 2024", "Tue, 06 Feb 2024"], "date", [date(2024, 2, 5), date(2024, 2, 6)]),
    "months": (["2024-01", "2024-12"], "date", [date(2024, 1, 1), date(2024, 12, 1)]),
    "named months": (["Jan 2024", "Dec 2024"], "date", [date(2024, 1, 1), date(2024, 12, 1)]),
    "quarters": (["2024-Q1", "2024-Q4"], "date", [date(2024, 1, 1), date(2024, 10, 1)]),
    "two formats": (["2024-01-31", "31.01.2024"], "date", [date(2024, 1, 31), date(2024, 1, 31)]),
    "years": (["2019", "2020", "2021"], "integer", [2019, 2020, 2021]),
    "words": (["red", "blue"], "text", ["red", "blue"]),
    "days as integers": (["20240131", "20240201", "20240315"], "date",
                         [date(2024, 1, 31), date(2024, 2, 1), date(2024, 3, 15)]),
    "milliseconds": (["1700000000000", "1700000060000", "1700000120000"], "datetime",
                     [datetime(2023, 11, 14, 22, minute, 20) for minute in (13, 14, 15)]),
}  # fmt: skip


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
        f"c: is a {kind} but for 'see note' (rows: about 1), which count as missing; to keep them, set its type to text",
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
