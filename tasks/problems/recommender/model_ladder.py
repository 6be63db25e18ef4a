"""The models of the search, simple before complex."""

from evergreen.tasks.problems.recommender.estimators import FrequencyRecommender, RecentPopularity, Recommender, TwoStage
from evergreen.tasks.problems.recommender.linear_rungs import EaseRecommender, ItemKnnRecommender, TifuKnnRecommender

MODELS: dict[str, type[Recommender]] = {
    "popularity": Recommender,
    "recent_popularity": RecentPopularity,
    "frequency": FrequencyRecommender,
    "item_knn": ItemKnnRecommender,
    "ease": EaseRecommender,
    "tifu_knn": TifuKnnRecommender,
    "two_stage": TwoStage,
}
