"""Sources of candidates: rebuys, purchases of similar users, co-purchases, popular items.

Each source learns from a users x items matrix and scores rows of such a matrix, also those of new users.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

from evergreen.model_types import stored_type
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, codes, distinct, ranges

SOURCES = ("rebuy", "ease", "tifu_knn", "popular", "item_knn", "co_visitation", "als", "segment_popularity", "content")
"""Own purchases with decay, EASE, TIFU-kNN, popularity; neighbours among items by who buys them and by the baskets they lie in,
implicit ALS, popularity in the user's segment, new items by attributes: the order of the scores of a candidate."""
BLOCK = 256
"""Users or items per block; bounds the memory of dense matrices."""
TILE = 512
"""Columns that are transposed at a time."""
LONGEST = 1_000
"""Most entries of a row in counts of pairs, which grow with its square."""


FAR = 100_000
"""More days than any purchase is back."""


def decay(days_ago: np.ndarray, half_life: float) -> np.ndarray:
    """Weight of a purchase: 1 today, one half after `half_life` days."""
    return 0.5 ** (days_ago / half_life)


@dataclass(frozen=True)
class Decay:
    """How the weight of a purchase falls: by half each so many `days`, or each so many `orders` of its user since.

    An order is a day with a purchase. With `orders`, `days` does not count.

    >>> Decay(orders=2).weigh(np.array([0, 0, 0]), np.array([30, 9, 1])).round(2).tolist()
    [0.5, 0.71, 1.0]
    """

    days: float = 90.0
    orders: float | None = None

    def weigh(self, user: np.ndarray, ago: np.ndarray) -> np.ndarray:
        """Of each line: `user`, whole numbers, and whole days before now."""
        if self.orders is None:
            return decay(ago, self.days)
        visit = user.astype(np.int64) * FAR + ago.astype(np.int64)
        known = distinct(visit)
        since = np.searchsorted(known, visit) - np.searchsorted(known, user.astype(np.int64) * FAR)
        return 0.5 ** (since / self.orders)


MOVED = 0.25
"""Most buyers of a basket's new items, as a part of all users, for which these are handled one by one; for more, the product
with all of K is faster."""
SHARES = 32 << 20
"""Most bytes of stored products of items and K: of those prepared, and again of those asked for last."""
PREPARED = 12_000_000_000
"""Most multiplications for prepared products, about 0.3 s."""


def _learned(learned: Any) -> dict[str, Any]:
    """The state to save, without computed caches."""
    return {name: value for name, value in learned.__dict__.items() if not name.startswith("_")}


