"""What items are like by their attributes: places an item that hardly anybody has bought yet.

An item is the set of its words: values of its category and groups, words of its name and text, and the step of its price.
Rare words count more (TF-IDF: Spärck Jones 1972). A user is the sum of what he bought, with decay, and is offered the new
items that are most similar to him by the cosine (content-based filtering: Lops et al. 2011).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from evergreen.model_types import stored_type
from evergreen.tasks.problems.recommender.candidate_sources import unit_rows
from evergreen.tasks.problems.recommender.user_histories import Sparse, codes, matrix, to_ids

WORDS, VALUES = ("name", "text"), ("category", "group1", "group2")
"""Columns of items that hold words, and those that hold one value."""
PRICES = 10
"""Steps of prices, with as many items each."""
COMMON = 0.5
"""A word in more than this share of the items says nothing."""


@stored_type
@dataclass(eq=False)
class Contents:
    """`items`: catalogue x words, rows of length one; `new`: columns of the catalogue of the items that are placed by them."""

    items: Sparse
    new: np.ndarray
    _by_word: Sparse | None = field(default=None, init=False, repr=False)
    """Words x new items; asked for with every list and the same every time."""

    @classmethod
    def learn(cls, table: pl.DataFrame, catalogue: np.ndarray, new: np.ndarray) -> "Contents":
        """`table`: the rows of item_catalogue.items; `catalogue`: sorted ids; `new`: columns of it."""
        words = of_items(table, catalogue)
        known = np.diff(words.indptr)[new] > 0
        return cls(words, new[known])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    @property
    def by_word(self) -> Sparse:
        if self._by_word is None:
            self._by_word = self.items[self.new].T.tocsr()
        return self._by_word

    def score(self, rows: Sparse) -> np.ndarray:
        """users x new items, dense: the cosine. `rows`: users x catalogue, what each bought."""
        return (unit_rows(rows @ self.items) @ self.by_word).toarray()


def of_items(table: pl.DataFrame, catalogue: np.ndarray) -> Sparse:
    """catalogue x words, rows of length one; an item without a word that helps is an empty row."""
    found = _words(table)
    item = codes(to_ids(found["item"].cast(pl.Int64 if catalogue.dtype.kind in "iu" else pl.String)), catalogue)
    found = found.with_columns(item=pl.Series(item)).filter(pl.col("item") >= 0)
    size = max(found["item"].n_unique(), 1)
    often = pl.len().over("word")
    found = found.filter((often > 1) & (often <= COMMON * size)).with_columns(worth=(size / often).log())
    column, place = found["word"].rank("dense").to_numpy(), found["item"].to_numpy()
    size = (len(catalogue), int(column.max(initial=0)))
    return unit_rows(matrix(place, column.astype(np.int64) - 1, size, found["worth"].to_numpy()))


def _words(table: pl.DataFrame) -> pl.DataFrame:
    """item and word, each pair once."""
    parts = list[pl.DataFrame]()
    for name in VALUES:
        if name in table.columns:
            parts.append(table.select("item", word=pl.format(f"{name}={{}}", pl.col(name))))
    for name in WORDS:
        if name in table.columns:
            words = pl.col(name).str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+")
            parts.append(table.select("item", word=words).explode("word"))
    if "price" in table.columns:
        step = (pl.col("price").rank("average") / pl.col("price").count() * PRICES).ceil()
        parts.append(table.select("item", word=pl.format("price={}", step)))
    empty = table.select("item", word=pl.lit("")).clear()
    return pl.concat([empty, *parts]).drop_nulls().unique(maintain_order=True)
