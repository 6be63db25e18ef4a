"""Which feature makes each column of a matrix inside a compiled model: each is changed alone, and what moves is its own."""

import math
from collections.abc import Sequence

import numpy as np

from evergreen.tasks.model_files.onnx_runtime import BATCH, Column, Compiled, Weights
from evergreen.tasks.model_files.score_tables import SEVERAL

ROWS, BASES = 60, 2
"""Rows whose values are tried, and rows that they are tried in."""


def find(compiled: Compiled, points: np.ndarray, words: Sequence[Sequence[Weights]]) -> list[np.ndarray]:
    """Of each score's matrix the place in `compiled.features` of the feature that makes each column.

    -1 for a constant column, SEVERAL for one that several features make. `points`, `words`: encoded rows. Tried are the values
    of the first ROWS, the smallest and the largest number of all, each category, and a missing value.
    """
    names, texts = (np.array(each, dtype=object) for each in compiled.owners())
    found: list[np.ndarray] = []
    for place, feature in enumerate(compiled.features):
        own = np.flatnonzero(names == feature)
        tried = points[:ROWS, own]
        rows = len(tried)
        for column, each in enumerate(own):
            values = _values(compiled.signature.columns[each], points[:, each], compiled.signature.requires_numbers)
            one = np.repeat(tried[:1], len(values), axis=0)
            one[:, column] = values
            tried = np.vstack([tried, one])
        for base in range(min(BASES, len(points))):
            mixed = np.repeat(points[[base]], len(tried), axis=0)
            mixed[:, own] = tried
            mixed_words = [
                [*(each[:rows] if name == feature else [each[base]] * rows), *[each[base]] * (len(tried) - rows)]
                for name, each in zip(texts, words, strict=True)
            ]
            unmoved = _matrices(compiled, points[[base]], [[each[base]] for each in words])
            _note(found, _matrices(compiled, mixed, mixed_words), unmoved, place)
    return found


def _values(column: Column, known: np.ndarray, complete: bool) -> list[float]:
    """The extremes of a column of numbers, the codes of all categories, and a missing value where the model takes one."""
    if column.part == "category":
        return [*map(float, (column.codes or {}).values()), float(column.unseen)]
    if column.part in ("characters", "words"):
        return []
    missing = [] if complete and column.part == "number" else [math.nan]
    return missing if np.isnan(known).all() else [float(np.nanmin(known)), float(np.nanmax(known)), *missing]


def _matrices(compiled: Compiled, points: np.ndarray, words: Sequence[Sequence[Weights]]) -> list[np.ndarray]:
    starts = range(0, len(points), BATCH)
    parts = [compiled.trace(points[at : at + BATCH], [each[at : at + BATCH] for each in words])[::2] for at in starts]
    return [np.vstack(each) for each in zip(*parts, strict=True)]


def _note(found: list[np.ndarray], matrices: list[np.ndarray], bases: list[np.ndarray], place: int) -> None:
    """Give the columns that differ from the base row to the feature at `place`."""
    if not found:
        found += [np.full(each.shape[1], -1) for each in matrices]
    for owner, matrix, base in zip(found, matrices, bases, strict=True):
        moved = ((matrix != base) & ~(np.isnan(matrix) & np.isnan(base))).any(axis=0)
        owner[moved & (owner != -1) & (owner != place)] = SEVERAL
        owner[moved & (owner == -1)] = place
