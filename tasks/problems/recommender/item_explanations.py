"""Explanations of the items of a list."""

from dataclasses import dataclass

import numpy as np

from evergreen.tasks.problems.recommender.item_catalogue import ItemCatalogue
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, ranges

OWN = 30
"""Most of a user's own items, by purchases, that are tried as partners of a new one."""
SAMPLE = 4_096
"""Most users of the sample for co-purchases; bounds the time of one explanation."""
ENOUGH = 3
"""Fewest common buyers of a pair."""
FROM_OTHERS = {"tifu_knn": "popular with customers like this one", "popular": "popular now"}
"""Source -> explanation without a partner among the user's items."""


@dataclass(frozen=True)
class CoPurchases:
    """Buyers of each item of the catalogue, from a sample of users: `buyers`, items x users."""

    buyers: Sparse

    @classmethod
    def of(cls, histories: Histories, catalogue: np.ndarray) -> "CoPurchases":
        every = -(-len(histories.users) // SAMPLE) or 1
        return cls(histories.matrix(catalogue)[::every].T.tocsr())

    def partners(self, own: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each of `new`, the most similar of `own` by the cosine of their buyers, and the number of common buyers.

        Both: columns of the catalogue, `own` not empty.
        """
        ours, theirs = self._buyers(own), self._buyers(new)
        common = theirs @ ours.T
        best = (common / np.sqrt(np.maximum(ours.sum(axis=1), 1))).argmax(axis=1)
        return own[best], common[np.arange(len(new)), best]

    def _buyers(self, items: np.ndarray) -> np.ndarray:
        """items x users: 1 for a buyer."""
        first = self.buyers.indptr[items]
        sizes = self.buyers.indptr[items + 1] - first
        found = np.zeros((len(items), self.buyers.shape[1]), np.float32)
        found[np.repeat(np.arange(len(items)), sizes), self.buyers.indices[ranges(first, sizes)]] = 1
        return found


def rebuy(count: int, ago: int, unit: str) -> str:
    """
    >>> rebuy(6, 12, "day"), rebuy(1, 0, "day"), rebuy(2, 1, "order")
    ('bought 6 times, last 12 days ago', 'bought once, today', 'bought 2 times, last 1 order ago')
    """
    when = {("day", 0): "today", ("order", 0): "with the newest order"}.get((unit, ago))
    when = when or f"{ago:,} {unit}{'' if ago == 1 else 's'} ago"
    return f"bought once, {when}" if count == 1 else f"bought {count:,} times, last {when}"


def new(catalogue: ItemCatalogue, item: int, source: str, partner: int | None) -> str:
    """Explanation of an item that is new to the user. `partner`: an own item with common buyers."""
    if source == "explore":
        return f"a new product, bought by {customers(int(catalogue.users[item]))} so far"
    if source == "content":
        return "a new product like those that this customer buys"
    if source == "promoted":
        return "promoted"
    if partner is not None and source != "popular":
        return f"bought with {called(catalogue, partner)}"
    if source == "popular" and not catalogue.popular[item]:
        return f"bought by {customers(int(catalogue.users[item]))} so far"
    if source == "popular":
        return f"popular now, bought by {customers(int(catalogue.popular[item]))} lately"
    return FROM_OTHERS["tifu_knn"]


def customers(count: int) -> str:
    return "nobody" if not count else f"{count:,} customer{'' if count == 1 else 's'}"


def called(catalogue: ItemCatalogue, item: int) -> str:
    """An item in words and by its id."""
    return f"{catalogue.names[item]} ({catalogue.ids[item]})" if catalogue.names[item] else str(catalogue.ids[item])
