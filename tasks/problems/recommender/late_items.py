"""Items that nobody had bought when a model learned: whoever bought one since may buy it again, as any item of one buyer.

They are in no array of what was learned: a list has columns of its own for those that its user bought. A purchase of such an
item, and a list with one, so cost nothing per item of the catalogue.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from evergreen.tasks.problems.recommender import item_catalogue
from evergreen.tasks.problems.recommender.user_histories import codes, distinct


@dataclass(frozen=True, eq=False)
class LateItems:
    """What the table of items says of those outside the catalogue, in the numbers of what was learned; 0: none of these."""

    ids: np.ndarray
    """Sorted."""
    category: np.ndarray
    groups: np.ndarray
    """One row per item, a column for each of features.groups."""

    @classmethod
    def of(cls, table: pl.DataFrame, catalogue: np.ndarray, category: np.ndarray, groups: np.ndarray | None) -> "LateItems":
        """`table`: the items with their attributes (item_catalogue.items); `category`, `groups`: of the catalogue's items."""
        ids = distinct(item_catalogue.ids(table, catalogue))
        ids = ids[codes(ids, catalogue) < 0]
        groups = np.zeros((len(catalogue), 0), np.int64) if groups is None else groups
        if not len(ids):
            return cls(catalogue[:0], category[:0], groups[:0])
        like = item_catalogue.matching_items(table, ids, catalogue)
        columns = [_of(like[name], groups[:, n]) for n, name in enumerate(item_catalogue.GROUPS[: groups.shape[1]])]
        return cls(ids, _of(like["category"], category), np.column_stack([np.zeros((len(ids), 0), groups.dtype), *columns]))

    def numbers(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The category of each of `ids`, and its groups."""
        place = codes(ids, self.ids)
        known = place >= 0
        category, groups = (
            np.zeros(len(ids), self.category.dtype),
            np.zeros((len(ids), self.groups.shape[1]), self.groups.dtype),
        )
        category[known], groups[known] = self.category[place[known]], self.groups[place[known]]
        return category, groups


def _of(place: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(place >= 0, values[place], 0)
