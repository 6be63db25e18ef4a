"""tune.budget_seconds: the wall time of the search, the refit and the evaluation of a problem together.

The clock of a step starts when its libraries are loaded, two or three seconds after its process starts. The time of the earlier
steps is read from var/costs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, read_json

if TYPE_CHECKING:
    from evergreen.tasks.search.trials import Cost

MEASURED = ("tune", "train", "evaluate")
"""The steps that share the budget."""
SLACK = 1.3
"""Factor on times that are extrapolated to more rows."""
MIN_RESAMPLES = 50
"""Fewer resamples than this give no usable confidence interval."""
MAX_REFIT_SHARE = 0.3
"""Largest share of the budget for the refit; where it is too short, the model is fitted on fewer rows."""
MAX_EVALUATION_SHARE = 0.25
"""Largest share of the budget for the evaluation."""
MIN_SEARCH_SHARE = 0.3
"""Smallest share of the budget for the search, once the data is loaded."""


class Clock:
    """Counts down from `seconds` since `began` (monotonic). None: no limit."""

    def __init__(self, seconds: float | None, began: float | None = None) -> None:
        self.seconds = seconds
        self.began = time.monotonic() if began is None else began

    def spent(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds left; infinite without a limit, negative once the time is over."""
        return float("inf") if self.seconds is None else self.seconds - self.spent()

    def part(self, place: int, count: int) -> "Clock":
        """The time left now in `count` equal parts: a clock that ends with part `place`, counted from 0."""
        return Clock(None if self.seconds is None else self.spent() + (place + 1) * self.left() / count, self.began)


@dataclass(frozen=True)
class Estimate:
    """The wall time in seconds of the steps after the search, estimated from the cost of a trial."""

    seconds: float
    """The whole budget."""
    loading: float
    """To start a process and load the data."""
    training_rows: float
    """Training rows of the model that is evaluated."""
    all_rows: float
    """Training rows of the model that is served; 0 where it is the evaluated one."""
    test_rows: float

    def refit(self, cost: "Cost", rows: float | None = None) -> float:
        """To fit all training rows, or `rows`, given the cost of a trial."""
        known = cost.fit_rows if cost.fit_rows > 0 else 1.0
        return SLACK * cost.fit_seconds * (self.training_rows if rows is None else rows) / known

    def evaluation(self, cost: "Cost") -> float:
        """To evaluate with MIN_RESAMPLES resamples."""
        known = cost.score_rows if cost.score_rows > 0 else 1.0
        scoring = cost.score_seconds * self.test_rows / known
        needed = self.loading + SLACK * MIN_RESAMPLES * 4 * scoring
        return min(needed, MAX_EVALUATION_SHARE * self.seconds)

    def search(self, cost: "Cost") -> float:
        """When the search must end, in seconds since its clock started: the budget without `reserve`, and MIN_SEARCH_SHARE of
        it at least."""
        return max(self.seconds - self.reserve(cost), self.loading + MIN_SEARCH_SHARE * self.seconds)

    def reserve(self, cost: "Cost") -> float:
        """To refit and evaluate, within MAX_REFIT_SHARE and MAX_EVALUATION_SHARE."""
        return self.loading + min(self.refit(cost), MAX_REFIT_SHARE * self.seconds) + self.evaluation(cost)


_begun: list[float] = []
"""When the step of this process began; empty where the step does not run as a process."""


def begin() -> None:
    """Start the clock of this process's step."""
    _begun[:] = [time.monotonic()]


def clock(params: Params, problem: str, layout: Layout, step: str) -> Clock:
    """The clock of `step`: the budget minus the time of the earlier steps, counted from `begin`, or else from now."""
    total = params.section(problem).tune.budget_seconds
    before = MEASURED[: MEASURED.index(step)]
    began = _begun.pop() if _begun else None
    return Clock(None if total is None else total - _spent(layout, problem, before), began)


def _spent(layout: Layout, problem: str, steps: Sequence[str]) -> float:
    costs = [read_json(path) for path in (layout.cost(step, problem) for step in steps) if path.exists()]
    return sum(float(each.get("wall_seconds", 0.0)) - float(each.get("start_seconds", 0.0)) for each in costs)
