"""What a server counts, and how Prometheus reads it. Counting is a few additions; the text is made when it is asked for.

Each worker writes what it counted beside the others', so that any of them tells of all.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper ends of the buckets of latency, in seconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Upper ends of the buckets of rows in a batch."""
CONTENT_TYPE = CONTENT_TYPE_LATEST
REQUESTS = ("route", "problem", "status")
ROWS = ("problem", "version", "variant")
FAILURES = ("problem", "version", "variant")


class Metrics:
    """The counts of one worker. All are made in the thread of the event loop."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where workers of this server leave their counts for each other; None: it has no other workers."""
        self._file = folder / f"{os.getpid()}.json" if folder else None
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """(route, problem, status) -> requests."""
        self.rows: Counter[tuple[str, int, str]] = Counter()
        """(problem, version, variant) -> rows answered."""
        self.failures: Counter[tuple[str, int, str]] = Counter()
        """(problem, version, variant) -> rows that were in order and got no answer."""
        self.seconds: dict[tuple[str, str], list[float]] = {}
        """(route, problem) -> requests by bucket, and the sum of their seconds behind them."""
        self.batches: dict[str, list[float]] = {}
        """problem -> batches by bucket, and the sum of their rows behind them."""
        self.parity: dict[str, list[float]] = {}
        """problem -> rows that compiled model and pipeline both predicted, and mismatches among them."""

    def count_request(self, route: str, problem: str, status: int, seconds: float) -> None:
        self.requests[route, problem, status] += 1
        found = self.seconds.get((route, problem))
        if found is None:
            found = self.seconds[route, problem] = [0.0] * (len(EDGES) + 2)
        found[bisect_left(EDGES, seconds)] += 1
        found[-1] += seconds

    def count_batch(self, problem: str, rows: int, times: int = 1) -> None:
        found = self.batches.setdefault(problem, [0.0] * (len(SIZES) + 2))
        found[bisect_left(SIZES, rows)] += times
        found[-1] += rows * times

    def count_parity(self, problem: str, mismatch: bool) -> None:
        found = self.parity.setdefault(problem, [0.0, 0.0])
        found[0] += 1
        found[1] += mismatch

    def save(self) -> None:
        """For the other workers; whole or not at all."""
        if self._file:
            scratch = self._file.with_suffix(".new")
            scratch.write_bytes(orjson.dumps(self._plain()))
            scratch.replace(self._file)

    def text(self, gauges: Iterable[Metric] = ()) -> bytes:
        """All that this server counted, as Prometheus reads it; and `gauges`, which say how things are now."""
        registry = CollectorRegistry()
        registry.register(_Found([*self._families(), *gauges]))  # pyright: ignore[reportArgumentType]
        return generate_latest(registry)

    def _plain(self) -> dict[str, Any]:
        """As JSON has it: lists of a key's parts and the number or numbers."""
        return {
            "requests": [[*key, count] for key, count in self.requests.items()],
            "rows": [[*key, count] for key, count in self.rows.items()],
            "failures": [[*key, count] for key, count in self.failures.items()],
            "seconds": [[*key, each] for key, each in self.seconds.items()],
            "batches": [[key, each] for key, each in self.batches.items()],
            "parity": [[key, each] for key, each in self.parity.items()],
        }

    def _all(self) -> Iterator[Mapping[str, Any]]:
        """Of this worker as it is, of the others as they left it; those that are gone count too."""
        yield self._plain()
        for path in sorted(self._file.parent.glob("*.json")) if self._file else ():
            if path != self._file:
                with suppress(OSError, orjson.JSONDecodeError):
                    yield orjson.loads(path.read_bytes())

    def _families(self) -> Iterator[Metric]:
        everywhere = list(self._all())
        requests = CounterMetricFamily("evergreen_requests", "Requests by route, problem and status.", labels=REQUESTS)
        for key, count in _summed(everywhere, "requests").items():
            requests.add_metric([str(each) for each in key], count)
        rows = CounterMetricFamily("evergreen_predictions", "Rows answered, by version and variant.", labels=ROWS)
        for key, count in _summed(everywhere, "rows").items():
            rows.add_metric([str(each) for each in key], count)
        failures = CounterMetricFamily("evergreen_failures", "Rows in order that a version did not answer.", labels=FAILURES)
        for key, count in _summed(everywhere, "failures").items():
            failures.add_metric([str(each) for each in key], count)
        yield from (requests, rows, failures)
        seconds = HistogramMetricFamily("evergreen_request_seconds", "Time to answer.", labels=REQUESTS[:2])
        for key, each in _added(everywhere, "seconds").items():
            seconds.add_metric(list(key), _buckets(EDGES, each), each[-1])
        batches = HistogramMetricFamily("evergreen_batch_rows", "Rows that went through a model together.", labels=["problem"])
        for key, each in _added(everywhere, "batches").items():
            batches.add_metric(list(key), _buckets(SIZES, each), each[-1])
        yield from (seconds, batches)
        yield from _parity(everywhere)


class _Found:
    """What prometheus_client asks for families."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def gauge(name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """How things are now: `values` are the labels of each and its number."""
    found = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values:
        found.add_metric(key, value)
    return found


def _parity(everywhere: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    checked = CounterMetricFamily("evergreen_parity_checks", "Rows that the pipeline answered again.", labels=["problem"])
    beyond = CounterMetricFamily("evergreen_parity_mismatches", "Of these, beyond the tolerance.", labels=["problem"])
    for key, each in _added(everywhere, "parity").items():
        checked.add_metric(list(key), each[0])
        beyond.add_metric(list(key), each[1])
    yield from (checked, beyond)


def _summed(everywhere: Sequence[Mapping[str, Any]], what: str) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for each in everywhere:
        for *key, count in each.get(what, ()):
            found[tuple(key)] += count
    return found


def _added(everywhere: Sequence[Mapping[str, Any]], what: str) -> dict[tuple[str, ...], list[float]]:
    found: dict[tuple[str, ...], list[float]] = {}
    for each in everywhere:
        for *key, numbers in each.get(what, ()):
            known = found.setdefault(tuple(key), [0.0] * len(numbers))
            found[tuple(key)] = [one + two for one, two in zip(known, numbers, strict=True)]
    return found


def _buckets(edges: Sequence[float], numbers: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus has them."""
    found, total = [], 0.0
    for edge, count in zip([*map(str, edges), "+Inf"], numbers, strict=False):
        total += count
        found.append((edge, total))
    return found
