"""One statistical claim and the rate that simulations gave."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Claim:
    """A claim in one setting.

    `low` and `high` bound the rate that is claimed, both inclusive. A claim fails when its rate lies outside them by more
    than two standard errors.
    """

    subject: str
    """What is claimed: "95 % interval of ROC AUC contains the true value"."""
    setting: str
    """What was simulated: "100 rows, a tenth positive"."""
    hits: int
    runs: int
    low: float = 0.0
    high: float = 1.0
    error: float | None = None
    """Standard error of the rate where runs depend on each other; 0 counts as unknown."""

    @property
    def rate(self) -> float:
        return self.hits / self.runs

    @property
    def standard_error(self) -> float:
        """Of the rate; that of one hit where the rate is 0 or 1, since the formula gives 0 there."""
        if self.error:
            return self.error
        nearest = min(max(self.rate, 1 / self.runs), 1 - 1 / self.runs)
        return math.sqrt(nearest * (1 - nearest) / self.runs)

    @property
    def holds(self) -> bool:
        return self.low - 2 * self.standard_error <= self.rate <= self.high + 2 * self.standard_error


class Simulation(Protocol):
    """A module of this folder: `simulate` yields each claim as soon as its runs are done.

    `scale` multiplies the number of runs; `seed` starts all streams of random numbers. `words` choose settings, where a
    subject allows it.
    """

    def simulate(self, scale: float, seed: int, *words: str) -> Iterator[Claim]: ...
