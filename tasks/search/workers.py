"""Who runs the trials of a batch: this process, others of this machine through joblib, or a Dask cluster."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import Any

from evergreen.tasks.core.errors import AwayError
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Judge, Outcome

log = logging.getLogger(__name__)

DASK = "EVERGREEN_DASK"
"""Environment: the address of a Dask scheduler. Its workers need the same code and see the project under the same path."""
WORKERS = "EVERGREEN_WORKERS"
"""Environment: how many processes may run trials, where tune.workers does not say; the flow sets it when problems share the
machine."""
WAIT = "10s"
"""How long a scheduler may take to answer."""
MOMENT = 0.3
WATCH = "ends with its master"
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
        self._starting: threading.Thread | None = None
        self._client: Any = None

    def start(self, judge: Judge) -> None:
        """Let the processes start, and read the data, while this one goes on; until they are there trials run here."""
        if self.address is None and self.workers > 1:
            self._starting = threading.Thread(target=self._load, args=(judge,), daemon=True)
            self._starting.start()

    def run(self, judge: Any, configs: Sequence[Any], bar: Sequence[float] | None) -> Iterator[Outcome]:
        """One outcome per configuration, in their order, as they come. When the time is over the rest fails.

        Raises AwayError where the cluster cannot be reached.
        """
        alone = self.workers == 1 or len(configs) == 1 or (self._starting and self._starting.is_alive())
        if self.address is None and alone:
            for config in configs:
                yield Outcome((), OUT_OF_TIME) if self.clock.left() <= 0 else judge(config, bar)
            return
        done, why = 0, OUT_OF_TIME
        try:
            for outcome in self._side_by_side(judge, configs, bar):
                done += 1
                yield outcome
        except (TimeoutError, multiprocessing.TimeoutError):
            log.info("the time is over; %d trials are left unfinished", len(configs) - done)
        except BrokenExecutor as error:
            why = f"a process that ran trials was killed, perhaps for lack of memory ({type(error).__name__})"
        for _ in configs[done:]:
            yield Outcome((), why)

    def close(self) -> None:
        """Leave the cluster."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _load(self, judge: Judge) -> None:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(**self._backend()), suppress(BrokenExecutor):
            Parallel()(delayed(read)(judge, self._master()) for _ in range(self.workers))

    def _side_by_side(self, judge: Any, configs: Sequence[Any], bar: Sequence[float] | None) -> Iterator[Outcome]:
        from joblib import Parallel, delayed, parallel_config

        left = self.clock.left()
        timeout = None if left == float("inf") else max(left, 0.1)
        with parallel_config(**self._backend()):
            work = Parallel(return_as="generator", timeout=timeout)
            found: Any = work(delayed(beside)(judge, config, bar, self._master()) for config in configs)
            yield from found

    def _master(self) -> int | None:
        """The process that the others of this machine end with; None on a cluster."""
        return os.getpid() if self.address is None else None

    def _backend(self) -> dict[str, Any]:
        if self.address is None:
            return {"backend": "loky", "n_jobs": self.workers, "inner_max_num_threads": 1}
        if self._client is None:
            from distributed import Client

            try:
                self._client = Client(self.address, timeout=WAIT, set_as_default=False)
            except (OSError, ValueError) as error:
                raise AwayError(
                    f"{DASK} = {self.address}: no scheduler answers ({error}). Start dask scheduler and dask worker there, or "
                    "unset it."
                ) from None
        return {"backend": "dask", "client": self._client, "n_jobs": -1}


def beside(judge: Any, config: Any, bar: Sequence[float] | None, master: int | None) -> Outcome:
    """Run a trial in a process beside `master`."""
    end_with(master)
    return judge(config, bar)


def end_with(master: int | None) -> None:
    """Let this process end when `master` was killed: joblib's would go on, and hold their memory for minutes."""

    def watch() -> None:
        while os.getppid() == master:
            time.sleep(1)
        os._exit(1)

    if master == os.getppid() and not any(each.name == WATCH for each in threading.enumerate()):
        threading.Thread(target=watch, name=WATCH, daemon=True).start()


def read(judge: Judge, master: int | None) -> None:
    """Read what `judge` needs into this process, and stay a moment, so that the next one is read by another process."""
    end_with(master)
    judge.folds()
    time.sleep(MOMENT)


def here(batch: int, workers: int | None, clock: Clock) -> Crew:
    """The crew that params and environment ask for."""
    return Crew(count(workers, batch), clock, os.environ.get(DASK) or None)
