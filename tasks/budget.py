"""How long the search, the refit and the evaluation of a problem may take together: tune.budget_seconds.

The time is that on the wall. A step counts from the moment its process began to work, and knows from var/costs what the steps
before it took.
"""

import time
from collections.abc import Sequence

from tasks.layout import Layout, read_json
from tasks.params import Params

MEASURED = ("tune", "train", "evaluate")
"""The steps that share the budget."""


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


_begun: list[float] = []
"""When this process began its step; empty where the step was not run as a process."""


def begin() -> None:
    """The step of this process begins now, its imports included."""
    _begun[:] = [time.monotonic()]


def clock(params: Params, problem: str, layout: Layout, step: str) -> Clock:
    """What is left to `step`: the budget without what the steps before it took, counted from `begin`, or else from now."""
    total = params.section(problem).tune.budget_seconds
    before = MEASURED[: MEASURED.index(step)]
    began = _begun.pop() if _begun else None
    return Clock(None if total is None else total - _took(layout, problem, before), began)


def _took(layout: Layout, problem: str, steps: Sequence[str]) -> float:
    costs = [layout.cost(step, problem) for step in steps]
    return sum(float(read_json(path).get("wall_seconds", 0.0)) for path in costs if path.exists())
