"""How long the search, the refit and the evaluation of a problem may take together: tune.budget_seconds.

The time is that on the wall. A step counts from the moment its libraries are there (two or three seconds after its process
starts), and knows from var/costs what the steps before it took.
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
"""What larger data take more than in proportion."""
RESAMPLES = 50
"""Fewer resamples than this give no interval worth the name."""
REFIT = 0.3
"""Share of the budget that the refit may have at most; the model learns from fewer rows where that is not enough."""
EVALUATION = 0.25
"""Share of the budget that the evaluation may have at most."""
SEARCH = 0.3
"""Share of the budget that the search has at least, once the data is there: of a few seconds little may be left by then."""


class Clock:
    """Counts down from `seconds` since `began` (monotonic). None: no limit."""

    def __init__(self, seconds: float | None, began: float | None = None) -> None:
        self.seconds = seconds
        self.began = time.monotonic() if began is None else began

    def spent(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds that are left; infinite without a limit, below 0 once it is over."""
        return float("inf") if self.seconds is None else self.seconds - self.spent()

    def part(self, place: int, count: int) -> "Clock":
        """What is left now, in `count` equal parts: the clock that is over at the end of part `place`, the first being 0."""
        return Clock(None if self.seconds is None else self.spent() + (place + 1) * self.left() / count, self.began)


@dataclass(frozen=True)
class Estimate:
    """What the steps after the search will need, from what was measured on folds. Seconds on the wall."""

    seconds: float
    """The whole budget."""
    loading: float
    """To start a process and read the data."""
    learning_rows: float
    """Rows that the model that is judged learns from."""
    all_rows: float
    """What the model that serves learns from; 0 where it is the one that is judged."""
    test_rows: float

    def refit(self, cost: "Cost", rows: float | None = None) -> float:
        """To learn from all there is before the test, or from `rows`, given what a fold took."""
        known = cost.fit_rows if cost.fit_rows > 0 else 1.0
        return SLACK * cost.fit_seconds * (self.learning_rows if rows is None else rows) / known

    def evaluation(self, cost: "Cost") -> float:
        """To judge, with as few resamples as will do."""
        known = cost.score_rows if cost.score_rows > 0 else 1.0
        scoring = cost.score_seconds * self.test_rows / known
        needed = self.loading + SLACK * RESAMPLES * 4 * scoring
        return min(needed, EVALUATION * self.seconds)

    def search(self, cost: "Cost") -> float:
        """When the search must end, in seconds since its process began: what is not kept for later, but always a part of the
        budget after the data is there."""
        return max(self.seconds - self.reserve(cost), self.loading + SEARCH * self.seconds)

    def reserve(self, cost: "Cost") -> float:
        """To learn once more and to judge; learning from fewer rows where all would take too much of the budget."""
        return self.loading + min(self.refit(cost), REFIT * self.seconds) + self.evaluation(cost)


_begun: list[float] = []
"""When this process began its step; empty where the step was not run as a process."""


def begin() -> None:
    """The step of this process begins now."""
    _begun[:] = [time.monotonic()]


def clock(params: Params, problem: str, layout: Layout, step: str) -> Clock:
    """What is left to `step`: the budget without what the steps before it took, counted from `begin`, or else from now."""
    total = params.section(problem).tune.budget_seconds
    before = MEASURED[: MEASURED.index(step)]
    began = _begun.pop() if _begun else None
    return Clock(None if total is None else total - _took(layout, problem, before), began)


def _took(layout: Layout, problem: str, steps: Sequence[str]) -> float:
    costs = [read_json(path) for path in (layout.cost(step, problem) for step in steps) if path.exists()]
    return sum(float(each.get("wall_seconds", 0.0)) - float(each.get("start_seconds", 0.0)) for each in costs)
