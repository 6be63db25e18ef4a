"""`make bench`: what things cost, as ratios of two things run in turn on the same machine.

    python -m bench               all of them
    python -m bench validation    one: flow, validation

Each works in clones of this repository in a temporary folder; nothing here is touched. A run takes minutes, on the real store.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks import layout, params
from tasks.__main__ import STEPS

ROOT = Path(__file__).parents[1]
PER_PROBLEM = [step for step, per_problem in STEPS.items() if per_problem]
log = logging.getLogger("bench")


def clone(folder: Path, name: str) -> Path:
    """A fresh clone, with nothing that a run makes."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / name)], check=True)
    return folder / name


def step(project: Path, name: str, problem: str | None = None) -> None:
    command = [sys.executable, "-m", "tasks", name, *([problem] if problem else []), "--root", str(project)]
    subprocess.run(command, check=True, capture_output=True, cwd=project)


def bare(project: Path) -> None:
    """The steps alone, two branches side by side, as the flow runs them: no Prefect, no DVC, no registry."""
    for name in STEPS:
        if name not in PER_PROBLEM:
            step(project, name)
    problems = list(params.load(layout.Layout(project).params).problems)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda problem: [step(project, name, problem) for name in PER_PROBLEM], problems))


def flow(project: Path) -> None:
    subprocess.run(
        [Path(sys.executable).with_name("evergreen"), "train", "--root", str(project)],
        check=True,
        capture_output=True,
        cwd=project,
    )


def seconds(work: Callable[[Path], None], project: Path) -> float:
    clock = time.perf_counter()
    work(project)
    return time.perf_counter() - clock


def bench_flow(folder: Path) -> None:
    """The whole flow against its bare steps; the aim is at most 1.15."""
    took = {"bare steps": seconds(bare, clone(folder, "bare")), "flow": seconds(flow, clone(folder, "flow"))}
    took["flow again, nothing changed"] = seconds(flow, folder / "flow")
    for name, value in took.items():
        log.info("%-28s %7.1f s wall", name, value)
    log.info("flow / bare steps            %7.2f", took["flow"] / took["bare steps"])


def bench_validation(folder: Path) -> None:
    """Validation of every row of every table against reading and writing the same tables."""
    project = clone(folder, "validation")
    for name in ("ingest", "validate"):
        step(project, name)
    costs = {name: json.loads(layout.Layout(project).cost(name, None).read_text()) for name in ("ingest", "validate")}
    for name, cost in costs.items():
        log.info("%-10s %6.1f CPU s  %6.1f s wall  %7.0f MB", name, cost["cpu_seconds"], cost["wall_seconds"], cost["peak_mb"])
    log.info("validate / ingest, CPU  %5.2f", costs["validate"]["cpu_seconds"] / costs["ingest"]["cpu_seconds"])


BENCHES = {"flow": bench_flow, "validation": bench_validation}


def main(names: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names or BENCHES:
        log.info("-- %s: %s", name, (BENCHES[name].__doc__ or "").strip())
        with tempfile.TemporaryDirectory(prefix="evergreen bench ") as folder:
            BENCHES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
