"""Error slices: groups of rows with a larger loss, found by a tree on one half of the entities, confirmed on the other half."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeRegressor

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core import intervals
from evergreen.tasks.core.columns import within_32_bits
from evergreen.tasks.explanation.column_values import MAX_COLUMNS, is_date
from evergreen.tasks.problems.base import ExplainedKind, Model
from evergreen.tasks.problems.tabular.row_subset import ROWS
from evergreen.tasks.problems.tabular.rows import Rows

MAX_SLICES, MIN_SHARE = 3, 0.04
"""Slices that are reported, and the smallest share of the rows of a slice."""
MIN_HALF, MIN_ROWS = 100, 20
"""Fewest rows of each half, and of a slice."""
MAX_CATEGORIES = 10
"""Most categories of a column that a slice can be cut by."""
CONFIDENCE = 0.95


def find_error_slices(
    kind: ExplainedKind, model: Model, rows: Rows, section: Tabular, columns: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Slices whose mean loss is larger than elsewhere, with 95 per cent confidence, the largest excess first.

    where: conditions in words; rows, share; loss and elsewhere: mean losses; excess, low, high: their difference and its
    interval; measure: the name of the loss. Cut by the first MAX_COLUMNS of `columns`. Empty for too few rows.
    """
    loss = kind.row_losses(kind.predict(model, rows, ROWS, section))
    codes = rows.entity.rank("dense").to_numpy().astype(int)
    half = np.random.default_rng(seed).random(codes.max() + 1)[codes] < 0.5
    if min(half.sum(), (~half).sum()) < MIN_HALF:
        return []
    table, cuts = _cuts(rows.features[list(columns[:MAX_COLUMNS])])
    smallest = max(MIN_ROWS, int(MIN_SHARE * half.sum()))
    tree: Any = DecisionTreeRegressor(max_depth=3, min_samples_leaf=smallest, max_leaf_nodes=8, random_state=0)
    leaves = tree.fit(table[half], loss[half]).apply(table)
    found = []
    for leaf in np.unique(leaves):
        inside, others = ~half & (leaves == leaf), ~half & (leaves != leaf)
        if min(inside.sum(), others.sum()) < MIN_ROWS:
            continue
        excess, low, high = _excess(loss, codes, inside, others)
        if low > 0:
            found.append(
                {
                    "where": _describe_leaf(tree.tree_, int(leaf), cuts),
                    "rows": int(inside.sum()),
                    "share": float(inside.sum() / (~half).sum()),
                    "loss": float(loss[inside].mean()),
                    "elsewhere": float(loss[others].mean()),
                    "excess": excess,
                    "low": low,
                    "high": high,
                    "measure": kind.loss_name,
                }
            )
    return sorted(found, key=lambda each: -each["excess"])[:MAX_SLICES]


def _excess(loss: np.ndarray, codes: np.ndarray, inside: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """How much larger the mean loss is inside, with its interval over entities."""
    sums: list[np.ndarray] = [
        np.bincount(codes[mask], weights, codes.max() + 1) for mask in (inside, others) for weights in (loss[mask], None)
    ]
    present = np.flatnonzero(sums[1] + sums[3])
    a, n, b, m = ((each.sum() - each)[present] for each in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = a / n - b / m
    excess = float(loss[inside].mean() - loss[others].mean())
    low, high, _ = intervals.interval(excess, without.tolist(), CONFIDENCE)
    return excess, low, high


def _cuts(features: Any) -> tuple[np.ndarray, list[tuple[str, str | None]]]:
    """Columns that a tree can cut, and for each its (column, category).

    Numbers and dates as they are, with category None; one column of 0 and 1 per frequent category.
    """
    columns, cuts = [], []
    for name in features:
        values: Any = features[name]
        if pd.api.types.is_string_dtype(values):
            for category in values.value_counts().index[:MAX_CATEGORIES]:
                columns.append((values == category).to_numpy(dtype=float, na_value=0.0))
                cuts.append((str(name), str(category)))
            continue
        numbers = values.to_numpy(dtype="datetime64[s]").astype(float) if is_date(values) else values.to_numpy(dtype=float)
        columns.append(np.where(values.isna().to_numpy(), np.nan, within_32_bits(numbers)))
        cuts.append((str(name), None))
    return np.column_stack(columns), cuts


def _describe_leaf(tree: Any, leaf: int, cuts: Sequence[tuple[str, str | None]]) -> str:
    """The conditions from the root to a leaf in words; of several cuts of one number, the narrowest."""
    bounds: dict[str, list[float]] = {}
    words: list[str] = []
    node = 0
    while node != leaf:
        column, cut = int(tree.feature[node]), float(tree.threshold[node])
        left = _is_below(tree, int(tree.children_left[node]), leaf)
        name, category = cuts[column]
        if category is not None:
            words.append(f"{name} is {'not ' if left else ''}{category}")
        else:
            low, high = bounds.setdefault(name, [-math.inf, math.inf])
            bounds[name] = [low, min(high, cut)] if left else [max(low, cut), high]
        node = int(tree.children_left[node] if left else tree.children_right[node])
    return " and ".join([*(_between(name, *each) for name, each in bounds.items()), *words]) or "all rows"


def _is_below(tree: Any, node: int, leaf: int) -> bool:
    """Whether `leaf` is `node` or below it."""
    if node == leaf:
        return True
    if tree.children_left[node] < 0:
        return False
    return _is_below(tree, int(tree.children_left[node]), leaf) or _is_below(tree, int(tree.children_right[node]), leaf)


def _between(name: str, low: float, high: float) -> str:
    if low > -math.inf and high < math.inf:
        return f"{name} above {low:.4g} and up to {high:.4g}"
    return f"{name} up to {high:.4g}" if high < math.inf else f"{name} above {low:.4g}"
