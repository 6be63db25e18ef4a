"""Workers that run the trials of a batch: this process, other processes through joblib, or a Dask cluster."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

from evergreen.tasks.core import dask_cluster, library_warnings
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Evaluator, Outcome

log = logging.getLogger(__name__)

WORKERS = "EVERGREEN_WORKERS"
"""Environment: number of processes for trials where tune.workers is null; the flow sets it when problems share the machine."""
PRELOAD_SECONDS = 0.3
WATCHER = "exit with parent"
"""Name of the thread that ends a worker with its parent."""
OUT_OF_TIME = "the time was over before it ended"


def worker_count(workers: int | None, batch: int) -> int:
    """Number of processes: never more than the trials of a batch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers or int(os.environ.get(WORKERS) or cores), batch)


class Workers:
    """Run trials in `count` processes, which start with the first batch that needs them and are then reused.

    `clock`: when its time is over, no trial starts. `address`: of a Dask scheduler, used instead of local processes.
    """

    def __init__(self, count: int, clock: Clock | None = None, address: str | None = None) -> None:
        self.count = count
        self.clock = clock or Clock(None)
        self.address = address
        self._starting: threading.Thread | None = None
        self._client: Any = None

    def start(self, evaluator: Evaluator) -> None:
        """Start the processes and load the data in the background; until they are ready, trials run in this process."""
        if self.address is None and self.count > 1:
            self._starting = threading.Thread(target=self._preload, args=(evaluator,), daemon=True)
            self._starting.start()

    def run(self, evaluate: Any, configs: Sequence[Any], best_scores: Sequence[float] | None) -> Iterator[Outcome]:
        """One outcome per configuration, in their order, as they finish. When the time is over, the remaining ones fail.

        Raises UnavailableError where the cluster cannot be reached, or is lost.
        """
        in_process = self.count == 1 or len(configs) == 1 or (self._starting and self._starting.is_alive())
        if self.address is None and in_process:
            for config in configs:
                yield Outcome((), OUT_OF_TIME) if self.clock.left() <= 0 else evaluate(config, best_scores)
            return
        done, why = 0, OUT_OF_TIME
        try:
            for outcome in self._in_parallel(evaluate, configs, best_scores):
                done += 1
                yield outcome
        except (TimeoutError, multiprocessing.TimeoutError):
            log.info("the time is over: %d trials are unfinished", len(configs) - done)
        except BrokenExecutor as error:
            why = f"a worker process was killed, perhaps for lack of memory ({type(error).__name__})"
        for _ in configs[done:]:
            yield Outcome((), why)

    def close(self) -> None:
        """Disconnect from the cluster."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _preload(self, evaluator: Evaluator) -> None:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(**self._backend()), suppress(BrokenExecutor):
            Parallel()(delayed(preload)(evaluator, self._parent()) for _ in range(self.count))

    def _in_parallel(self, evaluate: Any, configs: Sequence[Any], best_scores: Sequence[float] | None) -> Iterator[Outcome]:
        from joblib import Parallel, delayed, parallel_config

        left = self.clock.left()
        timeout = None if left == float("inf") else max(left, 0.1)
        losses = dask_cluster.telling_losses(self.address) if self.address else nullcontext()
        with losses, parallel_config(**self._backend()):
            work = Parallel(return_as="generator", timeout=timeout)
            found: Any = work(delayed(run_in_worker)(evaluate, config, best_scores, self._parent()) for config in configs)
            for outcome in found:
                library_warnings.add(outcome.warnings)
                yield outcome

    def _parent(self) -> int | None:
        """The process that local workers exit with; None on a cluster."""
        return os.getpid() if self.address is None else None

    def _backend(self) -> dict[str, Any]:
        if self.address is None:
            return {"backend": "loky", "n_jobs": self.count, "inner_max_num_threads": 1}
        if self._client is None:
            self._client = dask_cluster.connect(self.address)
        return {"backend": "dask", "client": self._client, "n_jobs": -1}


def run_in_worker(evaluate: Any, config: Any, best_scores: Sequence[float] | None, parent: int | None) -> Outcome:
    """Run a trial in a worker process of `parent`; its outcome holds the warnings of libraries."""
    exit_with_parent(parent)
    with library_warnings.counting() as counts:
        outcome = evaluate(config, best_scores)
    return replace(outcome, warnings=counts)


def exit_with_parent(parent: int | None) -> None:
    """Let this process exit when `parent` was killed: joblib would keep it, and its memory, for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if parent == os.getppid() and not any(each.name == WATCHER for each in threading.enumerate()):
        threading.Thread(target=watch, name=WATCHER, daemon=True).start()


def preload(evaluator: Evaluator, parent: int | None) -> None:
    """Load the data of `evaluator` into this process, and wait, so that the next preload goes to another process."""
    exit_with_parent(parent)
    evaluator.folds()
    time.sleep(PRELOAD_SECONDS)


def available_workers(batch: int, workers: int | None, clock: Clock) -> Workers:
    """The workers that params.yaml and the environment ask for."""
    return Workers(worker_count(workers, batch), clock, dask_cluster.address())
