"""Sequential tests of a rollout: whether the candidate is worse than the champion. Valid however often they run. Pure.

Each test keeps an e-value: the fortune of a bet against "the candidate is not worse than allowed" (rollout.bets), which
reaches 1/alpha in at most a share alpha of all rollouts if this is true. The tests share 1 - `confidence` equally. Errors and
latency start anew with each step, because shares change, so their part is divided by the number of steps.

    errors   the candidate's share of errors minus the champion's in the same slice of time, in [-1, 1]: a burst of equal errors
             in one slice counts as one observation
    latency  whether the candidate took longer than allowed on a row that both versions predicted one after the other: at most
             a fair coin, if the median of the ratio is at most the allowed one (sequential quantiles: Howard and Ramdas 2022)
    quality  the mean loss of the candidate's entities minus that of the champion's in one block, as a share of the largest
             loss. Exact for losses with a known upper limit, whatever the numbers and spreads of both; without one, exact for
             equal versions, and see DEVIATIONS for versions of equal mean and unequal tails

No test assumes normality, equal variances or large numbers. Blocks assume that entities are assigned at random and that their
losses are independent; slices, that errors of two slices are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evergreen.monitoring.rollout import bets
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.off_policy_value import OffPolicyValue
from evergreen.tasks.release.server_reports import EDGES, RequestCounts, SideBySide

LEARNED = 50
"""Losses without upper limit: so many entities only show how large losses are."""
DEVIATIONS = 8.0
"""Losses without upper limit: so many standard deviations above the mean, both as seen before, take the place of the limit. A
larger loss counts as that for the candidate, and in full for the champion: both lower the e-value of equal versions."""


@dataclass(frozen=True)
class Losses:
    """Losses of labelled entities, in the order in which their labels became known."""

    loss: np.ndarray
    candidate: np.ndarray
    """Whether the candidate predicted it."""
    stratum: np.ndarray
    """Only losses of one stratum are compared: those of one step, or of one request that both versions predicted."""
    largest: float = math.inf
    """Upper limit of a loss."""


class Test(Section):
    """The result of one comparison."""

    name: Literal["errors", "latency", "quality"]
    champion: float | None
    """Share of errors, median seconds, or mean loss; None: unknown."""
    candidate: float | None
    limit: float
    """Errors: allowed gain of the share. latency: allowed ratio. quality: allowed gain of the loss, 0."""
    champion_rows: int
    candidate_rows: int
    evidence: float
    """The e-value: gain of a bet that the candidate is worse than allowed, as a multiple of its stake."""
    needed: float
    """The e-value that is significant."""
    worse: bool
    """Whether the candidate is significantly worse."""
    seems_worse: bool
    """Whether the point estimate is worse, significant or not."""

    def words(self) -> str:
        how = {"errors": ("errors", "{:.2%}"), "latency": ("median latency", "{:.4g} s"), "quality": ("loss", "{:.4g}")}
        name, form = how[self.name]
        champion, candidate = ("unknown" if each is None else form.format(each) for each in (self.champion, self.candidate))
        what = {"errors": "requests", "latency": "probes", "quality": "entities"}[self.name]
        return f"{name} {candidate} against {champion} ({self.candidate_rows:,} and {self.champion_rows:,} {what})"


class Overlap(Section):
    """How much the lists of a shadow resemble the champion's, from 0 to 1: a mean over users, with its interval."""

    mean: float
    low: float | None
    high: float | None
    """None, as `low`: too few users."""
    users: int
    requests: int

    def words(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"rank-biased overlap of the lists {self.mean:.3f}{interval} ({self.requests:,} lists of {self.users:,} users)"


class Judgement(Section):
    """The decision about a rollout."""

    decision: Literal["wait", "step", "promote", "abort"]
    """step: to the next one, after the last one to the promotion; promote: without further steps."""
    reason: str
    """One sentence with the numbers."""
    tests: tuple[Test, ...]
    overlap: Overlap | None = None
    """Of a shadow's lists with the champion's; it decides nothing."""
    off_policy: OffPolicyValue | None = None
    """What a shadow's lists would have earned; it decides nothing, for its intervals are of one look."""

    def with_overlap(self, overlap: Overlap | None) -> "Judgement":
        """With the overlap as evidence and in the reason."""
        if overlap is None:
            return self
        return self.model_copy(update={"overlap": overlap, "reason": f"{self.reason}; {overlap.words()}"})

    def with_off_policy(self, found: OffPolicyValue | None) -> "Judgement":
        """With the estimates as evidence and in the reason."""
        if found is None:
            return self
        return self.model_copy(update={"off_policy": found, "reason": f"{self.reason}; {found.words()}"})


@dataclass(frozen=True)
class Elapsed:
    """The time that a rollout took so far."""

    minutes: float
    """Since its step began, or was resumed."""
    hours: float
    """Since the rollout began."""
    step: int = 0
    steps: int = 1
    paused: bool = False


def judge(
    policy: Rollout,
    elapsed: Elapsed,
    champion: RequestCounts,
    candidate: RequestCounts,
    side_by_side: SideBySide,
    losses: Losses | None,
    quality: bool = True,
) -> Judgement:
    """Judge a rollout by the requests of its current step and the labels since it began.

    `losses`: None: quality is not compared now. `quality`: whether quality is compared at any time in this rollout.
    """
    shared = (1 - policy.confidence) / (3 if quality else 2)
    tests = [
        compare_errors(champion, candidate, side_by_side, policy.max_error_increase, shared / elapsed.steps),
        compare_latency(champion, candidate, side_by_side, policy.max_latency_ratio, shared / elapsed.steps),
    ]
    tests += [] if losses is None else [compare_losses(losses, shared)]
    decision, why = _decide(policy, elapsed, tests, candidate.requests)
    known = [each.words() for each in tests if each.candidate is not None]
    return Judgement(decision=decision, reason="; ".join([why, *known]), tests=tuple(tests))


def _decide(
    policy: Rollout, elapsed: Elapsed, tests: Sequence[Test], requests: int
) -> tuple[Literal["wait", "step", "promote", "abort"], str]:
    if worse := [each.name for each in tests if each.worse]:
        return "abort", f"surely worse in {' and '.join(worse)}"
    seems = [each.name for each in tests if each.seems_worse and each.name != "quality"]
    open_ = _open(policy, elapsed, seems, requests)
    last = elapsed.step + 1 >= elapsed.steps
    if open_ is None and (last or elapsed.hours < policy.timeout_hours) and not elapsed.paused:
        return "step", f"{requests:,} requests, and nothing surely worse"
    if elapsed.hours < policy.timeout_hours:
        return "wait", open_ or "paused"
    where = f"step {elapsed.step + 1} of {elapsed.steps}"
    late = f"not complete after {policy.timeout_hours:g} hours (timeout_hours): {'paused' if elapsed.paused else where}"
    late += f", {open_}" if open_ else ""
    ends = policy.on_timeout if not seems and not elapsed.paused else "abort"
    return (ends, f"{late}; nothing surely worse") if ends == "promote" else (ends, late)


def _open(policy: Rollout, elapsed: Elapsed, seems: Sequence[str], requests: int) -> str | None:
    """Why the step is not complete; None: it is."""
    if elapsed.minutes < policy.step_minutes:
        return f"{elapsed.minutes:.3g} of {policy.step_minutes:g} minutes"
    if seems:
        return f"seems worse in {' and '.join(seems)}, which is not significant yet"
    return None if requests >= policy.min_requests else f"{requests:,} of {policy.min_requests:,} requests"


def error_excess(champion: RequestCounts, candidate: RequestCounts, allowed: float, before: float | None = None) -> float:
    """The candidate's share of errors in one slice, beyond the champion's and `allowed`, scaled to [-1, 1].

    `before`: the champion gets no traffic but the requests that failed on the candidate, and its share of errors was `before`;
    a request that fails on both versions is then no error of the candidate.
    """
    if before is None:
        shares = [each.errors / each.requests for each in (champion, candidate)]
    else:
        shares = [before, max(0, candidate.errors - champion.errors) / candidate.requests]
    return max(-1.0, (shares[1] - shares[0] - allowed) / (1 + allowed))


def compare_errors(
    champion: RequestCounts, candidate: RequestCounts, side_by_side: SideBySide, gain: float, alpha: float
) -> Test:
    shares = [each.errors / each.requests if each.requests else None for each in (champion, candidate)]
    rows = (champion.requests, candidate.requests)
    evidence = bets.total(side_by_side.growth)
    return _test("errors", shares, gain, rows, evidence, alpha, side_by_side.excess > 0)


def compare_latency(
    champion: RequestCounts, candidate: RequestCounts, side_by_side: SideBySide, ratio: float, alpha: float
) -> Test:
    """Compares latencies on the same rows; a row that a version failed on has none."""
    pairs, slower = side_by_side.pairs, side_by_side.slower
    evidence = bets.total(slower * bets.grow(1.0) + (pairs - slower) * bets.grow(-1.0))
    medians = [_median(each) for each in (champion, candidate)]
    return _test("latency", medians, ratio, (pairs, pairs), evidence, alpha, slower > pairs / 2)


def _median(count: RequestCounts) -> float | None:
    """In seconds, to the width of a bucket."""
    numbers = np.zeros(len(EDGES) + 1)
    for place, number in count.latency.items():
        numbers[place] = number
    below = numbers.cumsum()
    if not below[-1]:
        return None
    middle = float(below[-1]) / 2
    return EDGES[min(sum(each < middle for each in below.tolist()), len(EDGES) - 1)]


def compare_losses(losses: Losses, alpha: float) -> Test:
    """Compares mean losses within strata, because difficulty varies over time for both versions."""
    sides = [losses.loss[~losses.candidate], losses.loss[losses.candidate]]
    found, weights = excesses(losses)
    evidence = bets.total(bets.grow(found))
    rows = (len(sides[0]), len(sides[1]))
    means = [sum(side.tolist()) / len(side) if len(side) else None for side in sides]
    return _test("quality", means, 0.0, rows, evidence, alpha, float(found @ weights) > 0)


def excesses(losses: Losses) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of the candidate's entities minus that of the champion's in each block, as a share of the largest loss; and
    the largest loss in each block.

    A block is complete, in the order of its stratum, as soon as it holds entities of both versions. Its largest loss is known
    before its first entity.
    """
    found, scales = list[float](), list[float]()
    blocks = dict[int, tuple[list[float], list[int], float]]()
    mean = squares = 0.0
    entries = zip(losses.loss.tolist(), losses.candidate.tolist(), losses.stratum.tolist(), strict=True)
    for place, (loss, candidate, stratum) in enumerate(entries):
        limit = losses.largest
        if math.isinf(limit):
            limit = mean + DEVIATIONS * math.sqrt(squares / place) if place >= LEARNED else 0.0
        sums, counts, limit = blocks.setdefault(stratum, ([0.0, 0.0], [0, 0], limit))
        sums[candidate] += min(loss, limit) if candidate else loss
        counts[candidate] += 1
        gap = loss - mean
        mean += gap / (place + 1)
        squares += gap * (loss - mean)
        if all(counts):
            del blocks[stratum]
            if limit > 0:
                found.append((sums[1] / counts[1] - sums[0] / counts[0]) / limit)
                scales.append(limit)
    return np.array(found), np.array(scales)


def _test(
    name: Literal["errors", "latency", "quality"],
    values: Sequence[float | None],
    limit: float,
    rows: tuple[int, int],
    evidence: float,
    alpha: float,
    seems: bool,
) -> Test:
    return Test(
        name=name,
        champion=values[0],
        candidate=values[1],
        limit=limit,
        champion_rows=rows[0],
        candidate_rows=rows[1],
        evidence=math.exp(min(evidence, 300.0)),
        needed=1 / alpha,
        worse=evidence >= -math.log(alpha),
        seems_worse=seems,
    )
