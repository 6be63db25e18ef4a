"""Sequential tests: wrong in at most the promised share of rollouts however often they run, and right about bad candidates."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.monitoring.rollout import bets, sequential_tests
from evergreen.monitoring.rollout.sequential_tests import (
    LEARNED,
    Elapsed,
    Judgement,
    Losses,
    compare_errors,
    compare_latency,
    compare_losses,
    error_excess,
    judge,
)
from evergreen.tasks.config.operations import Rollout
from evergreen.tasks.release.server_reports import RequestCounts, SideBySide

POLICY = Rollout(strategy="canary", step_minutes=30, min_requests=100, max_error_increase=0.01, max_latency_ratio=2.0)
ALPHA = 0.05 / 3


def judged(champion: RequestCounts, candidate: RequestCounts, found: SideBySide = SideBySide(), **given: Any) -> Judgement:  # noqa: B008
    elapsed = Elapsed(given.pop("minutes", 31.0), given.pop("hours", 1.0), given.pop("step", 0), 3, given.pop("paused", False))
    policy = POLICY.model_copy(update=given.pop("policy", {}))
    return judge(policy, elapsed, champion, candidate, found, given.pop("losses", None))


def in_slices(*slices: tuple[int, int, int, int], allowed: float = 0.01, before: float | None = None) -> SideBySide:
    """Requests and errors of the champion, then of the candidate, in each slice."""
    excess = [error_excess(RequestCounts(*each[:2]), RequestCounts(*each[2:]), allowed, before) for each in slices]
    return SideBySide(growth=tuple(bets.grow(excess)), excess=sum(excess))


def grouped(champion: Any, candidate: Any, stratum: int = 0, seed: int = 0, largest: float = math.inf) -> Losses:
    """Both groups in random order."""
    loss = np.concatenate([champion, candidate])
    order = np.random.default_rng(seed).permutation(len(loss))
    return Losses(loss[order], (np.arange(len(loss)) >= len(champion))[order], np.full(len(loss), stratum), largest)


def ever(losses: Losses) -> float:
    """The largest e-value at any look."""
    excesses, _ = sequential_tests.excesses(losses)
    growth = bets.factors(excesses).cumsum(axis=1)
    return math.exp(max((bets.total(each) for each in growth.T), default=0.0))


# Bets


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=6), st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_a_bet_on_a_mean_of_zero_wins_nothing_on_average(before: list[float], up: float):
    """Whatever was seen before: two outcomes with mean 0."""
    down = -up / (1 - up) if up <= 0.5 else -1.0
    gain = -down * (1 - up) / up
    now = bets.total(bets.grow(before))
    after = [up * math.exp(bets.total(bets.grow([*before, gain]))), (1 - up) * math.exp(bets.total(bets.grow([*before, down])))]
    assert sum(after) == pytest.approx(math.exp(now))


def test_nothing_bet_is_a_fortune_of_one():
    assert bets.total(()) == bets.total(bets.grow([])) == pytest.approx(0.0)


# Quality


DRAWS: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "heavy tail": (lambda rng, n: np.exp(1.5 * rng.normal(size=n)), math.inf),
    "infinite variance": (lambda rng, n: rng.standard_t(3, n) ** 2, math.inf),
    "rare positives": (lambda rng, n: np.where(rng.random(n) < 0.01, 1.96, 0.0002), 2.0),
    "rare hits": (lambda rng, n: np.where(rng.random(n) < 0.03, rng.random(n), 1.0), 1.0),
}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", DRAWS)
def test_the_same_model_is_rolled_back_at_most_at_the_claimed_rate(name: str, share: float):
    draw, largest = DRAWS[name]
    rng, runs = np.random.default_rng(7), 60
    sizes = (round(1_000 * (1 - share)), round(1_000 * share))
    losses = (grouped(draw(rng, sizes[0]), draw(rng, sizes[1]), seed=run, largest=largest) for run in range(runs))
    assert sum(ever(each) >= 1 / ALPHA for each in losses) <= 3, "60 runs at 1.7 %: more than 3 in 1 of 100"


@pytest.mark.parametrize(("champion", "candidate"), [(3.0, 0.3), (0.3, 3.0)], ids=["candidate wider", "champion wider"])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_spread_alone_is_no_loss(champion: float, candidate: float, share: float):
    rng = np.random.default_rng(7)
    sizes = (round(1_000 * (1 - share)), round(1_000 * share))
    losses = (
        grouped(rng.gamma(champion, 1 / champion, sizes[0]), rng.gamma(candidate, 1 / candidate, sizes[1]), seed=run)
        for run in range(60)
    )
    assert sum(ever(each) >= 1 / ALPHA for each in losses) <= 3


@pytest.mark.parametrize("name", ["heavy tail", "rare positives", "rare hits"])
def test_a_loss_higher_by_a_fifth_of_its_deviation_is_found(name: str):
    draw, largest = DRAWS[name]
    rng = np.random.default_rng(7)
    worse = 0.2 * draw(np.random.default_rng(0), 100_000).std()
    losses = (grouped(draw(rng, 2_000), draw(rng, 2_000) + worse, seed=run, largest=largest + worse) for run in range(20))
    assert sum(ever(each) >= 1 / ALPHA for each in losses) >= 18


def test_what_is_known_of_the_size_of_losses_comes_before_the_block_that_it_limits():
    """Later losses change no bet that was made: the test stays valid at any look."""
    rng = np.random.default_rng(0)
    whole = grouped(rng.exponential(size=300), rng.exponential(size=300))
    part = Losses(whole.loss[:200], whole.candidate[:200], whole.stratum[:200])
    excesses = [sequential_tests.excesses(each)[0] for each in (part, whole)]
    assert excesses[0].tolist() == excesses[1][: len(excesses[0])].tolist()


def test_the_first_losses_without_limit_decide_nothing():
    few = Losses(np.tile([0.0, 9.0], LEARNED // 2), np.tile([False, True], LEARNED // 2), np.zeros(LEARNED))
    assert compare_losses(few, 0.01).evidence == pytest.approx(1.0)
    more = Losses(np.tile([0.0, 9.0], 2 * LEARNED), np.tile([False, True], 2 * LEARNED), np.zeros(4 * LEARNED))
    assert compare_losses(more, 0.01).worse


def test_losses_with_a_limit_decide_within_a_handful_of_entities():
    found = compare_losses(grouped(np.zeros(200), np.ones(12), largest=1.0), 0.01)
    assert found.worse
    assert (found.champion, found.candidate, found.champion_rows, found.candidate_rows) == (0.0, 1.0, 200, 12)


def test_quality_that_is_better_is_never_worse():
    rng = np.random.default_rng(0)
    found = compare_losses(grouped(rng.gamma(2, 1, 500), rng.gamma(1, 1, 500)), 0.01)
    assert found.evidence < 1
    assert not found.seems_worse


def together(*parts: Losses) -> Losses:
    loss, candidate, stratum = (
        np.concatenate([getattr(each, name) for each in parts]) for name in ("loss", "candidate", "stratum")
    )
    return Losses(loss, candidate, stratum)


def test_what_is_hard_at_one_time_is_hard_for_both():
    """Losses are high in the second period, where the candidate has most of its requests: this is no difference."""
    rng = np.random.default_rng(0)
    easy = grouped(rng.gamma(2, 1, 900), rng.gamma(2, 1, 100))
    hard = grouped(rng.gamma(2, 1, 100) + 5, rng.gamma(2, 1, 900) + 5, stratum=1)
    both, order = together(easy, hard), rng.permutation(2_000)
    late = Losses(both.loss[order], both.candidate[order], both.stratum[order])
    assert not compare_losses(late, 0.01).worse
    assert compare_losses(replace(late, stratum=0 * late.stratum), 0.01).worse


def test_pairs_show_what_groups_do_not():
    rng, n = np.random.default_rng(0), 500
    champion = rng.gamma(2, 1, n)
    candidate = champion + 0.2 + rng.normal(0, 0.05, n)
    paired = Losses(np.stack([champion, candidate], 1).ravel(), np.tile([False, True], n), np.repeat(np.arange(n), 2))
    assert compare_losses(paired, 0.01).worse
    assert not compare_losses(grouped(champion, candidate), 0.01).worse


def test_no_label_is_no_evidence():
    found = compare_losses(Losses(np.empty(0), np.empty(0, bool), np.empty(0)), 0.01)
    assert (found.champion, found.candidate, found.worse, found.seems_worse) == (None, None, False, False)


# Errors


ONE = RequestCounts(1, 0)


def test_a_burst_of_equal_errors_in_one_slice_counts_once():
    calm = [(95, 0, 5, 0)] * 50
    for burst in (20, 100):
        assert not compare_errors(ONE, ONE, in_slices(*calm, (95, 0, burst, burst), *calm), 0.01, 0.01).worse
    spread = [(95, 0, 5, 1)] * 50
    assert compare_errors(ONE, ONE, in_slices(*spread), 0.01, 0.01).worse


def test_an_outage_of_both_versions_is_no_difference():
    both = [(95, 95, 5, 5)] * 50
    assert not compare_errors(ONE, ONE, in_slices(*both), 0.01, 0.01).worse


def test_failure_of_all_requests_is_significant_within_a_dozen_slices():
    verdicts = [compare_errors(ONE, ONE, in_slices(*[(95, 0, 5, 5)] * n), 0.01, 0.05 / 9).worse for n in range(1, 13)]
    assert verdicts[0] is False
    assert verdicts[-1] is True


def test_where_the_champion_gets_no_traffic_requests_that_fail_on_it_too_are_no_errors():
    """Blue/green: the champion answers what failed on the candidate."""
    shared, own = [(4, 4, 10, 4)] * 50, [(4, 0, 10, 4)] * 50
    assert not compare_errors(RequestCounts(), RequestCounts(1, 1), in_slices(*shared, before=0.0), 0.01, 0.01).worse
    assert compare_errors(RequestCounts(), RequestCounts(1, 1), in_slices(*own, before=0.0), 0.01, 0.01).worse
    assert not compare_errors(RequestCounts(), RequestCounts(1, 1), in_slices(*own, before=0.5), 0.01, 0.01).worse


@given(*(st.integers(0, 50) for _ in range(4)), st.floats(0, 1), st.none() | st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_excess_of_errors_stays_within_what_a_bet_can_bear(
    right: int, wrong: int, good: int, bad: int, allowed: float, before: Any
):
    champion, candidate = RequestCounts(right + wrong + 1, wrong), RequestCounts(good + bad + 1, bad)
    assert -1 <= error_excess(champion, candidate, allowed, before) <= 1


# Latency


@pytest.mark.parametrize(
    ("pairs", "slower", "worse"), [(100, 50, False), (100, 60, False), (100, 80, True), (10, 10, False), (20, 20, True)]
)
def test_latency_is_worse_when_most_rows_surely_take_longer_than_allowed(pairs: int, slower: int, worse: bool):
    champion, candidate = RequestCounts(0, 0, {5: pairs}), RequestCounts(0, 0, {20: pairs})
    found = compare_latency(champion, candidate, SideBySide(pairs=pairs, slower=slower), 2.0, 0.05 / 9)
    assert found.worse == worse
    assert found.seems_worse == (slower > pairs / 2)
    assert found.candidate is not None
    assert found.champion is not None
    assert found.candidate / found.champion == pytest.approx(2 ** (15 / 8))


def test_without_a_probe_nothing_is_known_of_latency():
    found = compare_latency(RequestCounts(9), RequestCounts(9), SideBySide(), 2.0, 0.01)
    assert (found.champion, found.candidate, found.evidence, found.seems_worse) == (None, None, pytest.approx(1.0), False)


# Decisions

CALM = in_slices((1_000, 1, 50, 0))
FEW_ERRORS = in_slices((1_000, 1, 50, 2))
BROKEN = in_slices(*[(1_000, 1, 50, 50)] * 12)
SLOW = SideBySide(pairs=30, slower=30)


@pytest.mark.parametrize(
    ("requests", "found", "minutes", "decision", "why"),
    [
        (500, CALM, 29.0, "wait", "29 of 30 minutes"),
        (99, CALM, 31.0, "wait", "99 of 100 requests"),
        (100, CALM, 31.0, "step", "100 requests, and nothing surely worse"),
        (100, FEW_ERRORS, 31.0, "wait", "seems worse in errors, which is not significant yet"),
        (100, SideBySide(pairs=10, slower=6), 31.0, "wait", "seems worse in latency, which is not significant yet"),
        (500, SLOW, 0.0, "abort", "surely worse in latency"),
        (500, BROKEN, 0.0, "abort", "surely worse in errors"),
        (500, BROKEN + SLOW, 0.0, "abort", "surely worse in errors and latency"),
    ],
)
def test_a_rollout_goes_on_when_time_and_requests_suffice_and_nothing_seems_worse(
    requests: int, found: SideBySide, minutes: float, decision: str, why: str
):
    judgement = judged(RequestCounts(10_000, 10), RequestCounts(requests, 0), found, minutes=minutes)
    assert (judgement.decision, judgement.reason.split(";")[0]) == (decision, why)


@given(
    st.sampled_from([CALM, FEW_ERRORS, BROKEN, SLOW, SideBySide(pairs=10, slower=6), SideBySide()]),
    st.integers(0, 500),
    st.floats(0, 10_000),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(["promote", "abort"]),
)
@settings(max_examples=200, deadline=None)
def test_no_rollout_waits_beyond_its_time(found: SideBySide, requests: int, minutes: float, step: int, paused: bool, ends: str):
    given = {"minutes": minutes, "hours": 168.0, "step": step, "paused": paused, "policy": {"on_timeout": ends}}
    judgement = judged(RequestCounts(10_000, 10), RequestCounts(requests, 0), found, **given)
    assert judgement.decision in ("promote", "abort") or (judgement.decision, step) == ("step", 2)
    if paused or any(each.seems_worse for each in judgement.tests):
        assert judgement.decision == "abort"


def test_the_end_by_time_names_the_setting_and_what_was_open():
    late = judged(RequestCounts(10_000, 10), RequestCounts(100, 2), FEW_ERRORS, hours=168.5, step=1)
    assert late.reason.startswith(
        "not complete after 168 hours (timeout_hours): step 2 of 3, seems worse in errors, which is not significant yet; errors"
    )
    paused = judged(
        RequestCounts(10_000, 10), RequestCounts(100, 0), CALM, hours=168.5, paused=True, policy={"on_timeout": "promote"}
    )
    assert (paused.decision, paused.reason.split(";")[0]) == ("abort", "not complete after 168 hours (timeout_hours): paused")


def test_the_reason_tells_the_numbers():
    losses = Losses(np.tile([1.0, 1.0625], 60), np.tile([False, True], 60), np.zeros(120), 2.0)
    found = judged(
        RequestCounts(10_000, 10, {50: 96}), RequestCounts(100, 4, {54: 96}), FEW_ERRORS + SideBySide(pairs=96), losses=losses
    )
    assert found.reason == (
        "seems worse in errors, which is not significant yet; errors 4.00% against 0.10% (100 and 10,000 requests); median "
        "latency 0.001076 s against 0.0007611 s (96 and 96 probes); loss 1.062 against 1 (60 and 60 entities)"
    )
    assert found.tests[0].needed == pytest.approx(3 * 3 / 0.05)
    assert found.tests[2].needed == pytest.approx(3 / 0.05)
