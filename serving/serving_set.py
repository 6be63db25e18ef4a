"""The versions that serve one problem: the champion and, during a rollout, its candidate with a share of the traffic."""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
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


class LatencyHistogram:
    """Requests, errors and latencies of one version. Lock-free on the hot path: concurrent threads may lose a count."""

    __slots__ = ("_buckets", "errors", "requests")

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self._buckets = [0] * (len(EDGES) + 1)

    def add(self, seconds: float, failed: bool) -> None:
        self.requests += 1
        if failed:
            self.errors += 1
        else:
            self._buckets[bisect_left(EDGES, seconds)] += 1

    def read(self) -> RequestCounts:
        latency = {bucket: number for bucket, number in enumerate(self._buckets) if number}
        return RequestCounts(self.requests, self.errors, latency)


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
    champion_latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    candidate_latency: LatencyHistogram = field(default_factory=LatencyHistogram)

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

    def record(self, variant: Variant, seconds: float, failed: bool = False) -> None:
        """Count a request, for the rollout's tests.

        `failed`: a valid request got no valid prediction (exception, timeout, not a finite number). Invalid requests do not
        count.
        """
        (self.champion_latency if variant == "champion" else self.candidate_latency).add(seconds, failed)


def _position(rollout: int, key: str) -> float:
    """A fixed pseudo-random position in [0, 1): the candidate serves the keys below its share."""
    digest = hashlib.blake2b(f"{rollout} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
