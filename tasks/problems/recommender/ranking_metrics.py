"""Metrics of ranked lists with binary relevance: each is one number per user, from the places of the hits.

NDCG: Järvelin and Kekäläinen 2002, binary gain, the ideal list holds min(k, relevant) hits. MAP: average precision at k with
the same ideal. Recall divides by all relevant items, also by those that no list could hold.

Metrics beyond accuracy: novelty is the mean self-information of their items in bits (Zhou et al. 2010: an item
that half of the users bought has one bit), diversity the share of pairs of different categories, dissimilarity one minus the
mean cosine between the buyers of two of the items (intra-list distance: Ziegler et al. 2005).
"""

from dataclasses import dataclass

import numpy as np

from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, matrix

BUYERS = 5000
"""Users, drawn at random where there are more, whose purchases measure the similarity of two items."""
BLOCK = 512
"""Lists looked at at a time."""


@dataclass(eq=False)
class Items:
    """What is known of all items at a cutoff, one entry or row each."""

    bits: np.ndarray
    """Self-information: minus the binary logarithm of the share of users who bought it, with one more user who buys all."""
    category: np.ndarray
    """Its number; 0 for no known one."""
    buyers: Sparse
    """items x users, rows of length one (or empty)."""

    @classmethod
    def of(cls, known: Histories, category: np.ndarray, seed: int = 0) -> "Items":
        """`known`: the lines up to the cutoff, in which users and items keep their positions."""
        size, there = (len(known.items), len(known.users)), np.unique(known.user)
        bought = matrix(known.item, known.user, size)
        bits = -np.log2((np.diff(bought.indptr) + 1) / (len(there) + 1))
        if len(there) > BUYERS:
            drawn = np.zeros(len(known.users), bool)
            drawn[np.random.default_rng(seed).permutation(there)[:BUYERS]] = True
            kept = drawn[known.user]
            bought = matrix(known.item[kept], known.user[kept], size)
        users = np.diff(bought.indptr)
        bought.data = np.repeat(1 / np.sqrt(np.maximum(users, 1)), users).astype(np.float32)
        return cls(bits, category, bought)


def of_lists(row: np.ndarray, item: np.ndarray, rows: int, items: Items) -> dict[str, np.ndarray]:
    """novelty, diversity and dissimilarity of each of `rows` lists, nan where a list is too short or no category is known.

    Entry by entry: `row`, sorted, and `item`, its place in `items`.
    """
    size = np.bincount(row, minlength=rows)
    pairs = size * (size - 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"novelty": np.bincount(row, items.bits[item], minlength=rows) / size}
        same = _same(row, items.category[item], rows) if items.category.any() else np.full(rows, np.nan)
        found["diversity"] = 1 - same / pairs
        found["dissimilarity"] = 1 - _similarity(row, item, rows, items.buyers) / pairs
    return {name: np.where(size > (name != "novelty"), each, np.nan) for name, each in found.items()}


def _same(row: np.ndarray, category: np.ndarray, rows: int) -> np.ndarray:
    """Number of ordered pairs of entries of one category, per row."""
    groups = int(category.max(initial=0)) + 1
    key, count = np.unique(row.astype(np.int64) * groups + category, return_counts=True)
    return np.bincount(key // groups, count * (count - 1.0), minlength=rows)


def _similarity(row: np.ndarray, item: np.ndarray, rows: int, buyers: Sparse) -> np.ndarray:
    """Sum of the cosines of all ordered pairs of entries, per row: the square of their sum without the squares of each."""
    own = np.bincount(row, np.diff(buyers.indptr)[item] > 0, minlength=rows)
    total = np.zeros(rows)
    for first in range(0, rows, BLOCK):
        kept = slice(*np.searchsorted(row, [first, first + BLOCK]))
        lists = matrix(row[kept] - first, item[kept], (BLOCK, buyers.shape[0]))
        square = np.asarray((lists @ buyers).power(2).sum(axis=1)).ravel()
        total[first : first + BLOCK] = square[: rows - first]
    return total - own


def per_user(hits: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """ndcg, recall, map and hit_rate, one value per user, nan where a user has nothing relevant.

    `hits`: users x k, true where the item at that rank is relevant; ranks beyond the end of a short list are false.
    `relevant`: number of relevant items per user.
    """
    k = hits.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(relevant, k)]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ndcg": hits @ discount / ideal,
            "recall": hits.sum(axis=1) / relevant,
            "map": (precision * hits).sum(axis=1) / np.minimum(relevant, k),
            "hit_rate": np.where(relevant > 0, hits.any(axis=1), np.nan),
        }
