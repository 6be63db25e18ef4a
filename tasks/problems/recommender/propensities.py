"""Propensities: the chance of each item of a list with exploration. By them, estimates for another policy weigh what was shown.

The propensity of an item is its chance at its rank, given the items above it. Their product is the chance of the whole list.
Promoted items, `diversity` and `max_per_category` are taken as they came.
"""

from collections.abc import Sequence

import numpy as np


def pool_shares(starts: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """The chance of each item of a pool in one draw: a category as often as it is in `mine`, then each item of it alike.

    `starts`: where each category begins in the pool, and its end. Without a category in `mine` all items are alike.

    >>> pool_shares(np.array([0, 1, 3]), mine=np.array([1, 1, 0])).round(2).tolist()
    [0.33, 0.33, 0.33]
    """
    sizes = np.diff(starts)
    weight = np.bincount(mine, minlength=len(sizes)) * (sizes > 0)
    if not weight.any():
        size = int(starts[-1])
        return np.full(size, 1 / max(size, 1))
    each = weight / weight.sum() / np.maximum(sizes, 1)
    return each[np.repeat(np.arange(len(sizes)), sizes)]


def draw_chances(drawn: np.ndarray, shares: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The chance of each draw, given those before it: items that are not `allowed`, or drawn before, are drawn again.

    `drawn`: places in the pool, in the order of the draws. `shares`, `allowed`: of each item of the pool.
    """
    taken = shares[drawn]
    left = shares[allowed].sum() - (np.cumsum(taken) - taken)
    return np.minimum(taken / np.maximum(left, taken), 1.0)


def of_list(explored: Sequence[bool], chances: Sequence[float], share: float, k: int) -> list[float]:
    """The propensity at each rank.

    `explored`: whether the item at each rank was drawn. `chances`: of all that were drawn for this list, in their order; the
    first ones are in it. `share`, `k`: as in reranking.drawn_places, which rounds the number of drawn items up or down.

    >>> of_list([False, True], [0.25], share=0.25, k=2), of_list([False, False], [0.25], share=0.25, k=2)
    ([1.0, 0.125], [1.0, 0.5])
    """
    fewer, fraction = divmod(round(share * k, 9), 1)
    totals = [(int(fewer), 1 - fraction), (int(fewer) + 1, fraction)]
    found, used = list[float](), 0
    for rank, drawn in enumerate(explored):
        matching = [each for each in totals if ((rank + 1) * each[0] // k > rank * each[0] // k) == drawn]
        chance = sum(weight for _, weight in matching) / sum(weight for _, weight in totals)
        if chance > 0:
            totals = matching
        else:  # an item was due, and none was left to be drawn
            chance = 1.0
        if drawn:
            chance, used = chance * chances[used], used + 1
        found.append(float(chance))
    return found
