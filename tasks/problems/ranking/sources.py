"""Where candidates come from: what a user buys anyway, what similar users buy, what goes together, what is popular.

Each source learns from a users x items matrix and scores rows of such a matrix: a history that changed is scored the same way.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from tasks.problems.ranking.histories import Histories, Sparse, codes

SOURCES = ("again", "together", "similar", "popular")
"""Own purchases with decay, EASE, TIFU-kNN, popularity: the order of the scores of a candidate."""


def decay(days_ago: np.ndarray, half_life: float) -> np.ndarray:
    """Weight of a purchase: 1 today, one half after `half_life` days."""
    return 0.5 ** (days_ago / half_life)


@dataclass(eq=False)
class Ease:
    """Linear item-to-item model with a ridge penalty and a zero diagonal (EASE: Steck 2019), through users instead of items.

    The closed form is B = I - P / diag(P) with P = (X'X + penalty I)^-1, items x items. With fewer users than items the
    Woodbury identity gives P = (I - X' K X) / penalty, K = (X X' + penalty I)^-1, users x users: exact, and B is never built.
    """

    users: Sparse
    """X, users x items."""
    kernel: np.ndarray
    """K, users x users."""
    remainder: np.ndarray
    """penalty times diag(P), per item: 1 - x_j' K x_j."""

    @classmethod
    def learn(cls, users: Sparse, penalty: float) -> "Ease":
        gram = (users @ users.T).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += penalty
        kernel = linalg.inv(gram, overwrite_a=True, assume_a="pos").astype(np.float32)
        return cls(users, kernel, 1 - _diagonal(users, kernel))

    def score(self, rows: Sparse) -> np.ndarray:
        """rows x items, dense: rows @ B."""
        weights = (rows @ self.users.T).toarray() @ self.kernel
        explained = (self.users.T @ weights.T).T
        return np.asarray((explained - rows.toarray() * (1 - self.remainder)) / self.remainder)


def _diagonal(users: Sparse, kernel: np.ndarray, width: int = 2048) -> np.ndarray:
    """x_j' K x_j per item j, some items at a time."""
    by_item, found = users.tocsc(), []
    for first in range(0, users.shape[1], width):
        block = by_item[:, first : first + width]
        found.append(np.asarray(block.multiply((block.T @ kernel).T).sum(axis=0)).ravel())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@dataclass(eq=False)
class Similar:
    """The mean purchases of the most similar users (TIFU-kNN: Hu et al. 2020, with one decay in days instead of groups)."""

    ids: np.ndarray
    """Ids of the users learned from: nobody is similar to himself."""
    users: Sparse
    """Decayed purchases, users x items."""
    neighbours: int

    def score(self, rows: Sparse, ids: np.ndarray) -> np.ndarray:
        """rows x items, dense. `ids`: whose rows these are."""
        alike = (_unit(rows) @ _unit(self.users).T).toarray()
        own = codes(ids, self.ids)
        alike[np.flatnonzero(own >= 0), own[own >= 0]] = -1
        count = min(self.neighbours, alike.shape[1])
        nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count] if count else np.zeros((len(ids), 0), int)
        share = np.full(nearest.size, 1 / max(count, 1), np.float32)
        chosen = sparse.csr_array((share, nearest.ravel(), np.arange(len(ids) + 1) * count), shape=alike.shape)
        return (chosen @ self.users).toarray()


def _unit(rows: Sparse) -> Sparse:
    norm = sparse.linalg.norm(rows, axis=1)
    return (sparse.diags_array((1 / np.maximum(norm, 1e-12)).astype(np.float32)) @ rows).tocsr()


def popularity(histories: Histories, catalogue: np.ndarray, first: int, last: int) -> np.ndarray:
    """Number of users who bought each item of the catalogue in the days `first` to `last`, both inclusive."""
    bought = histories.between(first, last).matrix(catalogue)
    return np.bincount(bought.indices, minlength=len(catalogue)).astype(np.float32)
