"""The first stage: a few hundred items per user out of the whole catalogue, with all that the second stage looks at."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from evergreen.model_types import stored_type
from evergreen.tasks.problems.recommender import item_catalogue, ranker_features
from evergreen.tasks.problems.recommender.candidate_sources import (
    BLOCK,
    SOURCES,
    Decay,
    Ease,
    Factors,
    ItemNeighbours,
    Segments,
    TifuKnn,
    favourites,
    popularity,
    strongest,
)
from evergreen.tasks.problems.recommender.item_contents import Contents
from evergreen.tasks.problems.recommender.late_items import LateItems
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, codes, distinct, matrix, ranges, take

OWN = 0.7
"""Weight of a user's own purchases against those of similar users, in TIFU-kNN."""
BOUGHT = {"tifu_knn": 0.7, "ease": 0.3, "als": 0.1}
NEW = {"ease": 0.5} | dict.fromkeys(
    ("tifu_knn", "popular", "item_knn", "co_visitation", "als", "segment_popularity", "content"), 0.25
)
"""Source -> its part of the candidates among bought and among new items; parts of sources that are on are scaled to one."""
CELLS = 8_000_000
"""Users x items of one block, at most, where even BLOCK users would be more."""
LATELY = 91
"""Days of purchases for segments and their popular items, unless others are chosen (decay_choice)."""
BASKETS = 182
"""Days of baskets for co-visitation, unless others are chosen."""
STRONGEST = 100
"""Most items of a user that item-kNN learns from, by decayed purchases: counts of pairs grow with the square."""
CHUNK = 512
"""Users whose features are made at a time; a multiple of BLOCK."""
SAMPLED = 16
"""Every n-th score of a user, from which a lower bound of the best is estimated."""
PADDED = 2
"""Rows are sorted as lines of one table, if that has at most so many times their entries."""


@dataclass(frozen=True)
class Settings:
    """What the first stage depends on besides the histories; see params.Sources and params.Interactions."""

    min_users: int
    popularity_days: int
    candidates: int
    half_life_days: float
    ease_penalty: float
    user_neighbours: int
    with_tifu_knn: bool = True
    with_ease: bool = True
    with_item_knn: bool = False
    with_co_visitation: bool = False
    with_als: bool = False
    with_segment_popularity: bool = False
    with_content: bool = False
    als_factors: int = 64
    item_neighbours: int = 50
    max_dense_users: int = 10_000
    half_life_orders: float | None = None
    segment_days: int = LATELY
    co_visitation_days: int = BASKETS
    second_half_life_days: float = ranker_features.FAST.days
    second_half_life_orders: float | None = None

    @property
    def decay(self) -> Decay:
        """Of purchases, in own purchases and in those of similar users."""
        return Decay(self.half_life_days, self.half_life_orders)

    @property
    def second_decay(self) -> Decay:
        """Of own purchases, in a feature of the ranker beside those of `decay`."""
        return Decay(self.second_half_life_days, self.second_half_life_orders)


@dataclass(eq=False)
class Candidates:
    """Pairs of a user and an item, sorted by user: parallel arrays.

    `row`: user, in the order asked for. `item`: column of the catalogue, and behind it of `late`: the sorted ids of what these
    users bought, and nobody had when the model learned. `bought`: whether the user ever bought it.
    `features`: pairs x features.FEATURES; the last columns hold the scores of the sources and their places, 0 is the best of
    the user's; both are 0 for a source that is off.
    """

    row: np.ndarray
    item: np.ndarray
    bought: np.ndarray
    features: np.ndarray
    late: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@stored_type
