"""Sequential tests of a rollout: whether the candidate is worse than the champion. Valid however often they run. Pure.

Each test keeps an e-value: a bet against "the candidate is not worse than allowed" that wins nothing on average if this is
true. By Ville's inequality (1939) it then reaches 1/alpha in at most a share alpha of all rollouts, however often the tests
run. The tests share 1 - `confidence` equally. Errors and latency start anew with each step, because shares change, so their
part is divided by the number of steps.

    errors   Bernoulli streams; each side's likelihood averaged over all shares (Beta(1/2, 1/2): Robbins 1970) over its
             likelihood at a share, the product at its lowest over all pairs of shares that are allowed (universal inference:
             Wasserman, Ramdas and Balakrishnan 2020)
    latency  the same idea for two medians: a response is below its version's median or not, a fair coin (sequential quantiles:
             Howard and Ramdas 2022); histograms make it a little harder to lose, never easier
    quality  the mean loss of labelled predictions, as a mixture of normal likelihood ratios, one-sided (mSPRT: Robbins
             1970; Johari, Koomen, Pekelis and Walsh 2022); for large numbers, so it needs MIN_ENTITIES entities

Latencies within a step count as identically distributed: load on a machine slows both versions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.server_reports import BUCKETS_PER_DOUBLING, EDGES, RequestCounts

MIN_ENTITIES = 50
"""Fewest labelled entities of each version for a comparison of quality."""
SPREAD = 0.1
"""Prior width of the difference in quality, in standard deviations of the loss."""
COINS = 0.5 + np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.49])
"""Alternatives to a fair coin: probabilities of heads."""
LOG_HEADS, LOG_TAILS = np.log(2 * COINS), np.log(2 * (1 - COINS))
ROUNDS = 100
"""Iterations of the search for the likeliest pair of shares."""


@dataclass(frozen=True)
class Losses:
    """Losses of labelled entities in one period, in which the shares of both versions were constant."""

    champion: Sequence[float]
    candidate: Sequence[float]
    paired: bool = False
    """Whether both predicted the same requests, in this order."""


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
        what = "entities" if self.name == "quality" else "requests"
        return f"{name} {candidate} against {champion} ({self.candidate_rows:,} and {self.champion_rows:,} {what})"


class Judgement(Section):
    """The decision about a rollout."""

    decision: Literal["wait", "step", "promote", "abort"]
    """step: to the next one, after the last one to the promotion; promote: without further steps."""
    reason: str
    """One sentence with the numbers."""
    tests: tuple[Test, ...]


def judge(
    policy: Rollout,
    steps: int,
    champion: RequestCounts,
    candidate: RequestCounts,
    losses: Sequence[Losses] | None,
    minutes: float,
    alone: bool = False,
    quality: bool = True,
) -> Judgement:
    """Judge a rollout by the requests of its current step and the labels since it began.

    `steps`: number of steps. `losses`: of each period; None: quality is not compared now. `minutes`: since the step began.
    `alone`: the champion gets no traffic during the step, so its earlier requests count; without any, its error share counts
    as 0. `quality`: whether quality is compared at any time in this rollout.
    """
    shared = (1 - policy.confidence) / (3 if quality else 2)
    tests = [
        compare_errors(champion, candidate, policy.max_error_increase, shared / steps, alone and not champion.requests),
        compare_latency(champion, candidate, policy.max_latency_ratio, shared / steps),
    ]
    tests += [] if losses is None else [compare_losses(losses, shared)]
    decision, why = _decide(policy, tests, candidate.requests, minutes)
    known = [each.words() for each in tests if each.candidate is not None]
    return Judgement(decision=decision, reason="; ".join([why, *known]), tests=tuple(tests))


def _decide(
    policy: Rollout, tests: Sequence[Test], requests: int, minutes: float
) -> tuple[Literal["wait", "step", "promote", "abort"], str]:
    if worse := [each.name for each in tests if each.worse]:
        return "abort", f"surely worse in {' and '.join(worse)}"
    if minutes < policy.step_minutes:
        return "wait", f"{minutes:.3g} of {policy.step_minutes:g} minutes"
    if seems := [each.name for each in tests if each.seems_worse and each.name != "quality"]:
        return "wait", f"seems worse in {' and '.join(seems)}, which is not significant yet"
    if requests >= policy.min_requests:
        return "step", f"{requests:,} requests, and nothing surely worse"
    few = f"{requests:,} of {policy.min_requests:,} requests"
    if minutes < policy.timeout_hours * 60 or policy.on_timeout == "hold":
        return "wait", few
    late = f"{few} after {policy.timeout_hours:g} hours"
    return ("promote", f"{late}, and nothing surely worse") if policy.on_timeout == "promote" else ("abort", late)


def compare_errors(
    champion: RequestCounts, candidate: RequestCounts, gain: float, alpha: float, spotless: bool = False
) -> Test:
    """`spotless`: the champion has no requests, and its error share counts as 0."""
    known = [each.errors / each.requests if each.requests else None for each in (champion, candidate)]
    before = 0.0 if spotless else known[0]
    evidence = 0.0
    seems = before is not None and known[1] is not None and known[1] > before + gain
    if seems:
        evidence = (
            _stake(candidate)
            + _stake(champion)
            + _least(_against(champion, candidate, gain), 0.0, 0.0 if spotless else 1 - gain)
        )
    return _test("errors", before, known[1], gain, (champion.requests, candidate.requests), evidence, alpha, seems)


def _stake(count: RequestCounts) -> float:
    """Log of the likelihood of the responses, averaged over all shares of errors with the weights of Beta(1/2, 1/2)."""
    wrong, right = count.errors + 0.5, count.requests - count.errors + 0.5
    return math.lgamma(wrong) + math.lgamma(right) - math.lgamma(wrong + right) - math.log(math.pi)


def _against(champion: RequestCounts, candidate: RequestCounts, gain: float) -> Callable[[float], float]:
    """Minus the log-likelihood of all responses by the champion's error share; the candidate's is `gain` higher."""
    return lambda share: _surprise(champion, share) + _surprise(candidate, share + gain)


def _surprise(count: RequestCounts, share: float) -> float:
    wrong, right = count.errors, count.requests - count.errors
    if (wrong and share <= 0) or (right and share >= 1):
        return math.inf
    return -(wrong * math.log(share) if wrong else 0.0) - (right * math.log1p(-share) if right else 0.0)


def _least(value: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a convex function between `low` and `high`."""
    for _ in range(ROUNDS):
        third = (high - low) / 3
        one, two = low + third, high - third
        if value(one) < value(two):
            high = two
        else:
            low = one
    return value((low + high) / 2)


