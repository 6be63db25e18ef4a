"""Subsets of rows as tables, with repeated rows for bootstrap samples."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import numpy as np
from pandas.util import hash_pandas_object

from evergreen.tasks.problems.base import Part, Splits
from evergreen.tasks.problems.tabular.holdout_split import Parts
from evergreen.tasks.problems.tabular.rows import Rows

ROWS = "rows"
"""The one part of a subset: all of it."""


def places(data: Rows, parts: Sequence[Part], labelled: bool = True) -> np.ndarray:
    """Numbers of the rows of `parts`, ascending; only of those with a target if `labelled`."""
    if data.parts is not None:
        mask = data.parts.rows([str(each) for each in parts])
    else:
        assert data.cutoff is not None
        mask = data.cutoff.is_in([each for each in parts if isinstance(each, date)]).to_numpy()
    return np.flatnonzero(mask & data.target.is_not_null().to_numpy() if labelled else mask)


def subset(data: Rows, rows: np.ndarray) -> Rows:
    """The rows of those numbers, in that order, as the one part ROWS. A number may come more than once."""
    whole = Parts(Splits((), ()), {ROWS: np.ones(len(rows), dtype=bool)})
    taken = data.take(rows)
    return replace(taken, cutoff=None, features=taken.features.reset_index(drop=True), parts=whole)


def by_entity(data: Rows, rows: np.ndarray, seed: int) -> np.ndarray:
    """`rows` in random order, those of one entity one after the other: the first k are a sample of entities."""
    codes = data.entity[rows].rank("dense").to_numpy().astype(np.int64) - 1
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1 if len(codes) else 0)
    return rows[np.argsort(order[codes], kind="stable")]


def drawn(data: Rows, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many entities as `rows` are about, drawn with replacement, with all of their rows (bootstrap)."""
    codes = data.entity[rows].rank("dense").to_numpy().astype(np.int64) - 1
    order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    chosen = random.integers(0, len(sizes), len(sizes))
    counts = sizes[chosen]
    before = np.cumsum(counts) - counts
    return rows[order[np.repeat(starts[chosen] - before, counts) + np.arange(counts.sum())]]


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `rows`, evenly over their order."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int))] if len(rows) else rows


def group_equal_rows(data: Rows, rows: np.ndarray) -> np.ndarray:
    """Group number of each row, from 0; rows with equal features share one."""
    mixed = hash_pandas_object(data.features.iloc[rows], index=False).to_numpy()  # pyright: ignore
    return np.unique(mixed, return_inverse=True)[1]


def without(data: Rows, names: Sequence[str]) -> Rows:
    """The same rows without some of their features."""
    roles = {name: role for name, role in data.roles.items() if name not in names}
    return replace(data, features=data.features.drop(columns=list(names)), roles=roles)
