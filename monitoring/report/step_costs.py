"""CPU time and memory of the steps, for the page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evergreen.monitoring.report.step_files import read
from evergreen.tasks.core.paths import Layout

STEPS = (
    "ingest",
    "validate",
    "features",
    "tune",
    "train",
    "evaluate",
    "diagnose",
    "explain",
    "gate",
    "register",
    "deploy",
    "record",
)
"""In the order in which they run; other steps come after."""


@dataclass(frozen=True)
class Cost:
    step: str
    cpu: float
    peak: float
    wall: float
    share: float
    """Of the largest CPU time in its table, 0 to 100."""


def step_costs(layout: Layout, problem: str | None) -> list[Cost]:
    """What each step cost for `problem`; None: the steps that all problems share."""
    found = []
    for path in (layout.var / "costs").glob(f"*@{problem}.json" if problem else "*.json"):
        step, _, of = path.stem.partition("@")
        spent = read(path) if of == (problem or "") else None
        if spent:
            found.append((step, spent))
    most = max((float(spent.get("cpu_seconds") or 0) for _, spent in found), default=0.0) or 1.0
    found.sort(key=lambda item: (STEPS.index(item[0]) if item[0] in STEPS else len(STEPS), item[0]))
    return [_cost(step, spent, most) for step, spent in found]


def _cost(step: str, spent: Mapping[str, Any], most: float) -> Cost:
    cpu, peak, wall = (float(spent.get(key) or 0) for key in ("cpu_seconds", "peak_mb", "wall_seconds"))
    return Cost(step, cpu, peak, wall, round(100 * cpu / most, 2))


def total_cost(layout: Layout) -> Cost | None:
    """CPU and wall seconds of all steps in sum, and the highest peak of memory."""
    spent = [each for path in sorted((layout.var / "costs").glob("*.json")) if (each := read(path))]
    if not spent:
        return None
    cpu = math.fsum(float(each.get("cpu_seconds") or 0) for each in spent)
    wall = math.fsum(float(each.get("wall_seconds") or 0) for each in spent)
    return Cost("all", cpu, max(float(each.get("peak_mb") or 0) for each in spent), wall, 100.0)
