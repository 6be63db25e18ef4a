"""The first stage: a few hundred items per user out of the whole catalogue, with all that the second stage looks at."""

from dataclasses import dataclass

import numpy as np

from tasks.problems.ranking import features
from tasks.problems.ranking.histories import Histories, Sparse, codes, distinct
from tasks.problems.ranking.live import Live
from tasks.problems.ranking.sources import Ease, Similar, decay, popularity

OWN = 0.7
"""Share of a user's own purchases beside those of similar users, where similar users propose what to buy again."""
BOUGHT = {"similar": 0.7, "together": 0.3}
NEW = {"together": 0.5, "similar": 0.25, "popular": 0.25}
"""Source -> share of the candidates that it proposes, among bought and among new items."""
BLOCK = 256
"""Users scored at a time: bounds the memory of users x items."""
SAMPLED = 8
"""One score in so many tells which of one user's are too low to be among the best."""


@dataclass(frozen=True)
class Settings:
    """What the first stage depends on besides the histories; see params.Sources and params.Interactions."""

    min_users: int
    popular_days: int
    candidates: int
    half_life_days: float
    ease_penalty: float
    neighbours: int


@dataclass(eq=False)
class Candidates:
    """Pairs of a user and an item, sorted by user: parallel arrays.

    `row`: user, in the order asked for. `item`: column of the catalogue. `bought`: whether the user ever bought it.
    `features`: pairs x features.FEATURES; the last columns hold the scores of the sources and their places, 0 is the best of
    the user's.
    """

    row: np.ndarray
    item: np.ndarray
    bought: np.ndarray
    features: np.ndarray


@dataclass(eq=False)
class Learned:
    """What the first stage learned from the lines up to one day."""

    catalogue: np.ndarray
    """Sorted ids of the items that can be recommended."""
    category: np.ndarray
    """Number of the category of each of them."""
    popular: np.ndarray
    """Users who bought each of them lately."""
    facts: np.ndarray
    """catalogue x features.ITEM."""
    ease: Ease
    similar: Similar

    @classmethod
    def of(cls, known: Histories, categories: np.ndarray, day: int, settings: Settings) -> "Learned":
        """`known`: the lines up to `day`; `categories`: number of the category of each of `known.items`."""
        catalogue = known.catalogue(settings.min_users)
        category = categories[np.searchsorted(known.items, catalogue)]
        return cls(
            catalogue=catalogue,
            category=category,
            popular=popularity(known, catalogue, day - settings.popular_days + 1, day),
            facts=features.of_items(known, catalogue, category, day),
            ease=Ease.learn(known.matrix(catalogue).log1p(), settings.ease_penalty),
            similar=Similar(known.users, decayed(known, catalogue, day, settings.half_life_days), settings.neighbours),
        )

    def propose(self, histories: Histories | Live, positions: np.ndarray, day: int, settings: Settings) -> Candidates:
        """Up to settings.candidates bought and as many new items for each user; `positions`: in `histories.users`."""
        lines = features.Lines.of(histories, positions, self.catalogue, day)
        counts, recent = lines.counts(), lines.decayed(settings.half_life_days)
        ids = histories.users[positions]
        parts = [
            self._block(counts[i : i + BLOCK], recent[i : i + BLOCK], ids[i : i + BLOCK], i, settings.candidates)
            for i in range(0, max(len(ids), 1), BLOCK)
        ]
        row, item, bought, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        users = features.of_users(lines)
        pairs = features.of_pairs(lines, row, item, self.category, settings.half_life_days, users[:, 0])
        table = np.column_stack([users[row], self.facts[item], pairs, scores, _places(row, scores)])
        return Candidates(row, item, bought, table.astype(np.float32))

    def _block(
        self, counts: Sparse, recent: Sparse, ids: np.ndarray, first: int, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """row (from `first` on), item, bought and the score of each source."""
        again, bought = recent.toarray(), counts.toarray() > 0
        together, similar = self.ease.score(counts.log1p(), codes(ids, self.similar.ids)), self.similar.score(recent, ids)
        popular = np.broadcast_to(self.popular, again.shape)
        blend = OWN * again + (1 - OWN) * similar
        old = {"similar": np.where(bought, blend, -np.inf), "together": np.where(bought, together, -np.inf)}
        scores = {"together": together, "similar": similar, "popular": popular}
        picks = [
            *(best(old[name], round(size * share)) for name, share in BOUGHT.items()),
            *(best(np.where(bought, -np.inf, scores[name]), round(size * share)) for name, share in NEW.items()),
        ]
        row, item = np.divmod(distinct(np.concatenate(picks)), max(again.shape[1], 1))
        chosen = np.column_stack([score[row, item] for score in (again, together, similar, popular)])
        return row + first, item, bought[row, item], chosen


def decayed(histories: Histories, catalogue: np.ndarray, day: int, half_life: float) -> Sparse:
    """Users x catalogue: purchases, each counting less the longer ago it is."""
    return histories.matrix(catalogue, decay(day - histories.day, half_life))


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """row * columns + column of the `count` highest finite scores of each row, in no order.

    >>> best(np.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [1, 2]
    """
    count = min(count, scores.shape[1])
    if not count:
        return np.zeros(0, np.int64)
    if len(scores) == 1 and (found := _clearly_best(scores[0], count)) is not None:
        return found
    top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    row = np.repeat(np.arange(len(scores)), count)
    kept = np.isfinite(scores[row, top.ravel()])
    return row[kept] * scores.shape[1] + top.ravel()[kept]


def _clearly_best(score: np.ndarray, count: int) -> np.ndarray | None:
    """`best` of one row; None where equal scores lie on both sides of the edge, for one user gets what he gets among many.

    A part of the scores has `count` that are so high; only those that reach the lowest of them are looked at.
    """
    near = np.flatnonzero(score > -np.inf)
    if len(near) <= count:
        return near
    part = score[near][::SAMPLED]
    if len(part) >= count:
        near = near[score[near] >= np.partition(part, -count)[-count]]
    ordered = near[np.argsort(-score[near])]
    if len(ordered) == count:
        return ordered
    return ordered[:count] if score[ordered[count - 1]] > score[ordered[count]] else None


def order(row: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions sorted by row, then from the highest score to the lowest (ties: as they come); and the rank of each, from 0."""
    by = np.lexsort((-score, row))
    ranked = row[by]
    return by, np.arange(len(row)) - np.searchsorted(ranked, ranked)


def _places(row: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Rank of each entry among those of its row, from 0, per column of `scores`."""
    places = np.empty(scores.shape, np.float32)
    for column, score in enumerate(scores.T):
        by, rank = order(row, score)
        places[by, column] = rank
    return places
