"""Turns: calls that wait for one thread are made one at a time, and callers take turns, however much each has waiting."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Who sent the request in progress: id of the key, or address of the client."""


class FairQueue:
    """For the event loop's thread. A call that is cancelled while it waits is never made."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._waiting: dict[str, deque[tuple[asyncio.Future[Any], Callable[[], Any]]]] = {}
        """Caller -> its calls; the caller whose turn is next comes first."""
        self._busy = False

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of a call in the thread, for the caller of this context."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CALLER.get(), deque()).append((future, lambda: work(*arguments)))
        self._start_next()
        return await future

    def _start_next(self) -> None:
        while self._waiting and not self._busy:
            caller = next(iter(self._waiting))
            calls = self._waiting.pop(caller)
            future, work = calls.popleft()
            if calls:
                self._waiting[caller] = calls  # behind the others
            if future.done():  # cancelled
                continue
            self._busy = True
            done = asyncio.get_running_loop().run_in_executor(self._pool, work)
            done.add_done_callback(lambda found, future=future: self._on_result(future, found))

    def _on_result(self, future: "asyncio.Future[Any]", done: "asyncio.Future[Any]") -> None:
        self._busy = False
        if done.cancelled():
            future.cancel()
        elif not future.done():
            error = done.exception()
            future.set_exception(error) if error else future.set_result(done.result())
        else:
            done.exception()  # seen, by nobody who waits
        self._start_next()
