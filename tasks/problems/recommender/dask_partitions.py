"""What is independent per user, partition by partition: one after the other here, or on a Dask cluster.

The cluster is that of core.dask_cluster. A partition takes nothing but its own users' lines and what was learned, and holds
whole blocks of users, so that the result is the same to the bit wherever, and in how many parts, it was made.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from evergreen.tasks.core import dask_cluster
from evergreen.tasks.problems.recommender.candidate_generation import Candidates, Learned, Settings, joined_items
from evergreen.tasks.problems.recommender.estimators import Ranked, Recommender, TwoStage
from evergreen.tasks.problems.recommender.online_histories import OnlineHistories, merged
from evergreen.tasks.problems.recommender.user_histories import Histories

PARTITION = 2048
"""Users of one partition; a multiple of candidates.BLOCK. Their features take about 100 MB."""

T = TypeVar("T")


def propose(
    learned: Learned, histories: Histories | OnlineHistories, positions: np.ndarray, day: int, settings: Settings
) -> Candidates:
    """Learned.propose, partition by partition."""
    shared = (learned, day, settings)
    parts = _each(_propose, shared, merged(histories), positions)
    if len(parts) == 1:
        return parts[0]
    firsts = np.arange(len(parts)) * PARTITION
    row = np.concatenate([part.row + first for part, first in zip(parts, firsts, strict=True)])
    item, late = joined_items([(part.item, part.late) for part in parts], len(learned.catalogue))
    bought, features = (np.concatenate([getattr(part, name) for part in parts]) for name in ("bought", "features"))
    return Candidates(row, item, bought, features, late)


def _propose(shared: tuple[Learned, int, Settings], histories: Histories, positions: np.ndarray) -> Candidates:
    learned, day, settings = shared
    return learned.propose(histories, positions, day, settings)


def rank(reader: Recommender, positions: np.ndarray, k: int, lists: Sequence[bool]) -> list[Ranked]:
    """Recommender.rank for each of `lists` (whether it is of new items only), partition by partition; one look for all."""
    histories = merged(reader.histories_)
    shared = (reader.reading(histories.between(1, 0), reader.day_), k, tuple(lists))
    parts = _each(_rank, shared, histories, positions)
    return [_joined([part[place] for part in parts], len(reader.catalogue_)) for place in range(len(lists))]


def _rank(shared: tuple[Recommender, int, tuple[bool, ...]], histories: Histories, positions: np.ndarray) -> list[Ranked]:
    model, k, lists = shared
    reader = model.reading(histories, model.day_)
    scored = None
    if isinstance(reader, TwoStage):
        found = reader.propose(positions)
        scored = found, reader.order_by(found)
    return [reader.rank(positions, k, novel, scored) for novel in lists]


def _joined(parts: list[Ranked], catalogue: int) -> Ranked:
    """`catalogue`: its size."""
    rows = np.concatenate([part.row + first * PARTITION for first, part in enumerate(parts)])
    item, late = joined_items([(part.item, part.late) for part in parts], catalogue)
    rest = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("rank", "score", "source")}
    return Ranked(row=rows, item=item, late=late, **rest)


def _each(function: Callable[..., T], shared: Any, histories: Histories, positions: np.ndarray) -> list[T]:
    """function(shared, histories of a partition, its positions in them) for each partition; -1: a user without history."""
    cuts = range(0, max(len(positions), 1), PARTITION)
    scheduler = dask_cluster.address()
    if scheduler and len(cuts) > 1:
        return list(dask_cluster.each(scheduler, function, shared, [_cut(histories, positions, first) for first in cuts]))
    return [function(shared, *_cut(histories, positions, first)) for first in cuts]


def _cut(histories: Histories, positions: np.ndarray, first: int) -> tuple[Histories, np.ndarray]:
    """The histories of one partition's users alone, and where they are in them."""
    asked = positions[first : first + PARTITION]
    there = np.unique(asked[asked >= 0])
    return histories.of_users(there), np.where(asked >= 0, np.searchsorted(there, asked), -1)
