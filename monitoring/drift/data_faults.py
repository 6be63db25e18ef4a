"""Faults of data: shares of rows that change by more than weeks change them, found in one window without knowing any week.

A fault is a share of rows (missing, of an unknown category, of one value, far outside) whose odds are surely more than
ODDS times those in the reference. Weeks without a fault are assumed to change the odds by less than that.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from evergreen.monitoring.drift.column_tests import describe_odd
from evergreen.monitoring.drift.histograms import Categories, Codes, Histogram, Numbers
from evergreen.monitoring.drift.reference_data import Part
from evergreen.monitoring.ledger.records import Aspect
from evergreen.tasks.core.columns import numbers, texts

ODDS = 4.0
"""Weeks change the odds of a missing value, an unknown category or one value by less than this factor."""
FAR = 0.0025
"""Share of rows on either side that lies far outside in the reference."""
MOVED_ODDS = 100.0
"""Odds of a value far outside: a fifth of the rows. A week that moves all rows by less than two standard deviations stays
below it."""
UNITS = (1 / 1000, 1 / 100, 1 / 10, 10.0, 100.0, 1000.0)
"""Factors between units, such as cents and dollars, grams and kilograms."""
TYPICAL, SURE, FEWEST = 0.05, 0.001, 0.02
"""Shares of rows in other units: that the test is best at, that must surely be exceeded, and that the estimate must reach."""
SEPARATE = 0.4
"""Mean score of rows in other units beyond that of the others; with less, they lie among the others."""
NEAR = 0.1
"""Standard deviations by which other units in a few rows move middle and spread themselves."""
SLOPES = np.linspace(0.05, 3, 60)
"""Of the exponential bound."""
FEWEST_DISTINCT = 50
"""Distinct values of a column in whose histogram other units can show."""
MOST_OFTEN = 0.25
"""A value of a larger share, such as zero, is no part of the middle and spread."""
QUARTILE = 0.6745
"""Upper one of the standard normal distribution."""
CANDIDATES = 3
"""Bins with the most rows in excess of the reference: one value that fills many rows is in one of them."""
STEPS = (np.arange(200) + 0.5) / 200


@dataclass(frozen=True)
class Fault:
    """A test for one fault of one column."""

    column: str
    aspect: Aspect
    p: float
    share: float
    """Of the window's rows, in excess of the reference."""
    reason: str


def find(part: Part, name: str, values: pl.Series, weight: np.ndarray, now: Histogram) -> Iterator[Fault]:
    """The tests of one column. `weight`: of each row of the window; `now`: its histogram."""
    bins, was = part.bins[name], part.profile[name]
    if not was.rows or not now.rows:
        return
    more = now.missing > was.missing
    absent, absent_before = (each.rows - each.present if more else each.present for each in (now, was))
    p = p_of_share(absent, now.rows, absent_before, was.rows, ODDS)
    reason = f"{now.missing:.1%} of rows are missing{describe_odd(now)}, {was.missing:.1%} in training"
    yield Fault(name, "missing", p, abs(now.missing - was.missing), reason)
    if not was.present or not now.present:
        return
    if isinstance(bins, Categories):
        yield from _of_categories(part, name, bins, values, weight, now)
    else:
        yield from _of_numbers(part, name, bins, values, weight, now)


def p_of_share(marked: float, rows: float, marked_before: float, rows_before: float, odds: float) -> float:
    """Chance of so many `marked` of `rows`, at most, if the odds are up to `odds` times those of the reference.

    Over the posterior of the share in the reference (Jeffreys).
    """
    share = beta.ppf(STEPS, marked_before + 0.5, max(rows_before - marked_before, 0) + 0.5)
    raised = share * odds / (1 - share + share * odds)
    return float(binom.sf(np.floor(marked + 1e-6) - 1, max(round(rows), 1), raised).mean())


def _of_categories(
    part: Part, name: str, bins: Categories, values: pl.Series, weight: np.ndarray, now: Histogram
) -> Iterator[Fault]:
    was = part.profile[name]
    if bins.complete and now.counts[-1]:
        single = texts(part.rows[name]).is_in(list(bins.single)).fill_null(False).to_numpy()
        share, expected = now.counts[-1] / now.present, float(part.weight[single].sum())
        p = p_of_share(now.counts[-1], now.present, expected, was.present, ODDS)
        reason = f"{share:.1%} of rows are of categories that training did not know"
        yield Fault(name, "unseen", p, share - expected / was.present, reason)
    place = int(now.counts.argmax())
    if now.counts[place] >= now.present - 1e-9 and place < bins.own:
        codes = bins.code(part.rows[name])
        yield _filled(part, name, bins.label(place), now.present, now.present, float(was.counts[place]), codes)


def _of_numbers(part: Part, name: str, bins: Numbers, values: pl.Series, weight: np.ndarray, now: Histogram) -> Iterator[Fault]:
    was = part.profile[name]
    found, before = numbers(values)[0], numbers(part.rows[name])[0]
    excess = now.counts / now.present - was.counts / was.present
    value, marked = max(
        (_most_frequent(bins, int(place), found, weight) for place in np.argsort(excess)[-CANDIDATES:]),
        key=lambda each: each[1],
    )
    same = float(part.weight[before == value].sum())
    if marked / now.present > same / was.present:
        there = np.flatnonzero(~np.isnan(before))
        code = np.unique(before[there], return_inverse=True)[1]
        codes = Codes(code, np.zeros(len(code)), there, len(before))
        yield _filled(part, name, f"{value:g}", marked, now.present, same, codes)
    yield _moved(name, was, now)
    often = was.counts / was.present <= MOST_OFTEN
    if len(bins.edges) >= FEWEST_DISTINCT and (was.counts * often).any() and (now.counts * often).any():
        yield from _units(part, name, bins, was.counts * often, now.counts * often)


