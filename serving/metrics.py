"""Metrics in Prometheus text format. Counting is a few additions on the hot path; the text is made on request.

Every worker saves its counts once a second in a file beside those of the other workers, so that each can report all of them.
docs/decisions/prometheus-metrics.md compares this with prometheus_client's multiprocess mode.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency buckets."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Upper bounds of the batch size buckets."""


@dataclass(frozen=True)
class _Family:
    name: str
    about: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    """Of a histogram; a counter has none."""


FAMILIES = {
    "requests": _Family("evergreen_requests", "Requests by route, problem and status.", ("route", "problem", "status")),
    "rows": _Family("evergreen_predictions", "Rows predicted, by version and variant.", ("problem", "version", "variant")),
    "failures": _Family(
        "evergreen_prediction_failures", "Valid rows that a version failed to predict.", ("problem", "version", "variant")
    ),
    "unseen": _Family("evergreen_unseen_categories", "Rows with a category that training never saw.", ("problem", "column")),
    "parity_checks": _Family("evergreen_parity_checks", "Predictions compared with the pipeline's.", ("problem",)),
    "parity_mismatches": _Family("evergreen_parity_mismatches", "Compared predictions beyond the tolerance.", ("problem",)),
    "seconds": _Family("evergreen_request_duration_seconds", "Latency of requests.", ("route", "problem"), SECONDS),
    "batches": _Family("evergreen_batch_rows", "Rows that went through a model together.", ("problem",), ROWS),
}
"""Attribute of Metrics -> how Prometheus reads it."""


class Metrics:
    """The counts of one worker; only the event loop's thread changes them. Keys are the label values of FAMILIES."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: shared with the other workers of the server; None: there are none."""
        self._file = folder / f"{os.getpid()}.json" if folder else None
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.rows: Counter[tuple[str, int, str]] = Counter()
        self.failures: Counter[tuple[str, int, str]] = Counter()
        self.unseen: Counter[tuple[str, str]] = Counter()
        self.parity_checks: Counter[tuple[str]] = Counter()
        self.parity_mismatches: Counter[tuple[str]] = Counter()
        self.seconds: dict[tuple[str, str], list[float]] = {}
        """Requests per bucket, then the sum of their seconds."""
        self.batches: dict[tuple[str], list[float]] = {}
        """Batches per bucket, then the sum of their rows."""

    def count_request(self, route: str, problem: str, status: int, seconds: float) -> None:
        self.requests[route, problem, status] += 1
        found = self.seconds.get((route, problem))
        if found is None:
            found = self.seconds[route, problem] = [0.0] * (len(SECONDS) + 2)
        found[bisect_left(SECONDS, seconds)] += 1
        found[-1] += seconds

    def count_batch(self, problem: str, rows: int, times: int = 1) -> None:
        found = self.batches.setdefault((problem,), [0.0] * (len(ROWS) + 2))
        found[bisect_left(ROWS, rows)] += times
        found[-1] += rows * times

    def count_unseen(self, problem: str, columns: Iterable[str]) -> None:
        for column in columns:
            self.unseen[problem, column] += 1

    def count_parity(self, problem: str, mismatch: bool) -> None:
        self.parity_checks[problem,] += 1
        self.parity_mismatches[problem,] += mismatch

    def save(self) -> None:
        """Atomically write the counts for the other workers. On a full disk the file of before stays."""
        self.saving()()

    def saving(self) -> Callable[[], None]:
        """What `save` does with the present counts, for another thread: a disk may be slow."""
        file, counts = self._file, orjson.dumps(self._as_json()) if self._file else b""

        def save() -> None:
            if file:
                scratch = file.with_suffix(".new")
                with suppress(OSError):
                    scratch.write_bytes(counts)
                    scratch.replace(file)

        return save

    def text(self, gauges: Iterable[Metric] = ()) -> bytes:
        """The counts of all workers, dead ones included, and `gauges`, in Prometheus text format."""
        return text([*_families(list(self._all_workers())), *gauges])

    def _as_json(self) -> dict[str, list[list[Any]]]:
        """Attribute -> [*key, number or numbers] for each key."""
        return {name: [[*key, value] for key, value in getattr(self, name).items()] for name in FAMILIES}

    def _all_workers(self) -> Iterator[Mapping[str, Any]]:
        yield self._as_json()
        for path in sorted(self._file.parent.glob("*.json")) if self._file else ():
            if path != self._file:
                with suppress(OSError, orjson.JSONDecodeError):
                    yield orjson.loads(path.read_bytes())


class _Collector:
    """Families as prometheus_client collects them."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def text(families: Iterable[Metric]) -> bytes:
    """`families` in Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(list(families)))  # pyright: ignore[reportArgumentType]
    return generate_latest(registry)


def counter(name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """`values`: label values and number of each series. `name` ends in _total."""
    found = CounterMetricFamily(name, about, labels=labels)
    for key, value in values:
        found.add_metric(key, value)
    return found


def gauge(name: str, about: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """`values`: label values and number of each series."""
    found = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values:
        found.add_metric(key, value)
    return found


def _families(workers: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for attribute, family in FAMILIES.items():
        totals: dict[tuple[str, ...], list[float]] = {}
        for worker in workers:
            for *key, value in worker.get(attribute, ()):
                numbers = value if isinstance(value, list) else [value]
                labels = tuple(map(str, key))
                known = totals.get(labels, [0.0] * len(numbers))
                totals[labels] = [one + other for one, other in zip(known, numbers, strict=True)]
        if family.bounds:
            histogram = HistogramMetricFamily(family.name, family.about, labels=family.labels)
            for labels, numbers in totals.items():
                histogram.add_metric(labels, _cumulative(family.bounds, numbers), numbers[-1])
            yield histogram
        else:
            counter = CounterMetricFamily(family.name, family.about, labels=family.labels)
            for labels, numbers in totals.items():
                counter.add_metric(labels, numbers[0])
            yield counter


def _cumulative(bounds: Sequence[float], numbers: Sequence[float]) -> list[tuple[str, float]]:
    """Upper bound -> count up to it."""
    found, total = [], 0.0
    for bound, count in zip([*map(str, bounds), "+Inf"], numbers, strict=False):
        total += count
        found.append((bound, total))
    return found
