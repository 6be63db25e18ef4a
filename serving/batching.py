"""Micro-batching: rows of concurrent requests go through a model together; a single row does not wait.

Everything runs in the event loop's thread, except models that are too slow for it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Predict = Callable[[Sequence[T]], Sequence[dict[str, Any]]]


class MicroBatcher(Generic[T]):
    """Collects rows for one model. `max_rows` per batch; `max_wait_seconds`: longest wait of a batch's first row.

    A batch leaves as soon as one iteration of the event loop added no row. Without `executor` the model runs in the loop. With
    it, the model runs there, one batch at a time, and rows that arrive meanwhile form the next batch.
    """

    def __init__(self, predict: Predict[T], max_rows: int, max_wait_seconds: float, executor: Executor | None = None) -> None:
        self._predict, self._max_rows, self._max_wait, self._executor = predict, max_rows, max_wait_seconds, executor
        self._waiting: list[tuple[T, asyncio.Future[dict[str, Any]]]] = []
        self._scheduled = self._busy = False
        self._since, self._count = 0.0, 0
        self.sizes: Counter[int] = Counter()
        """Rows of a batch -> number of such batches."""

    def add(self, row: T) -> "asyncio.Future[dict[str, Any]]":
        """The future prediction of `row`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._waiting.append((row, future))
        if len(self._waiting) >= self._max_rows:
            self._run_batch(loop)
        elif not self._scheduled:
            self._scheduled, self._since, self._count = True, loop.time(), 1
            loop.call_soon(self._on_iteration, loop)
        return future

    def _on_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called once per iteration of the loop while rows wait."""
        count = len(self._waiting)
        if count > self._count and loop.time() - self._since < self._max_wait:
            self._count = count
            loop.call_soon(self._on_iteration, loop)
            return
        self._scheduled = False
        self._run_batch(loop)

    def _run_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting or self._busy:
            return
        part, self._waiting = self._waiting[: self._max_rows], self._waiting[self._max_rows :]
        self.sizes[len(part)] += 1
        if self._executor is None:
            _resolve(part, _predict_all_or_each(self._predict, [row for row, _ in part]))
            return
        self._busy = True
        done = loop.run_in_executor(self._executor, _predict_all_or_each, self._predict, [row for row, _ in part])
        done.add_done_callback(lambda found: self._on_result(loop, part, found))

    def _on_result(self, loop: asyncio.AbstractEventLoop, part: list[Any], done: "asyncio.Future[list[Any]]") -> None:
        self._busy = False
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        _resolve(part, [error] * len(part) if error else done.result())
        self._run_batch(loop)


def _predict_all_or_each(predict: Predict[Any], rows: Sequence[Any]) -> list[Any]:
    """A prediction or an exception per row. If the batch fails, each row runs alone, so that one cannot spoil the others."""
    try:
        found = list(predict(rows))
        if len(found) == len(rows):
            return found
        raise ValueError(f"{len(found)} predictions for {len(rows)} rows")
    except Exception as error:  # noqa: BLE001 - becomes the result of the row that caused it
        if len(rows) == 1:
            return [error]
    return [each for row in rows for each in _predict_all_or_each(predict, [row])]


def _resolve(part: list[tuple[Any, "asyncio.Future[dict[str, Any]]"]], found: Sequence[Any]) -> None:
    for (_, future), prediction in zip(part, found, strict=True):
        if future.done():  # the client disconnected
            continue
        if isinstance(prediction, BaseException):
            future.set_exception(prediction)
        else:
            future.set_result(prediction)
