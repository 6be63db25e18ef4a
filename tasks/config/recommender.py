"""The sections of a recommender: `pipeline` (candidate sources and ranker) and `lists` (how lists are assembled)."""

from typing import Annotated, Literal

from pydantic import Field

from evergreen.tasks.config.base import Days, Options, Section


class Switches(Section):
    """Candidate sources besides the user's own purchases and popular items. A source that is off costs nothing.

    [true, false] makes a source part of the search.
    """

    tifu_knn: Options[bool] = (True,)
    """TIFU-kNN: purchases of similar users."""
    ease: Options[bool] = (True,)
    """EASE: linear item-to-item model."""
    item_knn: Options[bool] = (False,)
    """Item-kNN: items with the same buyers."""
    co_visitation: Options[bool] = (False,)
    """Co-visitation: items in the same baskets."""
    als: Options[bool] = (False,)
    """Implicit ALS: matrix factorisation."""
    segment_popularity: Options[bool] = (False,)
    """Popular items of the user's segment: users of the same place (features.place), otherwise users with the same most
    characteristic category."""
    content: Options[bool] = (False,)
    """New items: those of features.items that fewer than features.min_users users bought, by the attributes (category, groups,
    name, text, price) that they share with the user's own items."""


class Sources(Section):
    """Candidate generation and ranking. A list instead of one value makes a setting part of the search."""

    k: Annotated[int, Field(ge=1)] = 10
    """Length of a list; metrics are at this k."""
    sources: Switches = Switches()
    """Candidate sources."""
    candidates: Annotated[int, Field(ge=10)] = 70
    """Candidates per user for the ranker: this many bought before and this many new ones."""
    half_life_days: Options[Annotated[float, Field(gt=0)]] | None = None
    """Half-life of a purchase's weight, in days. null: chosen in each training on the newest windows it may see, in days or in
    orders."""
    ease_penalty: Options[Annotated[float, Field(gt=0)]] = (150.0,)
    """EASE: ridge (L2) penalty."""
    user_neighbours: Options[Annotated[int, Field(ge=1)]] = (100,)
    """TIFU-kNN: number of neighbours."""
    item_neighbours: Annotated[int, Field(ge=1)] = 50
    """Item-kNN and co-visitation: number of neighbours per item."""
    als_factors: Annotated[int, Field(ge=1)] = 64
    """ALS: number of factors."""
    max_dense_users: Annotated[int, Field(ge=1)] = 10_000
    """Largest dense users x users matrix (10,000 users take 1.2 GB). With more users ALS replaces EASE, and TIFU-kNN searches
    this many users, sampled at random."""
    popularity_days: Annotated[int, Field(ge=1)] | None = None
    """Popularity window: days up to the cutoff. null: chosen as half_life_days; the baseline then counts 56 days."""
    ranker_windows: Annotated[int, Field(ge=1)] = 4
    """Number of cutoffs that the ranker is trained on, the newest with complete labels."""
    ranker_users: Annotated[int, Field(ge=1)] = 3000
    """Users per cutoff, sampled at random, that the ranker is trained on."""
    ranker_trees: Annotated[int, Field(ge=1)] = 90
    """Number of trees of the ranker."""
    ranker_rows: Annotated[int, Field(ge=1)] = 600_000
    """About the largest number of candidates that the ranker is trained on. Of more, some that were not bought are left out, at
    random."""


Fraction = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, inclusive."""
Id = int | str
"""Key of a user or an item."""


class ListRules(Section):
    """Rules for the items of a list. A list is shorter than k only if too few items are allowed."""

    bought_within_days: Days | None = None
    """Only items that the user bought in this many days. null: no such rule."""
    not_bought_within_days: Days | None = None
    """No items that the user bought in this many days. null: no such rule."""
    in_stock: bool = False
    """Only items in stock, see features.stock."""
    categories: tuple[str, ...] | None = None
    """Only items of these categories (values of features.category). null: all categories."""
    exclude_categories: tuple[str, ...] = ()
    """No items of these categories."""
    exclude_items: tuple[Id, ...] = ()
    """None of these items."""
    max_per_category: Annotated[int, Field(ge=1)] | None = None
    """Largest number of items per category; items without a category do not count. null: no such rule."""
    promote: tuple[Id, ...] = ()
    """Promoted items."""
    promote_share: Fraction = 0.0
    """Lowest share of promoted items: at least n times this, rounded down, among the first n items, and rounded up in the
    whole list."""
    discover_share: Fraction = 0.0
    """Lowest share of items that the user never bought, rounded as promote_share."""


class Lists(Section):
    """How a list is assembled from the ranking. A request may override each setting."""

    show: Literal["all", "rebuy", "discover", "blend"] = "all"
    """all: in the order of the model. rebuy: items bought before. discover: items never bought. blend: both, with the share
    `blend` of new items."""
    blend: Fraction = 0.3
    """blend: share of items that the user never bought, spread over the list."""
    diversity: Fraction = 0.0
    """Penalty for each higher-ranked item of the same category. 0: the order of the model."""
    explore: Fraction = 0.0
    """Exploration: share of new products, drawn for each user and day from the categories that the user buys."""
    explore_users: Annotated[int, Field(ge=1)] = 20
    """A product with fewer buyers is new; products below features.min_users are included."""
    rules: ListRules = ListRules()
    """Rules for the items of a list."""
    explain: bool = False
    """Whether batch scoring adds the column `explanation` with a reason for each item."""
