"""Slices of the rows by a feature."""

import math

import polars as pl

from evergreen.tasks.evaluation.slices import MAX_CATEGORIES, slice_labels


def test_numbers_are_cut_at_their_quartiles_and_missing_ones_stand_apart() -> None:
    labels, order = slice_labels(pl.Series([1.0, 2.0, 3.0, 4.0, 5.0, None, math.nan]))
    assert order == ["up to 2", "2 to 3", "3 to 4", "above 4", "missing"]
    assert labels.to_list() == ["up to 2", "up to 2", "2 to 3", "3 to 4", "above 4", "missing", "missing"]


def test_a_number_that_is_mostly_zero_has_fewer_slices() -> None:
    labels, order = slice_labels(pl.Series([0.0] * 30 + [1.0, 2.0, 3.0, 4.0, 5.0]))
    assert order == ["up to 0", "above 0"]
    assert labels.to_list().count("above 0") == 5


def test_few_numbers_and_categories_are_slices_of_their_own_the_largest_first() -> None:
    assert slice_labels(pl.Series([1.0, 0.0, 0.0]))[1] == ["0", "1"]
    many = pl.Series([f"town {place}" for place in range(40)] + ["big"] * 5 + [None])
    labels, order = slice_labels(many)
    assert (order[0], len(order), order[-2:]) == ("big", MAX_CATEGORIES + 2, ["other", "missing"])
    assert labels.to_list().count("other") == 40 - (MAX_CATEGORIES - 1)
