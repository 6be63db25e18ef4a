"""What answers for each problem right now, kept as the decisions say while the server runs.

A thread looks at the decisions (release.deployments, release.rollouts) twice a second with one small query. What they call
for is loaded
beside what answers, checked on its own example, and only then put in its place, by one assignment: a request sees the old
lineup or the new one, and finishes on the objects it began with. A version that cannot be loaded or fails its check never
answers: a champion leaves the old one in its place, and is tried again; a candidate's rollout ends.
"""

import hashlib
import logging
import math
import os
import socket
import threading
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from evergreen.monitoring.rollout.controller import BY, advance
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, ModelError, ProjectError
from evergreen.tasks.release.deployments import MOVES, rollback_target
from evergreen.tasks.release.rollout_state import RolloutState, fold
from evergreen.tasks.release.rollouts import MOVE_TIMEOUT, Rollouts
from evergreen.tasks.release.server_reports import EDGES, RequestCounts, ServerReport

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger
    from evergreen.tasks.release.model_registry import Registry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
COUNT_SECONDS = 1.0
JUDGE_SECONDS = 2.0
REPORT_SECONDS = 15.0
SETTLE_SECONDS = 60.0
QUALITY_SECONDS = 60.0
RETRY_SECONDS = 2.0
"""Until a version that could not be loaded is tried again; each time twice as long, up to 32 times."""
ATTEMPTS = 3
"""A candidate that cannot be loaded so often is taken back: a server of files may be away for a moment. One that was loaded
and fails its check is taken back at once."""
Variant = Literal["champion", "candidate", "shadow"]


class Loaded(Protocol):
    """A version that is in memory; serving.loaded_model makes it."""

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

    def read(self) -> RequestCounts:
        latency = {bucket: number for bucket, number in enumerate(self._buckets) if number}
        return RequestCounts(self.requests, self.errors, latency)


@dataclass(frozen=True, slots=True, eq=False)
class Lineup(Generic[S]):
    """Who answers for a problem, until the next one takes its place."""

    champion: S
    candidate: S | None = None
    share: float = 0.0
    """Of the entities that the candidate answers."""
    shadow: bool = False
    """Whether the candidate, too, answers what the champion does; its answers go to nobody but the ledger,
    as `shadow` and with tasks.release.rollout_state.SHADOW_SUFFIX behind the champion's id."""
    rollout: int = 0
    """Number of the rollout: which entities come first is another draw in each."""
    old: Tally = field(default_factory=Tally)
    new: Tally = field(default_factory=Tally)

    def pick(self, entity: str | None, id: str) -> tuple[S, Variant]:
        """Who answers this request: the same for an `entity` as long as the rollout lasts, but for a share that grows.

        Where there is no entity, by the request's id. A candidate that fails its request: `note` it, and ask the champion.
        """
        if self.candidate is None or self.shadow or (self.share < 1 and _place(self.rollout, entity or id) >= self.share):
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


