"""What lists that nobody saw would have earned, as a rollout and the gate keep it as evidence."""

from evergreen.tasks.config.base import Section


class OffPolicyEstimate(Section):
    """Hits per list, the mean over users of the mean over their lists; and the gain over the lists it is compared with."""

    method: str
    value: float
    low: float | None
    high: float | None
    gain: float
    gain_low: float | None
    gain_high: float | None
    """None, as the other bounds: too few."""


class OffPolicyValue(Section):
    """Estimates of the value of lists that nobody saw."""

    estimates: tuple[OffPolicyEstimate, ...]
    served: float
    """Hits of a served list, the mean likewise."""
    covered: float
    """Mean weight: about the share of the items that had a chance to be shown."""
    effective: float
    """Effective sample size in items: the squared sum of the weights over the sum of their squares."""
    lists: int
    users: int
    why: str
    """Why there is no interval, in words; empty where there is one."""
    against: str = "the served lists"
    """What `gain` compares with."""

    @property
    def surely_worse(self) -> bool:
        """Whether the doubly robust interval of the gain lies below zero; never where there is too little to tell."""
        high = self.estimates[-1].gain_high
        return not self.why and high is not None and high < 0

    def words(self) -> str:
        """One clause for a person."""
        seen = (
            f"{self.lists:,} lists of {self.users:,} users, effective items {self.effective:,.0f}, covered {self.covered:.0%}"
        )
        if self.why:
            return f"hits of lists that nobody saw: {self.why} ({seen})"
        best = self.estimates[-1]
        return (
            f"hits per list that nobody saw {best.value:.3f} [{best.low:.3f}, {best.high:.3f}], gain over {self.against} "
            f"{best.gain:.3f} [{best.gain_low:.3f}, {best.gain_high:.3f}] ({best.method}; {seen})"
        )
