"""Counts of a server's requests per rollout step, written to the database for the tests that judge a rollout."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from evergreen.monitoring.rollout import bets
from evergreen.monitoring.rollout.sequential_tests import error_excess
from evergreen.serving.serving_set import RequestCounter, StepCounts
from evergreen.tasks.release.rollout_state import RolloutState
from evergreen.tasks.release.rollouts import Rollouts
from evergreen.tasks.release.server_reports import RequestCounts, SideBySide

SLICE_SECONDS = 5.0
"""Shortest slice of time. Errors in one slice count as one observation, however many there are."""


@dataclass(eq=False)
class _Step:
    """One step on this server."""

    counts: StepCounts
    before: float | None
    """Share of errors of the champion that gets no traffic in this step; None: it gets some."""
    began: float = field(default_factory=time.monotonic)
    """Beginning of the current slice."""
    at_began: tuple[RequestCounts, RequestCounts] = (RequestCounts(), RequestCounts())
    growth: tuple[float, ...] = ()
    excess: float = 0.0
    written: tuple[object, ...] = ()

    def close_slice(self, allowed: float) -> None:
        """Compare the errors since the slice began, if it is long enough and both versions answered in it."""
        if time.monotonic() < self.began + SLICE_SECONDS:
            return
        now = self.counts.read()
        champion, candidate = (
            RequestCounts(after.requests - before.requests, after.errors - before.errors)
            for after, before in zip(now, self.at_began, strict=True)
        )
        if candidate.requests and (champion.requests or self.before is not None):
            excess = error_excess(champion, candidate, allowed, self.before)
            grown = bets.grow(excess).tolist()
            self.growth = tuple(map(sum, zip(self.growth, grown, strict=True))) if self.growth else tuple(grown)
            self.excess += excess
            self.began, self.at_began = time.monotonic(), now


class RolloutCounts:
    """The counts of this `server`, per rollout and step."""

    def __init__(self, rollouts: Rollouts, server: str) -> None:
        self._rollouts, self._server = rollouts, server
        self._steps: dict[tuple[int, int], _Step] = {}

    def begin(self, rollout: RolloutState, champion_before: RequestCounter) -> StepCounts:
        """Those of the rollout's current step. `champion_before`: the champion's so far, which blue/green compares with; a
        server that has none takes those of the others."""
        key = rollout.id, rollout.step
        if key not in self._steps:
            made, before = StepCounts(rollout.policy.max_latency_ratio), None
            if rollout.strategy == "blue_green":
                made.champion = champion_before
                earlier = made.read()[0] if champion_before.requests else self._rollouts.reports.counts(*key)[0]
                before = earlier.errors / max(1, earlier.requests)
            self._steps[key] = _Step(made, before, at_began=made.read())
        return self._steps[key].counts

    def write(self, active: Iterable[RolloutState]) -> None:
        """Write what changed, and drop the steps that are over and written."""
        current = {(each.id, each.step): each.policy for each in active}
        for key, step in list(self._steps.items()):
            if key in current:
                step.close_slice(current[key].max_error_increase)
            counts, probes = step.counts.read(), step.counts.probes
            found = SideBySide(step.growth, step.excess, probes.pairs, probes.slower)
            if step.written != (counts, found):
                for is_candidate, count in zip((False, True), counts, strict=True):
                    self._rollouts.reports.write_counts(*key, is_candidate, self._server, count)
                self._rollouts.reports.write_side_by_side(*key, self._server, found)
                step.written = counts, found
            elif key not in current:
                del self._steps[key]
