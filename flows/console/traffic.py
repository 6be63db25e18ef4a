"""Requests and latency of the servers of this machine, from the counts that their workers save."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import Any

import orjson

from evergreen.flows.operations import http_server
from evergreen.serving.metrics import SECONDS
from evergreen.tasks.core.paths import Layout

ANSWERS = ("predict", "invocations", "infer", "recommend")
"""Routes that count: those that answer with a prediction or a list."""
SPAN_SECONDS = 60.0
"""Rates are those of the last minute, or of the time since the first look."""
SHORTEST_SECONDS = 2.0
FAILED = 500


@dataclass(frozen=True)
class Totals:
    """Since the servers began."""

    requests: int = 0
    failures: int = 0
    buckets: tuple[float, ...] = (0.0,) * (len(SECONDS) + 1)
    """Requests by latency; see serving.metrics.SECONDS."""

    def __add__(self, other: "Totals") -> "Totals":
        buckets = tuple(map(sum, zip(self.buckets, other.buckets, strict=True)))
        return Totals(self.requests + other.requests, self.failures + other.failures, buckets)

    def percentile(self, share: float) -> float | None:
        """Upper bound, in seconds, of the latency of that share of requests; None without any or beyond the last bound."""
        total = sum(self.buckets)
        place = bisect_left(list(accumulate(self.buckets)), share * total) if total else len(SECONDS)
        return SECONDS[place] if place < len(SECONDS) else None


@dataclass(frozen=True)
class Traffic:
    total: Totals
    per_second: float | None
    """None: not measured yet."""


@dataclass
class TrafficMeter:
    """Remembers earlier counts, so that it can say how fast they grow."""

    _seen: deque[tuple[float, Mapping[str, Totals]]] = field(default_factory=deque[tuple[float, Mapping[str, Totals]]])
    _lock: Lock = field(default_factory=Lock)

    def read(self, layout: Layout) -> dict[str, Traffic]:
        """Problem -> its traffic now; problems that no server of this machine answered are absent."""
        now, totals = time.monotonic(), _read(layout)
        with self._lock:
            while self._seen and now - self._seen[0][0] > SPAN_SECONDS:
                self._seen.popleft()
            then, before = self._seen[0] if self._seen else (now, dict[str, Totals]())
            self._seen.append((now, totals))
        return {name: Traffic(total, _rate(total, before.get(name), now - then)) for name, total in totals.items()}


def _rate(total: Totals, before: Totals | None, seconds: float) -> float | None:
    if before is None or seconds < SHORTEST_SECONDS or total.requests < before.requests:
        return None
    return (total.requests - before.requests) / seconds


def _read(layout: Layout) -> dict[str, Totals]:
    found: dict[str, Totals] = {}
    for counts in _workers(layout):
        for route, problem, status, number in counts.get("requests", ()):
            if route in ANSWERS:
                found[problem] = found.get(problem, Totals()) + Totals(number, number if status >= FAILED else 0)
        for route, problem, numbers in counts.get("seconds", ()):
            if route in ANSWERS:
                found[problem] = found.get(problem, Totals()) + Totals(buckets=tuple(numbers[:-1]))
    return found


def _workers(layout: Layout) -> Iterator[Mapping[str, Any]]:
    for folder in http_server.status_folders(layout):
        for path in sorted(folder.glob("*.json")):
            with suppress(OSError, orjson.JSONDecodeError):
                yield orjson.loads(path.read_bytes())
