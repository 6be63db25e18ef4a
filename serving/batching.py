"""Rows of requests at the same time go through a model together; a row alone does not wait.

Everything here runs in the thread of the event loop, but for the work of a model that is too slow for it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Answers = Callable[[Sequence[T]], Sequence[dict[str, Any]]]


class Batch(Generic[T]):
    """Collects rows for one model. `rows`: most at once; `wait_seconds`: longest that the first of them waits for others.

    A batch goes as soon as a turn of the loop brought no further row. Without `aside` the model answers in the loop; with it
    there, one batch after the other, and what arrives meanwhile is the next one.
    """

    def __init__(self, answers: Answers[T], rows: int, wait_seconds: float, aside: Executor | None = None) -> None:
        self._answers, self._rows, self._wait, self._aside = answers, rows, wait_seconds, aside
        self._waiting: list[tuple[T, asyncio.Future[dict[str, Any]]]] = []
        self._due = self._busy = False
        self._since, self._seen = 0.0, 0
        self.sizes: Counter[int] = Counter()
        """Rows of a batch -> how many there were."""

    def ask(self, row: T) -> "asyncio.Future[dict[str, Any]]":
        """The answer to `row`, when it is there."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._waiting.append((row, future))
        if len(self._waiting) >= self._rows:
            self._go(loop)
        elif not self._due:
            self._due, self._since, self._seen = True, loop.time(), 1
            loop.call_soon(self._turn, loop)
        return future

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once in each turn of the loop while rows wait."""
        count = len(self._waiting)
        if count > self._seen and loop.time() - self._since < self._wait:
            self._seen = count
            loop.call_soon(self._turn, loop)
            return
        self._due = False
        self._go(loop)

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting or self._busy:
            return
        part, self._waiting = self._waiting[: self._rows], self._waiting[self._rows :]
        self.sizes[len(part)] += 1
        if self._aside is None:
            _deliver(part, _all_or_each(self._answers, [row for row, _ in part]))
            return
        self._busy = True
        done = loop.run_in_executor(self._aside, _all_or_each, self._answers, [row for row, _ in part])
        done.add_done_callback(lambda found: self._back(loop, part, found))

    def _back(self, loop: asyncio.AbstractEventLoop, part: list[Any], done: "asyncio.Future[list[Any]]") -> None:
        self._busy = False
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        _deliver(part, [error] * len(part) if error else done.result())
        self._go(loop)


def _all_or_each(answers: Answers[Any], rows: Sequence[Any]) -> list[Any]:
    """An answer or an exception for each row: where they fail together, each is asked alone, so that one spoils no other."""
    try:
        found = list(answers(rows))
        if len(found) == len(rows):
            return found
        raise ValueError(f"{len(found)} answers to {len(rows)} rows")
    except Exception as error:  # noqa: BLE001 - it becomes the answer of the row that caused it
        if len(rows) == 1:
            return [error]
    return [each for row in rows for each in _all_or_each(answers, [row])]


def _deliver(part: list[tuple[Any, "asyncio.Future[dict[str, Any]]"]], found: Sequence[Any]) -> None:
    for (_, future), answer in zip(part, found, strict=True):
        if future.done():  # whoever asked is gone
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
