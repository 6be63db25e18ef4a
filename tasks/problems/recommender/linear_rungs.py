"""The rungs between own frequency and the two-stage model: one learned source each, added to the user's own purchases."""

import dataclasses
from typing import ClassVar

import numpy as np

from evergreen.model_types import stored_type
from evergreen.tasks.problems.recommender.candidate_generation import OWN, Settings
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES
from evergreen.tasks.problems.recommender.estimators import FirstStage, Ranked, Scored, credited, ranked

SWITCHES = ("ease", "tifu_knn", "item_knn", "co_visitation", "als", "segment_popularity", "content")
TIE = 1e-6
"""Weight of popularity, which orders what is else equal."""


@stored_type
class OneSource(FirstStage):
    """Own purchases with decay, plus `weight` times the score of one source; new items by the source alone."""

    source: ClassVar[str]

    def __init__(
        self,
        user: str = "user",
        item: str = "item",
        k: int = 10,
        novel: bool = False,
        min_users: int = 5,
        popularity_days: int = 56,
        half_life_days: float = 90.0,
        half_life_orders: float | None = None,
        weight: float = 0.5,
        candidates: int = 150,
        ease_penalty: float = 150.0,
        user_neighbours: int = 100,
        item_neighbours: int = 50,
        als_factors: int = 64,
        max_dense_users: int = 10_000,
    ) -> None:
        super().__init__(user, item, k, novel, min_users, popularity_days, half_life_days, half_life_orders)
        self.weight = weight
        self.candidates = candidates
        self.ease_penalty = ease_penalty
        self.user_neighbours = user_neighbours
        self.item_neighbours = item_neighbours
        self.als_factors = als_factors
        self.max_dense_users = max_dense_users

    @property
    def settings(self) -> Settings:
        return dataclasses.replace(super().settings, **{f"with_{name}": name == self.source for name in SWITCHES})

    def everything(self, positions: np.ndarray, novel: bool, times: int = 1) -> Ranked:
        return self._rank(positions, np.iinfo(np.int64).max, novel, None, times)

    def _rank(self, positions: np.ndarray, k: int, novel: bool, scored: Scored | None, times: int = 1) -> Ranked:
        settings = dataclasses.replace(self.settings, candidates=times * max(self.candidates, min(k, len(self.catalogue_))))
        row, item, bought, scores, late = self.learned_.score(self.histories_, positions, self.day_, settings)
        kept = ~bought if novel else np.ones(len(row), bool)
        row, item, bought, scores = row[kept], item[kept], bought[kept], scores[kept]
        value = self._combined(row, scores) + self._ties(TIE, item, late)
        return ranked(row, item, value, credited(self.learned_.places(row, scores), bought, self.learned_.sources), k, late)

    def _combined(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """`row`: user of each candidate, sorted; `scores`: candidates x SOURCES."""
        # with more users than max_dense_users, factors stand in for EASE
        name = self.source if getattr(self.learned_, self.source) is not None else "als"
        return scores[:, SOURCES.index("rebuy")] + self.weight * scores[:, SOURCES.index(name)]


@stored_type
class ItemKnnRecommender(OneSource):
    """Own purchases, and items that the buyers of these bought too; the most similar one counts as `weight` purchases."""

    source = "item_knn"

    def _combined(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        similar = scores[:, SOURCES.index("item_knn")]
        most = np.zeros(row.max(initial=-1) + 1, similar.dtype)
        np.maximum.at(most, row, similar)
        return scores[:, SOURCES.index("rebuy")] + self.weight * similar / np.maximum(most, TIE)[row]


@stored_type
class EaseRecommender(OneSource):
    """Own purchases, and what a linear item-to-item model makes of them (EASE: Steck 2019)."""

    source = "ease"


@stored_type
class TifuKnnRecommender(OneSource):
    """Own purchases, and those of the most similar users (TIFU-kNN: Hu et al. 2020)."""

    source = "tifu_knn"

    def _combined(self, row: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return OWN * scores[:, SOURCES.index("rebuy")] + (1 - OWN) * scores[:, SOURCES.index("tifu_knn")]