@stored_type
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
    penalty: float | None = None
    _by_item: Sparse | None = field(default=None, init=False, repr=False)
    """X', by rows; computed once."""
    _shares: dict[int, np.ndarray] | None = field(default=None, init=False, repr=False)
    """Item -> x' K, see `_share`."""
    _prepared: np.ndarray | None = field(default=None, init=False, repr=False)
    """The same of some items, one row each."""
    _place: np.ndarray | None = field(default=None, init=False, repr=False)
    """Of each item its row in `_prepared`, -1 for none."""

    @classmethod
    def learn(cls, users: Sparse, penalty: float) -> "Ease":
        """`users`: users x items, as many users as a dense users x users matrix may have."""
        gram = (users @ users.T).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += penalty
        kernel = linalg.inv(gram, overwrite_a=True, assume_a="pos").astype(np.float32)
        return cls(users, kernel, 1 - _diagonal(users, kernel), float(penalty))

    def __getstate__(self) -> dict[str, Any]:
        return _learned(self)

    @property
    def by_item(self) -> Sparse:
        if self._by_item is None:
            self._by_item = self.users.T.tocsr()
        return self._by_item

    def prepare(self) -> None:
        """Store the products of K and the items with most buyers: for a user who bought since, they take longest.

        Others share them from then on; without it the scores are the same.
        """
        if self._place is not None:
            return
        users, count = len(self.kernel), np.diff(self.by_item.indptr)
        most = np.argsort(-count, kind="stable")[: min(PREPARED // max(users, 1) ** 2, SHARES // max(4 * users, 1))]
        self._prepared = self.by_item[most].toarray() @ self.kernel
        self._place = np.full(len(count), -1)
        self._place[most] = np.arange(len(most))

    def score(self, rows: Sparse, own: np.ndarray | None = None) -> np.ndarray:
        """rows x items, dense: rows @ B. `own`: which learned user each row is about, -1 for another one."""
        if own is None or self.penalty is None:
            weights = (rows @ self.by_item).toarray() @ self.kernel
        elif len(own) == 1:
            weights = self._moved(rows, own[0])[None]
        else:
            weights = self._all_moved(rows, own)
        found = _by_rows(self.by_item @ weights.T)
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        found[row, rows.indices] -= rows.data * (1 - self.remainder[rows.indices])
        found /= self.remainder
        return found

    def _all_moved(self, rows: Sparse, own: np.ndarray) -> np.ndarray:
        """rows X' K, as `_moved` has it; `own`: per row."""
        weights, there = np.zeros((len(own), len(self.kernel)), np.float32), np.flatnonzero(own >= 0)
        weights[there] = -(self.penalty or 0.0) * self.kernel[own[there]]
        weights[there, own[there]] += 1
        size = np.diff(self.users.indptr)[own[there]]
        mine = ranges(self.users.indptr[own[there]], size)
        learned = sparse.csr_array(
            (self.users.data[mine], (np.repeat(there, size), self.users.indices[mine])), shape=rows.shape, dtype=np.float32
        )
        change = rows - learned
        change.eliminate_zeros()
        changed = np.flatnonzero(np.diff(change.indptr))
        if len(changed):
            weights[changed] += (change[changed] @ self.by_item).toarray() @ self.kernel
        return weights

    def _moved(self, rows: Sparse, own: int) -> np.ndarray:
        """rows X' K of one row, from what changed since it was learned, mostly nothing: to multiply all of K takes longest.

        By the definition of K a learned row gives x X' K = e - penalty K[own], e being one at `own` (-1: nobody learned from).
        """
        weights, change = np.zeros(len(self.kernel), np.float32), np.zeros(rows.shape[1], np.float32)
        change[rows.indices] = rows.data
        if own >= 0:
            weights = -(self.penalty or 0.0) * self.kernel[own]
            weights[own] += 1
            mine = slice(*self.users.indptr[own : own + 2])
            change[self.users.indices[mine]] -= self.users.data[mine]
        changed = np.flatnonzero(change)
        if self._place is not None and self._prepared is not None:
            place = self._place[changed]
            weights += change[changed[place >= 0]] @ self._prepared[place[place >= 0]]
            changed = changed[place < 0]
        buyers = self.by_item.indptr[changed + 1] - self.by_item.indptr[changed]
        if buyers.sum() > MOVED * len(self.kernel):
            return weights + self.kernel @ _touched(
                self.by_item, changed, change
            )  # K is symmetric, and rows are faster to read
        for item in changed.tolist():
            weights += change[item] * self._share(item)
        return weights

    def _share(self, item: int) -> np.ndarray:
        """x' K of one item: the same in every basket it lies in, so those asked for last are kept."""
        if self._shares is None:
            self._shares = {}
        if (kept := self._shares.get(item)) is None:
            mine = slice(*self.by_item.indptr[item : item + 2])
            kept = self.by_item.data[mine] @ self.kernel[self.by_item.indices[mine]]
            while len(self._shares) * kept.nbytes >= SHARES:
                self._shares.pop(next(iter(self._shares)), None)
            self._shares[item] = kept
        return kept


def _diagonal(users: Sparse, kernel: np.ndarray, width: int = 2048) -> np.ndarray:
    """x_j' K x_j per item j, some items at a time."""
    by_item, found = users.tocsc(), []
    for first in range(0, users.shape[1], width):
        block = by_item[:, first : first + width]
        found.append(np.asarray(block.multiply((block.T @ kernel).T).sum(axis=0)).ravel())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@stored_type
@dataclass(eq=False)
class TifuKnn:
    """The mean purchases of the most similar users (TIFU-kNN: Hu et al. 2020, with one decay in days instead of groups)."""

    ids: np.ndarray
    """Ids of the users learned from: nobody is similar to himself."""
    users: Sparse
    """Decayed purchases, users x items."""
    neighbours: int
    _by_item: Sparse | None = field(default=None, init=False, repr=False)
    """Items x users, each user of length one: asked for with every score and the same every time."""
    _norm: np.ndarray | None = field(default=None, init=False, repr=False)
    """Lengths of the users."""

    def __getstate__(self) -> dict[str, Any]:
        return _learned(self)

    @property
    def by_item(self) -> Sparse:
        if self._by_item is None:
            self._by_item = unit_rows(self.users).T.tocsr()
        return self._by_item

    def score(self, rows: Sparse, ids: np.ndarray) -> np.ndarray:
        """rows x items, dense. `ids`: whose rows these are."""
        own = codes(ids, self.ids)
        if len(own) == 1:
            return self._score_one(rows, own)
        similarity = (unit_rows(rows) @ self.by_item).toarray()
        similarity[np.flatnonzero(own >= 0), own[own >= 0]] = -1
        count = min(self.neighbours, similarity.shape[1])
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count] if count else np.zeros((len(ids), 0), int)
        share = np.zeros(similarity.shape, np.float32)
        np.put_along_axis(share, nearest, 1 / max(count, 1), axis=1)
        # a product with a dense matrix is faster than one of two sparse ones; `by_item` holds users of length one
        return _by_rows(self.by_item @ (share * self._norms()).T)

    def _norms(self) -> np.ndarray:
        if self._norm is None:
            self._norm = np.asarray(sparse.linalg.norm(self.users, axis=1), np.float32)
        return self._norm

    def _score_one(self, rows: Sparse, own: np.ndarray) -> np.ndarray:
        """`score` of one row without sparse matrices: to make them takes longer than to use them. Its length is no matter."""
        row = np.zeros(rows.shape[1], np.float32)
        row[rows.indices] = rows.data
        similarity = _touched(self.by_item, rows.indices, row)
        similarity[own[own >= 0]] = -1
        count = min(self.neighbours, len(similarity))
        nearest = np.argpartition(-similarity, count - 1)[:count] if count else np.zeros(0, int)
        return _touched(self.users, nearest, np.full(len(similarity), 1 / max(count, 1), np.float32))[None]


@stored_type
@dataclass(eq=False)
class ItemNeighbours:
    """Each item's nearest by the cosine of the rows that hold both: rows are users (item-kNN) or baskets (co-visitation)."""

    nearest: Sparse
    """items x items, nothing on the diagonal, at most so many neighbours per row."""

    @classmethod
    def learn(cls, rows: Sparse, neighbours: int) -> "ItemNeighbours":
        unit = unit_rows(_shortened(rows).T.tocsr())
        across, found = unit.T.tocsr(), []
        for first in range(0, unit.shape[0], BLOCK):
            found.append(_nearest((unit[first : first + BLOCK] @ across).tocsr(), first, neighbours))
        empty = sparse.csr_array((0, rows.shape[1]), dtype=np.float32)
        return cls(sparse.vstack([empty, *found], format="csr", dtype=np.float32))

    def score(self, rows: Sparse) -> np.ndarray:
        """rows x items, dense."""
        if rows.shape[0] == 1:
            row = np.zeros(rows.shape[1], np.float32)
            row[rows.indices] = rows.data
            return _touched(self.nearest, rows.indices, row)[None]
        return (rows @ self.nearest).toarray()


def _shortened(rows: Sparse) -> Sparse:
    """`rows` as zeros and ones, without rows of more than LONGEST entries, which carry little information per item."""
    kept = np.flatnonzero(np.diff(rows.indptr) <= LONGEST)
    found = rows[kept]
    return sparse.csr_array((np.ones(found.nnz, np.float32), found.indices, found.indptr), shape=found.shape)


def strongest(rows: Sparse, most: int) -> Sparse:
    """The `most` highest entries of each row, of equal ones the first."""
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    by = np.lexsort((-rows.data, row))
    by = np.sort(by[np.arange(len(row)) - rows.indptr[row] < most])
    return sparse.coo_array((rows.data[by], (row[by], rows.indices[by])), shape=rows.shape).tocsr()


def _nearest(similarity: Sparse, first: int, count: int) -> Sparse:
    """The `count` highest entries of each row, without the diagonal; row 0 is item `first`."""
    row = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    off = similarity.indices != row + first
    row, column, value = row[off], similarity.indices[off], similarity.data[off]
    by = np.lexsort((column, -value, row))
    row, column, value = row[by], column[by], value[by]
    kept = np.arange(len(row)) - np.searchsorted(row, row) < count
    return sparse.csr_array((value[kept], (row[kept], column[kept])), shape=similarity.shape)


@stored_type
@dataclass(eq=False)
class Factors:
    """A short vector per item and user whose product says who buys what (implicit ALS: Hu, Koren, Volinsky 2008).

    Vectors of items are learned; that of a user is solved from what the user bought, whenever it is asked for.
    """

    items: np.ndarray
    """items x factors."""
    gram: np.ndarray
    """items' items + penalty I, factors x factors."""

    PENALTY = 0.05
    ROUNDS = 12

    @classmethod
    def learn(cls, users: Sparse, factors: int, seed: int) -> "Factors":
        """`users`: users x items, how sure each purchase makes us; 0 is the same as not bought."""
        from implicit.cpu.als import AlternatingLeastSquares  # takes longer to import than most shops to score

        model = AlternatingLeastSquares(
            factors=factors,
            regularization=cls.PENALTY,
            alpha=1.0,
            iterations=cls.ROUNDS,
            num_threads=1,
            random_state=seed,
        )
        with threadpool_limits(1, "blas"):
            model.fit(sparse.csr_matrix(users), show_progress=False)
        items = np.asarray(model.item_factors, np.float32)
        return cls(items, items.T @ items + cls.PENALTY * np.eye(items.shape[1], dtype=np.float32))

    def score(self, rows: Sparse) -> np.ndarray:
        """rows x items, dense."""
        users = np.zeros((rows.shape[0], self.items.shape[1]), np.float32)
        for at, (first, last) in enumerate(zip(rows.indptr[:-1], rows.indptr[1:], strict=True)):
            if first < last:
                mine, sure = self.items[rows.indices[first:last]], rows.data[first:last]
                users[at] = np.linalg.solve(self.gram + (mine.T * (sure - 1)) @ mine, sure @ mine)
        return users @ self.items.T


@stored_type
@dataclass(eq=False)
class Segments:
    """What is popular lately among the users of the same segment."""

    ids: np.ndarray
    """Sorted ids of the users that belong to one."""
    segment: np.ndarray
    """Number of the segment of each of them."""
    share: Sparse
    """segments x items: part of the segment's users who bought each item."""

    @classmethod
    def learn(cls, ids: np.ndarray, segment: np.ndarray, bought: Sparse) -> "Segments":
        """`segment`: of each of `ids`, -1 for none; `bought`: users x items, what each bought lately."""
        there = segment >= 0
        groups = int(segment.max(initial=-1)) + 1
        size = np.bincount(segment[there], minlength=groups)
        member: Sparse = sparse.csr_array(
            ((1 / size[segment[there]]).astype(np.float32), (segment[there], np.flatnonzero(there))), shape=(groups, len(ids))
        )
        ones = sparse.csr_array((np.ones(bought.nnz, np.float32), bought.indices, bought.indptr), shape=bought.shape)
        return cls(ids[there], segment[there], (member @ ones).tocsr())

    def score(self, ids: np.ndarray) -> np.ndarray:
        """users x items, dense; zeros for a user of no segment."""
        at, found = codes(ids, self.ids), np.zeros((len(ids), self.share.shape[1]), np.float32)
        for row in np.flatnonzero(at >= 0):
            mine = slice(*self.share.indptr[self.segment[at[row]] :][:2])
            found[row, self.share.indices[mine]] = self.share.data[mine]
        return found


def favourites(bought: Sparse, category: np.ndarray) -> np.ndarray:
    """The category that each user stands out by, -1 for none: n log(share / share of all) is largest there.

    `bought`: users x items; `category`: number per item.
    """
    of = sparse.csr_array((np.ones(len(category), np.float32), (np.arange(len(category)), category)))
    mix: Sparse = (bought @ of).tocsr()
    total = np.maximum(np.asarray(mix.sum(axis=1)).ravel(), 1e-9)
    usual = np.maximum(np.bincount(mix.indices, mix.data, minlength=mix.shape[1]) / max(mix.data.sum(), 1e-9), 1e-12)
    row = np.repeat(np.arange(mix.shape[0]), np.diff(mix.indptr))
    lift = mix.data * np.log(mix.data / total[row] / usual[mix.indices])
    by = np.lexsort((mix.indices, -lift, row))
    first = by[np.searchsorted(row, distinct(row))]
    found = np.full(mix.shape[0], -1)
    found[row[first]] = mix.indices[first]
    return found


def _touched(matrix: Sparse, rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """weight[rows] @ matrix[rows], dense, reading nothing but these rows."""
    return matrix[rows].T @ weight[rows]


def _by_rows(columns: np.ndarray) -> np.ndarray:
    """The transposed table, some columns at a time: what is read and written then stays in the processor's cache."""
    if columns.shape[1] == 1:
        return columns.reshape(1, -1)
    found = np.empty(columns.shape[::-1], columns.dtype)
    for first in range(0, len(columns), TILE):
        found[:, first : first + TILE] = columns[first : first + TILE].T
    return found


def unit_rows(rows: Sparse) -> Sparse:
    norm = sparse.linalg.norm(rows, axis=1)
    return (sparse.diags_array((1 / np.maximum(norm, 1e-12)).astype(np.float32)) @ rows).tocsr()


def popularity(histories: Histories, catalogue: np.ndarray, first: int, last: int) -> np.ndarray:
    """Number of users who bought each item of the catalogue in the days `first` to `last`, both inclusive."""
    bought = histories.between(first, last).matrix(catalogue)
    return np.bincount(bought.indices, minlength=len(catalogue)).astype(np.float32)
