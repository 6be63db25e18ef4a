"""Thread pools for slow calls, and background tasks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from evergreen.serving.fair_queue import FairQueue
from evergreen.tasks.core.errors import EvergreenError

log = logging.getLogger(__name__)
T = TypeVar("T")


class BackgroundWork:
    """A pool per kind of work, so that one kind never delays another."""

    def __init__(self) -> None:
        self.models = ThreadPoolExecutor(1, "model")
        """Pipelines: one batch at a time."""
        self._lists = ThreadPoolExecutor(1, "lists")
        self.lists = FairQueue(self._lists)
        self.other = ThreadPoolExecutor(2, "other")
        """Large requests, explanations, comparisons."""
        self.database = ThreadPoolExecutor(4, "database")
        self.disk = ThreadPoolExecutor(1, "spool")
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, pool: Executor, work: Callable[..., T], *arguments: Any) -> T:
        """The result of a call in a thread of `pool`."""
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside the requests, until it ends or `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Call `work` at this interval until `stop`; logs its errors."""
        self.start(_repeat(seconds, work))

    async def stop(self) -> None:
        """Cancel the tasks. The pools still work."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        for pool in (self.models, self._lists, self.other, self.database, self.disk):
            pool.shutdown(wait=False, cancel_futures=True)


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except EvergreenError as error:
            log.error("%s", error)
        except Exception:
            log.exception("%s failed", getattr(work, "__name__", work))
