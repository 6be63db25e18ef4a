"""The state of a rollout, folded from the decisions about its problem. Pure: rows in, a state out."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Literal

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.deployments import MOVES, Deployment

SHADOW_SUFFIX = ".shadow"
"""Follows the id of the champion's prediction in the id of the candidate's for the same request, which only the ledger sees."""


class RolloutState(Section):
    """A rollout in progress."""

    id: int
    """Number of the decision that began it; it also decides which entities come first."""
    revision: int
    """Number of the newest decision about it; an action on this state names it."""
    problem: str
    champion: int
    candidate: int
    policy: Rollout
    """As it was at the beginning."""
    step: int
    """0 is the first."""
    begun: datetime
    """UTC."""
    since: datetime
    """Start of the step, or when it was resumed. UTC."""
    state: Literal["running", "paused"]
    by: str
    reason: str
    """Of the newest decision about it."""
    verdict: dict[str, Any]
    """The gate's, on the candidate."""

    @property
    def strategy(self) -> str:
        return self.policy.strategy

    @property
    def shares(self) -> tuple[float, ...]:
        """The candidate's share of the traffic, step by step."""
        return {"canary": self.policy.steps, "shadow": (0.0,)}.get(self.strategy, (1.0,))

    @property
    def share(self) -> float:
        return self.shares[self.step]

    @property
    def ends(self) -> datetime:
        """The rollout is promoted or rolled back by then. UTC."""
        return self.begun + timedelta(hours=self.policy.timeout_hours)

    @property
    def last(self) -> bool:
        """Whether the promotion comes next."""
        return self.step + 1 >= len(self.shares)

    def describe(self) -> str:
        """One sentence for a person."""
        how = {
            "canary": f"answers {self.share:.0%} of the traffic (step {self.step + 1} of {len(self.shares)})",
            "shadow": "answers beside the champion, unseen",
            "blue_green": "answers all traffic",
        }[self.strategy]
        halt = f"; paused by {self.by}: {self.reason}" if self.state == "paused" else ""
        return (
            f"{self.strategy.replace('_', '/')}: v{self.candidate} {how} since {self.since:%Y-%m-%d %H:%M} UTC, "
            f"v{self.champion} is champion; ends by {self.ends:%Y-%m-%d %H:%M} UTC{halt}"
        )


def fold(rows: Iterable[tuple[int, Deployment]]) -> RolloutState | None:
    """The state after these numbered decisions of one problem, oldest first; None: no rollout is in progress."""
    found: RolloutState | None = None
    for number, row in rows:
        if row.action in MOVES:
            found = None
        elif row.action == "begin":
            found = _begun(number, row)
        elif found and row.version == found.candidate:
            found = _changed(found, number, row)
    return found


def _begun(number: int, row: Deployment) -> RolloutState:
    policy = dict(row.evidence["policy"])
    if policy.get("on_timeout") == "hold":  # a rollout that began while it could wait for ever
        policy["on_timeout"] = "abort"
    return RolloutState(
        id=number,
        revision=number,
        problem=row.problem,
        champion=row.previous or 0,
        candidate=row.version,
        policy=Rollout.model_validate(policy),
        step=0,
        begun=row.at,
        since=row.at,
        state="running",
        by=row.by,
        reason=row.reason,
        verdict={key: value for key, value in row.evidence.items() if key != "policy"},
    )


def _changed(found: RolloutState, number: int, row: Deployment) -> RolloutState | None:
    if row.action == "abort":
        return None
    changes: dict[str, Any] = {"revision": number, "by": row.by, "reason": row.reason}
    if row.action == "step":
        changes |= {"step": min(found.step + 1, len(found.shares) - 1), "since": row.at}
    elif row.action == "pause":
        changes |= {"state": "paused"}
    elif row.action == "resume":
        changes |= {"state": "running", "since": row.at}
    return found.model_copy(update=changes)
