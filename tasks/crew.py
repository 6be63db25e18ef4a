"""Who runs the trials of a batch: this process, others of this machine through joblib, or a Dask cluster."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.budget import Clock
from tasks.errors import AwayError
from tasks.trial import Outcome

log = logging.getLogger(__name__)

DASK = "EVERGREEN_DASK"
"""Environment: the address of a Dask scheduler. Its workers need the same code and see the project under the same path."""
WORKERS = "EVERGREEN_WORKERS"
"""Environment: how many processes may run trials, where tune.workers does not say; the flow sets it when problems share the
machine."""
OUT_OF_TIME = "the time was over before it ended"


def count(workers: int | None, batch: int) -> int:
    """How many processes: never more than a batch has trials."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers or int(os.environ.get(WORKERS) or cores), batch)


class Crew:
    """Runs trials. Processes are started with the first batch that needs them, and stay."""

    def __init__(self, workers: int, clock: Clock | None = None, address: str | None = None) -> None:
        self.workers = workers
        self.clock = clock or Clock(None)
        self.address = address

    def run(self, judge: Any, configs: Sequence[Any], bar: Sequence[float] | None) -> Iterator[Outcome]:
        """One outcome per configuration, in their order, as they come. When the time is over the rest fails.

        Raises AwayError where the cluster cannot be reached.
        """
        if self.address is None and (self.workers == 1 or len(configs) == 1):
            for config in configs:
                late = self.clock.left() <= 0
                yield Outcome((), OUT_OF_TIME) if late else judge(config, bar)
            return
        done = 0
        try:
            for outcome in self._side_by_side(judge, configs, bar):
                done += 1
                yield outcome
        except TimeoutError:
            log.info("the time is over; %d trials are left unfinished", len(configs) - done)
            for _ in configs[done:]:
                yield Outcome((), OUT_OF_TIME)

    def _side_by_side(self, judge: Any, configs: Sequence[Any], bar: Sequence[float] | None) -> Iterator[Outcome]:
        from joblib import Parallel, delayed, parallel_config

        left = self.clock.left()
        timeout = None if left == float("inf") else max(left, 0.1)
        try:
            with parallel_config(**self._backend()):
                work = Parallel(return_as="generator", timeout=timeout)
                found: Any = work(delayed(judge)(config, bar) for config in configs)
                yield from found
        except OSError as error:
            if self.address is None:
                raise
            raise AwayError(
                f"{DASK} = {self.address}: {' '.join(str(error).split())}. Start the cluster, or unset it."
            ) from error

    def _backend(self) -> dict[str, Any]:
        if self.address:
            return {"backend": "dask", "scheduler_host": self.address, "n_jobs": -1}
        return {"backend": "loky", "n_jobs": self.workers, "inner_max_num_threads": 1}


def here(batch: int, workers: int | None, clock: Clock) -> Crew:
    """The crew that params and environment ask for."""
    return Crew(count(workers, batch), clock, os.environ.get(DASK) or None)
