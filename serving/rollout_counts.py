"""Counts of a server's requests per rollout step, written to the database for the tests that judge a rollout."""

from collections.abc import Iterable

from evergreen.serving.serving_set import LatencyHistogram
from evergreen.tasks.release.rollout_state import RolloutState
from evergreen.tasks.release.rollouts import Rollouts

Histograms = tuple[LatencyHistogram, LatencyHistogram]
"""Of the champion and of the candidate."""


class RolloutCounts:
    """The histograms of this `server`, per rollout and step."""

    def __init__(self, rollouts: Rollouts, server: str) -> None:
        self._rollouts, self._server = rollouts, server
        self._histograms: dict[tuple[int, int], Histograms] = {}
        self._written: dict[tuple[int, int], tuple[int, int]] = {}

    def histograms(self, rollout: RolloutState, champion_before: LatencyHistogram | None) -> Histograms:
        """Those of the rollout's current step. `champion_before`: starts the champion's; None: a new one."""
        key = rollout.id, rollout.step
        if key not in self._histograms:
            self._histograms[key] = champion_before or LatencyHistogram(), LatencyHistogram()
        return self._histograms[key]

    def write(self, active: Iterable[RolloutState]) -> None:
        """Write what changed, and drop the steps that are over and written."""
        current = {(each.id, each.step) for each in active}
        for key, pair in list(self._histograms.items()):
            counts = tuple(each.read() for each in pair)
            requests = counts[0].requests, counts[1].requests
            if self._written.get(key) != requests:
                for is_candidate, count in zip((False, True), counts, strict=True):
                    self._rollouts.reports.write_counts(*key, is_candidate, self._server, count)
                self._written[key] = requests
            elif key not in current:
                del self._histograms[key], self._written[key]
