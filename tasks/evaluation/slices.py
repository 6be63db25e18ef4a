"""The primary metric by slice: the rows with one value, or one range of values, of a feature."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Problem
from evergreen.tasks.core import bootstrap, intervals
from evergreen.tasks.evaluation.scores import Window, known
from evergreen.tasks.problems.base import Data, Kind

MAX_CATEGORIES = 12
"""Most categories of a feature that are slices of their own; the others are one slice."""
GROUPS = 100
"""Most groups of entities for the interval of a slice, because there are many slices."""


def score_slices(kind: Kind, data: Data, tested: Sequence[Window], section: Problem, seed: int) -> list[dict[str, Any]]:
    """The primary metric by each feature of evaluate.slices: one dictionary per feature and value, in that order."""
    names = section.evaluate.slices
    if not names:
        return []
    tests = [each.fold.test for each in tested]
    values = pl.concat([kind.slices(data, test, names, section).with_columns(pl.lit(test).alias("_cutoff")) for test in tests])
    found: list[dict[str, Any]] = []
    for name in names:
        labels, order = slice_labels(values[name])
        rows = values.select(labels.alias("value"), entity="_entity", cutoff="_cutoff")
        for value in order:
            kept = rows.filter(pl.col("value") == value)
            frames = [each.predictions.join(kept, on=["entity", "cutoff"], how="semi") for each in tested]
            found.append({"feature": name, "value": value, **_score_slice(kind, frames, section, seed)})
    return found


def _score_slice(kind: Kind, frames: Sequence[pl.DataFrame], section: Problem, seed: int) -> dict[str, Any]:
    def score(part: Sequence[pl.DataFrame]) -> float:
        scores = bootstrap.mean_scores(part, lambda frame: kind.score(frame, section))
        return scores.get(kind.headline(section).name, math.nan)

    frames = [frame for frame in frames if frame.height]
    if not frames:
        return {"rows": 0, "score": None, "low": None, "high": None}
    value = score(frames)
    without = [score(part) for part in intervals.leave_out(frames, seed, min(section.evaluate.resamples, GROUPS))]
    low, high, _ = intervals.interval(value, without, section.evaluate.confidence, kind.headline(section).scale)
    rows = sum(frame.height for frame in frames)
    return {"rows": rows, "score": known(value), "low": known(low), "high": known(high)}


def slice_labels(values: pl.Series) -> tuple[pl.Series, list[str]]:
    """The slice of each value, and the slices in order: numbers are cut at their quartiles, categories ordered by size.

    Numbers with at most four values count as categories. The MAX_CATEGORIES largest categories have a slice of their own, the
    others are `other`; missing values are `missing`.
    """
    values = values.fill_nan(None) if values.dtype.is_float() else values
    if values.dtype.is_numeric() and values.drop_nulls().n_unique() > 4:
        labels, order = _quartiles(values)
    else:
        labels, order = _largest(values)
    labels = labels.fill_null("missing")
    return labels, [name for name in [*order, "other", "missing"] if (labels == name).any()]


def _quartiles(values: pl.Series) -> tuple[pl.Series, list[str]]:
    edges = sorted({float(values.quantile(share, "linear") or 0) for share in (0.25, 0.5, 0.75)})
    inner = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    order = [f"up to {edges[0]:.4g}", *inner, f"above {edges[-1]:.4g}"]
    places = np.searchsorted(edges, values.fill_null(math.nan).to_numpy(), side="left").clip(max=len(edges))
    labels = pl.Series([order[place] for place in places])
    return labels.set(values.is_null(), None), order


def _largest(values: pl.Series) -> tuple[pl.Series, list[str]]:
    names = pl.Series(
        [f"{value:g}" if isinstance(value, float) else value if value is None else str(value) for value in values]
    )
    names = names.cast(pl.String)
    order = [name for name, _ in Counter(names.drop_nulls()).most_common(MAX_CATEGORIES)]
    return pl.Series([name if name is None or name in order else "other" for name in names], dtype=pl.String), order
