"""Histograms of columns, with fixed bins and sums, so that windows add up and each row is read once.

The bins of a column are made once, from the reference. For numbers they give the normed Wasserstein distance exactly, but for
bins in which the two distribution functions cross, and the Kolmogorov-Smirnov distance at the edges.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from evergreen.tasks.core.columns import numbers, texts

BINS = 128
"""A column of numbers has so many edges at equal shares of the reference's rows, and as many at equal distances."""
TAILS = np.array([0.0005, 0.001, 0.002, 0.0025, 0.003, 0.004, 0.005])
"""Further edges at these shares of rows on either side."""
ENOUGH = 100
"""Rows that a variance must rest on (rows / kurtosis): else a few values in the tail decide on the Wasserstein distance."""
LEVELS = 200
"""Categories with a bin of their own, the largest; the others of the reference share one."""
KNOWN = 20_000
"""With more categories than this in the reference it is not said which are unseen."""
SMALLEST_NORM = 0.001
"""Evidently's floor of the standard deviation that the Wasserstein distance is divided by."""

Form = Literal["number", "category"]
"""How a column is compared."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows of one column as places in its bins."""

    bin: np.ndarray
    """Of each row that has a value, int."""
    beyond: np.ndarray
    """Distance of each value from the lower edge of its bin (below: negative); zeros for a category."""
    place: np.ndarray
    """Which rows have a value: numbers of rows."""
    rows: int
    """All rows."""
    odd: int = 0
    """Values that are none of this form: infinite, or no number; they count as missing."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """One column of a window. Histograms of the same bins add up."""

    rows: float
    """Sum of the weights of all rows: with repeated rows, the number of their clusters (see drift.repeats)."""
    odd: int
    """Rows."""
    counts: np.ndarray
    """Weight per bin."""
    beyond: np.ndarray
    """Weighted sum per bin of Codes.beyond."""

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.rows + other.rows, self.odd + other.odd, self.counts + other.counts, self.beyond + other.beyond)

    @property
    def present(self) -> float:
        return float(self.counts.sum())

    @property
    def missing(self) -> float:
        """Share of rows without a value, 0 to 1."""
        return max(0.0, 1 - self.present / self.rows) if self.rows else 0.0


@dataclass(frozen=True, eq=False)
class Numbers:
    """Bins of a column of numbers: up to the first edge, between each two (the upper one belongs to it), above the last."""

    edges: np.ndarray
    norm: float
    """What distances are divided by: the standard deviation of the reference, at least SMALLEST_NORM."""
    heavy: bool
    """Whether its tails are too heavy for the Wasserstein distance (see ENOUGH); then Kolmogorov-Smirnov alone is looked at."""
    form: Form = "number"

    @classmethod
    def of(cls, values: pl.Series) -> "Numbers":
        known = numbers(values)[0]
        known = known[~np.isnan(known)]
        if not len(known):
            return cls(np.zeros(1), SMALLEST_NORM, False)
        distinct = np.unique(known)
        if len(distinct) > 2 * BINS:
            shares = np.quantile(known, [*np.linspace(0, 1, BINS), *TAILS, *(1 - TAILS)], method="inverted_cdf")
            distinct = np.unique([*shares, *np.linspace(distinct[0], distinct[-1], BINS)])
        apart = np.square(known - known.mean())
        heavy = bool(np.square(apart.sum()) < ENOUGH * np.square(apart).sum())
        return cls(distinct, max(float(np.std(known)), SMALLEST_NORM), heavy)

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    @property
    def widths(self) -> np.ndarray:
        """Of each bin; 0 for the two that have no end."""
        return np.concatenate([[0.0], np.diff(self.edges), [0.0]])

    def code(self, values: pl.Series) -> Codes:
        found, odd = numbers(values)
        place = np.flatnonzero(~np.isnan(found))
        found = found[place] if len(place) < len(found) else found
        bins = np.searchsorted(self.edges, found, side="left")
        return Codes(bins, found - self.edges[np.maximum(bins - 1, 0)], place, len(values), odd)

    def histogram(self, values: pl.Series, weight: np.ndarray | None = None) -> Histogram:
        return _count(self.code(values), self.bins, weight)

    def mean(self, histogram: Histogram) -> float:
        """Of the values; NaN where there are none."""
        lower = self.edges[np.maximum(np.arange(self.bins) - 1, 0)]
        return float((histogram.counts @ lower + histogram.beyond.sum()) / histogram.present) if histogram.present else math.nan


@dataclass(frozen=True, eq=False)
class Categories:
    """Bins of a column of categories: one for each of the largest, one for the others of the reference, one for the unseen."""

    names: tuple[str, ...]
    """Known categories, the largest first."""
    complete: bool
    """Whether these are all; else nothing is unseen."""
    single: frozenset[str] = frozenset()
    """Categories that one entity or one week alone has: as likely as these is one that was never seen (Good and Turing)."""
    form: Form = "category"

    @classmethod
    def of(cls, values: pl.Series, entity: np.ndarray, week: np.ndarray | None = None) -> "Categories":
        weeks = np.zeros(len(entity)) if week is None else week
        found = pl.DataFrame({"name": texts(values), "entity": entity, "week": weeks}).drop_nulls("name")
        sizes = found.group_by("name").agg(
            pl.len().alias("rows"), pl.col("entity").n_unique().alias("entities"), pl.col("week").n_unique().alias("weeks")
        )
        sizes = sizes.sort(["rows", "name"], descending=[True, False])
        weekly = found["week"].n_unique() > 1
        single = sizes.filter((pl.col("entities") == 1) | (pl.lit(weekly) & (pl.col("weeks") == 1)))["name"].to_list()
        return cls(tuple(sizes["name"].head(KNOWN)), sizes.height <= KNOWN, frozenset(single))

    @property
    def own(self) -> int:
        """Categories with a bin of their own."""
        return min(len(self.names), LEVELS)

    @property
    def bins(self) -> int:
        return self.own + 2

    @property
    def widths(self) -> np.ndarray:
        return np.zeros(self.bins)

    def code(self, values: pl.Series) -> Codes:
        known = pl.DataFrame({"name": self.names, "bin": np.minimum(np.arange(len(self.names)), self.own)}, _KNOWN)
        lost = self.own + 1 if self.complete else self.own
        rows = pl.DataFrame({"name": texts(values)}).with_row_index("row").drop_nulls("name")
        bins = rows.join(known, on="name", how="left", maintain_order="left")["bin"].fill_null(lost).to_numpy()
        return Codes(bins, np.zeros(len(bins)), rows["row"].to_numpy().astype(np.int64), len(values))

    def histogram(self, values: pl.Series, weight: np.ndarray | None = None) -> Histogram:
        return _count(self.code(values), self.bins, weight)

    def label(self, place: int) -> str:
        """Name of bin `place`."""
        return self.names[place] if place < self.own else ("other" if place == self.own else "unseen")


_KNOWN = {"name": pl.String, "bin": pl.Int64}
Bins = Numbers | Categories


def _count(codes: Codes, bins: int, weight: np.ndarray | None) -> Histogram:
    own = np.ones(codes.rows) if weight is None else weight
    there = own[codes.place]
    counts = np.bincount(codes.bin, there, minlength=bins)
    beyond = np.bincount(codes.bin, codes.beyond * there, minlength=bins)
    return Histogram(float(own.sum()), codes.odd, counts, beyond)


def profile(frame: pl.DataFrame, bins: Mapping[str, Bins], weight: np.ndarray | None = None) -> dict[str, Histogram]:
    """Column -> histogram, of the columns of `bins` that are in `frame`: one pass, linear in rows.

    `weight`: of each row; None: 1.
    """
    return {name: each.histogram(frame[name], weight) for name, each in bins.items() if name in frame.columns}


def wasserstein(
    bins: Numbers, counts: np.ndarray, beyond: np.ndarray, other: np.ndarray, other_beyond: np.ndarray
) -> np.ndarray:
    """Normed Wasserstein distance (Evidently's `wasserstein`; `counts` of the reference first or last, it is symmetric).

    Shares per bin and sums of `beyond` per row, along the last axis.
    """
    integral = np.cumsum(counts - other, axis=-1) * bins.widths - (beyond - other_beyond)
    return np.abs(integral).sum(axis=-1) / bins.norm


def kolmogorov(counts: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of the two distribution functions at an edge: what Evidently's `ks` turns into p.

    Shares per bin, along the last axis.
    """
    return np.abs(np.cumsum(counts - other, axis=-1)).max(axis=-1)


def jensenshannon(counts: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance (Evidently's `jensenshannon`), shares per bin along the last axis.

    Categories that are not in the other sample count the same in one bin as in many.
    """
    middle = (counts + other) / 2

    def part(shares: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(shares > 0, shares * np.log(shares / middle), 0.0).sum(axis=-1)

    return np.sqrt(np.maximum(part(counts) + part(other), 0) / 2)


def variation(counts: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of rows that would have to be of another category: half the sum of differences, along the last axis.

    >>> float(variation(np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])))
    0.25
    """
    return np.abs(counts - other).sum(axis=-1) / 2
