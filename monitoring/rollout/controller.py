"""Judge a rollout and act on the judgement: wait, step, promote or abort.

`advance` is called by the watcher of each server, by `evergreen monitor` and by `evergreen rollout status`. Of concurrent
callers one acts (tasks.release.rollouts).
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from evergreen.monitoring.rollout.sequential_tests import Elapsed, Judgement, Losses, OffPolicyValue, Overlap, judge
from evergreen.tasks.config.params import Params
from evergreen.tasks.release.rollout_state import RolloutState
from evergreen.tasks.release.rollouts import Rollouts

if TYPE_CHECKING:
    import polars as pl

    from evergreen.monitoring.ledger.predictions import Ledger, Variant
    from evergreen.tasks.problems.prediction_type import Labelled
    from evergreen.tasks.release.model_registry import Registry

BY = "rollout"
"""Author of automatic decisions."""


def advance(
    params: Params,
    registry: "Registry",
    rollouts: Rollouts,
    problem: str,
    ledger: "Ledger | None" = None,
    now: datetime | None = None,
) -> Judgement | None:
    """Judge the rollout of `problem` and act on the judgement. None without a rollout.

    `ledger`: source of labels, if the policy compares quality; None: quality is not compared now. A paused rollout takes no
    step, but a significantly worse candidate is still rolled back, and so is any at the timeout. `now`: UTC.
    """
    now = now or datetime.now(UTC)
    stands = rollouts.current(problem)
    if stands is None:
        return None
    found = judge_state(params, rollouts, stands, ledger, now)
    _act(registry, rollouts, stands, found)
    return found


def judge_state(params: Params, rollouts: Rollouts, stands: RolloutState, ledger: "Ledger | None", now: datetime) -> Judgement:
    """Judge a rollout without acting on it."""
    champion, candidate = rollouts.reports.counts(stands.id, stands.step)
    labels, shadow = stands.policy.compare_quality, stands.strategy == "shadow"
    rows = _read(stands, ledger, now, labels or shadow) if ledger and (labels or shadow) else None
    losses = _losses(params, rollouts, stands, rows, now) if rows is not None and labels else None
    overlap = _overlap(params, stands, rows) if rows is not None and shadow else None
    off_policy = _off_policy(params, stands, rows) if rows is not None and shadow else None
    elapsed = Elapsed(
        minutes=(now - stands.since).total_seconds() / 60,
        hours=(now - stands.begun).total_seconds() / 3600,
        step=stands.step,
        steps=len(stands.shares),
        paused=stands.state == "paused",
    )
    found = judge(
        stands.policy,
        elapsed,
        champion,
        candidate,
        rollouts.reports.side_by_side(stands.id, stands.step),
        losses,
        quality=stands.policy.compare_quality and _labelled(params, stands.problem) is not None,
    )
    return found.with_overlap(overlap).with_off_policy(off_policy)


def _read(stands: RolloutState, ledger: "Ledger", now: datetime, labels: bool) -> "pl.DataFrame":
    """The predictions of all steps so far."""
    roles: tuple[Variant, ...] = ("champion", "candidate", "shadow")
    return ledger.read(stands.problem, since=stands.begun, until=now, variants=roles, features=False, labels=labels).rows


def _losses(
    params: Params, rollouts: Rollouts, stands: RolloutState, predicted: "pl.DataFrame", now: datetime
) -> Losses | None:
    from evergreen.monitoring.rollout.losses import compared

    kind = _labelled(params, stands.problem)
    if kind is None:
        return None
    rows = rollouts.deployments.numbered(stands.problem)
    bounds = [row.at for number, row in rows if number >= stands.id and row.action in ("begin", "step")]
    metric = params.section(stands.problem).gate.metric
    return compared(kind, metric, predicted, stands, [*bounds, now])


def _overlap(params: Params, stands: RolloutState, predicted: "pl.DataFrame") -> Overlap | None:
    from evergreen.monitoring.rollout.overlap import measure_overlap
    from evergreen.tasks import problems

    return measure_overlap(problems.predictions(params.kind(stands.problem)), predicted, stands)


def _off_policy(params: Params, stands: RolloutState, predicted: "pl.DataFrame") -> OffPolicyValue | None:
    from evergreen.monitoring.rollout.off_policy import estimate_shadow

    kind = _labelled(params, stands.problem)
    return estimate_shadow(kind, predicted, stands) if kind else None


def _labelled(params: Params, problem: str) -> "Labelled | None":
    """The predictions of `problem`; None for a kind without labels. Imports Polars."""
    from evergreen.tasks import problems
    from evergreen.tasks.problems.prediction_type import Labelled

    kind = problems.predictions(params.kind(problem))
    return kind if isinstance(kind, Labelled) else None


def _act(registry: "Registry", rollouts: Rollouts, stands: RolloutState, found: Judgement) -> None:
    evidence = found.model_dump(mode="json")
    if found.decision == "abort":
        rollouts.try_abort(stands, BY, found.reason, evidence)
    elif found.decision == "wait":
        return
    elif stands.last or found.decision == "promote":
        rollouts.try_promote(registry, stands, BY, found.reason, evidence)
    else:
        rollouts.try_step(stands, BY, found.reason, evidence)
