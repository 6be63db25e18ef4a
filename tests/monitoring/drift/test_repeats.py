"""Repeated rows count once: those of one caller, and equal rows where equal rows are no accident."""

import numpy as np
import polars as pl
import pytest

from evergreen.monitoring.drift import repeats


def weight(features: pl.DataFrame, entity: pl.Series | None, chance: float = 0.0) -> list[float]:
    return repeats.weights(repeats.clusters(features, entity, chance, features.height)).tolist()


def test_the_weights_of_a_caller_add_up_to_one():
    entity = pl.Series(["a", "b", "a", None, None])
    assert weight(pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0, 5.0]}), entity) == [0.5, 1.0, 0.5, 1.0, 1.0]


def test_equal_rows_of_anonymous_callers_count_once_and_join_the_callers_who_share_them():
    features = pl.DataFrame({"x": [1.0, 1.0, 2.0, 2.0, 3.0]})
    assert weight(features, None) == [0.5, 0.5, 0.5, 0.5, 1.0]
    chained = weight(features, pl.Series(["a", "b", "b", "c", "d"]))
    assert chained == pytest.approx([0.25, 0.25, 0.25, 0.25, 1.0])


def test_equal_rows_of_a_table_with_few_categories_are_no_repeats():
    draw = np.random.default_rng(0)
    table = pl.DataFrame({"a": draw.integers(0, 3, 500), "b": draw.integers(0, 2, 500)})
    chance = repeats.chance_of_copy(table, np.arange(500))
    assert chance == pytest.approx(1 / 6, abs=0.02)
    assert weight(table, None, chance) == [1.0] * 500


def test_rows_of_one_entity_are_no_copies_and_a_table_without_columns_tells_no_rows_apart():
    table = pl.DataFrame({"x": np.repeat(np.arange(50.0), 4)})
    assert repeats.chance_of_copy(table, np.repeat(np.arange(50), 4)) == 0.0
    assert repeats.chance_of_copy(pl.DataFrame(), np.arange(3)) == 1.0
