"""One list from its candidates: rules, blend, diversity, promoted and explored items."""

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evergreen.tasks.config.params import ListRules, Lists
from evergreen.tasks.problems.recommender import propensities
from evergreen.tasks.problems.recommender.candidate_sources import SOURCES
from evergreen.tasks.problems.recommender.estimators import Ranked
from evergreen.tasks.problems.recommender.item_catalogue import ItemCatalogue
from evergreen.tasks.problems.recommender.reranking import Want, choose, drawn_places, places
from evergreen.tasks.problems.recommender.user_histories import codes, distinct

NAMES = (*SOURCES, "promoted", "explore")
"""Of the sources of an item in a list."""
POPULAR, PROMOTED, EXPLORE = (NAMES.index(name) for name in ("popular", "promoted", "explore"))


@dataclass(frozen=True, eq=False)
class ListSettings:
    """A request with every value that it leaves to params."""

    k: int
    lists: Lists
    masks: list[tuple[str, np.ndarray]]
    promoted: np.ndarray
    place: str | None
    session: np.ndarray
    """Positions of the items in the basket."""
    seed: int
    explain: bool

    @property
    def rules(self) -> ListRules:
        return self.lists.rules

    @property
    def novel(self) -> bool:
        return self.lists.show == "discover"


@dataclass(eq=False)
class OwnItems:
    """What one user bought: position in ItemCatalogue and days ago of each line, and each such item once, sorted."""

    user: Any
    column: np.ndarray
    ago: np.ndarray
    bought: np.ndarray


@dataclass(eq=False)
class Pool:
    """Items that may be in one list, best first: parallel arrays of positions in ItemCatalogue, scores and sources."""

    item: np.ndarray
    score: np.ndarray
    source: np.ndarray

    def and_then(self, item: np.ndarray, score: np.ndarray, source: int) -> "Pool":
        """With those of `item` that are not there yet."""
        fresh = codes(item, distinct(self.item)) < 0
        more = (item[fresh], score[fresh], np.full(fresh.sum(), source))
        return Pool(*(np.concatenate(pair) for pair in zip((self.item, self.score, self.source), more, strict=True)))

    def where(self, kept: np.ndarray) -> "Pool":
        return Pool(self.item[kept], self.score[kept], self.source[kept])