def _most_frequent(bins: Numbers, place: int, values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The most frequent value in a bin, and its weight."""
    inside = values > bins.edges[place - 1] if place else ~np.isnan(values)
    if place < len(bins.edges):
        inside &= values <= bins.edges[place]
    if not inside.any():
        return float("nan"), 0.0
    distinct, code = np.unique(values[inside], return_inverse=True)
    sizes = np.bincount(code, weight[inside])
    return float(distinct[sizes.argmax()]), float(sizes.max())


def _filled(part: Part, name: str, label: str, marked: float, rows: float, same: float, codes: Codes) -> Fault:
    """One value in `marked` of `rows`, and in `same` rows of the reference, whose values are `codes`.

    A column may have one value in a week by nature, so that the largest share in any week of training counts too.
    """
    total = part.profile[name].present
    largest = max(same, _largest_of_week(part, codes) * total)
    share = marked / rows
    said = f"all rows are {label}" if share > 1 - 1e-9 else f"{share:.1%} of rows are {label}"
    p = p_of_share(marked, rows, largest, total, ODDS)
    return Fault(name, "filled", p, share - largest / total, f"{said}, {same / total:.1%} in training")


def _largest_of_week(part: Part, codes: Codes) -> float:
    """The largest share that one value has in a week; 0 where one week is known or all values differ."""
    if len(part.times) < 2 or not len(codes.bin):
        return 0.0
    width = int(codes.bin.max()) + 1
    counts = np.bincount(part.week[codes.place] * width + codes.bin, minlength=len(part.times) * width)
    weekly = counts.reshape(len(part.times), width)
    return float(((weekly.max(axis=1) - 1) / np.maximum(weekly.sum(axis=1) - 1, 1)).clip(0).max())


def _moved(name: str, was: Histogram, now: Histogram) -> Fault:
    """Many rows lie where hardly any row of the reference does, above or below."""
    before, after = np.cumsum(was.counts) / was.present, np.cumsum(now.counts) / now.present
    low = int(np.searchsorted(before, FAR, side="right")) - 1
    high = int(np.searchsorted(before, 1 - FAR, side="left"))
    below, above = (float(after[low]), float(before[low])) if low >= 0 else (0.0, 0.0), (1 - after[high], 1 - before[high])
    tried = [
        (p_of_share(share * now.present, now.present, usual * was.present, was.present, MOVED_ODDS), share, usual, side)
        for (share, usual), side in ((below, "below"), (above, "above"))
    ]
    p, share, usual, side = min(tried)
    return Fault(
        name, "moved", min(1.0, 2 * p), float(share - usual), f"{share:.1%} of rows lie far {side} the values of training"
    )


def _units(part: Part, name: str, bins: Numbers, was: np.ndarray, now: np.ndarray) -> Iterator[Fault]:
    """Some rows are in other units: the histogram is a mixture of the reference's and of that of its multiple.

    The reference first takes the window's middle and spread, in normal scores of its ranks, so that a week that moves or
    stretches all rows is no fault. The mean score log(1 - e + e q / p) of the rows is then compared with what a share
    SURE of other units would give, by Chernoff's bound. `was`, `now`: rows per bin.
    """
    rows, known = float(now.sum()), float(was.sum())
    usual = _aligned(was / known, now / rows, 1 / known)
    values, weight = numbers(part.rows[name])[0], part.weight
    values, weight = values[~np.isnan(values)], weight[~np.isnan(values)]
    tried: list[tuple[float, float, float]] = []
    for factor in UNITS:
        scaled = np.bincount(np.searchsorted(bins.edges, values * factor, side="left"), weight, bins.bins) * (was + now > 0)
        other = scaled / max(scaled.sum(), 1e-12)
        score = np.log(1 - TYPICAL + TYPICAL * other / usual)
        mixed = (1 - SURE) * usual + SURE * other
        apart = float((other - usual) @ score)
        if apart < SEPARATE:
            continue
        mean = float(now @ score) / rows
        bound = np.max(SLOPES * mean - np.log(np.exp(SLOPES[:, None] * score) @ mixed))
        share = (mean - usual @ score) / apart
        p = math.exp(-max(bound, 0.0) * rows * known / (rows + known)) if share >= FEWEST else 1.0
        tried.append((p, float(min(share, 1.0)), factor))
    if not tried:
        return
    p, share, factor = min(tried)
    said = f"{factor:g}" if factor > 1 else f"1/{1 / factor:g}"
    reason = f"about {share:.1%} of rows are {said} times what they were in training: perhaps other units"
    yield Fault(name, "range", min(1.0, len(tried) * p), share, reason)


def _aligned(was: np.ndarray, now: np.ndarray, least: float) -> np.ndarray:
    """Shares per bin of the reference, with the middle and spread of the window; at least `least`."""
    score = ndtri(np.clip(np.cumsum(was)[:-1], least / 2, 1 - least / 2))
    low, middle, high = (float(np.interp(each, np.cumsum(now)[:-1], score)) for each in (0.25, 0.5, 0.75))
    spread = max(min(high - middle, middle - low) / QUARTILE - NEAR, 1.0)  # of the side without other units
    middle = math.copysign(max(abs(middle) - NEAR, 0.0), middle)
    share = np.maximum(np.diff(ndtr((score - middle) / spread), prepend=0.0, append=1.0), least)
    return share / share.sum()
