"""Rollouts: how often the sequential tests roll back equal versions, and how often worse ones."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from bench.statistics.claim import Claim
from evergreen.monitoring.rollout import bets, sequential_tests
from evergreen.monitoring.rollout.sequential_tests import Losses, error_excess
from evergreen.serving.serving_set import LatencyProbes
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.server_reports import RequestCounts

Draw = Callable[[np.random.Generator, int], np.ndarray]
POLICY = Rollout()
ALPHA = (1 - POLICY.confidence) / 3
"""Of each test in a rollout."""
STEP_ALPHA = ALPHA / len(POLICY.steps)
"""Of errors and latency, which start anew with each step."""
SLICES = 360
"""Of five seconds: 30 minutes."""
PER_SLICE = 50
"""Requests: ten a second."""


def simulate(scale: float, seed: int) -> Iterator[Claim]:
    yield from quality(scale, seed)
    yield from latency(scale, seed)
    yield from errors(scale, seed)


# Quality

EQUAL: dict[str, tuple[Draw, float]] = {
    "squared errors, gamma 0.3": (lambda rng, n: rng.gamma(0.3, 1, n), math.inf),
    "squared errors, lognormal 1.5": (lambda rng, n: np.exp(1.5 * rng.normal(size=n)), math.inf),
    "squared errors of Student's t, 3 degrees": (lambda rng, n: rng.standard_t(3, n) ** 2, math.inf),
    "Brier, 1 % positives": (lambda rng, n: np.where(rng.random(n) < 0.01, 1.9602, 0.0002), 2.0),
    "1 - NDCG, 3 % of lists hit": (lambda rng, n: np.where(rng.random(n) < 0.03, rng.random(n), 1.0), 1.0),
}
SPREAD: dict[str, tuple[Draw, Draw]] = {
    "champion gamma 3, candidate gamma 0.3": (lambda rng, n: rng.gamma(3, 1 / 3, n), lambda rng, n: rng.gamma(0.3, 1 / 0.3, n)),
    "champion gamma 0.3, candidate gamma 3": (lambda rng, n: rng.gamma(0.3, 1 / 0.3, n), lambda rng, n: rng.gamma(3, 1 / 3, n)),
    "champion lognormal 0.5, candidate 1.5": (
        lambda rng, n: np.exp(0.5 * rng.normal(size=n) - 0.125),
        lambda rng, n: np.exp(1.5 * rng.normal(size=n) - 1.125),
    ),
    "champion lognormal 1.5, candidate 0.5": (
        lambda rng, n: np.exp(1.5 * rng.normal(size=n) - 1.125),
        lambda rng, n: np.exp(0.5 * rng.normal(size=n) - 0.125),
    ),
}
SHARES = {"share 5 %, 10,000 labels": ((0.05,), 10_000), "5, 25 and 50 %, 2,500 labels each": ((0.05, 0.25, 0.5), 2_500)}


def quality(scale: float, seed: int) -> Iterator[Claim]:
    rng, runs = np.random.default_rng(seed), max(1, round(600 * scale))
    for where, (shares, labels) in SHARES.items():
        for name, (draw, largest) in EQUAL.items():
            found = sum(ever_worse(traffic(rng, draw, draw, shares, labels, largest)) for _ in range(runs))
            yield Claim("rollout, quality: equal versions rolled back", f"{name}; {where}", found, runs, 0, ALPHA)
        for name, (champion, candidate) in SPREAD.items():
            found = sum(ever_worse(traffic(rng, champion, candidate, shares, labels)) for _ in range(runs))
            yield Claim("rollout, quality: equal means rolled back", f"{name}; {where}", found, runs, 0, ALPHA)
        found = sum(ever_worse(returning(rng, shares, labels // 5)) for _ in range(runs))
        yield Claim(
            "rollout, quality: equal versions rolled back", f"the same entities in each step; {where}", found, runs, 0, ALPHA
        )
        for name, (draw, largest) in EQUAL.items():
            worse = 0.2 * float(draw(np.random.default_rng(0), 1_000_000).std())
            some = max(1, runs // 4)
            found = sum(ever_worse(traffic(rng, draw, draw, shares, labels, largest, worse)) for _ in range(some))
            yield Claim("rollout, quality: 0.2 standard deviations worse, rolled back", f"{name}; {where}", found, some, 0.5, 1)


def traffic(
    rng: np.random.Generator,
    champion: Draw,
    candidate: Draw,
    shares: tuple[float, ...],
    labels: int,
    largest: float = math.inf,
    worse: float = 0.0,
) -> Losses:
    """`labels` entities at each share. Losses with an upper limit stay below it."""
    is_candidate = np.concatenate([rng.random(labels) < share for share in shares])
    n = len(is_candidate)
    loss = np.where(is_candidate, candidate(rng, n) + worse, champion(rng, n))
    return Losses(loss, is_candidate, np.repeat(np.arange(len(shares)), labels), largest + worse)


def returning(rng: np.random.Generator, shares: tuple[float, ...], entities: int) -> Losses:
    """Each entity comes back in each step with the same loss; it counts as the candidate's once."""
    loss, position, order = np.exp(1.5 * rng.normal(size=entities)), rng.random(entities), rng.permutation(entities)
    parts, before = list[Losses](), 0.0
    for step, share in enumerate(shares):
        new, old = position < share, position < before
        kept = order[~old[order]]
        parts.append(Losses(loss[kept], new[kept], np.full(len(kept), step)))
        before, order = share, rng.permutation(entities)
    loss, candidate, stratum = (
        np.concatenate([getattr(each, name) for each in parts]) for name in ("loss", "candidate", "stratum")
    )
    return Losses(loss, candidate, stratum)