@dataclass(frozen=True, eq=False)
class Composer:
    """Composes lists from candidates."""

    catalogue: ItemCatalogue
    settings: ListSettings
    day: int
    """The newest day that counts."""

    def _allowed(self, item: np.ndarray, own: OwnItems) -> list[tuple[str, np.ndarray]]:
        """Rule -> which of `item` (positions in ItemCatalogue) it allows; those that allow all are left out."""
        rules, found = self.settings.rules, [(name, mask[item]) for name, mask in self.settings.masks]
        if self.settings.lists.show == "discover":
            found.append(("show = discover", codes(item, own.bought) < 0))
        if self.settings.lists.show == "rebuy":
            found.append(("show = rebuy", codes(item, own.bought) >= 0))
        for days, wanted, name in (
            (rules.bought_within_days, True, "bought_within_days"),
            (rules.not_bought_within_days, False, "not_bought_within_days"),
        ):
            if days is not None:
                lately = distinct(own.column[own.ago < days])
                found.append((name, (codes(item, lately) >= 0) == wanted))
        if len(self.settings.session):
            found.append(("the basket", codes(item, self.settings.session) < 0))
        return found

    def compose(self, own: OwnItems, pool: Pool) -> "ComposedList":
        """The best of `pool` as wishes and rules have it."""
        answers, rules = self.settings.lists, self.settings.rules
        if len(self.settings.promoted) and rules.promote_share:
            pool = pool.and_then(self.settings.promoted, np.full(len(self.settings.promoted), np.nan), PROMOTED)
        explored = self._explored(own, pool)
        if explored is not None and len(explored.item):
            pool = pool.and_then(explored.item, np.full(len(explored.item), np.nan), EXPLORE)
        if masks := self._allowed(pool.item, own):
            pool = pool.where(np.logical_and.reduce([mask for _, mask in masks]))
        wants, held = list[Want](), None
        if explored is not None:
            held = pool.source == EXPLORE
            wants.append((held, explored.due))
        if len(self.settings.promoted) and rules.promote_share:
            wants.append((codes(pool.item, np.sort(self.settings.promoted)) >= 0, places(rules.promote_share, self.settings.k)))
        if rules.discover_share or answers.show == "blend":
            new = codes(pool.item, own.bought) < 0
            if rules.discover_share:
                wants.append((new, places(rules.discover_share, self.settings.k)))
            if answers.show == "blend":
                due = places(answers.blend, self.settings.k, nearest=True)
                wants += [(new, due), (~new, [place + 1 - count for place, count in enumerate(due)])]
        kind = self.catalogue.category[pool.item] if rules.max_per_category or answers.diversity else pool.item
        chosen = choose(kind, self.settings.k, rules.max_per_category, answers.diversity, wants, held)
        made = ComposedList(pool.item[chosen], pool.score[chosen], pool.source[chosen])
        if explored is not None:
            drawn = (made.source == EXPLORE).tolist()
            made.propensity = propensities.of_list(drawn, explored.chance, answers.explore, self.settings.k)
        return made

    def _explored(self, own: OwnItems, pool: Pool) -> "Exploration | None":
        """New products for this user on this day. None: no exploration."""
        if not self.settings.lists.explore or self.settings.lists.show == "rebuy":
            return None
        draw = np.random.default_rng([zlib.crc32(str(own.user).encode()), self.settings.seed, max(self.day, 0)])
        due = drawn_places(self.settings.lists.explore, self.settings.k, draw.random())
        items, starts = self.catalogue.pool(self.settings.lists.explore_users)
        if not due[-1] or not len(items):
            return Exploration(NONE, due, [])
        mine = np.concatenate([pool.item, own.bought])
        allowed = codes(items, distinct(mine)) < 0
        allowed = np.logical_and.reduce([allowed, *(mask for _, mask in self._allowed(items, own))])
        shares = propensities.pool_shares(starts, self.catalogue.category[own.column])
        tried = _drawn(draw, shares, 8 * due[-1] + 8)
        tried = tried[allowed[tried]][: due[-1]]
        return Exploration(items[tried], due, propensities.draw_chances(tried, shares, allowed).tolist())

    def fill(self, pool: Pool) -> Pool:
        """`pool`, then the rest of the catalogue, what is popular first."""
        order = self.catalogue.by_popularity(self.settings.place)
        share = self.catalogue.popular[order] / (self.catalogue.popular.max(initial=0) + 1)
        below = np.nanmin(pool.score, initial=0) - 1
        return pool.and_then(order, below + np.minimum.accumulate(share) if len(share) else share, POPULAR)

    def rule_costs(self, own: OwnItems, found: int) -> dict[str, int]:
        """Rule -> how many items of the catalogue it leaves out of those that the rules before it allow."""
        shown = self.catalogue.by_popularity(None)
        left, costs = np.ones(len(shown), bool), {}
        for name, allowed in self._allowed(shown, own):
            costs[name] = costs.get(name, 0) + int((left & ~allowed).sum())
            left &= allowed
        if self.settings.rules.max_per_category is not None:
            costs["max_per_category"] = int(left.sum()) - found
        return costs


@dataclass(frozen=True, eq=False)
class Exploration:
    """New products that were drawn for one list."""

    item: np.ndarray
    due: list[int]
    """How many of the first n places are theirs."""
    chance: list[float]
    """Of each draw, given those before it."""


@dataclass(eq=False)
class ComposedList:
    item: np.ndarray
    score: np.ndarray
    source: np.ndarray
    explanation: list[str] = field(default_factory=list)
    costs: dict[str, int] | None = None
    """Set where the list is shorter than asked for."""
    propensity: list[float] | None = None
    """Of each item, with exploration (see propensities)."""


NONE = np.zeros(0, np.int64)
EMPTY = Pool(NONE, np.zeros(0), NONE)


def pools_of(lists: Ranked, rows: np.ndarray, size: int) -> list[Pool]:
    """One of each of `size` users. `lists.row` counts `rows`."""
    starts = np.searchsorted(lists.row, np.arange(len(rows) + 1))
    found = [EMPTY] * size
    for number, row in enumerate(rows.tolist()):
        mine = slice(starts[number], starts[number + 1])
        found[row] = Pool(lists.item[mine], lists.score[mine].astype(float), lists.source[mine])
    return found


def append_deeper(pool: Pool, deep: Pool) -> Pool:
    """`pool`, and below it what else is in `deep`, in its order."""
    fresh = codes(deep.item, distinct(pool.item)) < 0
    lift = min(pool.score.min(initial=np.inf) - deep.score[fresh].max(initial=-np.inf), 0.0)
    parts = zip((pool.item, pool.score, pool.source), (deep.item, deep.score + lift, deep.source), strict=True)
    return Pool(*(np.concatenate([ours, theirs[fresh]]) for ours, theirs in parts))


def _drawn(draw: np.random.Generator, shares: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` different places in a pool, in the order in which they were drawn by `shares`."""
    sums = np.cumsum(shares)
    tried = np.searchsorted(sums, draw.random(count) * sums[-1], side="right")
    return np.array(list(dict.fromkeys(np.minimum(tried, len(shares) - 1).tolist())), np.int64)
