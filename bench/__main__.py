"""`make bench`: what things cost, as ratios of two things run in turn on the same machine.

    make bench                    all of them
    python -m bench validation    one: flow, validation, recommend

Each works in clones of this repository in a temporary folder; nothing here is touched. A run takes minutes, on the real store;
`recommend` makes its own purchases, a hundred times as many in the end.
"""

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.recommend import SCALES
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config import loading
from evergreen.tasks.core import paths

ROOT = Path(__file__).parents[1]
PER_PROBLEM = [step for step, per_problem in STEPS.items() if per_problem]
log = logging.getLogger("bench")


def clone(folder: Path, name: str) -> Path:
    """A fresh clone, with nothing that a run makes."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / name)], check=True)
    return folder / name


def step(project: Path, name: str, problem: str | None = None) -> None:
    command = [sys.executable, "-P", "-m", "evergreen", name, *([problem] if problem else []), "--root", str(project)]
    subprocess.run(command, check=True, capture_output=True, cwd=project)


def bare(project: Path) -> None:
    """The steps alone, two branches side by side, as the flow runs them: no Prefect, no DVC, no registry."""
    for name in STEPS:
        if name not in PER_PROBLEM:
            step(project, name)
    problems = list(loading.load(paths.Layout(project).params).problems)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda problem: [step(project, name, problem) for name in PER_PROBLEM], problems))


def flow(project: Path) -> None:
    command = [str(Path(sys.executable).with_name("evergreen")), "train", "--root", str(project)]
    subprocess.run(command, check=True, capture_output=True, cwd=project)


@dataclass
class Cost:
    seconds: float
    """Wall time."""
    peak_mb: float
    """Most memory that all processes of the run held together, looked at twice a second; pages they share count each time."""


def measure(work: Callable[[Path], None], project: Path) -> Cost:
    done, peak, clock = threading.Event(), [0.0], time.perf_counter()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], _memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work(project)
    finally:
        done.set()
        watcher.join()
    return Cost(time.perf_counter() - clock, peak[0])


def _memory_mb() -> float:
    """Of all that this process started."""
    held = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            held += child.memory_info().rss
    return held / 2**20


def bench_flow(folder: Path) -> None:
    """The whole flow against its bare steps; the aim is at most 1.15."""
    costs = {"bare steps": measure(bare, clone(folder, "bare")), "flow": measure(flow, clone(folder, "flow"))}
    costs["flow again, nothing changed"] = measure(flow, folder / "flow")
    for name, cost in costs.items():
        log.info("%-28s %7.1f s wall %7.0f MB", name, cost.seconds, cost.peak_mb)
    log.info("flow / bare steps, wall      %7.2f", costs["flow"].seconds / costs["bare steps"].seconds)


def bench_validation(folder: Path) -> None:
    """Validation of every row of every table against reading and writing the same tables."""
    project = clone(folder, "validation")
    for name in ("ingest", "validate"):
        step(project, name)
    costs = {name: json.loads(paths.Layout(project).cost(name, None).read_text()) for name in ("ingest", "validate")}
    for name, cost in costs.items():
        log.info("%-10s %6.1f CPU s  %6.1f s wall  %7.0f MB", name, cost["cpu_seconds"], cost["wall_seconds"], cost["peak_mb"])
    log.info("validate / ingest, CPU  %5.2f", costs["validate"]["cpu_seconds"] / costs["ingest"]["cpu_seconds"])


def bench_recommend(_: Path) -> None:
    """The recommender on 1, 10 and 100 times as many households and items: CPU time and memory of fit, update and answer."""
    head = (
        "scale",
        "households",
        "catalogue",
        "lines",
        "fit CPU s",
        "peak GB",
        "answer ms",
        "p99",
        "batch ms",
        "update ms",
        "p99",
    )
    log.info("".join(f"{name:>12}" for name in head))
    for scale in SCALES:
        done = subprocess.run(
            [sys.executable, "-m", "bench.recommend", str(scale)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        found = json.loads(done.stdout.splitlines()[-1])
        whole = [f"{found[name]:,}" for name in ("scale", "households", "catalogue", "lines")]
        cost = [found["fit_cpu_s"], found["peak_gb"], *found["answer_ms"], found["batch_cpu_ms_each"], *found["update_ms"]]
        log.info("".join(f"{text:>12}" for text in [*whole, *(f"{each:.1f}" for each in cost)]))


BENCHES = {"flow": bench_flow, "validation": bench_validation, "recommend": bench_recommend}


def main(names: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names or BENCHES:
        log.info("-- %s: %s", name, (BENCHES[name].__doc__ or "").strip())
        with tempfile.TemporaryDirectory(prefix="evergreen bench ") as folder:
            BENCHES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
