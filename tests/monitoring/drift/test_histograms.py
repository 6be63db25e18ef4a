"""Histograms: the same statistics as Evidently's, from counts and sums that add up."""

import math
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from evergreen.monitoring.drift import histograms
from evergreen.monitoring.drift.histograms import Categories, Numbers


@pytest.fixture(scope="module")
def evidently():
    """Statistic -> Evidently's own function of (reference, window)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently.legacy.calculations import stattests as theirs
        from evidently.legacy.core import ColumnType

    def of(name: str, form: str):
        test, kind = getattr(theirs, f"{name}_stat_test"), ColumnType.Numerical if form == "number" else ColumnType.Categorical
        return lambda was, now: test.func(pd.Series(was), pd.Series(now), kind, 0.1)[0]

    return of


def shares(found: histograms.Histogram) -> tuple[np.ndarray, np.ndarray]:
    return found.counts / found.present, found.beyond / found.present


SAMPLES = {
    "normal": lambda draw, rows: draw.normal(3, 2, rows),
    "skewed": lambda draw, rows: np.exp(draw.normal(size=rows)),
    "mostly zero": lambda draw, rows: np.where(draw.random(rows) < 0.8, 0, draw.exponential(size=rows)),
    "counts": lambda draw, rows: draw.poisson(3, rows).astype(float),
    "heavy": lambda draw, rows: draw.standard_t(2, rows),
}


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_wasserstein_distance_is_evidentlys_to_two_hundredths_of_it(name, shift, evidently):
    draw = np.random.default_rng(1)
    was, now = SAMPLES[name](draw, 5000), SAMPLES[name](draw, 3000) + shift
    bins = Numbers.of(pl.Series(was))
    mine = histograms.wasserstein(bins, *shares(bins.histogram(pl.Series(now))), *shares(bins.histogram(pl.Series(was))))
    assert float(mine) == pytest.approx(evidently("wasserstein", "number")(was, now), rel=0.02)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_kolmogorov_distance_is_scipys_that_evidently_turns_into_p_to_half_a_hundredth(name):
    draw = np.random.default_rng(2)
    was, now = SAMPLES[name](draw, 5000), SAMPLES[name](draw, 3000) + 1.0
    bins = Numbers.of(pl.Series(was))
    mine = histograms.kolmogorov(shares(bins.histogram(pl.Series(now)))[0], shares(bins.histogram(pl.Series(was)))[0])
    assert float(mine) == pytest.approx(ks_2samp(was, now).statistic, abs=0.005)  # pyright: ignore


@pytest.mark.parametrize("levels", [2, 50, 150])
def test_the_jensen_shannon_distance_is_evidentlys_also_where_categories_are_new(levels, evidently):
    draw = np.random.default_rng(3)
    was = draw.integers(0, levels, 4000).astype(str)
    now = draw.integers(0, levels + 2, 500).astype(str)
    bins = Categories.of(pl.Series(was), np.arange(4000))
    mine = histograms.jensenshannon(bins.histogram(pl.Series(now)).counts / 500, bins.histogram(pl.Series(was)).counts / 4000)
    assert float(mine) == pytest.approx(evidently("jensenshannon", "category")(was, now), abs=1e-9)


NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_histograms_of_parts_add_up_to_that_of_the_whole(reference, one, two):
    bins = Numbers.of(pl.Series(reference, dtype=pl.Float64))
    parts = [bins.histogram(pl.Series(each, dtype=pl.Float64)) for each in (one, two)]
    whole, added = bins.histogram(pl.Series(one + two, dtype=pl.Float64)), parts[0] + parts[1]
    assert (whole.rows, whole.present) == (added.rows, added.present)
    assert whole.counts.tolist() == added.counts.tolist()
    assert added.beyond == pytest.approx(whole.beyond, rel=1e-9, abs=1e-3)


@given(NUMBERS, NUMBERS)
def test_no_distance_is_above_one_or_below_nothing(reference, window):
    bins = Numbers.of(pl.Series(reference, dtype=pl.Float64))
    was, now = (bins.histogram(pl.Series(each, dtype=pl.Float64)) for each in (reference, window))
    if was.present and now.present:
        assert 0 <= histograms.kolmogorov(now.counts / now.present, was.counts / was.present) <= 1 + 1e-9
        assert histograms.wasserstein(bins, *shares(now), *shares(was)) >= 0
        assert histograms.wasserstein(bins, *shares(was), *shares(was)) == pytest.approx(0, abs=1e-9)


def test_the_mean_is_kept():
    values = pl.Series(np.random.default_rng(0).normal(7, 3, 1000))
    bins = Numbers.of(values.head(500))
    assert bins.mean(bins.histogram(values)) == pytest.approx(values.mean())
    assert math.isnan(bins.mean(bins.histogram(values.clear())))


def test_infinite_numbers_and_words_among_numbers_are_missing_and_counted():
    bins = Numbers.of(pl.Series([1.0, 2.0, 3.0]))
    found = bins.histogram(pl.Series([1.0, math.inf, -math.inf, math.nan, None]))
    assert (found.rows, found.present, found.odd) == (5, 1, 2)
    found = bins.histogram(pl.Series(["1", "two", None]))
    assert (found.rows, found.present, found.odd) == (3, 1, 1)


def test_whole_numbers_true_and_false_name_the_same_categories_whatever_their_type():
    assert histograms.texts(pl.Series([1.0, 2.5, None, math.nan])).to_list() == ["1", "2.5", None, None]
    assert histograms.texts(pl.Series([True, False])).to_list() == ["1", "0"]
    assert histograms.texts(pl.Series([1, 2])).to_list() == ["1", "2"]


def test_of_many_categories_the_largest_have_bins_and_the_others_share_one():
    names = [f"id{place}" for place in range(1000) for _ in range(1 + (place < 5))]
    bins = Categories.of(pl.Series(names), np.arange(len(names)))
    found = bins.histogram(pl.Series(["id0", "id999", "never seen", None]))
    assert bins.bins == histograms.LEVELS + 2
    assert (found.counts[0], found.counts[-2], found.counts[-1], found.rows) == (1, 1, 1, 4)


def test_a_constant_and_an_empty_reference_have_bins_too():
    for reference in (pl.Series([4.0] * 10), pl.Series([None] * 3, dtype=pl.Float64), pl.Series([], dtype=pl.Float64)):
        bins = Numbers.of(reference)
        assert bins.histogram(pl.Series([4.0, 5.0])).present == 2
        assert bins.norm == histograms.SMALLEST_NORM
