"""tune.budget_seconds: the wall time that a training may take.

A command that trains one problem sets BEGAN, and its budget is the user's wall time, from the command to the deployed model.
Each step then leaves the later ones their time: diagnosis, explanation and release are planned by shares of the budget, and by
their cost on this machine. Without BEGAN, for several problems or for `dvc repro`, the budget is that of search, refit and
evaluation alone, and their clocks start when the libraries are loaded.
"""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout, read_json, write_json

if TYPE_CHECKING:
    from evergreen.tasks.search.trials import Cost

BEGAN = "EVERGREEN_BEGAN"
"""Environment: when the command began that trains one problem, in seconds since 1970. The command sets it for its steps."""
MEASURED = ("tune", "train", "evaluate")
"""The steps that share the budget."""
STEPS = (*MEASURED, "diagnose", "explain")
START_SECONDS = 0.5
"""To start a step, from the end of the one before it, on a quiet machine."""
RELEASE_SECONDS = 5.0
"""Gate, registration with compilation, deployment, page and the server's end, on a quiet machine."""
ADVICE_SHARES = {"diagnose": 0.06, "explain": 0.08}
"""Shares of the budget for the steps that only people read, where the search is planned."""
MIN_SHARE = 0.4
"""Share of the budget that search, refit and evaluation get though the other steps leave less: on a busy machine a model of all
rows is worth more than the seconds."""
MAX_SLOWNESS = 4.0
PAGE_SECONDS = 1.5
"""The page and the server's end, which follow the deployment."""
SLACK = 1.3
"""Factor on times that are extrapolated to more rows."""
MIN_RESAMPLES = 50
"""Fewer resamples than this give no usable confidence interval."""
MAX_REFIT_SHARE = 0.3
"""Largest share of the budget for the fits after the search; where it is too short, there is no refit, or one on fewer rows."""
MAX_EVALUATION_SHARE = 0.25
"""Largest share of the budget for the evaluation."""
BLEND_SHARE = 0.05
"""Share of the budget for the selection of a blend, which comes after the last trial."""
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
    workers: int = 1
    """Processes of the search; with two, both models are fitted at the same time."""

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
        """To blend, to fit the evaluated model and the served one within MAX_REFIT_SHARE, and to evaluate."""
        rows = (self.training_rows, self.all_rows)
        fits = self.refit(cost, max(rows) if self.workers > 1 else sum(rows))
        blend = BLEND_SHARE * self.seconds
        return self.loading + blend + min(fits, MAX_REFIT_SHARE * self.seconds) + self.evaluation(cost)


_begun: list[float] = []
"""When the step of this process began; empty where the step does not run as a process."""


def begin() -> None:
    """Start the clock of this process's step."""
    _begun[:] = [time.monotonic()]


def clock(params: Params, problem: str, layout: Layout, step: str) -> Clock:
    """The clock of `step`, one of STEPS: the budget without the time that is spent and the time that later steps need.

    It counts from `begin`, or else from now.
    """
    total = params.section(problem).tune.budget_seconds
    began = _begun.pop() if _begun else time.monotonic()
    if total is None:
        return Clock(None, began)
    if not commanded():
        return Clock(total - _spent(layout, problem, MEASURED[: MEASURED.index(step)]), began)
    gone = time.time() - float(os.environ[BEGAN]) - (time.monotonic() - began)
    left = total - gone - later_seconds(layout, problem, step, total)
    return Clock(max(left, MIN_SHARE * total) if step == MEASURED[0] else left, began)


@contextmanager
def counting_from(began: float) -> Generator[None]:
    """Let budgets within the block be the wall time since `began`, in seconds since 1970; steps inherit it."""
    os.environ[BEGAN] = f"{began:.3f}"
    try:
        yield
    finally:
        del os.environ[BEGAN]


def commanded() -> bool:
    """Whether the budget is the wall time of a command that trains one problem."""
    return BEGAN in os.environ


def later_seconds(layout: Layout, problem: str, step: str, total: float) -> float:
    """What the steps after `step` need, without those of MEASURED, which share one clock."""
    after = STEPS[STEPS.index(step) + 1 :]
    starts = slowness(layout, problem) * START_SECONDS * len(after)
    return (
        starts + release_seconds(layout, problem) + sum(share * total for name, share in ADVICE_SHARES.items() if name in after)
    )


def release_seconds(layout: Layout, problem: str) -> float:
    """From the explanation to the end: as the last training of the problem took, or else as on a machine this busy."""
    path = _release_path(layout, problem)
    return float(read_json(path)["seconds"]) if path.exists() else RELEASE_SECONDS * slowness(layout, problem)


def slowness(layout: Layout, problem: str) -> float:
    """Wall time in relation to CPU time of the steps of this training so far, between 1 (a quiet machine) and MAX_SLOWNESS."""
    costs = [_cost(layout, step, name) for step, name in (("ingest", None), ("validate", None), ("features", problem))]
    wall, cpu = (sum(float(each.get(name, 0.0)) for each in costs) for name in ("wall_seconds", "cpu_seconds"))
    return min(max(wall / cpu, 1.0), MAX_SLOWNESS) if cpu else 1.0


def note_release(layout: Layout, problem: str, seconds: float) -> None:
    """Record the time from the explanation to the deployment, for the next training."""
    write_json(_release_path(layout, problem), {"seconds": round(seconds + PAGE_SECONDS, 3)})


def _release_path(layout: Layout, problem: str) -> Path:
    """Apart from the costs of steps."""
    return layout.var / "costs" / "release" / f"{problem}.json"


def _cost(layout: Layout, step: str, problem: str | None) -> dict[str, Any]:
    path = layout.cost(step, problem)
    return read_json(path) if path.exists() else {}


def _spent(layout: Layout, problem: str, steps: Sequence[str]) -> float:
    costs = [_cost(layout, step, problem) for step in steps]
    return sum(float(each.get("wall_seconds", 0.0)) - float(each.get("start_seconds", 0.0)) for each in costs)
