"""Differences and ratios that trees gain from."""

import numpy as np
import pytest

from evergreen.tasks.problems.tabular.column_pairs import ColumnPairs


def planted(rows: int = 1500) -> np.ndarray:
    """Five columns of numbers; some are 0 or missing."""
    draw = np.random.default_rng(0)
    columns = draw.uniform(1, 10, (rows, 5))
    columns[::50, 4], columns[1::50, 0] = 0.0, np.nan
    return columns


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("ratio", [False, True])
def test_the_pair_that_decides_is_found(ratio: bool, classes: bool) -> None:
    columns = planted()
    signal = np.nan_to_num(columns[:, 1] / columns[:, 3] if ratio else columns[:, 1] - columns[:, 3])
    y = np.where(signal > np.median(signal), "yes", "no") if classes else signal
    pairs = ColumnPairs(3, classes).fit(columns, y)
    assert (1, 3, ratio) in list(zip(pairs.first_, pairs.second_, pairs.ratio_, strict=True))
    assert len(pairs.first_) <= 3
    place = list(pairs.ratio_).index(ratio)
    assert pairs.owners_[place].tolist() == [0, 0.5, 0, 0.5, 0]


def test_a_ratio_to_zero_is_missing_as_is_what_comes_from_a_gap() -> None:
    columns = planted()
    pairs = ColumnPairs(1).fit(columns, np.arange(len(columns)))
    pairs.first_, pairs.second_, pairs.ratio_ = np.array([0, 1]), np.array([1, 4]), np.array([False, True])
    found = pairs.transform(columns)
    assert np.isnan(found[::50, 1]).all()
    assert np.isnan(found[1::50, 0]).all()
    assert not np.isinf(found).any()
    assert np.isfinite(found[2:50]).all()


def test_a_target_without_signal_gives_one_column_and_no_error() -> None:
    assert ColumnPairs(4).fit(planted(60), np.zeros(60)).transform(planted(60)).shape == (60, 1)
