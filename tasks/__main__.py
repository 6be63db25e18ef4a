"""`python -P -m evergreen STEP [PROBLEM]`: run one step on the project around the current folder.

DVC and Prefect run this command. Progress goes to stderr; the result goes to stdout as one JSON object; time and memory go to
var/costs.
"""

import argparse
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evergreen.tasks.config.params import Params
    from evergreen.tasks.core.paths import Layout

STEPS = {
    "ingest": False,
    "validate": False,
    "features": True,
    "tune": True,
    "train": True,
    "evaluate": True,
    "diagnose": True,
    "explain": True,
}
"""Step -> whether it takes a problem."""

SHARING = ("tune", "train", "evaluate")
"""Steps that share computed arrays, in their order."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for name in THREADS:
        os.environ.setdefault(name, "1")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("evergreen").setLevel(logging.INFO)
    from evergreen.tasks.core.errors import EvergreenError
    from evergreen.tasks.core.library_warnings import logging_once

    try:
        with logging_once(": ".join(each for each in (options.problem, options.step) if each)):
            return _run(options.step, options.problem, options.root)
    except EvergreenError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except MemoryError:
        if options.debug:
            raise
        from evergreen.tasks.core import memory

        print(f"error: out of memory. {memory.advice(options.step)}", file=sys.stderr)
        return EvergreenError.code
    except OSError as error:
        from evergreen.tasks.core.paths import refusal

        line = refusal(error)
        if options.debug or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m evergreen", description="Run one step.")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("problem", nargs="?", help="a name under problems in params.yaml")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of params.yaml or below")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an expected error")
    return parser


def _run(step: str, problem: str | None, root: Path) -> int:
    from evergreen.tasks import problems
    from evergreen.tasks.config import loading
    from evergreen.tasks.core import paths
    from evergreen.tasks.core.errors import EvergreenError, ParamsError, ProjectError
    from evergreen.tasks.search import time_budget

    place = paths.find(root)
    known = loading.load(place.params)
    if STEPS[step] != bool(problem):
        raise ParamsError(
            f"{step}: {'needs a problem' if STEPS[step] else 'takes no problem'}; problems are {', '.join(known.problems)}"
        )
    if problem:
        known.section(problem)
    started, clock = datetime.now(UTC), time.perf_counter()
    module = import_module(f"evergreen.tasks.{step}")
    if problem:
        problems.kind(known.kind(problem))
    ready = time.perf_counter() - clock
    time_budget.begin()
    try:
        with sharing(place, step, problem, known):
            result = module.run(known, problem, place)
    except EvergreenError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and paths.refusal(error):
            raise
        if found := _damaged(place, error):
            path, why = found
            raise ProjectError(f"{path}: is damaged: {why}. Remove it, then run evergreen train or dvc repro.") from error
        raise
    paths.write_json(
        place.cost(step, problem),
        {
            "started": started.isoformat(),
            "wall_seconds": round(time.perf_counter() - clock, 3),
            "start_seconds": round(ready, 3),
            **usage(),
        },
    )
    print(result.model_dump_json())
    return 0


def _damaged(place: "Layout", error: Exception) -> tuple[Path, str] | None:
    """The parquet file for which a step failed, and what is wrong with it; None: the error has another cause."""
    from evergreen.tasks.core import paths

    if half := paths.truncated_parquet(place):
        return half, "truncated parquet file"
    if not type(error).__module__.startswith("polars"):
        return None
    from evergreen.tasks.core import unreadable_parquet

    return unreadable_parquet.find(place)


@contextmanager
def sharing(place: "Layout", step: str, problem: str | None, known: "Params") -> Iterator[None]:
    """Share arrays of tune, train and evaluate of a problem on disk; evaluate removes the files."""
    if problem is None or step not in SHARING:
        yield
        return
    from evergreen.tasks.core import step_cache

    folder = place.var / "cache" / problem
    with step_cache.using(folder, place.features(problem), known.section(problem).features.model_dump_json()):
        yield
    if step == SHARING[-1]:
        step_cache.clear(folder)


def usage() -> dict[str, float]:
    """CPU seconds (user and system) of this process and its children, peak memory in MB of the largest, and MB that
    this one read and wrote."""
    from evergreen.tasks.core import memory, transfers

    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "cpu_seconds": round(sum(each.ru_utime + each.ru_stime for each in (own, children)), 3),
        "peak_mb": round(max(memory.peak_mb(), children.ru_maxrss / memory.PER_MB), 1),
        **transfers.megabytes(),
    }


if __name__ == "__main__":
    sys.exit(main())
