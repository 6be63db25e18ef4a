"""The space of a search."""

import pytest

from evergreen.tasks.config.params import Range
from evergreen.tasks.search.space import check_ranges, points


def test_points_of_a_logarithmic_interval_are_evenly_spaced_on_its_scale() -> None:
    assert points(Range(low=0.01, high=100, log=True), 3) == pytest.approx([0.01, 1.0, 100])
    assert points(Range(low=1, high=3, integer=True), 9) == [1, 2, 3]


def test_a_range_stays_integer_where_the_hyper_parameter_is() -> None:
    kept = check_ranges({"n": Range(low=2, high=4)}, {"n": 3}, "key")
    assert kept["n"].integer