def compare_latency(champion: RequestCounts, candidate: RequestCounts, ratio: float, alpha: float) -> Test:
    """Compares medians; a failed request has no latency."""
    medians = [_median(each) for each in (champion, candidate)]
    before, after = medians
    evidence = 0.0
    seems = before is not None and after is not None and after > before * ratio
    if seems:
        farther = 1 + math.floor(BUCKETS_PER_DOUBLING * math.log2(ratio) + 1e-9)
        below_champion, below_candidate = _cumulated(champion), _cumulated(candidate)
        places = np.arange(len(below_champion))
        slower = below_candidate[-1] - below_candidate[np.minimum(places + farther, places[-1])]
        faster = np.concatenate([[0], below_champion[:-1]])
        evidence = float((_coin(faster, below_champion[-1]) + _coin(slower, below_candidate[-1])).min())
    rows = (sum(champion.latency.values()), sum(candidate.latency.values()))
    return _test("latency", before, after, ratio, rows, evidence, alpha, seems)


def _median(count: RequestCounts) -> float | None:
    """In seconds, to the width of a bucket."""
    below = _cumulated(count)
    if not below[-1]:
        return None
    return EDGES[min(int(np.searchsorted(below, below[-1] / 2)), len(EDGES) - 1)]


def _cumulated(count: RequestCounts) -> np.ndarray:
    """Requests in each bucket or an earlier one."""
    found = np.zeros(len(EDGES) + 1)
    for place, number in count.latency.items():
        found[place] = number
    return found.cumsum()


def _coin(heads: Any, tosses: float) -> Any:
    """Log of the gain of a bet that heads are likelier than tails; the mean gain on a fair coin is none.

    One value for each of `heads`.
    """
    bets = np.multiply.outer(heads, LOG_HEADS) + np.multiply.outer(tosses - np.asarray(heads), LOG_TAILS)
    return np.logaddexp.reduce(bets, axis=-1) - math.log(len(LOG_HEADS))


def compare_losses(losses: Sequence[Losses], alpha: float) -> Test:
    """Compares mean losses within each period, because difficulty varies over time for both versions."""
    sides = [
        [np.asarray(each.champion, dtype=float) for each in losses],
        [np.asarray(each.candidate, dtype=float) for each in losses],
    ]
    rows = [sum(len(each) for each in side) for side in sides]
    means = [
        float(sum(each.sum() for each in side)) / count if count else None for side, count in zip(sides, rows, strict=True)
    ]
    weight = gained = spread = 0.0
    for champion, candidate, paired in zip(*sides, (each.paired for each in losses), strict=True):
        if len(champion) and len(candidate) and max(len(champion), len(candidate)) > 1:
            mine, gain, variance = (_pairs if paired else _groups)(champion, candidate)
            weight, gained, spread = weight + mine, gained + mine * gain, spread + mine * variance
    evidence = 0.0
    if min(rows) >= MIN_ENTITIES and spread > 0:
        evidence = _mixture(gained / weight, spread / weight**2, SPREAD**2 * spread / weight)
    return _test("quality", means[0], means[1], 0.0, (rows[0], rows[1]), evidence, alpha, gained > 0)


def _pairs(champion: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float]:
    """Weight, mean increase of the loss, and variance of one pair's increase."""
    return len(champion), float((candidate - champion).mean()), float((candidate - champion).var(ddof=1))


def _groups(champion: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float]:
    """The same of two groups: Mantel and Haenszel's weight, and the variance within both."""
    counts = len(champion), len(candidate)
    within = float(champion.var() * counts[0] + candidate.var() * counts[1]) / max(1, sum(counts) - 2)
    return counts[0] * counts[1] / sum(counts), float(candidate.mean() - champion.mean()), within


def _mixture(gain: float, variance: float, prior: float) -> float:
    """Log of the likelihood of `gain` (of `variance`), averaged over true gains above 0 of normal weight, over that at 0."""
    whole = variance + prior
    tail = 1 + math.erf(gain * math.sqrt(prior / (2 * variance * whole)))
    height = prior * gain**2 / (2 * variance * whole)
    return -math.inf if tail <= 0 else 0.5 * math.log(variance / whole) + height + math.log(tail)


def _test(
    name: Literal["errors", "latency", "quality"],
    champion: float | None,
    candidate: float | None,
    limit: float,
    rows: tuple[int, int],
    evidence: float,
    alpha: float,
    seems: bool,
) -> Test:
    return Test(
        name=name,
        champion=champion,
        candidate=candidate,
        limit=limit,
        champion_rows=rows[0],
        candidate_rows=rows[1],
        evidence=math.exp(min(evidence, 300.0)),
        needed=1 / alpha,
        worse=evidence >= -math.log(alpha),
        seems_worse=seems,
    )
