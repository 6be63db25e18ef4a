"""Permutation importance: how much worse the score gets when one column is shuffled among the rows.

The interval is over entities. Source: Breiman, Random forests, 2001.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Tabular
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.explanation.column_values import MAX_COLUMNS
from evergreen.tasks.problems.base import Model, RowKind
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.row_subset import ROWS
from evergreen.tasks.problems.tabular.rows import Rows

SHUFFLES = 4
GROUPS = 30
"""Most groups of entities that are left out in turn for an interval."""
CONFIDENCE = 0.95


def permutation_importance(kind: RowKind, model: Model, rows: Rows, section: Tabular, seed: int) -> pl.DataFrame:
    """column, importance, low, high: the loss in the primary metric, largest first; for clustering the share of rows that
    change their cluster.

    The MAX_COLUMNS columns that matter most after one shuffle get SHUFFLES shuffles and an interval; null elsewhere.
    """
    random = np.random.default_rng(seed)
    whole = kind.predict(model, rows, ROWS, section)
    names = [str(name) for name in rows.features]
    once = {name: _predict_shuffled(kind, model, rows, section, name, 1, random) for name in names}
    first = {name: _mean_loss(kind, whole, frames, section) for name, frames in once.items()}
    ranked = sorted(names, key=lambda name: -first[name] if math.isfinite(first[name]) else math.inf)
    found = []
    for place, name in enumerate(ranked):
        frames = once[name]
        if place < MAX_COLUMNS:
            frames = frames + _predict_shuffled(kind, model, rows, section, name, SHUFFLES - 1, random)
            low, high = _interval(kind, whole, frames, section, seed)
        else:
            low, high = math.nan, math.nan
        found.append({"column": name, "importance": _mean_loss(kind, whole, frames, section), "low": low, "high": high})
    table = pl.DataFrame(found, schema={"column": pl.String} | dict.fromkeys(("importance", "low", "high"), pl.Float64))
    shown = table.head(MAX_COLUMNS).sort("importance", descending=True, nulls_last=True)
    return pl.concat([shown, table.slice(MAX_COLUMNS)]).with_columns(pl.col("importance", "low", "high").fill_nan(None))


def _predict_shuffled(
    kind: RowKind, model: Model, rows: Rows, section: Tabular, name: str, times: int, random: np.random.Generator
) -> list[pl.DataFrame]:
    """Predictions with the column `name` shuffled among the rows, one frame per shuffle."""
    if not times:
        return []
    count = len(rows)
    orders = [random.permutation(count) for _ in range(times)]
    many = row_subset.subset(rows, np.tile(np.arange(count), times))
    many.features[name] = many.features[name].iloc[np.concatenate(orders)].to_numpy()
    predictions = kind.predict(model, many, ROWS, section)
    return [predictions.slice(count * place, count) for place in range(times)]


def _mean_loss(kind: RowKind, whole: pl.DataFrame, frames: Sequence[pl.DataFrame], section: Tabular) -> float:
    return bootstrap.mean([kind.importance_loss(whole, each, section) for each in frames])


def _interval(
    kind: RowKind, whole: pl.DataFrame, frames: Sequence[pl.DataFrame], section: Tabular, seed: int
) -> tuple[float, float]:
    """Over entities, whose rows are left out of all shuffles."""
    without = [_mean_loss(kind, kept[0], kept[1:], section) for kept in intervals.leave_out([whole, *frames], seed, GROUPS)]
    return intervals.interval(_mean_loss(kind, whole, frames, section), without, CONFIDENCE)[:2]