@dataclass(eq=False)
class Learned:
    """What the first stage learned from the lines up to one day. A source that is off is None.

    Rare items, below `min_users` buyers, are in the catalogue: whoever bought one may buy it again, and popularity ranks
    them. The other sources learned about `common` items only, and their columns are those.
    """

    catalogue: np.ndarray
    """Sorted ids of the items that can be recommended."""
    category: np.ndarray
    """Number of the category of each of them."""
    popular: np.ndarray
    """Users who bought each of them lately."""
    facts: np.ndarray
    """catalogue x features.ITEM."""
    ease: Ease | None = None
    tifu_knn: TifuKnn | None = None
    item_knn: ItemNeighbours | None = None
    co_visitation: ItemNeighbours | None = None
    als: Factors | None = None
    segment_popularity: Segments | None = None
    content: Contents | None = None
    users: np.ndarray | None = None
    """Sorted ids of the users that EASE learned from. None: those of `tifu_knn`."""
    groups: np.ndarray | None = None
    """As `category`, a column for each of features.groups."""
    common: np.ndarray | None = None
    """Sorted columns of the catalogue whose items have enough buyers to learn about. None: all."""
    _columns: np.ndarray | None = field(default=None, init=False, repr=False)
    """Of each column of the catalogue its place in `common`, -1 for none."""
    _ordered: np.ndarray | None = field(default=None, init=False, repr=False)
    """The catalogue by popularity: asked for with every list and the same every time."""
    _late: LateItems | None = field(default=None, init=False, repr=False)
    """Attributes of items outside the catalogue. None: unknown."""

    @classmethod
    def of(
        cls,
        known: Histories,
        categories: np.ndarray,
        day: int,
        settings: Settings,
        segment: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        table: pl.DataFrame | None = None,
    ) -> "Learned":
        """`known`: the lines up to `day`; `categories`: number of the category of each of `known.items`.

        `groups`: as `categories`, a column for each of features.groups. `segment`: number of the
        segment of each of `known.users`, -1 for none. None: the category a user stands out by. `table`: the items with their
        attributes (item_catalogue.items); items that only it has are new.
        With more users than settings.max_dense_users no users x users system is built: a factor model stands in for EASE, and
        TIFU-kNN looks for neighbours among so many users, drawn at random.
        """
        catalogue = known.items if settings.with_content and table is not None else known.catalogue(1)
        place = np.searchsorted(known.items, catalogue)
        category = categories[place]
        groups = None if groups is None else groups[place]
        learnable = known.catalogue(settings.min_users)
        found = cls(
            catalogue=catalogue,
            category=category,
            popular=popularity(known, catalogue, day - settings.popularity_days + 1, day),
            facts=ranker_features.of_items(known, catalogue, category, day, groups),
            users=known.users,
            groups=groups,
            common=np.searchsorted(catalogue, learnable),
        )
        if len(learnable):
            found._learn(known, learnable, day, settings, segment)
        if settings.with_content and table is not None:
            found.content = Contents.learn(table, catalogue, np.flatnonzero(codes(catalogue, learnable) < 0))
        return found

    def _learn(self, known: Histories, learnable: np.ndarray, day: int, settings: Settings, segment: np.ndarray | None) -> None:
        """The sources that are on, each about the items `learnable`."""
        counts, many = known.matrix(learnable), len(known.users) > settings.max_dense_users
        if settings.with_ease and not many:
            self.ease = Ease.learn(counts.log1p(), settings.ease_penalty)
        if settings.with_tifu_knn:
            recent, some = decayed(known, learnable, day, settings.decay), np.arange(len(known.users))
            if many:
                some = np.sort(np.random.default_rng(day).permutation(some)[: settings.max_dense_users])
            self.tifu_knn = TifuKnn(known.users[some], recent[some], settings.user_neighbours)
        if settings.with_item_knn:
            recent = decayed(known, learnable, day, settings.decay)
            self.item_knn = ItemNeighbours.learn(strongest(recent, STRONGEST), settings.item_neighbours)
        if settings.with_co_visitation:
            held = baskets(known.between(day - settings.co_visitation_days + 1, day), learnable)
            self.co_visitation = ItemNeighbours.learn(held, settings.item_neighbours)
        if settings.with_als or (settings.with_ease and many):
            self.als = Factors.learn(counts.log1p(), settings.als_factors, seed=day)
        if settings.with_segment_popularity:
            lately = known.between(day - settings.segment_days + 1, day).matrix(learnable)
            segment = favourites(lately, self.category[self.common]) if segment is None else segment
            self.segment_popularity = Segments.learn(known.users, segment, lately)

    def knowing(self, table: pl.DataFrame) -> "Learned":
        """With the attributes of items that nobody had bought when this was learned. `table`: see item_catalogue.items."""
        found = replace(self, users=self._users())
        found._late = LateItems.of(table, self.catalogue, self.category, self.groups)
        return found

    @property
    def sources(self) -> tuple[str, ...]:
        """Those that are on, in the order of SOURCES."""
        always = ("rebuy", "popular")
        return tuple(name for name in SOURCES if name in always or getattr(self, name) is not None)

    def propose(
        self, histories: Histories | OnlineHistories, positions: np.ndarray, day: int, settings: Settings
    ) -> Candidates:
        """Up to settings.candidates bought and as many new items for each user; `positions`: in `histories.users`.

        Some users at a time: what is between takes several times the memory of what is returned.
        """
        parts = [
            self._propose(histories, positions[first : first + CHUNK], day, settings)
            for first in range(0, max(len(positions), 1), CHUNK)
        ]
        if len(parts) == 1:
            return parts[0]
        row = np.concatenate([part.row + number * CHUNK for number, part in enumerate(parts)])
        item, late = joined_items([(part.item, part.late) for part in parts], len(self.catalogue))
        bought = np.concatenate([part.bought for part in parts])
        table, last = np.empty((len(row), len(ranker_features.FEATURES)), np.float32), 0
        while parts:
            part = parts.pop(0)  # and its memory is free
            first, last = last, last + len(part.row)
            table[first:last] = part.features
        return Candidates(row, item, bought, table, late)

    def _propose(
        self, histories: Histories | OnlineHistories, positions: np.ndarray, day: int, settings: Settings
    ) -> Candidates:
        lines = ranker_features.Lines.of(histories, positions, self.catalogue, day, whole=True)
        row, item, bought, scores = self._pick(lines, histories.ids(positions), settings)
        users = ranker_features.of_users(lines)
        facts = self._facts(item, lines.late)
        gap = facts[:, ranker_features.ITEM.index("usual_gap")]
        pairs = ranker_features.of_pairs(
            lines,
            *(row, item, self._kinds(lines, item), settings.half_life_days, users[:, 0], gap),
            settings.second_decay,
        )
        table, last = np.empty((len(row), len(ranker_features.FEATURES)), np.float32), 0
        for part in (users[row], facts, pairs, scores, self.places(row, scores)):
            first, last = last, last + part.shape[1]
            table[:, first:last] = part
        return Candidates(row, item, bought, table, lines.late)

    def _kinds(self, lines: ranker_features.Lines, item: np.ndarray) -> list[ranker_features.Kind]:
        """Category and groups of the lines and of the pairs."""
        column, late = lines.bought()[1], lines.late
        category, groups = self.numbers(late)
        found = [(take(self.category, column, category), take(self.category, item, category))]
        for n, known in enumerate(() if self.groups is None else self.groups.T):
            found.append((take(known, column, groups[:, n]), take(known, item, groups[:, n])))
        return found

    def numbers(self, late: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The category of items outside the catalogue, and their groups; 0 for unknown ones."""
        if self._late is not None:
            return self._late.numbers(late)
        return np.zeros(len(late), np.int64), np.zeros((len(late), len(item_catalogue.GROUPS)), np.int64)

    def score(
        self, histories: Histories | OnlineHistories, positions: np.ndarray, day: int, settings: Settings
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `propose`, without features: row, item, bought, pairs x SOURCES, and the late items."""
        lines = ranker_features.Lines.of(histories, positions, self.catalogue, day, whole=True)
        return *self._pick(lines, histories.ids(positions), settings), lines.late

    def _pick(
        self, lines: ranker_features.Lines, ids: np.ndarray, settings: Settings
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """row, item, bought and scores of the candidates of the users `ids`, block by block."""
        counts, recent = lines.counts(), lines.decayed(settings.decay)
        step = _step(len(self.catalogue) if self.common is None else len(self.common))
        if len(ids) <= step:
            return self._block(counts, recent, ids, 0, settings.candidates)
        parts = [
            self._block(counts[i : i + step], recent[i : i + step], ids[i : i + step], i, settings.candidates)
            for i in range(0, len(ids), step)
        ]
        row, item, bought, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        return row, item, bought, scores

    def _block(
        self, counts: Sparse, recent: Sparse, ids: np.ndarray, first: int, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """row (from `first` on), item, bought and the score of each source."""
        scores, columns = self._scores(counts, recent, ids), counts.shape[1]
        owner = np.repeat(np.arange(len(ids)), np.diff(counts.indptr))
        mine = self._common_places(counts.indices)
        own, known = owner * columns + counts.indices, mine >= 0
        picks = []
        parts = {name: share for name, share in BOUGHT.items() if name in scores} or {"rebuy": 1.0}
        for name, share in parts.items():
            value = recent.data if name == "rebuy" else np.where(known, scores[name][owner, mine], 0)
            if name == "tifu_knn":
                value = OWN * recent.data + (1 - OWN) * value
            by, rank = order(owner, value)
            by = by[rank < round(size * share / sum(parts.values()))]
            picks.append(own[by[counts.data[by] > 0]])  # not what the user rated lowest
        always = ("popular",) if self.content is None else ("popular", "content")
        total = sum(share for name, share in NEW.items() if name in scores or name in always)
        parts = {name: share for name, share in NEW.items() if name in scores or name == "popular"}
        for name, share in parts.items():
            count = round(size * share / total)
            if name == "popular":
                picks.append(self._popular(own, owner, len(ids), columns, count))
                continue
            new, bought = scores[name], scores[name][owner[known], mine[known]]
            new[owner[known], mine[known]] = -np.inf
            row, column = np.divmod(best(new, count), max(new.shape[1], 1))
            new[owner[known], mine[known]] = bought
            picks.append(row * columns + (column if self.common is None else self.common[column]))
        fresh = self._new_items(recent, own, round(size * NEW["content"] / total)) if self.content is not None else None
        if fresh is not None:
            picks.append(fresh[0])
        pairs = distinct(np.concatenate(picks))
        row, item = np.divmod(pairs, max(columns, 1))
        at, mine = codes(pairs, own), self._common_places(item)
        chosen = np.zeros((len(row), len(SOURCES)), np.float32)
        chosen[at >= 0, SOURCES.index("rebuy")] = recent.data[at[at >= 0]]
        chosen[:, SOURCES.index("popular")] = take(self.popular, item, np.zeros(columns - len(self.popular), np.float32))
        for name, score in scores.items():
            chosen[:, SOURCES.index(name)] = np.where(mine >= 0, score[row, mine], 0)
        if fresh is not None:
            at_new = codes(pairs, fresh[0])
            chosen[at_new >= 0, SOURCES.index("content")] = fresh[1][at_new[at_new >= 0]]
        return row + first, item, at >= 0, chosen

    def _new_items(self, recent: Sparse, own: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """row * columns + column of the `count` new items most similar to what each row bought, sorted, and how similar."""
        assert self.content is not None
        score, new, columns = self.content.score(_first(recent, len(self.catalogue))), self.content.new, recent.shape[1]
        found = np.where(score > 0, score, -np.inf).astype(np.float32)
        row, column = np.divmod(own, max(columns, 1))
        place = codes(column, new)
        found[row[place >= 0], place[place >= 0]] = -np.inf
        row, column = np.divmod(best(found, count), max(len(new), 1))
        return row * columns + new[column], score[row, column]

    def _scores(self, counts: Sparse, recent: Sparse, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Source -> users x common items, dense, for those that are learned and on."""
        found: dict[str, np.ndarray] = {}
        if self.common is not None and not len(self.common):
            return found
        logs, recent = self._narrow(counts).log1p(), self._narrow(recent)
        if self.ease is not None:
            found["ease"] = self.ease.score(logs, codes(ids, self._users()))
        if self.tifu_knn is not None:
            found["tifu_knn"] = self.tifu_knn.score(recent, ids)
        if self.item_knn is not None:
            found["item_knn"] = self.item_knn.score(logs)
        if self.co_visitation is not None:
            found["co_visitation"] = self.co_visitation.score(recent)
        if self.als is not None:
            found["als"] = self.als.score(logs)
        if self.segment_popularity is not None:
            found["segment_popularity"] = self.segment_popularity.score(ids)
        return found

    def _common_places(self, column: np.ndarray) -> np.ndarray:
        """Of columns of the catalogue, or behind it, their places in `common`; -1 for none."""
        if self._columns is None:
            self._columns = np.full(len(self.catalogue), -1)
            common = slice(None) if self.common is None else self.common
            self._columns[common] = np.arange(len(self._columns[common]))
        size = len(self._columns)
        if column.max(initial=-1) < size:
            return self._columns[column]
        return np.where(column < size, self._columns[np.minimum(column, size - 1)], -1) if size else np.full(len(column), -1)

    def _narrow(self, rows: Sparse) -> Sparse:
        """The columns of the common items alone."""
        if self.common is None:
            return _first(rows, len(self.catalogue))
        column = self._common_places(rows.indices)
        kept = column >= 0
        starts = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
        return sparse.csr_array((rows.data[kept], column[kept], starts), shape=(rows.shape[0], len(self.common)))

    def _popular(self, own: np.ndarray, owner: np.ndarray, users: int, columns: int, count: int) -> np.ndarray:
        """row * columns + column of the `count` most popular items of each row without `own`."""
        if self._ordered is None:
            self._ordered = np.argsort(-self.popular, kind="stable")
        most = np.bincount(owner, minlength=users).max(initial=0)
        near = (np.arange(users)[:, None] * columns + self._ordered[: count + most]).ravel()
        near = near[codes(near, own) < 0]
        row = near // max(columns, 1)
        return near[np.arange(len(near)) - np.searchsorted(row, row) < count]

    def _users(self) -> np.ndarray:
        if self.users is not None:
            return self.users
        return self.tifu_knn.ids if self.tifu_knn is not None else self.catalogue[:0]

    def _facts(self, item: np.ndarray, late: np.ndarray) -> np.ndarray:
        """`facts` of columns of the catalogue, behind which `late` items follow: each as if one user had bought it once, today.

        Facts that an older model lacks are not features of its trees.
        """
        one = np.tile(ranker_features.of_one_purchase()[: self.facts.shape[1]], (len(late), 1))
        facts, more = take(self.facts, item, one), len(ranker_features.ITEM) - self.facts.shape[1]
        return np.pad(facts, ((0, 0), (0, more))) if more else facts

    def places(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Rank of each entry among those of its row, from 0, per column of `scores`; 0 for a source that is off."""
        places, on = np.zeros(scores.shape, np.float32), [SOURCES.index(name) for name in self.sources]
        if len(row) and row[0] == row[-1]:
            by = np.argsort(-scores[:, on], axis=0, kind="stable")
            places[by, on] = np.arange(len(row))[:, None]
            return places
        for column in on:
            by, rank = order(row, scores[:, column])
            places[by, column] = rank
        return places

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


def joined_items(parts: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of several parts in one, and the late items of all. `parts`: columns and late items of each (see Candidates)."""
    late = [mine for _, mine in parts if len(mine)]
    whole = distinct(np.concatenate(late)) if late else parts[0][1][:0]
    moved = [
        np.where(item < size, item, size + np.searchsorted(whole, mine)[np.maximum(item - size, 0)]) if len(mine) else item
        for item, mine in parts
    ]
    return np.concatenate(moved), whole


def _first(rows: Sparse, columns: int) -> Sparse:
    """The first columns alone."""
    return rows if rows.shape[1] == columns else rows[:, :columns]


def _step(columns: int) -> int:
    """Users of one block: a power of two, so that partitions hold whole blocks.

    >>> _step(20_000), _step(1_000_000)
    (256, 8)
    """
    return min(BLOCK, 1 << max(CELLS // max(columns, 1), 1).bit_length() - 1)


def baskets(histories: Histories, catalogue: np.ndarray) -> Sparse:
    """Baskets x catalogue: 1 for an item in a basket."""
    basket = codes(histories.basket, known := distinct(histories.basket))
    return matrix(basket, histories.columns(catalogue)[histories.item], (len(known), len(catalogue)))


def decayed(histories: Histories, catalogue: np.ndarray, day: int, by: Decay) -> Sparse:
    """Users x catalogue: purchases, each counting less the longer ago it is."""
    return histories.matrix(catalogue, by.weigh(histories.user, day - histories.day))


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """row * columns + column of the `count` highest finite scores of each row, of equal ones the first.

    >>> best(np.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [1, 2]
    """
    found = [row * scores.shape[1] + _best(score, count) for row, score in enumerate(scores)]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _best(score: np.ndarray, count: int) -> np.ndarray:
    """Of one row. Part of the scores has `count` that are so high; only those that reach the lowest of them are sorted."""
    part = score[::SAMPLED]
    edge = np.partition(part, len(part) - count)[len(part) - count] if 0 < count <= len(part) else -np.inf
    near = np.flatnonzero(score >= edge) if edge > -np.inf else np.flatnonzero(score > -np.inf)
    return near[np.argsort(-score[near], kind="stable")[:count]]


def order(row: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions sorted by row, then from the highest score to the lowest (ties: as they come); and the rank of each, from 0."""
    first = np.flatnonzero(row[1:] != row[:-1]) + 1
    starts = np.concatenate([[0], first, [len(row)]])
    sizes = np.diff(starts)
    if len(first) and (row[first] > row[first - 1]).all() and len(sizes) * sizes.max() <= PADDED * len(row):
        return _order_short(starts[:-1], sizes, score)
    by = np.lexsort((-score, row))
    ranked = row[by]
    return by, np.arange(len(row)) - np.searchsorted(ranked, ranked)


def _order_short(starts: np.ndarray, sizes: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`order` of rows that are sorted and about as long, as lines of one table: many short sorts are faster than a long one."""
    rank = ranges(np.zeros(len(sizes), np.int64), sizes)
    table = np.full((len(sizes), int(sizes.max())), np.nan, score.dtype if score.dtype.kind == "f" else np.float64)
    place = np.repeat(np.arange(len(sizes)), sizes) * table.shape[1] + rank
    table.ravel()[place] = -score
    by = np.argsort(table, axis=1, kind="stable").ravel()[place]
    return np.repeat(starts, sizes) + by, rank
