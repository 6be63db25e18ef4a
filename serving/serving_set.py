"""The versions that serve one problem: the champion and, during a rollout, its candidate with a share of the traffic."""

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from evergreen.tasks.release.server_reports import EDGES, RequestCounts

Variant = Literal["champion", "candidate", "shadow"]


class Loaded(Protocol):
    """A version in memory, such as a LoadedModel."""

    @property
    def problem(self) -> str: ...

    @property
    def version(self) -> int: ...

    def self_check(self) -> Sequence[Mapping[str, Any]] | None:
        """Predict its own example, which also warms it up, and return the outputs. Raises ModelError if it fails."""
        ...


M = TypeVar("M", bound=Loaded)


PROBED_FIRST = 300
"""So many requests of a step are probed, each one."""
PROBED_LATER = 20
"""After those, one of so many: probes then cost at most a tenth of the predictions."""


class RequestCounter:
    """Requests and errors of one version. Lock-free on the hot path: concurrent threads may lose a count."""

    __slots__ = ("errors", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = 0

    def add(self, failed: bool) -> None:
        self.requests += 1
        if failed:
            self.errors += 1


class LatencyProbes:
    """Latencies of both versions on the same rows, one right after the other: at the same time and load, in batches of one.

    `max_ratio`: above it the candidate was slower than allowed.
    """

    def __init__(self, max_ratio: float = 1.0) -> None:
        self.pairs = self.slower = 0
        self._max_ratio, self._asked = max_ratio, 0
        self._champion, self._candidate = ([0] * (len(EDGES) + 1) for _ in range(2))

    def due(self) -> bool:
        """Whether this request is to be probed."""
        self._asked += 1
        return self._asked <= PROBED_FIRST or self._asked % PROBED_LATER == 0

    def measure(self, champion: Callable[[], Any], candidate: Callable[[], Any]) -> None:
        """Time both calls, in alternating order. A pair with an exception does not count."""
        first, second = (champion, candidate) if self.pairs % 2 else (candidate, champion)
        began = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        seconds = (between - began, time.perf_counter() - between)
        self.add(*(seconds if self.pairs % 2 else reversed(seconds)))

    def add(self, champion: float, candidate: float) -> None:
        """Count one pair, in seconds."""
        self.pairs += 1
        self.slower += candidate > champion * self._max_ratio
        self._champion[bisect_left(EDGES, champion)] += 1
        self._candidate[bisect_left(EDGES, candidate)] += 1

    def latency(self) -> tuple[dict[int, int], dict[int, int]]:
        """Bucket -> probes, of the champion and of the candidate."""
        sides = (self._champion, self._candidate)
        champion, candidate = ({bucket: number for bucket, number in enumerate(side) if number} for side in sides)
        return champion, candidate


class StepCounts:
    """All that a rollout's step is judged by, as one server counts it."""

    def __init__(self, max_ratio: float = 1.0) -> None:
        self.champion, self.candidate = RequestCounter(), RequestCounter()
        self.probes = LatencyProbes(max_ratio)

    def read(self) -> tuple[RequestCounts, RequestCounts]:
        """Of the champion and of the candidate."""
        sides = zip((self.champion, self.candidate), self.probes.latency(), strict=True)
        champion, candidate = (RequestCounts(side.requests, side.errors, latency) for side, latency in sides)
        return champion, candidate


@dataclass(frozen=True, slots=True, eq=False)
class ServingSet(Generic[M]):
    """Immutable: a change of the deployment replaces the whole set, and requests finish on the set that they began with."""

    champion: M
    candidate: M | None = None
    share: float = 0.0
    """Share of the entities that the candidate serves."""
    shadow: bool = False
    """The candidate predicts for every request too; these predictions go only to the ledger, as variant `shadow` and with
    tasks.release.rollout_state.SHADOW_SUFFIX appended to the champion's id."""
    rollout: int = 0
    """Number of the rollout: seeds the assignment of entities."""
    counts: StepCounts = field(default_factory=StepCounts)

    def choose(self, entity: str | None, request_id: str) -> tuple[M, Variant]:
        """The version for a request. An `entity` keeps its version during a rollout, unless a growing share reaches it.

        Without an entity the request's id decides. If the candidate fails: `record` it, and let the champion predict.
        """
        if (
            self.candidate is None
            or self.shadow
            or (self.share < 1 and _position(self.rollout, entity or request_id) >= self.share)
        ):
            return self.champion, "champion"
        return self.candidate, "candidate"

    def record(self, variant: Variant, failed: bool = False) -> None:
        """Count a request, for the rollout's tests.

        `failed`: a valid request got no valid prediction (exception, timeout, not a finite number). Invalid requests do not
        count.
        """
        (self.counts.champion if variant == "champion" else self.counts.candidate).add(failed)


def _position(rollout: int, key: str) -> float:
    """A fixed pseudo-random position in [0, 1): the candidate serves the keys below its share."""
    digest = hashlib.blake2b(f"{rollout} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
