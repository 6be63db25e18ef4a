"""Half-lives and windows of days, chosen for each source by its own NDCG on validation windows: in days or in orders."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evergreen.tasks.problems.recommender.candidate_generation import BASKETS, LATELY, baskets, best, decayed, order
from evergreen.tasks.problems.recommender.candidate_sources import (
    BLOCK,
    Decay,
    ItemNeighbours,
    Segments,
    favourites,
    popularity,
)
from evergreen.tasks.problems.recommender.ranker_features import FAST, Lines
from evergreen.tasks.problems.recommender.ranking_metrics import per_user
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, distinct

DECAYS = (
    *(Decay(days) for days in (90.0, 7.0, 14.0, 30.0, 60.0, 180.0, 365.0, 3650.0)),
    *(Decay(orders=orders) for orders in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
)
"""What is tried; of equal ones the first wins."""
SECOND_DECAYS = (
    FAST,
    *(Decay(days) for days in (1.0, 3.0, 7.0, 14.0, 60.0, 365.0)),
    *(Decay(orders=orders) for orders in (1.0, 2.0, 4.0)),
)
"""What is tried beside the decay of own purchases."""
WINDOWS = (56, 28, 112, 14, 7, 3, 1, 364)
"""Days of purchases that count for popularity; of equal ones the first wins."""
SEGMENT_DAYS = (LATELY, 28, 7, 2, 364)
"""Days of purchases for segments and their popular items."""
CO_VISITATION_DAYS = (BASKETS, 56, 14, 3, 728)
"""Days of baskets for co-visitation."""
JUDGED = 300
"""Most users of a window by which the days of a source are chosen."""
TELLING = 20
"""Fewest users whose lists an option must change to be chosen over an earlier one."""
Option = TypeVar("Option")
LINES = 100_000
"""About the most lines that co-visitation learns from to have its days chosen: those of some users."""


@dataclass(frozen=True)
class Case:
    """One validation window: the histories before it, and what was bought in it. Items are positions in `known.items`."""

    known: Histories
    users: np.ndarray
    """Positions, in `known`, of the users to judge."""
    day: int
    pairs: np.ndarray
    """Sorted keys of (row in `users`, item)."""

    def values(self, row: np.ndarray, item: np.ndarray, score: np.ndarray, k: int) -> np.ndarray:
        """NDCG of each user's list in the order of `score`; nan where nothing was bought."""
        by, rank = order(row, score)
        by, rank = by[rank < k], rank[rank < k]
        size = len(self.known.items)
        hits = np.zeros((len(self.users), k), bool)
        hits[row[by], rank] = np.isin(row[by].astype(np.int64) * size + item[by], self.pairs)
        return per_user(hits, np.bincount(self.pairs // size, minlength=len(self.users)))["ndcg"]

    def ndcg(self, row: np.ndarray, item: np.ndarray, score: np.ndarray, k: int) -> float:
        """The mean of `values`."""
        return float(np.nanmean(self.values(row, item, score, k)))

    def of_new_items(self) -> "Case":
        """The same for at most JUDGED of the users, judged by what they had never bought."""
        size, step = len(self.known.items), -(-len(self.users) // JUDGED) or 1
        row, item = np.divmod(self.pairs, size)
        kept = (row % step == 0) & ~np.isin(self.users[row].astype(np.int64) * size + item, self._bought())
        return dataclasses.replace(self, users=self.users[::step], pairs=row[kept] // step * size + item[kept])

    def _bought(self) -> np.ndarray:
        """Keys of (user, item) of all that was bought before."""
        return distinct(self.known.user.astype(np.int64) * len(self.known.items) + self.known.item)

    def values_of(self, score: Callable[[np.ndarray], np.ndarray], catalogue: np.ndarray, k: int) -> np.ndarray:
        """NDCG of each user's best items without those bought before. `score`: of users x `catalogue`, for users' positions."""
        rows, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        values, place = [np.zeros(0, np.float32)], np.searchsorted(self.known.items, catalogue)
        for first in range(0, len(self.users), BLOCK):
            some = self.users[first : first + BLOCK]
            found, lines = np.array(score(some), np.float32), Lines.of(self.known, some, catalogue, self.day)
            own = lines.counts().tocoo()
            found[own.row, own.col] = -np.inf
            found[found <= 0] = -np.inf
            row, column = np.divmod(best(found, k), max(len(catalogue), 1))
            rows.append(row + first)
            items.append(place[column])
            values.append(found[row, column])
        return self.values(np.concatenate(rows), np.concatenate(items), np.concatenate(values), k)


def choose_decay(cases: Sequence[Case], k: int) -> Decay:
    """The decay by which own purchases, all of them, come nearest to what was bought. Without cases the first of DECAYS.

    Its `days` are the best half-life in days, also where one in orders is better: some features of the ranker count days.
    """
    values = _values(cases, DECAYS, lambda case: _own(case, k))
    in_days = [place for place, each in enumerate(DECAYS) if each.orders is None]
    days = in_days[_simplest(values[in_days])]
    chosen = DECAYS[int(np.argmax(_means(values)))]
    return chosen if chosen.orders is None else Decay(DECAYS[days].days, chosen.orders)


def choose_second_decay(cases: Sequence[Case], k: int, first: Decay) -> Decay:
    """The decay that adds most to `first`: own purchases in the order of both shares' sum come nearest to what was bought.

    The first of SECOND_DECAYS that no other is surely better than.
    """

    def of(case: Case) -> Callable[[Decay], np.ndarray]:
        lines = Lines.of(case.known, case.users, case.known.items, case.day)
        known = _shares(lines.decayed(first))

        def value(second: Decay) -> np.ndarray:
            both = (known + _shares(lines.decayed(second))).tocoo()
            return case.values(both.row, both.col, both.data, k)

        return value

    return SECOND_DECAYS[_simplest(_values(cases, SECOND_DECAYS, of))]


def choose_popularity_days(cases: Sequence[Case], k: int) -> int:
    """The window in which what most users bought comes nearest to what was bought next. Without cases the first of WINDOWS."""

    def of(case: Case) -> Callable[[int], np.ndarray]:
        rows = np.arange(len(case.users))

        def value(days: int) -> np.ndarray:
            top = np.argsort(-popularity(case.known, case.known.items, case.day - days + 1, case.day), kind="stable")[:k]
            rank = np.tile(-np.arange(len(top), dtype=float), len(rows))
            return case.values(np.repeat(rows, len(top)), np.tile(top, len(rows)), rank, k)

        return value

    return WINDOWS[_simplest(_values(cases, WINDOWS, of))]


def choose_segment_days(
    cases: Sequence[Case],
    k: int,
    min_users: int,
    category: np.ndarray,
    segment_of: Callable[[Histories, int], np.ndarray | None],
) -> int:
    """The window in which what is popular in the users' segments comes nearest to what new items they bought next.

    `category`: number of the category of each of the cases' items. `segment_of`: histories and the first day that counts ->
    the segment of each user, None: by categories. The first of SEGMENT_DAYS that no other is surely better than.
    """

    def of(case: Case) -> Callable[[int], np.ndarray]:
        case, known = case.of_new_items(), case.known
        catalogue = known.catalogue(min_users)
        of_items = category[np.searchsorted(known.items, catalogue)]

        def value(days: int) -> np.ndarray:
            lately = known.between(case.day - days + 1, case.day).matrix(catalogue)
            segment = segment_of(known, case.day - days + 1)
            segment = favourites(lately, of_items) if segment is None else segment
            found = Segments.learn(known.users, segment, lately)
            return case.values_of(lambda users: found.score(known.users[users]), catalogue, k)

        return value

    return SEGMENT_DAYS[_simplest(_values(cases, SEGMENT_DAYS, of))]


def choose_co_visitation_days(cases: Sequence[Case], k: int, min_users: int, neighbours: int, by: Decay) -> int:
    """The window whose baskets bring what users bought lately, by `by`, nearest to what new items they bought next.

    Learned from the baskets of as many users as have about LINES lines. The first of CO_VISITATION_DAYS that no other is surely
    better than.
    """

    def of(case: Case) -> Callable[[int], np.ndarray]:
        case, known = case.of_new_items(), case.known
        catalogue = known.catalogue(min_users)
        recent = decayed(known, catalogue, case.day, by)
        step = -(-len(known) // LINES) or 1
        some = known.part(np.flatnonzero(known.user % step == 0))

        def value(days: int) -> np.ndarray:
            held = baskets(some.between(case.day - days + 1, case.day), catalogue)
            found = ItemNeighbours.learn(held, neighbours)
            return case.values_of(lambda users: found.score(recent[users]), catalogue, k)

        return value

    return CO_VISITATION_DAYS[_simplest(_values(cases, CO_VISITATION_DAYS, of))]


def _own(case: Case, k: int) -> Callable[[Decay], np.ndarray]:
    lines = Lines.of(case.known, case.users, case.known.items, case.day)

    def value(by: Decay) -> np.ndarray:
        own = lines.decayed(by).tocoo()
        return case.values(own.row, own.col, own.data, k)

    return value


def _shares(own: Sparse) -> Sparse:
    """Each row divided by its sum."""
    total = np.maximum(np.asarray(own.sum(axis=1)).ravel(), 1e-9)
    found = own.copy()
    found.data = found.data / np.repeat(total, np.diff(own.indptr)).astype(np.float32)
    return found


def _values(
    cases: Sequence[Case], options: Sequence[Option], of: Callable[[Case], Callable[[Option], np.ndarray]]
) -> np.ndarray:
    """options x users of all cases: NDCG; users who bought nothing that counts are left out."""
    found = [np.zeros((len(options), 0))]
    for case in cases:
        value = of(case)
        found.append(np.stack([value(option) for option in options]))
    values = np.concatenate(found, axis=1)
    return values[:, ~np.isnan(values).any(axis=0)]


def _means(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=1) if values.shape[1] else np.zeros(len(values))


def _simplest(values: np.ndarray) -> int:
    """The first option that no other is surely better than: by more than two standard errors, paired by user.

    Close calls so fall the same way in each training, and candidates made for one serve the next. Where fewer than TELLING
    users tell two options apart, the error of so few is no measure, and the first stays.
    """
    if values.shape[1] < 2:
        return 0
    lead = values[int(np.argmax(_means(values)))] - values
    error = lead.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    return int(np.argmax((lead.mean(axis=1) <= 2 * error) | (np.count_nonzero(lead, axis=1) < TELLING)))
