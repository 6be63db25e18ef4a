"""Rows that are equal in some columns, and what an earlier run found of them.

Whether a row is equal to an earlier one follows from the rows before it alone. Of a table that has grown at its end, only the
new rows are looked up among the old ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from evergreen.tasks.core import memory
from evergreen.tasks.data import earlier_results
from evergreen.tasks.data.earlier_results import EarlierResults
from evergreen.tasks.data.row_blocks import BYTES_PER_KEY, ROW, RowBlocks, packed, unpacked

EXACT = (pl.Date, pl.Datetime("us"), pl.Datetime("ms"))
"""Types of times whose values Python holds exactly."""


@dataclass(frozen=True)
class EarlierRows:
    """The results of earlier runs for one table of data/raw."""

    results: EarlierResults
    groups: Sequence[str]
    """Digests of its row groups."""
    size: int
    """Rows of each of them but the last."""

    def prefixes(self) -> list[str]:
        """For 0, 1, ... whole row groups, a digest of those."""
        found, whole = [""], len(self.groups) - 1
        for each in self.groups[:whole]:
            found.append(earlier_results.digest(found[-1], each))
        return found


def later_copies(view: RowBlocks, columns: Sequence[str], earlier: EarlierRows | None) -> np.ndarray:
    """The values of ROW of the rows that are equal to an earlier one in `columns`, ascending."""
    return _repeats(view, columns, earlier, "later", ~pl.struct(columns).is_first_distinct())


def all_copies(view: RowBlocks, columns: Sequence[str], earlier: EarlierRows | None) -> np.ndarray:
    """The values of ROW of the rows that are equal to any other one in `columns`, ascending."""
    return _repeats(view, columns, earlier, "all", pl.struct(columns).is_duplicated())


def _repeats(view: RowBlocks, columns: Sequence[str], earlier: EarlierRows | None, which: str, copies: pl.Expr) -> np.ndarray:
    """`copies`: which rows count, of rows that hold all of those equal to one another."""
    if earlier is None or not _may_be_found(view, columns):
        return _searched(view, columns, copies)
    kinds = [str(view.schema.schema[column]) for column in columns]
    prefixes = earlier.prefixes()
    keys = [
        earlier_results.digest(earlier_results.code(), which, list(columns), kinds, view.dropped is not None, each)
        for each in prefixes
    ]
    place, known = _longest(earlier, keys)
    start = place * earlier.size
    if known is None or _large(view, start, columns):
        found = _searched(view, columns, copies)
    else:
        found = _added(view, columns, copies, start, known)
    upto = (len(keys) - 1) * earlier.size
    earlier.results.put(keys[-1], packed(_mask(found, upto)))
    return found


def _may_be_found(view: RowBlocks, columns: Sequence[str]) -> bool:
    kinds = view.table.collect_schema()
    return all(column in kinds and not kinds[column].is_nested() for column in columns)


def _longest(earlier: EarlierRows, keys: Sequence[str]) -> tuple[int, np.ndarray | None]:
    """How many row groups the longest known beginning of the table has, and the rows found in it."""
    for place in range(len(keys) - 1, 0, -1):
        found = earlier.results.get(keys[place])
        if found is not None:
            return place, np.flatnonzero(unpacked(found, place * earlier.size)).astype(np.int64) + 1
    return 0, None


def _large(view: RowBlocks, start: int, columns: Sequence[str]) -> bool:
    return (view.read - start) * BYTES_PER_KEY * (1 + len(columns)) > memory.limit()


def _searched(view: RowBlocks, columns: Sequence[str], copies: pl.Expr) -> np.ndarray:
    return _rows(part.filter(copies) for part in view.equals(columns))


def _added(view: RowBlocks, columns: Sequence[str], copies: pl.Expr, start: int, known: np.ndarray) -> np.ndarray:
    """With the rows `known` of those up to `start`: of these, only the ones that are equal to a later row are held."""
    new = view.part(range(start, view.read), columns).select(ROW, *columns).collect()
    old = view.table.with_row_index(ROW, 1).filter(pl.col(ROW) <= start, *_within(new)).select(ROW, *columns)
    same = old.join(new.lazy().select(columns).unique(), on=list(columns), how="semi", nulls_equal=True)
    both = pl.concat([view.undropped(same.collect(engine="streaming").sort(ROW)), new])
    return np.union1d(known, _rows([both.filter(copies)]))


def _within(new: pl.DataFrame) -> Iterable[pl.Expr]:
    """Conditions on the rows that may be equal to one of `new`: by ranges row groups are not read at all, and by the values of
    one column the others are read where they hold alone.
    """
    keys = [column for column, kind in new.drop(ROW).schema.items() if kind.is_integer() or kind in EXACT]
    for column in keys:
        if len(new) and not new[column].null_count():
            kind = new.schema[column]
            yield pl.col(column).is_between(pl.lit(new[column].min(), kind), pl.lit(new[column].max(), kind))
    if keys:
        values = max((new[column].unique() for column in keys), key=len)
        yield pl.col(values.name).is_in(values.implode(), nulls_equal=True)


def _rows(parts: Iterable[pl.DataFrame]) -> np.ndarray:
    return np.sort(np.concatenate([part[ROW].to_numpy() for part in parts])).astype(np.int64)


def _mask(rows: np.ndarray, upto: int) -> np.ndarray:
    """Of each row from 1 up to `upto` whether it is one of `rows`."""
    mask = np.zeros(upto, dtype=bool)
    mask[rows[rows <= upto] - 1] = True
    return mask
