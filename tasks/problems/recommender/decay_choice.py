"""Half-lives and the window of popularity, each chosen by NDCG on validation windows: in days or in orders."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evergreen.tasks.problems.recommender.candidate_generation import order
from evergreen.tasks.problems.recommender.candidate_sources import Decay, popularity
from evergreen.tasks.problems.recommender.ranker_features import Lines
from evergreen.tasks.problems.recommender.ranking_metrics import per_user
from evergreen.tasks.problems.recommender.user_histories import Histories

DECAYS = (
    *(Decay(days) for days in (90.0, 7.0, 14.0, 30.0, 60.0, 180.0, 365.0, 3650.0)),
    *(Decay(orders=orders) for orders in (1.0, 2.0, 4.0, 8.0, 16.0)),
)
"""What is tried; of equal ones the first wins."""
WINDOWS = (56, 28, 112, 14, 7, 3, 1, 364)
"""Days of purchases that count for popularity; of equal ones the first wins."""


@dataclass(frozen=True)
class Case:
    """One validation window: the histories before it, and what was bought in it. Items are positions in `known.items`."""

    known: Histories
    users: np.ndarray
    """Positions, in `known`, of the users to judge."""
    day: int
    pairs: np.ndarray
    """Sorted keys of (row in `users`, item)."""

    def ndcg(self, row: np.ndarray, item: np.ndarray, score: np.ndarray, k: int) -> float:
        """The mean NDCG of the lists in the order of `score`."""
        by, rank = order(row, score)
        by, rank = by[rank < k], rank[rank < k]
        size = len(self.known.items)
        hits = np.zeros((len(self.users), k), bool)
        hits[row[by], rank] = np.isin(row[by].astype(np.int64) * size + item[by], self.pairs)
        return float(np.nanmean(per_user(hits, np.bincount(self.pairs // size, minlength=len(self.users)))["ndcg"]))


def choose_decay(cases: Sequence[Case], k: int) -> Decay:
    """The decay by which own purchases, all of them, come nearest to what was bought. Without cases the first of DECAYS."""
    scores = np.zeros(len(DECAYS))
    for case in cases:
        lines = Lines.of(case.known, case.users, case.known.items, case.day)
        for place, decay in enumerate(DECAYS):
            own = lines.decayed(decay).tocoo()
            scores[place] += case.ndcg(own.row, own.col, own.data, k)
    return DECAYS[int(np.argmax(scores))]


def choose_popularity_days(cases: Sequence[Case], k: int) -> int:
    """The window in which what most users bought comes nearest to what was bought next. Without cases the first of WINDOWS."""
    scores = np.zeros(len(WINDOWS))
    for case in cases:
        rows = np.arange(len(case.users))
        for place, days in enumerate(WINDOWS):
            top = np.argsort(-popularity(case.known, case.known.items, case.day - days + 1, case.day), kind="stable")[:k]
            rank = np.tile(-np.arange(len(top), dtype=float), len(rows))
            scores[place] += case.ndcg(np.repeat(rows, len(top)), np.tile(top, len(rows)), rank, k)
    return WINDOWS[int(np.argmax(scores))]
