"""What answers for each problem right now, kept as the decisions say while the server runs.

A thread looks at the decisions (tasks.deploy, tasks.rollout) twice a second with one small query. What they call for is loaded
beside what answers, checked on its own example, and only then put in its place, by one assignment: a request sees the old lineup
or the new one, and finishes on the objects it began with. A version that cannot be loaded or fails its check never answers: a
champion leaves the old one in its place, and is tried again; a candidate's rollout ends.
"""

import hashlib
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from tasks.params import Params
from tasks.rollout import EDGES, Count, Rollouts, Standing

if TYPE_CHECKING:
    from monitoring.ledger import Ledger
    from tasks.registry import Registry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
Variant = Literal["champion", "candidate", "shadow"]


class Loaded(Protocol):
    """A version that is in memory; serving.served makes it."""

    @property
    def problem(self) -> str: ...

    @property
    def version(self) -> int: ...

    def check(self) -> Sequence[Mapping[str, Any]] | None:
        """Answer its own example, which also warms it, and give the answers back. Raises ModelError where it cannot."""
        ...


S = TypeVar("S", bound=Loaded)


class Tally:
    """Counts answers. Without a lock, for it is on the way of every answer: threads at once may lose one now and then."""

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

    def read(self) -> Count:
        latency = {bucket: number for bucket, number in enumerate(self._buckets) if number}
        return Count(self.requests, self.errors, latency)


@dataclass(frozen=True, slots=True, eq=False)
class Lineup(Generic[S]):
    """Who answers for a problem, until the next one takes its place."""

    champion: S
    candidate: S | None = None
    share: float = 0.0
    """Of the entities that the candidate answers."""
    shadow: bool = False
    """Whether the candidate, too, answers what the champion does; its answers go to the ledger as `shadow`, and to nobody."""
    rollout: int = 0
    """Number of the rollout: which entities come first is another draw in each."""
    old: Tally = field(default_factory=Tally)
    new: Tally = field(default_factory=Tally)

    def pick(self, entity: str | None, id: str) -> tuple[S, Variant]:
        """Who answers this request: the same for an `entity` as long as the rollout lasts, but for a share that grows.

        Where there is no entity, by the request's id. A candidate that fails its request: `note` it, and ask the champion.
        """
        if self.candidate is None or self.shadow or self.share < 1 and _place(self.rollout, entity or id) >= self.share:
            return self.champion, "champion"
        return self.candidate, "candidate"

    def note(self, variant: Variant, seconds: float, failed: bool = False) -> None:
        """Count an answer, for the rollout's tests.

        `failed`: there was no proper answer though the request was in order (an exception, out of time, not a finite number);
        not what is wrong with the request itself.
        """
        (self.old if variant == "champion" else self.new).add(seconds, failed)


def _place(rollout: int, who: str) -> float:
    """Where `who` stands in the row of those that get the new version, from 0 to 1."""
    drawn = hashlib.blake2b(f"{rollout} {who}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") / 2**64


class Watch(Generic[S]):
    """Keeps the lineup of every problem of `params`. `load` brings a version of a problem into memory, and may take its time.

    `ledger`: where a rollout's quality is read as truths come; None: quality is judged by whoever runs `evergreen monitor`.
    """

    def __init__(
        self,
        params: Params,
        registry: "Registry",
        rollouts: Rollouts,
        load: Callable[[str, int], S],
        ledger: "Ledger | None" = None,
    ) -> None:
        self._params, self._registry, self._rollouts, self._load, self._ledger = params, registry, rollouts, load, ledger
        self._lineups: dict[str, Lineup[S]] = {}
        self.troubles: dict[str, str] = {}
        """Problem -> why what should answer for it does not; those in order are not in it."""
        self.standing: dict[str, Standing] = {}
        """Problem -> the rollout under way."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Load what is deployed; when this returns, every problem has its lineup or its trouble. Then watch."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Write the last counts and end the thread."""
        self._over.set()
        self._thread.join()

    def lineup(self, problem: str) -> Lineup[S] | None:
        """Who answers for `problem` now; None: nothing is deployed, or what is cannot be loaded (see `troubles`)."""
        return self._lineups.get(problem)

    def look(self) -> None:
        """Bring every lineup in line with the decisions."""

    def _run(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self.look()
