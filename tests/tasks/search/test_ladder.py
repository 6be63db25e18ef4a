"""The ladder of models: intervals by unit, and the simplest model that is good enough."""

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.problems.base import Metric
from evergreen.tasks.search.ladder import build_ladder, choose_rung, explain_rung, mean_and_error
from tests.tasks.search.toy_search import finished

NDCG = Metric("ndcg", format=".4f")
MODELS = ["popularity", "frequency", "two_stage"]


def ladder(*gains: float, noise: float = 0.01, units: int = 400):
    """Models whose mean lies so much above 0.3, on the same units; each unit's values differ by `noise`."""
    draw = np.random.default_rng(0)
    level = draw.uniform(0, 0.6, units)
    level += 0.3 - level.mean()
    values = []
    for gain in gains:
        apart = draw.normal(0, noise, units)
        values.append(level + gain + apart - apart.mean())
    trials = [finished(at, MODELS[at], float(each.mean())) for at, each in enumerate(values)]
    frames = {at: [pl.DataFrame({"unit": range(units), "value": each})] for at, each in enumerate(values)}
    return build_ladder(trials, MODELS, NDCG, frames.get)


def chosen(rungs, *barred: int) -> str | None:
    rung = choose_rung(rungs, {each.trial: each.trial not in barred for each in rungs})
    return rung and rung.model


def test_the_simplest_within_one_standard_error_is_chosen_by_paired_differences():
    assert chosen(ladder(0, 0.1, 0.1002)) == "frequency"
    assert chosen(ladder(0, 0.1, 0.105)) == "two_stage"
    assert chosen(ladder(0, 0.1, 0.105, noise=0.3)) == "frequency"


def test_a_complex_model_is_never_chosen_where_a_simpler_one_is_better():
    for worse in (1e-6, 0.001, 0.1):
        assert chosen(ladder(0, 0.1, 0.1 - worse)) != "two_stage"


def test_where_nothing_beats_the_baseline_it_serves_and_the_reason_says_so():
    rungs = ladder(0.0002, 0, 0.0001)
    assert chosen(rungs) == "popularity"
    assert explain_rung(rungs, rungs[0], NDCG, "popularity") == (
        "nothing beats popularity by more than one standard error (400 judged), so popularity serves"
    )


def test_a_model_beyond_the_limits_of_cost_is_passed_over():
    assert chosen(ladder(0, 0.1, 0.2), 2) is None
    assert chosen(ladder(0, 0.2, 0.1), 2) == "frequency"


def test_rows_of_one_unit_count_as_one():
    once = pl.DataFrame({"unit": [1, 2, 3, 4], "value": [0.0, 1.0, 0.0, 1.0]})
    assert mean_and_error(pl.concat([once, once])) == pytest.approx(mean_and_error(once))


def test_a_rung_has_its_interval_and_the_number_of_its_units():
    rung = ladder(0.1, 0)[0]
    assert (rung.units, rung.behind, rung.error) == (400, 0, 0)
    assert rung.score == pytest.approx(0.4)
    assert rung.low < rung.score < rung.high
