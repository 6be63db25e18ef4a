"""Sequential tests: wrong in at most the promised share of rollouts however often they run, and right about bad candidates."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evergreen.monitoring.rollout import sequential_tests
from evergreen.monitoring.rollout.sequential_tests import (
    Judgement,
    Losses,
    compare_errors,
    compare_latency,
    compare_losses,
    judge,
)
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.server_reports import EDGES, RequestCounts

POLICY = Rollout(strategy="canary", step_minutes=30, min_requests=100, max_error_increase=0.01, max_latency_ratio=2.0)
STEPS = (0.05, 0.25, 0.5)
RUNS, CHECKS, EACH = 100, 5, 500
"""Rollouts, judgements at each step, and requests between two judgements."""


def histogram(seconds: Any) -> dict[int, int]:
    places, counts = np.unique([bisect_left(EDGES, each) for each in seconds], return_counts=True)
    return {int(place): int(count) for place, count in zip(places, counts, strict=True)}


def judged(champion: RequestCounts, candidate: RequestCounts, **given: Any) -> Judgement:
    given = {"policy": POLICY, "steps": 3, "losses": None, "minutes": 31.0, **given}
    return judge(champion=champion, candidate=candidate, **given)


def steady(requests: int, errors: int = 0, seconds: float = 0.001) -> RequestCounts:
    return RequestCounts(requests, errors, histogram([seconds] * (requests - errors)))


def rollout(rng: np.random.Generator, errors: tuple[float, float], ratio: float, worse: float) -> bool:
    """Whether a rollout of three steps is ever aborted: errors of both versions, latency ratio, gain of the loss."""
    for share in STEPS:
        counts, losses = [RequestCounts(), RequestCounts()], [np.empty(0), np.empty(0)]
        for _ in range(CHECKS):
            candidate = rng.random(EACH) < share
            failed = rng.random(EACH) < np.where(candidate, errors[1], errors[0])
            seconds = 0.001 * np.exp(rng.normal(0, 0.7, EACH)) * np.where(candidate, ratio, 1)
            loss = rng.gamma(0.3, 1, EACH) + np.where(candidate, worse, 0)
            for side, mine in enumerate((~candidate, candidate)):
                count = RequestCounts(int(mine.sum()), int((mine & failed).sum()), histogram(seconds[mine & ~failed]))
                counts[side] += count
                losses[side] = np.concatenate([losses[side], loss[mine]])
            if judged(counts[0], counts[1], losses=[Losses(losses[0], losses[1])], minutes=0.0).decision == "abort":  # type: ignore[arg-type]
                return True
    return False


@pytest.mark.parametrize(
    ("errors", "ratio", "what"),
    [((0.01, 0.01), 1.0, "no difference"), ((0.01, 0.02), 2.0, "the largest that is allowed")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_version_that_is_not_worse_than_allowed_is_rolled_back_in_few_rollouts(errors: Any, ratio: float, what: str):
    rng = np.random.default_rng(7)
    wrong = sum(rollout(rng, errors, ratio, 0.0) for _ in range(RUNS))
    assert wrong / RUNS <= 1 - POLICY.confidence, what


@pytest.mark.parametrize(
    ("errors", "ratio", "worse"),
    [((0.01, 0.08), 1.0, 0.0), ((0.01, 0.01), 3.0, 0.0), ((0.01, 0.01), 1.0, 0.15)],
    ids=["errors", "latency", "quality"],
)
def test_a_bad_version_is_caught(errors: Any, ratio: float, worse: float):
    rng = np.random.default_rng(7)
    assert sum(rollout(rng, errors, ratio, worse) for _ in range(20)) >= 19


def ever(evidence: Callable[[int], float], until: int) -> float:
    return max(evidence(number) for number in range(1, until))


def test_a_bet_on_a_fair_coin_wins_nothing_on_average():
    for tosses in (1, 7, 30):
        chances = [math.comb(tosses, heads) / 2**tosses for heads in range(tosses + 1)]
        mean = sum(chance * math.exp(sequential_tests._coin(heads, tosses)) for heads, chance in enumerate(chances))
        assert mean == pytest.approx(1.0)


def test_the_stake_on_errors_is_a_share_of_all_outcomes():
    """The averaged likelihoods of all sequences of one length add up to one: no bet is larger than its stake."""
    for requests in (1, 5, 20):
        total = sum(
            math.comb(requests, errors) * math.exp(sequential_tests._stake(RequestCounts(requests, errors)))
            for errors in range(requests + 1)
        )
        assert total == pytest.approx(1.0)


def test_errors_are_compared_with_the_likeliest_pair_of_shares_that_is_allowed():
    champion, candidate = RequestCounts(900, 9), RequestCounts(100, 30)
    grid = np.linspace(1e-6, 0.99 - 1e-6, 200_001)
    least = min(sequential_tests._against(champion, candidate, 0.01)(share) for share in grid)
    expected = sequential_tests._stake(champion) + sequential_tests._stake(candidate) + least
    assert math.log(compare_errors(champion, candidate, 0.01, 0.01).evidence) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("wrong", "worse"), [(0, False), (1, False), (2, False), (40, True)])
def test_errors_are_worse_when_that_is_sure(wrong: int, worse: bool):
    found = compare_errors(steady(2_000, 20), steady(200, wrong), 0.01, 0.01)
    assert found.worse == worse
    assert (found.champion, found.candidate) == (0.01, wrong / 200)


def test_failure_of_all_requests_is_significant_within_a_handful():
    verdicts = [compare_errors(steady(100), RequestCounts(number, number), 0.01, 0.05 / 9).worse for number in range(1, 9)]
    assert verdicts[0] is False
    assert verdicts[-1] is True


def test_where_nothing_is_known_of_the_old_version_its_errors_are_taken_to_be_none_or_nothing_is_said():
    assert not compare_errors(RequestCounts(), steady(200, 40), 0.01, 0.01).worse
    assert compare_errors(RequestCounts(), steady(200, 40), 0.01, 0.01, spotless=True).worse
    assert not compare_errors(RequestCounts(), steady(200, 1), 0.01, 0.01, spotless=True).worse
    assert judged(RequestCounts(), steady(200, 40), alone=True).decision == "abort"
    assert judged(RequestCounts(), steady(200, 40)).decision == "step"


@pytest.mark.parametrize(("seconds", "worse"), [(0.001, False), (0.0019, False), (0.0021, False), (0.003, True)])
def test_latency_is_worse_when_the_median_is_surely_above_the_ratio(seconds: float, worse: bool):
    found = compare_latency(steady(1_000), steady(200, seconds=seconds), 2.0, 0.01)
    assert found.worse == worse
    assert found.candidate == pytest.approx(seconds, rel=0.1)


def test_a_slow_tail_alone_is_no_slow_median():
    seconds = [0.001] * 600 + [1.0] * 400
    assert not compare_latency(steady(1_000), RequestCounts(1_000, 0, histogram(seconds)), 2.0, 0.01).worse


def test_the_slowest_answers_are_slower_than_all_that_can_be_counted():
    assert compare_latency(steady(500), steady(500, seconds=1e4), 2.0, 0.01).worse
    assert not compare_latency(steady(500, seconds=1e4), steady(500, seconds=1e4), 2.0, 0.01).worse


def test_few_labels_decide_nothing_about_quality():
    few = Losses([0.0, 0.1] * 500, [9.0, 9.1] * 24)
    assert compare_losses([few], 0.01).evidence == 1.0
    assert compare_losses([Losses(few.champion, [9.0, 9.1] * 25)], 0.01).worse


def test_quality_that_is_better_is_never_worse():
    rng = np.random.default_rng(0)
    better = Losses(rng.normal(1, 1, 500).tolist(), rng.normal(0, 1, 500).tolist())
    found = compare_losses([better], 0.01)
    assert found.evidence < 1
    assert not found.seems_worse


def test_what_is_hard_at_one_time_is_hard_for_both():
    """Losses are high in the second period, where the candidate has most of its requests: this is no difference."""
    rng = np.random.default_rng(0)
    easy = Losses(rng.normal(0, 1, 900).tolist(), rng.normal(0, 1, 100).tolist())
    hard = Losses(rng.normal(5, 1, 100).tolist(), rng.normal(5, 1, 900).tolist())
    assert not compare_losses([easy, hard], 0.01).worse
    assert compare_losses([Losses([*easy.champion, *hard.champion], [*easy.candidate, *hard.candidate])], 0.01).worse


def test_pairs_show_what_groups_do_not():
    rng = np.random.default_rng(0)
    champion = rng.normal(0, 1, 300)
    candidate = champion + 0.1 + rng.normal(0, 0.1, 300)
    assert compare_losses([Losses(champion.tolist(), candidate.tolist(), paired=True)], 0.01).worse
    assert not compare_losses([Losses(champion.tolist(), candidate.tolist())], 0.01).worse


@pytest.mark.parametrize(
    ("candidate", "minutes", "decision", "why"),
    [
        (steady(500), 29.0, "wait", "29 of 30 minutes"),
        (steady(99), 31.0, "wait", "99 of 100 requests"),
        (steady(100), 31.0, "step", "100 requests, and nothing surely worse"),
        (steady(100, 4), 31.0, "wait", "seems worse in errors, which is not significant yet"),
        (steady(500, seconds=0.01), 0.0, "abort", "surely worse in latency"),
        (RequestCounts(500, 500), 0.0, "abort", "surely worse in errors"),
    ],
)
def test_a_rollout_goes_on_when_time_and_requests_suffice_and_nothing_seems_worse(
    candidate: RequestCounts, minutes: float, decision: str, why: str
):
    found = judged(steady(10_000, 10), candidate, minutes=minutes)
    assert (found.decision, found.reason.split(";")[0]) == (decision, why)


def test_the_reason_tells_the_numbers():
    found = judged(steady(10_000, 10), steady(100, 4), losses=[Losses([1.0] * 60, [1.25] * 70)])
    assert found.reason == (
        "seems worse in errors, which is not significant yet; errors 4.00% against 0.10% (100 and 10,000 requests); median "
        "latency 0.001076 s against 0.001076 s (96 and 9,990 requests); loss 1.25 against 1 (70 and 60 entities)"
    )
    assert found.tests[0].needed == pytest.approx(3 * 3 / 0.05)
    assert found.tests[2].needed == pytest.approx(3 / 0.05)
