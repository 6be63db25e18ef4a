"""Rank-biased overlap: how much two ranked lists resemble each other, the first ranks weighing most."""

from collections.abc import Sequence

PERSISTENCE = 0.9
"""p: a reader goes on to the next rank with this chance. The first ten ranks then have 86 % of the weight."""


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], p: float = PERSISTENCE) -> float:
    """From 0, nothing in common, to 1, the same items in the same order; beyond the end of a list, as much agrees as before it.

    Two empty lists are equal. Webber, Moffat and Zobel, A similarity measure for indefinite rankings, 2010: equation 32.

    >>> round(rank_biased_overlap("abc", "abd"), 3), rank_biased_overlap("ab", "cd"), rank_biased_overlap("a", "a")
    (0.73, 0.0, 1.0)
    """
    short, long = sorted((list(dict.fromkeys(one)), list(dict.fromkeys(other))), key=len)
    if not short:
        return float(not long)
    common, found = list[int](), 0.0
    for depth in range(1, len(long) + 1):
        common.append(len(set(short[:depth]) & set(long[:depth])))
        beyond = max(depth - len(short), 0) * common[min(depth, len(short)) - 1] / len(short)
        found += (common[-1] + beyond) / depth * p**depth
    ends = (common[-1] - common[len(short) - 1]) / len(long) + common[len(short) - 1] / len(short)
    return (1 - p) / p * found + ends * p ** len(long)
