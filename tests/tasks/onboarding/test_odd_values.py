"""Values that may stand for a missing one are named with the line that makes them missing."""

import re
from datetime import date

import polars as pl
import pytest

from evergreen.tasks.onboarding.odd_values import find_odd_values

AGES = [18, 25, 40, 61, 90] * 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            [*AGES, -999, -999, -999],
            "v: 3 rows hold -999, the lowest value, far outside 18 to 90; .*{v: .'-999'.}",
        ),
        ([*AGES, 999, 999, 999], "v: 3 rows hold 999, the highest value"),
        ([*map(float, AGES), 9999.0, 9999.0, 9999.0], "v: 3 rows hold 9999"),
        ([date(2024, 1, 1), date(9999, 12, 31)], "v: 1 row holds 9999-12-31; .*missing: {v: .'9999-12-31'.}"),
        ([date(2024, 1, 1), date(1, 1, 1)], "v: 1 row holds 0001-01-01"),
    ],
)
def test_a_stand_in_is_named(values, says):
    (line,) = find_odd_values("t", pl.DataFrame({"v": values}).lazy())
    assert re.search(says, line.replace('"', "'"))


@pytest.mark.parametrize(
    "values",
    [
        AGES,
        [*AGES, 99],
        [*AGES, -999],
        [1, 5, 9] * 9,
        [-1, 0, 1] * 9,
        [999, 1000, 1001] * 9,
        ["-999"] * 9,
        [date(1850, 1, 1)] * 3,
    ],
)
def test_values_among_the_others_are_no_stand_ins(values):
    assert not list(find_odd_values("t", pl.DataFrame({"v": values}).lazy()))
