"""Fewer rows of a plain table for the search: large tables are looked at in part, what is found learns from all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.tasks.problems.base import Fold
from evergreen.tasks.problems.tabular.holdout_split import ALONE, TARGET
from evergreen.tasks.problems.tabular.rows import Rows

FEWEST_PER_CLASS = 30
"""A class keeps so many rows, or all that it has."""
CLASSES = 50
"""A target with more values than this has no classes."""


def sample(folder: Path, most: int, share: float, seed: int, into: Path) -> Path:
    """The folder of a plain table's rows with at most about `most` that the search may see: `folder` itself, or else `into`.

    `share`: that of the test rows, of which as large a part is kept. Rows are drawn at random and keep their order; each class
    keeps FEWEST_PER_CLASS.
    """
    path, total = folder / "rows.parquet", int(most / (1 - share))
    rows = pl.scan_parquet(path)
    height = rows.select(pl.len()).collect().item()
    if height <= total:
        return folder
    order = np.random.default_rng(seed).permutation(height)
    rare = _rare(rows.select(TARGET).collect()[TARGET], order)
    kept = np.unique(np.concatenate([order[:total], rare])).astype(np.uint32)
    wanted = np.zeros(height, dtype=bool)
    wanted[kept] = True
    into.mkdir(parents=True, exist_ok=True)
    rows.filter(pl.lit(pl.Series(wanted))).collect().write_parquet(into / path.name)
    return into


def thin(data: Any, most: int | None, seed: int) -> Any:
    """`data` with at most about `most` of the rows that the search may see and none of the test part; as it is for None.

    Rows are drawn at random and keep their order; each class keeps FEWEST_PER_CLASS. What is no plain table stays as it is.
    """
    if not isinstance(data, Rows) or data.parts is None or most is None:
        return data
    data = data.in_memory()
    test = data.parts.masks.get(ALONE, np.zeros(len(data), dtype=bool))
    seen = np.flatnonzero(~test)
    if len(seen) <= most:
        return data
    order = seen[np.random.default_rng(seed).permutation(len(seen))]
    kept = np.unique(np.concatenate([order[:most], _rare(data.target, order)]))
    masks = {name: mask[kept] for name, mask in data.parts.masks.items()}
    return replace(data.take(kept), parts=replace(data.parts, masks=masks))


def _rare(target: pl.Series, order: np.ndarray) -> np.ndarray:
    """Of the rows in `order`, the first FEWEST_PER_CLASS of each class."""
    codes = target[order].rank("dense").fill_null(0).to_numpy().astype(int)
    if codes.max() > CLASSES:
        return order[:0]
    return np.concatenate([order[np.flatnonzero(codes == code)[:FEWEST_PER_CLASS]] for code in np.unique(codes)])


def without(data: Any, folds: Sequence[Fold], outer: int) -> tuple[Any, Sequence[Fold]]:
    """`data` and folds for a search that knows nothing of the rows that judge fold `outer`.

    Where rows have an order in time these are the folds before it; else the others of its cross-validation, that fold's rows
    taken from what they learn from.
    """
    if not isinstance(data, Rows) or data.parts is None or data.parts.begins:
        return data, folds[:outer]
    held = folds[outer]
    repeat = str(held.test).split("/")[0]
    masks, found = dict(data.parts.masks), []
    for fold in folds:
        if fold is held or str(fold.test).split("/")[0] != repeat:
            continue
        name = f"{fold.train[0]} and {held.test}"
        masks[name] = masks[str(fold.train[0])] & ~masks[str(held.test)]
        found.append(Fold((name,), fold.test))
    return replace(data, parts=replace(data.parts, masks=masks)), found