@dataclass
class _Waiting:
    """A version that could not be loaded."""

    attempts: int
    until: float
    """Monotonic seconds: then it is tried again."""
    why: str


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
        self.server = f"{socket.gethostname()[:40]} {os.getpid()} {uuid.uuid4().hex[:6]}"
        """What this server is called in the database."""
        self.troubles: dict[str, str] = {}
        """Problem -> why what should answer for it does not; those in order are not in it."""
        self.standing: dict[str, RolloutState] = {}
        """Problem -> the rollout under way."""
        self._lineups: dict[str, Lineup[S]] = {}
        self._seen: dict[str, int] = {}
        self._loaded: dict[tuple[str, int], S] = {}
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._spares: dict[str, int] = {}
        self._tallies: dict[tuple[int, int], tuple[Tally, Tally]] = {}
        self._written: dict[tuple[int, int], tuple[int, int]] = {}
        self._due: dict[str, float] = {}
        self._away = False
        self._looking = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Load what is deployed; when this returns, every problem has its lineup or its trouble. Then watch."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, write the last counts, and leave."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(ProjectError):
            self._count()
            self._rollouts.reports.remove(self.server)

    def lineup(self, problem: str) -> Lineup[S] | None:
        """Who answers for `problem` now; None: nothing is deployed, or what is cannot be loaded (see `troubles`)."""
        return self._lineups.get(problem)

    def look(self) -> None:
        """Bring every lineup in line with the decisions, and do what else is due. Never raises what a person can mend."""
        with self._looking:
            try:
                self._look()
                if self._away:
                    log.info("the database of decisions answers again")
                self._away = False
            except EvergreenError as error:
                if not self._away:
                    log.warning("the decisions cannot be read, and what answers stays as it is: %s", error)
                self._away = True

    def _run(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                self.look()
            except Exception:  # a bug must not leave the server blind to the next decision
                log.exception("the look at the decisions failed")

    def _look(self) -> None:
        newest = self._rollouts.deployments.newest()
        problems = self._params.problems
        news = [name for name in problems if newest.get(name, 0) != self._seen.get(name, 0) or self._again(name)]
        for problem in news:
            self._arrange(problem)
        if self._is_due("count", COUNT_SECONDS):
            self._count()
        if self.standing and self._is_due("judge", JUDGE_SECONDS):
            self._judge()
        if self._is_due("settle", SETTLE_SECONDS):
            self._settle()
        if not news and self._spares:
            self._keep_spare(*self._spares.popitem())
        if self._is_due("report", REPORT_SECONDS):
            for problem in self._params.problems:
                self._report(problem)

    def _is_due(self, what: str, seconds: float) -> bool:
        """Whether `seconds` went by since the last time; then they begin anew."""
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + seconds
        return True

    def _again(self, problem: str) -> bool:
        """Whether a version that could not be loaded is to be tried again."""
        now = time.monotonic()
        return any(name == problem and each.until <= now for (name, _), each in self._waiting.items())

    def _arrange(self, problem: str) -> None:
        """The lineup of one problem, as its decisions say."""
        rows = self._rollouts.deployments.numbered(problem)
        stands = fold(rows)
        moves = [row.version for _, row in rows if row.action in MOVES]
        before = self._lineups.get(problem)
        if moves:
            self._crown(problem, moves[-1], before)
        champion = self._lineups.get(problem)
        if stands:
            self.standing[problem] = stands
        else:
            self.standing.pop(problem, None)
        if champion and stands and not self._try_out(problem, champion, stands):
            return  # it was ended: the next look finds that
        if champion and not stands and champion.candidate is not None:
            self._lineups[problem] = Lineup(champion.champion)
        spare = rollback_target([row for _, row in rows])
        if spare and self._params.serve.spare:
            self._spares[problem] = spare
        self._forget(
            problem, [*moves[-2:], *([spare] if spare else [])], {*moves[-1:], *([stands.candidate] if stands else [])}
        )
        self._seen[problem] = rows[-1][0] if rows else 0
        self._report(problem)

    def _crown(self, problem: str, version: int, before: Lineup[S] | None) -> None:
        """Let `version` answer as champion, or say why the old one stays."""
        if before and before.champion.version == version:
            self.troubles.pop(problem, None)
            return
        found = self._bring(problem, version, before.champion if before else None)
        if isinstance(found, str):
            stays = f"; v{before.champion.version} goes on answering" if before else ""
            self.troubles[problem] = f"v{version} is champion and cannot answer: {found}{stays}"
            return
        self.troubles.pop(problem, None)
        self._lineups[problem] = Lineup(found)
        log.info("%s: v%d answers%s", problem, version, f" in place of v{before.champion.version}" if before else "")

    def _try_out(self, problem: str, lineup: Lineup[S], stands: RolloutState) -> bool:
        """Put the candidate of `stands` into the lineup. False where it cannot answer, which ends its rollout."""
        if lineup.champion.version != stands.champion:  # it cannot be loaded; without it there is nothing to compare with
            return True
        found = self._bring(problem, stands.candidate, lineup.champion)
        if isinstance(found, str):
            if self._waiting[problem, stands.candidate].attempts < ATTEMPTS:
                return True
            reason = f"v{stands.candidate} never took traffic: {found}"
            self._rollouts.try_abort(stands, BY, reason, {"server": self.server})
            del self._waiting[problem, stands.candidate]
            return False
        old, new = self._tallies.setdefault((stands.id, stands.step), (self._begin_with(lineup, stands), Tally()))
        shadow = stands.strategy == "shadow"
        self._lineups[problem] = Lineup(lineup.champion, found, stands.share, shadow, stands.id, old, new)
        log.info("%s: %s", problem, stands.describe())
        return True

    def _begin_with(self, lineup: Lineup[S], stands: RolloutState) -> Tally:
        """What the champion is judged by: where it will answer nothing any more, what it did before."""
        return lineup.old if stands.strategy == "blue_green" and lineup.candidate is None else Tally()

    def _bring(self, problem: str, version: int, beside: S | None) -> S | str:
        """The version, in memory and checked; or why not."""
        key = problem, version
        if key in self._loaded:
            return self._loaded[key]
        waits = self._waiting.get(key)
        if waits and waits.until > time.monotonic():
            return waits.why
        found = None
        try:
            found = self._load(problem, version)
            _check(found, beside)
        except Exception as error:  # noqa: BLE001  # whatever it is, this version does not answer
            why = str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
            attempts = (waits.attempts if waits else 0) + (ATTEMPTS if found else 1)
            self._waiting[key] = _Waiting(attempts, time.monotonic() + RETRY_SECONDS * 2 ** min(attempts - 1, 5), why)
            log.error("%s: v%d does not answer: %s", problem, version, why)
            return why
        self._waiting.pop(key, None)
        self._loaded[key] = found
        return found

    def _keep_spare(self, problem: str, version: int) -> None:
        """Load what a rollback would return to. Where it cannot be, whoever rolls back will see why."""
        lineup = self._lineups.get(problem)
        if lineup:
            self._bring(problem, version, lineup.champion)
            self._waiting.pop((problem, version), None)

    def _forget(self, problem: str, spare: Sequence[int], wanted: set[int]) -> None:
        """Let go of versions that nobody asks for; requests that they answer still hold them."""
        lineup = self._lineups.get(problem)
        answering = {each.version for each in (lineup.champion, lineup.candidate) if each} if lineup else set[int]()
        for held, needed in ((self._loaded, {*spare, *wanted, *answering}), (self._waiting, wanted)):
            for key in [key for key in held if key[0] == problem and key[1] not in needed]:
                del held[key]

    def _count(self) -> None:
        """Write the answers of rollouts under way, and of those just ended, for all to judge on."""
        for (rollout, step), tallies in list(self._tallies.items()):
            counts = tuple(each.read() for each in tallies)
            so_far = counts[0].requests, counts[1].requests
            if self._written.get((rollout, step)) != so_far:
                for new, count in zip((False, True), counts, strict=True):
                    self._rollouts.reports.write_counts(rollout, step, new, self.server, count)
                self._written[rollout, step] = so_far
            elif not any((each.id, each.step) == (rollout, step) for each in self.standing.values()):
                del self._tallies[rollout, step], self._written[rollout, step]

    def _judge(self) -> None:
        """Of quality more seldom: reading the ledger must not take more than a small part of this process's time."""
        for problem in list(self.standing):
            ledger = self._ledger if self._is_due(f"quality {problem}", QUALITY_SECONDS) else None
            began = time.monotonic()
            advance(self._params, self._registry, self._rollouts, problem, ledger)
            if ledger:
                spent = time.monotonic() - began
                self._due[f"quality {problem}"] = time.monotonic() + max(QUALITY_SECONDS, 50 * spent)

    def _settle(self) -> None:
        """Notice aliases that were moved by other means, and moves that were killed."""
        for problem in self._params.problems:
            begun = self._rollouts.deployments.pending(problem)
            if begun is None or begun.at < datetime.now(UTC) - MOVE_TIMEOUT:
                self._rollouts.deployments.reconcile(self._registry, problem)

    def _report(self, problem: str) -> None:
        lineup = self._lineups.get(problem)
        self._rollouts.reports.write(
            ServerReport(
                server=self.server,
                problem=problem,
                champion=lineup.champion.version if lineup else None,
                candidate=lineup.candidate.version if lineup and lineup.candidate else None,
                error=self.troubles.get(problem),
                at=datetime.now(UTC),
            )
        )


def _check(found: Loaded, beside: Loaded | None) -> None:
    """Raises ModelError unless `found` answers its own example, finitely, and in the form that the version in charge does."""
    said = found.check()
    if said is None:
        return
    for answer in said:
        for name, value in answer.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ModelError(f"{found.problem} v{found.version}: answers {name} = {value} to its own example")
    other = beside.check() if beside else None
    if said and other and (mine := _form(said[0])) != (theirs := _form(other[0])):
        what = f"{found.problem} v{found.version}"
        raise ModelError(f"{what}: answers {mine} to its own example, where v{beside and beside.version} answers {theirs}")


def _form(answer: Mapping[str, Any]) -> str:
    """What an answer is made of, such as prediction: number; the classes may be others than before."""
    names = {name.partition("_")[0] if name.startswith("probability_") else name: value for name, value in answer.items()}
    return ", ".join(
        f"{name}: {'number' if isinstance(value, int | float) else type(value).__name__}"
        for name, value in sorted(names.items())
    )
