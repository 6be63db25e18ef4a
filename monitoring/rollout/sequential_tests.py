"""May a version on trial go on? Tests on what was answered so far, that hold however often one looks. Pure.

Each test keeps an e-value: a bet against "the new version is not worse than allowed" that on average wins nothing where that
is so. By Ville's inequality (1939) it then ever reaches 1/alpha in at most a share alpha of all rollouts, whenever and however
often somebody looks. `confidence` is of the tests together: each gets its part of 1 - confidence, and those that begin anew
with each step (shares change then, and with them the hours that both are compared in) a part of that for each step.

    errors   Bernoulli streams; each side's likelihood averaged over all shares (Beta(1/2, 1/2): Robbins 1970) over its
             likelihood at a share, the product at its lowest over all pairs of shares that are allowed (universal inference:
             Wasserman, Ramdas and Balakrishnan 2020)
    latency  the same idea for two medians: an answer is below its version's median or not, a fair coin (sequential quantiles:
             Howard and Ramdas 2022); histograms make it a little harder to lose, never easier
    quality  the mean loss of answers whose truth is known, as a mixture of normal likelihood ratios, one-sided (mSPRT: Robbins
             1970; Johari, Koomen, Pekelis and Walsh 2022); for large numbers, so it says nothing of fewer than LEAST entities

Latencies of single answers are taken to be alike within a step: what slows a whole machine slows both versions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.server_reports import BUCKETS_PER_DOUBLING, EDGES, RequestCounts

LEAST = 50
"""Entities with known truth, of each version, from which on quality is judged."""
SPREAD = 0.1
"""Of differences of quality that are worth looking for, in standard deviations of the loss."""
COINS = 0.5 + np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.49])
"""Chances that a coin which is not fair is bet to have."""
LOG_HEADS, LOG_TAILS = np.log(2 * COINS), np.log(2 * (1 - COINS))
ROUNDS = 100
"""Of the search for the likeliest pair of shares."""


@dataclass(frozen=True)
class Losses:
    """Of one stretch of time in which both versions answered their shares: losses of entities whose truth is known."""

    old: Sequence[float]
    new: Sequence[float]
    paired: bool = False
    """Whether both answered the same, in this order."""


class Test(Section):
    """One side of the comparison."""

    name: Literal["errors", "latency", "quality"]
    old: float | None
    """Share of errors, median seconds, or mean loss; None: not known."""
    new: float | None
    limit: float
    """Errors: allowed gain of the share. latency: allowed ratio. quality: allowed gain of the loss, 0."""
    old_rows: int
    new_rows: int
    evidence: float
    """The e-value: this many times its stake has won whoever bets that the new version is worse than allowed."""
    needed: float
    """From here on it is sure."""
    worse: bool
    """Whether it surely is."""
    seems_worse: bool
    """Whether the numbers alone say so."""

    def words(self) -> str:
        how = {"errors": ("errors", "{:.2%}"), "latency": ("median latency", "{:.4g} s"), "quality": ("loss", "{:.4g}")}
        name, form = how[self.name]
        old, new = ("unknown" if each is None else form.format(each) for each in (self.old, self.new))
        what = "entities" if self.name == "quality" else "answers"
        return f"{name} {new} against {old} ({self.new_rows:,} and {self.old_rows:,} {what})"


class Judgement(Section):
    """What should become of a rollout now."""

    decision: Literal["wait", "go on", "promote", "take back"]
    """go on: to the next step, or after the last one to the promotion; promote: without any further step."""
    reason: str
    """One sentence for a person, with the numbers."""
    tests: tuple[Test, ...]


def judge(
    policy: Rollout,
    steps: int,
    old: RequestCounts,
    new: RequestCounts,
    losses: Sequence[Losses] | None,
    minutes: float,
    alone: bool = False,
    quality: bool = True,
) -> Judgement:
    """What the answers of one step, and the truths of the whole rollout, say.

    `steps`: how many there are. `losses`: of each stretch; None: they are not looked at now. `minutes`: since the step began.
    `alone`: the old version answers nothing meanwhile, and what it did before stands for it; where that is nothing, it is
    taken to have made no error. `quality`: whether some look ever compares losses.
    """
    shared = (1 - policy.confidence) / (3 if quality else 2)
    tests = [
        compare_errors(old, new, policy.max_error_increase, shared / steps, alone and not old.requests),
        compare_latency(old, new, policy.max_latency_ratio, shared / steps),
    ]
    tests += [] if losses is None else [compare_losses(losses, shared)]
    decision, why = _decide(policy, tests, new.requests, minutes)
    known = [each.words() for each in tests if each.new is not None]
    return Judgement(decision=decision, reason="; ".join([why, *known]), tests=tuple(tests))


def _decide(
    policy: Rollout, tests: Sequence[Test], answers: int, minutes: float
) -> tuple[Literal["wait", "go on", "promote", "take back"], str]:
    if worse := [each.name for each in tests if each.worse]:
        return "take back", f"surely worse in {' and '.join(worse)}"
    if minutes < policy.step_minutes:
        return "wait", f"{minutes:.3g} of {policy.step_minutes:g} minutes"
    if seems := [each.name for each in tests if each.seems_worse and each.name != "quality"]:
        return "wait", f"seems worse in {' and '.join(seems)}, and that is not sure yet"
    if answers >= policy.min_requests:
        return "go on", f"{answers:,} answers, and nothing surely worse"
    few = f"{answers:,} of {policy.min_requests:,} answers"
    if minutes < policy.timeout_hours * 60 or policy.on_timeout == "hold":
        return "wait", few
    late = f"{few} after {policy.timeout_hours:g} hours"
    return ("promote", f"{late}, and nothing surely worse") if policy.on_timeout == "promote" else ("take back", late)


def compare_errors(old: RequestCounts, new: RequestCounts, gain: float, alpha: float, spotless: bool = False) -> Test:
    """`spotless`: the old version, of which nothing is known, is taken to make no errors."""
    known = [each.errors / each.requests if each.requests else None for each in (old, new)]
    before = 0.0 if spotless else known[0]
    evidence = 0.0
    seems = before is not None and known[1] is not None and known[1] > before + gain
    if seems:
        evidence = _stake(new) + _stake(old) + _least(_against(old, new, gain), 0.0, 0.0 if spotless else 1 - gain)
    return _test("errors", before, known[1], gain, (old.requests, new.requests), evidence, alpha, seems)


def _stake(count: RequestCounts) -> float:
    """Log of the likelihood of the answers, averaged over all shares of errors with the weights of Beta(1/2, 1/2)."""
    wrong, right = count.errors + 0.5, count.requests - count.errors + 0.5
    return math.lgamma(wrong) + math.lgamma(right) - math.lgamma(wrong + right) - math.log(math.pi)


def _against(old: RequestCounts, new: RequestCounts, gain: float) -> Callable[[float], float]:
    """Of the old version's share of errors, the new one's being higher by `gain`: minus the log-likelihood of all answers."""
    return lambda share: _surprise(old, share) + _surprise(new, share + gain)


def _surprise(count: RequestCounts, share: float) -> float:
    wrong, right = count.errors, count.requests - count.errors
    if (wrong and share <= 0) or (right and share >= 1):
        return math.inf
    return -(wrong * math.log(share) if wrong else 0.0) - (right * math.log1p(-share) if right else 0.0)


def _least(value: Callable[[float], float], low: float, high: float) -> float:
    """The least value of a convex function between `low` and `high`."""
    for _ in range(ROUNDS):
        third = (high - low) / 3
        one, two = low + third, high - third
        if value(one) < value(two):
            high = two
        else:
            low = one
    return value((low + high) / 2)


def compare_latency(old: RequestCounts, new: RequestCounts, ratio: float, alpha: float) -> Test:
    """Compares medians; an answer that failed has no latency."""
    medians = [_median(each) for each in (old, new)]
    before, after = medians
    evidence = 0.0
    seems = before is not None and after is not None and after > before * ratio
    if seems:
        farther = 1 + math.floor(BUCKETS_PER_DOUBLING * math.log2(ratio) + 1e-9)
        below_old, below_new = _cumulated(old), _cumulated(new)
        places = np.arange(len(below_old))
        slower = below_new[-1] - below_new[np.minimum(places + farther, places[-1])]
        faster = np.concatenate([[0], below_old[:-1]])
        evidence = float((_coin(faster, below_old[-1]) + _coin(slower, below_new[-1])).min())
    rows = (sum(old.latency.values()), sum(new.latency.values()))
    return _test("latency", before, after, ratio, rows, evidence, alpha, seems)


def _median(count: RequestCounts) -> float | None:
    """In seconds, to the width of a bucket."""
    below = _cumulated(count)
    if not below[-1]:
        return None
    return EDGES[min(int(np.searchsorted(below, below[-1] / 2)), len(EDGES) - 1)]


def _cumulated(count: RequestCounts) -> np.ndarray:
    """Answers in each bucket or one before it."""
    found = np.zeros(len(EDGES) + 1)
    for place, number in count.latency.items():
        found[place] = number
    return found.cumsum()


def _coin(heads: Any, tosses: float) -> Any:
    """Log of what a bet won that a coin falls on heads more often than not; of a coin that does not, nothing on average.

    One value for each of `heads`.
    """
    bets = np.multiply.outer(heads, LOG_HEADS) + np.multiply.outer(tosses - np.asarray(heads), LOG_TAILS)
    return np.logaddexp.reduce(bets, axis=-1) - math.log(len(LOG_HEADS))


def compare_losses(losses: Sequence[Losses], alpha: float) -> Test:
    """Compares mean losses, each stretch within itself: what is hard at one time is hard for both."""
    sides = [[np.asarray(each.old, dtype=float) for each in losses], [np.asarray(each.new, dtype=float) for each in losses]]
    rows = [sum(len(each) for each in side) for side in sides]
    means = [
        float(sum(each.sum() for each in side)) / count if count else None for side, count in zip(sides, rows, strict=True)
    ]
    weight = gained = spread = 0.0
    for old, new, paired in zip(*sides, (each.paired for each in losses), strict=True):
        if len(old) and len(new) and max(len(old), len(new)) > 1:
            mine, gain, variance = (_pairs if paired else _groups)(old, new)
            weight, gained, spread = weight + mine, gained + mine * gain, spread + mine * variance
    evidence = 0.0
    if min(rows) >= LEAST and spread > 0:
        evidence = _mixture(gained / weight, spread / weight**2, SPREAD**2 * spread / weight)
    return _test("quality", means[0], means[1], 0.0, (rows[0], rows[1]), evidence, alpha, gained > 0)


def _pairs(old: np.ndarray, new: np.ndarray) -> tuple[float, float, float]:
    """Weight, mean gain of the loss, and variance of one pair's gain."""
    return len(old), float((new - old).mean()), float((new - old).var(ddof=1))


