"""Which trial wins."""

from dataclasses import replace

import pytest

from evergreen.tasks.problems.base import Metric
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.selection import choose, pareto_front, search_gain, select_trial
from tests.tasks.search.toy_search import AUC, DEFAULTS, STAGED, finished, folded, searching


def test_within_a_tie_the_simpler_model_wins_and_then_the_earlier_trial() -> None:
    found = [finished(0, "curve", 0.5), finished(1, "line", 0.5 + 1e-10), finished(2, "line", 0.5), finished(3, "none", 0.4)]
    assert choose(found, ["none", "line", "curve"], Metric("auc")).number == 1
    assert choose(found, ["none", "line", "curve"], Metric("loss", greater_is_better=False)).number == 3


def test_the_simplest_stage_within_one_standard_error_wins() -> None:
    curve, line = folded(0, "curve", 0.80, 0.84, 0.82), folded(1, "line", 0.81, 0.82, 0.82)
    assert choose([curve, line], list(STAGED), AUC).number == 0
    assert choose([curve, line], list(STAGED), AUC, STAGED).number == 1
    clear = folded(1, "line", 0.79, 0.83, 0.81)
    assert choose([curve, clear], list(STAGED), AUC, STAGED).number == 0


def test_simplicity_costs_a_hundredth_of_the_score_at_most_and_the_baseline_needs_proof_against_it() -> None:
    curve, line = folded(0, "curve", 0.70, 0.94, 0.82), folded(1, "line", 0.75, 0.82, 0.83)
    assert choose([curve, line], list(STAGED), AUC, STAGED).number == 0
    near = folded(1, "line", 0.77, 0.85, 0.83)
    assert choose([curve, near], list(STAGED), AUC, STAGED).number == 1
    none = folded(1, "none", 0.75, 0.82, 0.83)
    assert choose([curve, none], list(STAGED), AUC, STAGED).number == 1


def test_a_blend_is_given_up_for_what_is_as_good_alone() -> None:
    blend = folded(0, BLEND, 0.70, 0.94, 0.82)
    staged = {**STAGED, BLEND: "ensemble"}
    assert choose([blend, folded(1, "line", 0.77, 0.85, 0.83)], list(staged), AUC, staged).number == 0
    assert choose([blend, folded(1, "line", 0.778, 0.851, 0.83)], list(staged), AUC, staged).number == 1


def test_where_nothing_beats_it_the_baseline_wins() -> None:
    found = [folded(0, "none", 0.5, 0.5, 0.5), folded(1, "line", 0.47, 0.54, 0.5), folded(2, "curve", 0.5, 0.49, 0.53)]
    assert choose(found, list(STAGED), AUC, STAGED).number == 0


def test_a_model_beyond_the_limits_of_cost_is_not_chosen_and_without_any_left_the_baseline_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = [folded(0, "none", 0.5), folded(1, "line", 0.7, latency_ms=3.0), folded(2, "curve", 0.9, latency_ms=30.0)]
    assert select_trial(searching(max_latency_ms=10.0), found).number in (0, 1)
    low = [replace(each, score=-each.score) for each in found]  # searching() minimises
    assert select_trial(searching(), low).number == 2
    assert select_trial(searching(max_latency_ms=10.0), low).number == 1
    assert select_trial(searching(max_model_mb=0.5), low).number == 0
    assert "no model keeps to tune.max_latency_ms, max_model_mb and max_train_seconds" in caplog.text


def test_the_pareto_front_holds_trials_that_none_beats_in_both_score_and_latency() -> None:
    found = [
        folded(0, "none", 0.5, latency_ms=0.1),
        folded(1, "line", 0.7, latency_ms=1.0),
        folded(2, "curve", 0.69, latency_ms=5.0),
        folded(3, "curve", 0.8, latency_ms=9.0),
    ]
    assert pareto_front(found, AUC) == {0, 1, 3}


def test_the_search_gain_is_over_the_best_default_with_its_time() -> None:
    found = [
        replace(folded(0, "none", 9.0), config=DEFAULTS["none"]),
        replace(folded(1, "line", 1.2), config=DEFAULTS["line"]),
        replace(folded(2, "line", 0.2), config={**DEFAULTS["line"], "slope": 3.1}),
    ]
    assert search_gain(searching(), found, found[2]) == {
        "over": "defaults of line",
        "default": 1.2,
        "gain": pytest.approx(1.0),
        "cpu_seconds": 2.0,
    }


def test_trials_that_failed_are_never_chosen() -> None:
    found = [finished(0, "none", float("nan"), "failed"), finished(1, "line", 0.1)]
    assert choose(found, ["none", "line"], Metric("auc")).number == 1
