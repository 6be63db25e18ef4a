"""Rollouts of promoted versions, from the first share of the traffic to champion.

Each change is a decision (release.deployments), written atomically; release.rollout_state folds the decisions to a state. A
rollout keeps the policy it began with. Any move of the champion ends it: its own promotion, a rollback, a direct deployment. A
newer promoted version replaces the candidate, whose rollout is then aborted.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.release.deployments import Action, Deployment, Deployments, make_decision
from evergreen.tasks.release.rollout_state import RolloutState, fold
from evergreen.tasks.release.server_reports import ServerReports

if TYPE_CHECKING:
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.promotion_gate import Verdict


class Rollouts:
    """The rollouts, beside the decisions at the SQLAlchemy `address`; missing tables are created.

    Raises ProjectError where the database cannot be used.
    """

    def __init__(self, address: str) -> None:
        self.deployments = Deployments(address)
        self.reports = ServerReports(address)

    def apply_verdict(
        self, registry: "Registry", problem: str, version: int, verdict: "Verdict", by: str, policy: Rollout
    ) -> Deployment:
        """Act on the gate's verdict as `policy` says: `Deployments.deploy`, or the beginning of a rollout.

        The first champion is deployed directly. Idempotent: the same call again returns the same decision. A newer version
        replaces the candidate; a refusal of the candidate itself aborts its rollout. Raises ModelError for a version that is
        not registered.
        """
        self.deployments.update_alias(registry, problem)
        state, champion = self.current(problem), self.deployments.champion(problem)
        if not verdict.promote:
            if state and state.candidate == version:
                self.try_abort(state, by, verdict.reason, {})
            return self.deployments.deploy(registry, problem, version, verdict, by)
        direct = policy.strategy == "direct" or champion in (None, version) or self.deployments.barred(problem, version)
        if direct:
            return self.deployments.deploy(registry, problem, version, verdict, by)
        registry.require(problem, version)
        evidence = json.loads(verdict.model_dump_json())
        begun = self.begin(problem, version, policy, by, verdict.reason, evidence)
        return begun or self.deployments.deploy(registry, problem, version, verdict, by)  # it was decided on meanwhile

    def begin(
        self, problem: str, version: int, policy: Rollout, by: str, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> Deployment | None:
        """Begin the rollout of `version` beside the champion; None for the champion itself and a version that was rolled back.

        `evidence`: the gate's verdict on it. Idempotent. Raises ModelError where nothing is deployed.
        """
        given = {**(evidence or {}), "policy": policy.model_dump(mode="json")}
        while True:
            rows = self.deployments.numbered(problem)
            state, champion = fold(rows), self.deployments.champion(problem)
            if champion is None:
                raise ModelError(f"{problem}: v{version} has no champion to roll out beside; deploy it directly")
            if state and state.candidate == version:
                return next(row for number, row in rows if number == state.id)
            if champion == version or self.deployments.barred(problem, version):
                return None
            made = make_decision(problem, version, "begin", by, reason, champion, given)
            ended = [_replaced(state, made)] if state else []
            if self.deployments.try_append([*ended, made], rows[-1][0]):
                return made

    def current(self, problem: str) -> RolloutState | None:
        """The rollout of `problem` that is in progress, if any."""
        return fold(self.deployments.numbered(problem))

    def try_step(self, state: RolloutState, by: str, reason: str, evidence: Mapping[str, Any]) -> bool:
        """Go to the next share; False if another process acted on `state` first."""
        return self._write(state, "step", by, reason, evidence)

    def try_abort(self, state: RolloutState, by: str, reason: str, evidence: Mapping[str, Any]) -> bool:
        """Roll the candidate back; False if another process acted on `state` first."""
        return self._write(state, "abort", by, reason, evidence)

    def pause(self, problem: str, by: str, reason: str, of: int | None = None) -> RolloutState:
        """Keep the share until `resume`; a candidate that is significantly worse is still rolled back.

        `of`: the rollout that is meant, by its id; None: the one in progress. Raises ModelError, as do `resume`, `abort` and
        `promote`, where it is not in progress.
        """
        return self._ask(problem, "pause", by, reason, of)

    def resume(self, problem: str, by: str, reason: str, of: int | None = None) -> RolloutState:
        """Continue; the time of the step starts again."""
        return self._ask(problem, "resume", by, reason, of)

    def abort(self, problem: str, by: str, reason: str, of: int | None = None) -> RolloutState:
        """Roll the candidate back: the champion answers everything. Returns the state before."""
        return self._ask(problem, "abort", by, reason, of)

    def try_promote(
        self, registry: "Registry", state: RolloutState, by: str, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> Deployment | None:
        """Make the candidate champion, which ends the rollout; None if another process acted on `state` first."""
        given = {**state.verdict, "rollout": dict(evidence or {})}
        return self.deployments.try_promote(registry, state.problem, state.candidate, state.revision, by, reason, given)

    def promote(self, registry: "Registry", problem: str, by: str, reason: str, of: int | None = None) -> Deployment:
        """Promote the candidate now. The same call after a kill returns the promotion that it made."""
        self.deployments.update_alias(registry, problem)
        while True:
            rows = self.deployments.numbered(problem)
            last = rows[-1][1] if rows else None
            if last and (last.action, last.by, last.reason) == ("promote", by, reason):
                return last
            state = self.require(problem, of)
            if made := self.try_promote(registry, state, by, reason):
                return made
            of = state.id  # a rollout that begins meanwhile is not the one that was meant

    def rollback(self, registry: "Registry", problem: str, to: int | None, by: str, reason: str) -> Deployment:
        """`Deployments.rollback`; while a rollout is in progress, abort it instead.

        Where another process ends that rollout first, the champion beside it is the one that this rolls back to.
        """
        state = self.current(problem)
        while state and to in (None, state.champion):
            if self.try_abort(state, by, reason, {}):
                return next(each for each in reversed(self.deployments.history(problem)) if each.action == "abort")
            to, state = state.champion, self.current(problem)
        return self.deployments.rollback(registry, problem, to, by, reason)

    def require(self, problem: str, of: int | None = None) -> RolloutState:
        """The rollout in progress. Raises ModelError where there is none, or another than `of`."""
        state = self.current(problem)
        if state is None:
            raise ModelError(f"{problem}: no rollout is in progress; evergreen history {problem} lists the decisions")
        if of not in (None, state.id):
            raise ModelError(
                f"{problem}: that rollout has ended; the one of v{state.candidate} is in progress now: read it first"
            )
        return state

    def _ask(self, problem: str, action: Action, by: str, reason: str, of: int | None) -> RolloutState:
        """Write a person's decision, on the state at the time of writing."""
        while True:
            state = self.require(problem, of)
            if (action, state.state) in (("pause", "paused"), ("resume", "running")):
                return state
            if self._write(state, action, by, reason):
                return state if action == "abort" else self.require(problem)
            of = state.id

    def _write(
        self, state: RolloutState, action: Action, by: str, reason: str, evidence: Mapping[str, Any] | None = None
    ) -> bool:
        made = make_decision(state.problem, state.candidate, action, by, reason, state.champion, evidence or {})
        return self.deployments.try_append([made], state.revision)


def _replaced(state: RolloutState, by: Deployment) -> Deployment:
    why = f"replaced by v{by.version}, which is newer"
    return make_decision(state.problem, state.candidate, "abort", by.by, why, state.champion, {"replaced": by.version})