def _groups(old: np.ndarray, new: np.ndarray) -> tuple[float, float, float]:
    """The same of two groups: Mantel and Haenszel's weight, and the variance within both."""
    counts = len(old), len(new)
    within = float(old.var() * counts[0] + new.var() * counts[1]) / max(1, sum(counts) - 2)
    return counts[0] * counts[1] / sum(counts), float(new.mean() - old.mean()), within


def _mixture(gain: float, variance: float, prior: float) -> float:
    """Log of the likelihood of `gain` (of `variance`), averaged over true gains above 0 of normal weight, over that at 0."""
    whole = variance + prior
    tail = 1 + math.erf(gain * math.sqrt(prior / (2 * variance * whole)))
    height = prior * gain**2 / (2 * variance * whole)
    return -math.inf if tail <= 0 else 0.5 * math.log(variance / whole) + height + math.log(tail)


def _test(
    name: Literal["errors", "latency", "quality"],
    old: float | None,
    new: float | None,
    limit: float,
    rows: tuple[int, int],
    evidence: float,
    alpha: float,
    seems: bool,
) -> Test:
    return Test(
        name=name,
        old=old,
        new=new,
        limit=limit,
        old_rows=rows[0],
        new_rows=rows[1],
        evidence=math.exp(min(evidence, 300.0)),
        needed=1 / alpha,
        worse=evidence >= -math.log(alpha),
        seems_worse=seems,
    )
