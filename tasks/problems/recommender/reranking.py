"""From an order to a list: which of the items that may be there take which place.

A want is a mask and how many of its items the first n places shall hold at least; where none is left, others take the place.
"""

import math
from collections.abc import Sequence

import numpy as np

Want = tuple[np.ndarray, Sequence[int]]


def places(share: float, k: int, nearest: bool = False) -> list[int]:
    """Of the first 1, 2, … k places, how many are due to a share: spread evenly, in all rounded up (or to the nearest).

    >>> places(0.25, 8)
    [0, 0, 0, 1, 1, 1, 1, 2]
    """
    due = round(share * k) if nearest else math.ceil(share * k - 1e-9)
    return [(place + 1) * due // k for place in range(k)]


def drawn_places(share: float, k: int, luck: float) -> list[int]:
    """As `places`, in all rounded up or down as `luck` (0 to below 1) has it: over many lists the share is met to the point.

    >>> drawn_places(0.25, 2, 0.0), drawn_places(0.25, 2, 0.6)
    ([0, 0], [0, 1])
    """
    due = int(share * k + luck + 1e-9)
    return [(place + 1) * due // k for place in range(k)]


def choose(
    category: np.ndarray, k: int, cap: int | None, diversity: float, wants: Sequence[Want], held: np.ndarray | None
) -> np.ndarray:
    """Up to `k` positions in `category` (of the items, best first; 0: none), in the order of the list.

    `cap`: at most so many of one category. `held`: items that come only where the first want is due. `diversity`: place after
    place the item with the most of (1 - diversity) / log2(order + 1) - diversity (1 - 2^-n) is taken, n being how many of its
    category stand above it: relevance against redundancy (MMR: Carbonell and Goldstein 1998), with the discount of NDCG.
    """
    size = len(category)
    if cap is None and not diversity and not wants:
        return np.arange(min(k, size))
    left = np.ones(size, bool)
    free = left if held is None else ~held
    value = (1 - diversity) / np.log2(np.arange(size) + 2) if diversity else None
    counts, seen, chosen = [0] * len(wants), dict[int, int](), []
    for place in range(min(k, size)):
        fit = _fitting(left, free, wants, counts, place)
        at = int(fit.argmax() if value is None else np.where(fit, value, -np.inf).argmax())
        if not fit[at]:
            break
        left[at], free[at] = False, False
        chosen.append(at)
        for number, (mask, _) in enumerate(wants):
            counts[number] += int(mask[at])
        if kind := int(category[at]):
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] == cap or value is not None:
                same = category == kind
                if seen[kind] == cap:
                    left[same], free[same] = False, False
                if value is not None:
                    value[same] -= diversity * 0.5 ** seen[kind]
    return np.array(chosen, np.int64)


def _fitting(left: np.ndarray, free: np.ndarray, wants: Sequence[Want], counts: list[int], place: int) -> np.ndarray:
    """The items that may take `place`: those that meet as many of the wants that are due as there are items for."""
    fit = free
    for number, (mask, due) in enumerate(wants):
        if counts[number] < due[place]:
            narrowed = (left if number == 0 else fit) & mask
            if narrowed.any():
                fit = narrowed
    return fit
