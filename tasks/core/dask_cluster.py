"""A Dask cluster, by one setting in the environment: the address of its scheduler.

Its workers need the same code and libraries, and see the files of the project under the same paths where tasks read them.
"""

import logging
import os
import warnings
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import contextmanager
from typing import Any, TypeVar

from evergreen.tasks.core.errors import UnavailableError

ADDRESS = "EVERGREEN_DASK"
"""Environment: address of a scheduler, such as tcp://10.0.0.5:8786."""
WAIT = "10s"
"""How long a scheduler may take to answer."""
WORKER_SECONDS = 60.0
"""How long a cluster may be without any worker."""
log = logging.getLogger(__name__)

T = TypeVar("T")


def address() -> str | None:
    """The scheduler that the environment names; None without one."""
    return os.environ.get(ADDRESS) or None


def connect(scheduler: str) -> Any:
    """A client of `scheduler`, to be closed.

    Raises UnavailableError where none answers within WAIT, or it has no worker within WORKER_SECONDS.
    """
    from distributed import Client

    for name in ("distributed", "distributed.client"):  # a lost scheduler is told once, without tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client: Any = Client(scheduler, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: no scheduler answers ({error}). Start dask scheduler and dask worker there, or unset it."
        ) from None
    try:
        with telling_losses(scheduler):
            _await_worker(client, scheduler)
    except BaseException:
        client.close()
        raise
    return client


def _await_worker(client: Any, scheduler: str) -> None:
    if client.nthreads():
        return
    log.warning("%s = %s: has no worker; waits for one for %.0f s", ADDRESS, scheduler, WORKER_SECONDS)
    try:
        client.wait_for_workers(1, WORKER_SECONDS)
    except TimeoutError:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: has had no worker for {WORKER_SECONDS:.0f} s. "
            f"Start dask worker {scheduler}, or unset it."
        ) from None


def each(scheduler: str, function: Callable[..., T], shared: Any, parts: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """function(shared, *part) of each part, in order: each goes to one worker, and `shared` to each worker once.

    A part whose worker dies is computed again. Raises UnavailableError where the scheduler is lost, or all workers are, or
    where a part ends several workers, as for lack of memory; and what the function raises.
    """
    with connect(scheduler) as client:
        with telling_losses(scheduler):
            everywhere = _keep(client, shared)
            futures = [client.submit(function, everywhere, *part, pure=False) for part in parts]
        for place in range(len(parts)):
            with telling_losses(scheduler, f"part {place + 1} of {len(parts)}"):
                found = _result(client, scheduler, futures.pop(0))
            yield found


def _result(client: Any, scheduler: str, future: Any) -> Any:
    while True:
        try:
            return future.result(timeout=WORKER_SECONDS)
        except TimeoutError:
            if future.done():  # it is the error of the task
                raise
            _await_worker(client, scheduler)


@contextmanager
def telling_losses(scheduler: str, task: str = "a task") -> Generator[None]:
    """Raise UnavailableError, one line, where the block loses `scheduler`, or `task` ends several workers."""
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: {task} ended {error.allowed_failures + 1} workers, perhaps for lack of memory. Give "
            "workers more memory, or make parts smaller (EVERGREEN_MEMORY_MB; an entity stays in one part)."
        ) from None
    except (CommClosedError, CancelledError, FutureCancelledError) as error:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: the scheduler was lost ({type(error).__name__}). Start it, and run the same command "
            "again: finished steps stay."
        ) from None


def _keep(client: Any, shared: Any) -> Any:
    """`shared` as a task that gives it: data that is only laid on workers would be lost with them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return client.submit(_same, shared, pure=False)


def _same(shared: Any) -> Any:
    return shared
