"""Turns among callers that wait for one thread."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evergreen.serving.fair_queue import CALLER, FairQueue


async def as_caller(queue: FairQueue, caller: str, pieces: list[str], made: list[str]) -> None:
    CALLER.set(caller)
    await asyncio.gather(*(queue.run(made.append, piece) for piece in pieces))


def test_a_caller_with_one_call_waits_for_one_call_of_each_other():
    async def run() -> list[str]:
        made, gate = list[str](), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            queue = FairQueue(pool)
            first = asyncio.create_task(queue.run(gate.wait, 10))
            many = [
                asyncio.create_task(as_caller(queue, name, [f"{name}{number}" for number in range(50)], made)) for name in "ab"
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            one = asyncio.create_task(as_caller(queue, "c", ["c"], made))
            await asyncio.sleep(0.01)
            gate.set()
            await asyncio.gather(first, one, *many)
        return made

    made = asyncio.run(run())
    assert made[:5] == ["a0", "b0", "c", "a1", "b1"]
    assert len(made) == 101


def test_a_call_that_is_cancelled_while_it_waits_is_never_made_and_errors_reach_their_caller():
    async def run() -> list[str]:
        made, gate = list[str](), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            queue = FairQueue(pool)
            first = asyncio.create_task(queue.run(gate.wait, 10))
            left = asyncio.create_task(as_caller(queue, "a", ["a"], made))
            wrong = asyncio.create_task(queue.run(int, "x"))
            last = asyncio.create_task(as_caller(queue, "b", ["b"], made))
            await asyncio.sleep(0.01)
            left.cancel()
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(first, last)
            with pytest.raises(ValueError, match="invalid literal"):
                await wrong
        return made

    assert asyncio.run(run()) == ["b"]
