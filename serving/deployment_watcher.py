"""Keeps the serving set of every problem in line with the deployment decisions while the server runs.

A thread polls the decisions (release.deployments, release.rollouts) twice a second with one small query. It loads a new version
beside the serving one, checks it on its own example, and only then replaces the serving set, with one assignment. A version
that fails to load or fails its self-check never receives traffic: the old champion stays and the load is retried; a
candidate's rollout ends.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic

from evergreen.monitoring.rollout.controller import BY, advance
from evergreen.serving.rollout_counts import RolloutCounts
from evergreen.serving.serving_set import M, RequestCounter, ServingSet
from evergreen.serving.version_loader import NotLoadedError, VersionLoader
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, ModelError, ProjectError
from evergreen.tasks.release.deployments import MOVES, Deployment, describe_replaced, rollback_target
from evergreen.tasks.release.rollout_state import RolloutState, fold
from evergreen.tasks.release.rollouts import Rollouts
from evergreen.tasks.release.server_reports import ServerReport

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger
    from evergreen.tasks.release.model_registry import Registry

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
COUNT_SECONDS = 1.0
JUDGE_SECONDS = 2.0
REPORT_SECONDS = 15.0
ALIAS_SECONDS = 60.0
QUALITY_SECONDS = 60.0
QUALITY_COST = 50
"""Judging quality reads the ledger: it waits this many times as long as it took, so it uses at most 2 % of the time."""


class DeploymentWatcher(Generic[M]):
    """The serving sets of all problems in `params`. `load` reads a version of a problem into memory; it may take seconds.

    `ledger`: for judging the quality of a rollout as labels arrive; None: only `evergreen monitor` judges quality.
    `journal_failing_since`: since when this server cannot write predictions, for its reports.
    """

    def __init__(
        self,
        params: Params,
        registry: "Registry",
        rollouts: Rollouts,
        load: Callable[[str, int], M],
        ledger: "Ledger | None" = None,
        journal_failing_since: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._params, self._registry, self._rollouts, self._ledger = params, registry, rollouts, ledger
        self.server = f"{socket.gethostname()[:40]} {os.getpid()} {uuid.uuid4().hex[:6]}"
        """The name of this server in the database."""
        self.errors: dict[str, str] = {}
        """Problem -> why its deployed version does not serve."""
        self.away: set[str] = set()
        """Those of them whose version the registry, or the store of its files, does not give at the moment."""
        self.read_at: datetime | None = None
        """When the decisions were last read that the serving sets follow, UTC; None: never."""
        self.unread_since: datetime | None = None
        """Since when they cannot be read, UTC; None: they can."""
        self._journal_failing_since = journal_failing_since
        self.active_rollouts: dict[str, RolloutState] = {}
        """Problem -> its rollout."""
        self._sets: dict[str, ServingSet[M]] = {}
        self._load, self._moves = load, dict[tuple[str, int], Deployment]()
        self._versions = VersionLoader(self._load_deployed)
        self._counts = RolloutCounts(rollouts, self.server)
        self._handled: dict[str, int] = {}
        self._to_preload: dict[str, int] = {}
        self._unjudged: dict[str, str] = {}
        self._unaliased = False
        self._due: dict[str, float] = {}
        self._updating = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployment-watcher", daemon=True)

    def start(self) -> None:
        """Load what is deployed, so that every problem has its serving set or its error. Then watch."""
        self.update()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, write the last counts, and sign off."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(ProjectError):
            self._counts.write(self.active_rollouts.values())
            self._rollouts.reports.remove(self.server)

    def serving_set(self, problem: str) -> ServingSet[M] | None:
        """None: nothing is deployed, or it cannot be loaded (see `errors`)."""
        return self._sets.get(problem)

    def update(self) -> None:
        """Bring every serving set in line with the decisions, and do the periodic work that is due. Logs expected errors."""
        with self._updating:
            try:
                self._update()
                if self.unread_since:
                    log.info("the deployments database is back")
                self.unread_since = None
            except EvergreenError as error:
                if not self.unread_since:
                    log.warning("cannot read the deployments; the serving sets stay as they are: %s", error)
                self.unread_since = self.unread_since or datetime.now(UTC)

    def _run(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                self.update()
            except Exception:  # a bug must not stop the watcher
                log.exception("the update of the serving sets failed")

    def _update(self) -> None:
        newest = self._rollouts.deployments.newest()
        now, problems = datetime.now(UTC), self._params.problems
        changed = [
            name for name in problems if newest.get(name, 0) != self._handled.get(name, 0) or self._versions.retry_due(name)
        ]
        for problem in changed:
            self._apply_decisions(problem)
        self.read_at = now
        if self._is_due("count", COUNT_SECONDS):
            self._counts.write(self.active_rollouts.values())
        if self.active_rollouts and self._is_due("judge", JUDGE_SECONDS):
            self._judge()
        if self._is_due("aliases", ALIAS_SECONDS):
            self._update_aliases()
        if not changed and self._to_preload:
            self._preload_previous(*self._to_preload.popitem())
        if self._is_due("report", REPORT_SECONDS):
            for problem in problems:
                self._report(problem)

    def _is_due(self, task: str, seconds: float) -> bool:
        """Whether `seconds` passed since the last time it was due."""
        now = time.monotonic()
        if now < self._due.get(task, 0.0):
            return False
        self._due[task] = now + seconds
        return True

    def _apply_decisions(self, problem: str) -> None:
        """Bring the serving set of one problem in line with its decisions."""
        rows = self._rollouts.deployments.numbered(problem)
        rollout = fold(rows)
        moves = [row for _, row in rows if row.action in MOVES]
        self._moves |= {(problem, row.version): row for row in moves}
        champions = [row.version for row in moves]
        if champions:
            self._set_champion(problem, champions[-1])
        serving = self._sets.get(problem)
        if rollout:
            self.active_rollouts[problem] = rollout
        else:
            self.active_rollouts.pop(problem, None)
        if serving and rollout and not self._set_candidate(problem, serving, rollout):
            return  # its rollout was ended: the next update handles that decision
        if serving and not rollout and serving.candidate is not None:
            self._sets[problem] = ServingSet(serving.champion)
        previous = rollback_target([row for _, row in rows])
        if previous and self._params.serve.preload_previous:
            self._to_preload[problem] = previous
        wanted = {*champions[-1:], *([rollout.candidate] if rollout else [])}
        self._evict(problem, {*champions[-2:], *([previous] if previous else [])}, wanted)
        self._handled[problem] = rows[-1][0] if rows else 0
        self._report(problem)

    def _load_deployed(self, problem: str, version: int) -> M:
        """Load a version. Raises ModelError where the registry has another model under the number of a former deployment."""
        move = self._moves.get((problem, version))
        if move and (reason := describe_replaced(self._registry, move)):
            raise ModelError(reason)
        return self._load(problem, version)

    def _set_champion(self, problem: str, version: int) -> None:
        """Let `version` serve as champion, or note why the old one stays."""
        before = self._sets.get(problem)
        if before and before.champion.version == version:
            self._forget_error(problem)
            return
        try:
            found = self._versions.get(problem, version, before.champion if before else None)
        except NotLoadedError as reason:
            stays = f"; v{before.champion.version} keeps serving" if before else ""
            self._forget_error(problem)
            self.errors[problem] = f"v{version} is champion but cannot serve: {reason}{stays}"
            self.away |= {problem} if reason.away else set[str]()
            return
        self._forget_error(problem)
        self._sets[problem] = ServingSet(found)
        log.info("%s: v%d serves%s", problem, version, f", replacing v{before.champion.version}" if before else "")

    def _forget_error(self, problem: str) -> None:
        self.errors.pop(problem, None)
        self.away.discard(problem)

    def _set_candidate(self, problem: str, serving: ServingSet[M], rollout: RolloutState) -> bool:
        """Add the rollout's candidate to the serving set. False if it cannot serve, which ends the rollout."""
        if serving.champion.version != rollout.champion:  # the champion cannot be loaded: nothing to compare with
            return True
        try:
            found = self._versions.get(problem, rollout.candidate, serving.champion)
        except NotLoadedError as error:
            if not error.final:
                return True
            reason = f"v{rollout.candidate} never received traffic: {error}"
            self._rollouts.try_abort(rollout, BY, reason, {"server": self.server})
            self._versions.give_up(problem, rollout.candidate)
            return False
        counts = self._counts.begin(rollout, serving.counts.champion if serving.candidate is None else RequestCounter())
        shadow = rollout.strategy == "shadow"
        self._sets[problem] = ServingSet(serving.champion, found, rollout.share, shadow, rollout.id, counts)
        log.info("%s: %s", problem, rollout.describe())
        return True

    def _preload_previous(self, problem: str, version: int) -> None:
        """Load the version that a rollback would return to. A failure shows when somebody rolls back."""
        if serving := self._sets.get(problem):
            with suppress(NotLoadedError):
                self._versions.get(problem, version, serving.champion)
            self._versions.give_up(problem, version)

    def _evict(self, problem: str, previous: set[int], wanted: set[int]) -> None:
        """Drop the versions that no decision names and that do not serve."""
        serving = self._sets.get(problem)
        current = {each.version for each in (serving.champion, serving.candidate) if each} if serving else set[int]()
        self._versions.evict(problem, previous | wanted | current, wanted)

    def _judge(self) -> None:
        """Advance the rollouts; judge quality less often, because that reads the ledger."""
        for problem in list(self.active_rollouts):
            ledger = self._ledger if self._is_due(f"quality {problem}", QUALITY_SECONDS) else None
            began = time.monotonic()
            try:
                advance(self._params, self._registry, self._rollouts, problem, ledger)
                self._unjudged.pop(problem, None)
            except EvergreenError as error:  # of one problem: the others go on
                if self._unjudged.get(problem) != str(error):
                    log.warning("%s: the rollout cannot be judged now: %s", problem, error)
                self._unjudged[problem] = str(error)
            if ledger:
                spent = time.monotonic() - began
                self._due[f"quality {problem}"] = time.monotonic() + max(QUALITY_SECONDS, QUALITY_COST * spent)

    def _update_aliases(self) -> None:
        """Move the registry's aliases to the champions: a process was killed before it did, or another tool moved them."""
        try:
            for problem in self._params.problems:
                self._rollouts.deployments.update_alias(self._registry, problem)
        except ModelError as error:  # the decisions are read without it
            if not self._unaliased:
                log.warning("the aliases of the registry stay as they are: %s", error)
            self._unaliased = True
        else:
            self._unaliased = False

    def _report(self, problem: str) -> None:
        serving, since = self._sets.get(problem), self._journal_failing_since()
        self._rollouts.reports.write(
            ServerReport(
                server=self.server,
                problem=problem,
                champion=serving.champion.version if serving else None,
                candidate=serving.candidate.version if serving and serving.candidate else None,
                error=self.errors.get(problem),
                journal=since.isoformat(timespec="seconds") if since else None,
                at=datetime.now(UTC),
            )
        )
