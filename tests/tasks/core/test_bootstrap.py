"""Resampling by entity."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.tasks.core import bootstrap
from evergreen.tasks.core.errors import DataError


def frame(entities: list[int], start: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {"entity": entities, "row": range(start, start + len(entities))}, schema={"entity": pl.Int64, "row": pl.Int64}
    )


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), max_size=20), st.integers(0, 99))
def test_an_entity_comes_with_all_its_rows_and_equally_often_in_every_frame(one: list[int], two: list[int], seed: int) -> None:
    first, second = frame(one), frame(two, 100)
    for left, right in bootstrap.draw([first, second], 3, seed):
        times = {}
        for drawn, whole in ((left, first), (right, second)):
            counts = dict(drawn.group_by("row").len().iter_rows())
            for entity, row in whole.iter_rows():
                assert times.setdefault(entity, counts.get(row, 0)) == counts.get(row, 0)
        assert sum(times.values()) == len(times)


def test_the_same_seed_draws_the_same_and_another_one_something_else() -> None:
    frames = [frame(list(range(50)))]
    draws = [next(iter(bootstrap.draw(frames, 1, seed)))[0]["row"].to_list() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_text_is_an_entity_too() -> None:
    (drawn,) = next(iter(bootstrap.draw([pl.DataFrame({"entity": ["a", "b", "c"]})], 1, 0)))
    assert drawn.height == 3
    assert set(drawn["entity"]) <= {"a", "b", "c"}


def test_the_interval_of_a_mean_is_about_that_of_the_textbook() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    rows = pl.DataFrame({"entity": range(400), "value": values})
    means = [float(np.mean(part["value"].to_numpy())) for (part,) in bootstrap.draw([rows], 1000, 1)]
    low, high = bootstrap.interval(means, 0.95)
    assert low == pytest.approx(values.mean() - 1.96 * 0.1, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * 0.1, abs=0.03)


def test_repeated_rows_of_an_entity_do_not_narrow_the_interval() -> None:
    draw = np.random.default_rng(0).normal(size=100)
    rows = pl.DataFrame({"entity": list(range(100)) * 25, "value": np.tile(draw, 25)})
    means = [float(np.mean(part["value"].to_numpy())) for (part,) in bootstrap.draw([rows], 300, 1)]
    assert np.std(means) == pytest.approx(draw.std() / 10, rel=0.15)


def test_pairs_come_in_the_same_order() -> None:
    left, right = bootstrap.paired(frame([3, 1, 2]), frame([1, 2, 3], 10))
    assert left["entity"].to_list() == right["entity"].to_list() == [1, 2, 3]
    assert left["row"].to_list() == [1, 2, 0]


@pytest.mark.parametrize(
    ("other", "message"), [([1, 2], "3 against 2 rows, 1 entities"), ([1, 2, 4], "3 against 3 rows, 2 entities")]
)
def test_other_rows_are_refused(other: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bootstrap.paired(frame([1, 2, 3]), frame(other))


def test_an_undefined_resample_is_left_out_and_too_many_leave_no_interval() -> None:
    assert bootstrap.interval([1.0, 2.0, 3.0, math.nan], 0.9) == pytest.approx((1.1, 2.9))
    assert all(math.isnan(edge) for edge in bootstrap.interval([1.0, math.nan], 0.9))
    assert bootstrap.mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(bootstrap.mean([math.nan]))