def ever_worse(losses: Losses) -> bool:
    """Whether the test is significant at any look, one after each block."""
    excesses, _ = sequential_tests.excesses(losses)
    return ever_significant(excesses, ALPHA)


def ever_significant(observations: np.ndarray | list[float], alpha: float) -> bool:
    growth = bets.factors(observations).cumsum(axis=1)
    return bool((np.logaddexp.reduce(growth, axis=0) - math.log(len(growth)) >= -math.log(alpha)).any())


# Latency

NOISE = 0.5
"""Standard deviation of the logarithm of one latency beside the other: rows, garbage collection, neighbours."""


def latency(scale: float, seed: int) -> Iterator[Claim]:
    rng, runs = np.random.default_rng(seed + 1), max(1, round(600 * scale))
    for ratio, what in ((1.0, "equal versions"), (POLICY.max_latency_ratio, "a ratio of the allowed 2")):
        found = sum(slower_within(rng, 20_000, ratio, lambda n: np.ones(n)) for _ in range(runs))
        yield Claim("rollout, latency: rolled back within 20,000 requests", what, found, runs, 0, STEP_ALPHA)
    rises, some = 0, max(1, round(200 * scale))
    for _ in range(some):
        begins, height = rng.integers(1_000, 5_000), rng.uniform(2, 20)
        rises += slower_within(rng, 10_000, 1.0, lambda n, b=begins, h=height: np.where(np.arange(n) < b, 1, h))
    yield Claim("rollout, latency: rolled back when traffic rises", "load of 2 to 20 times, equal versions", rises, some, 0, 0)
    found = sum(slower_within(rng, 1_000, 3.0, lambda n: np.ones(n)) for _ in range(runs))
    yield Claim("rollout, latency: rolled back within 1,000 requests", "three times slower", found, runs, 0.95, 1)


def slower_within(rng: np.random.Generator, requests: int, ratio: float, load: Callable[[int], np.ndarray]) -> bool:
    """Whether the test is significant at any look, one after each probe. `load`: what multiplies both latencies, by request."""
    probes, slower = LatencyProbes(POLICY.max_latency_ratio), list[float]()
    asked = np.array([request for request in range(requests) if probes.due()])
    seconds = 0.001 * load(requests)[asked, None] * np.exp(NOISE * rng.normal(size=(len(asked), 2)))
    for champion, candidate in (seconds * [1, ratio]).tolist():
        before = probes.slower
        probes.add(champion, candidate)
        slower.append(1.0 if probes.slower > before else -1.0)
    return ever_significant(slower, STEP_ALPHA)


# Errors


def errors(scale: float, seed: int) -> Iterator[Claim]:
    rng, runs = np.random.default_rng(seed + 2), max(1, round(600 * scale))
    equal, worse = "rollout, errors: equal versions rolled back", "rollout, errors: rolled back"
    calm = "ten requests a second, three steps of 30 minutes"
    found = sum(fails(rng, (0.01, 0.01)) for _ in range(runs))
    yield Claim(equal, f"1 % of errors; {calm}", found, runs, 0, ALPHA)
    found = sum(fails(rng, (0.01, 0.02)) for _ in range(runs))
    yield Claim(worse, f"1 % and the allowed 2 %; {calm}", found, runs, 0, ALPHA)
    for bursts in (1, 4, 12):
        found = sum(fails(rng, (0.0, 0.0), bursts) for _ in range(runs))
        yield Claim(equal, f"{bursts} bursts of 20 to 100 errors in 30 minutes; {calm}", found, runs, 0, ALPHA)
    found = sum(fails(rng, (0.01, 0.08)) for _ in range(max(1, runs // 4)))
    yield Claim(worse, f"1 % and 8 %; {calm}", found, max(1, runs // 4), 0.95, 1)


def slices(rng: np.random.Generator, share: float, rates: tuple[float, float], bursts: float) -> tuple[np.ndarray, np.ndarray]:
    """Requests and errors in each slice: one row each, the champion's and the candidate's.

    A burst is one caller's: all of it goes to one version, within three seconds.
    """
    asked = rng.binomial(PER_SLICE, share, SLICES)
    requests = np.stack([PER_SLICE - asked, asked], axis=1)
    wrong = rng.binomial(requests, np.array(rates))
    for _ in range(rng.poisson(bursts)):
        side, place, size = int(rng.random() < share), rng.integers(0, SLICES - 1), rng.integers(20, 101)
        first = size if rng.random() < 0.4 else rng.integers(0, size + 1)  # three of five seconds: it may cross a boundary
        for where, count in ((place, first), (place + 1, size - first)):
            requests[where, side] += count
            wrong[where, side] += count
    return requests, wrong


def fails(rng: np.random.Generator, rates: tuple[float, float], bursts: float = 0.0) -> bool:
    """Whether a rollout is ever rolled back, looked at after each slice."""
    for share in POLICY.steps:
        requests, wrong = slices(rng, share, rates, bursts)
        excess = list[float]()
        champion = candidate = RequestCounts()
        for asked, failed in zip(requests.tolist(), wrong.tolist(), strict=True):
            champion += RequestCounts(asked[0], failed[0])
            candidate += RequestCounts(asked[1], failed[1])
            if champion.requests and candidate.requests:
                excess.append(error_excess(champion, candidate, POLICY.max_error_increase))
                champion = candidate = RequestCounts()
        if ever_significant(excess, STEP_ALPHA):
            return True
    return False
