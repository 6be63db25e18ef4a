"""Bets against a hypothesis about a mean. Pure.

An observation is at most 1 and, if the hypothesis is true, at most 0 on average, whatever was seen before. The fortune of a bet
is multiplied by 1 + stake * observation at each step, and does not grow on average for a stake in [0, 1]. By Ville's inequality
(1939) it reaches 1/alpha in at most a share alpha of all sequences, however often somebody looks. The stakes are fixed, and the
fortune is shared among them equally (Waudby-Smith and Ramdas 2024).
"""

import math
from collections.abc import Sequence

import numpy as np

STAKES = 0.98 * 2.0 ** -np.arange(6)
"""Shares of a fortune at stake where an observation can be -1. The largest grows fastest on a broken version, the smallest on a
small and steady difference."""
RUIN = 1e-12
"""What is left of a fortune after an observation that takes all of it or more."""


def factors(observations: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """Logarithm of each observation's factor: one row for each stake."""
    gains = np.multiply.outer(STAKES, np.atleast_1d(np.asarray(observations, dtype=float)))
    return np.log1p(np.maximum(gains, RUIN - 1))


def grow(observations: float | Sequence[float] | np.ndarray) -> np.ndarray:
    """Logarithm of the growth of the fortune at each stake, after all `observations`."""
    return factors(observations).sum(axis=1)


def total(growth: Sequence[float] | np.ndarray) -> float:
    """Logarithm of the whole fortune, as a multiple of the first one. `growth`: at each stake; empty: nothing was bet.

    >>> abs(total(grow([0.0, 0.0]))) < 1e-9, total(grow([0.5] * 30)) > 5 > total(grow([0.5, -0.5] * 30))
    (True, True)
    """
    return float(np.logaddexp.reduce(growth)) - math.log(len(growth)) if len(growth) else 0.0
