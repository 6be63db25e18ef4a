"""Why an item is in a list, in words."""

from dataclasses import dataclass

import numpy as np

from evergreen.tasks.problems.recommender.item_catalogue import ItemCatalogue
from evergreen.tasks.problems.recommender.user_histories import Histories, Sparse, ranges

OWN = 30
"""So many of a user's items are tried as the one that another goes with: those bought most."""
SAMPLE = 4_096
"""So many users at most tell what goes together: bounds the time of one reason whatever the shop's size."""
ENOUGH = 3
"""Fewer common buyers are chance."""
FROM_OTHERS = {"tifu_knn": "popular with customers like this one", "popular": "popular now"}
"""Source -> its words where no item of the user's goes with the new one."""


@dataclass(frozen=True)
class Together:
    """Who bought each item of the catalogue, out of a sample of users: rows of `buyers`, items x users."""

    buyers: Sparse

    @classmethod
    def of(cls, histories: Histories, catalogue: np.ndarray) -> "Together":
        every = -(-len(histories.users) // SAMPLE) or 1
        return cls(histories.matrix(catalogue)[::every].T.tocsr())

    def partners(self, own: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each of `new`, the one of `own` that goes with it best by the cosine of their buyers, and how many bought both.

        Both: columns of the catalogue, `own` not empty.
        """
        ours, theirs = self._buyers(own), self._buyers(new)
        common = theirs @ ours.T
        best = (common / np.sqrt(np.maximum(ours.sum(axis=1), 1))).argmax(axis=1)
        return own[best], common[np.arange(len(new)), best]

    def _buyers(self, items: np.ndarray) -> np.ndarray:
        """items x users: 1 for who bought it."""
        first = self.buyers.indptr[items]
        sizes = self.buyers.indptr[items + 1] - first
        found = np.zeros((len(items), self.buyers.shape[1]), np.float32)
        found[np.repeat(np.arange(len(items)), sizes), self.buyers.indices[ranges(first, sizes)]] = 1
        return found


def again(count: int, ago: int, unit: str) -> str:
    """
    >>> again(6, 12, "day"), again(1, 0, "day"), again(2, 1, "order")
    ('bought 6 times, last 12 days ago', 'bought once, today', 'bought 2 times, last 1 order ago')
    """
    when = {("day", 0): "today", ("order", 0): "with the newest order"}.get((unit, ago))
    when = when or f"{ago:,} {unit}{'' if ago == 1 else 's'} ago"
    return f"bought once, {when}" if count == 1 else f"bought {count:,} times, last {when}"


def new(catalogue: ItemCatalogue, item: int, source: str, partner: int | None) -> str:
    """Why an item that the user never bought: `partner` goes with it."""
    if source == "explore":
        return f"a new product, bought by {customers(int(catalogue.users[item]))} so far"
    if source == "promoted":
        return "promoted"
    if partner is not None and source != "popular":
        return f"bought with {called(catalogue, partner)}"
    if source == "popular":
        return f"popular now, bought by {customers(int(catalogue.popular[item]))} lately"
    return FROM_OTHERS["tifu_knn"]


def customers(count: int) -> str:
    return "nobody" if not count else f"{count:,} customer{'' if count == 1 else 's'}"


def called(catalogue: ItemCatalogue, item: int) -> str:
    """An item in words and by its id."""
    return f"{catalogue.names[item]} ({catalogue.ids[item]})" if catalogue.names[item] else str(catalogue.ids[item])
