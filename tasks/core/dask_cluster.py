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

T = TypeVar("T")


def address() -> str | None:
    """The scheduler that the environment names; None without one."""
    return os.environ.get(ADDRESS) or None


def connect(scheduler: str) -> Any:
    """A client of `scheduler`, to be closed. Raises UnavailableError where none answers within WAIT."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a lost scheduler is told once, without tracebacks
    try:
        return Client(scheduler, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: no scheduler answers ({error}). Start dask scheduler and dask worker there, or unset it."
        ) from None


def each(scheduler: str, function: Callable[..., T], shared: Any, parts: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """function(shared, *part) of each part, in order: each goes to one worker, and `shared` to each worker once.

    A part whose worker dies is computed again. Raises UnavailableError where the scheduler is lost, or where a
    part ends several workers, as for lack of memory; and what the function raises.
    """
    with connect(scheduler) as client, telling_losses(scheduler):
        everywhere = _keep(client, shared)
        futures = [client.submit(function, everywhere, *part, pure=False) for part in parts]
        while futures:
            yield futures.pop(0).result()


@contextmanager
def telling_losses(scheduler: str) -> Generator[None]:
    """Raise UnavailableError, one line, where the block loses `scheduler` or a task of it ends several workers."""
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise UnavailableError(
            f"{ADDRESS} = {scheduler}: a part ended {error.allowed_failures + 1} workers, perhaps for lack of memory. Give "
            "workers more memory, or make parts smaller (EVERGREEN_MEMORY_MB)."
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
