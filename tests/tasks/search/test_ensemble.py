"""Choosing members of a blend by their out-of-fold predictions."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from evergreen.tasks.problems.base import Metric
from evergreen.tasks.search import ensemble
from evergreen.tasks.search.ensemble import BLEND
from evergreen.tasks.search.time_budget import Clock
from evergreen.tasks.search.trials import Cost, FinishedTrial

RMSE = Metric("rmse", greater_is_better=False)
ALWAYS = Clock(None)


def finished(number: int, model: str, score: float, state: str = "complete", latency_ms: float = 1.0) -> FinishedTrial:
    now = datetime(2024, 1, 1, tzinfo=UTC)
    cost = Cost(fit_seconds=2.0, latency_ms=latency_ms, model_mb=0.5, peak_mb=100.0 + number, fit_rows=50)
    return FinishedTrial(number, state, {"model": model, "n": number}, score, 0.0, "", now, now, (score, score), cost, number)


def error(frame: pl.DataFrame) -> float:
    return float(((frame["label"] - frame["prediction"]) ** 2).mean() ** 0.5)  # pyright: ignore


def noisy(*sizes: float, rows: int = 4000, folds: int = 2) -> list[list[pl.DataFrame]]:
    """Per size of noise the predictions of one model on each fold; their errors have nothing to do with each other."""
    draw = np.random.default_rng(0)
    labels = [draw.normal(size=rows) for _ in range(folds)]
    return [
        [pl.DataFrame({"entity": np.arange(rows), "label": y, "prediction": y + size * draw.normal(size=rows)}) for y in labels]
        for size in sizes
    ]


def test_members_whose_errors_differ_are_selected_and_a_bad_one_is_not() -> None:
    members = [finished(0, "a", 1.0), finished(1, "b", 1.1), finished(2, "c", 9.0)]
    predictions = noisy(1.0, 1.1, 9.0)
    counts = ensemble.select(members, predictions, error, RMSE, lambda members: True, ALWAYS)
    assert counts[0] > 0
    assert counts[1] > 0
    assert counts[2] == 0
    blended = error(ensemble.weighted_mean([frames[0] for frames in predictions], counts))
    assert blended == pytest.approx(np.hypot(1.0, 1.1) / 2, rel=0.03)
    assert blended < min(error(frames[0]) for frames in predictions)


def test_equal_predictions_make_no_blend() -> None:
    predictions = noisy(1.0) * 2
    assert ensemble.select(
        [finished(0, "a", 1.0), finished(1, "b", 1.0)], predictions, error, RMSE, lambda members: True, ALWAYS
    ) == [1, 0]


def test_the_score_of_a_blend_is_of_folds_that_did_not_select_it() -> None:
    """Twenty models of pure noise: on the rows that select them a blend looks better than it is."""
    members = [finished(number, str(number), 1.0) for number in range(20)]
    predictions = noisy(*[1.0] * 20, rows=25, folds=4)
    given = members, predictions, error, RMSE, lambda members: True, ALWAYS
    counts = ensemble.select(*given)
    blends = [ensemble.weighted_mean([frames[fold] for frames in predictions], counts) for fold in range(4)]
    assert np.mean([error(each) for each in blends]) < np.mean(ensemble.held_out_scores(*given))


def test_a_blend_judged_on_other_folds_is_still_better_than_one_model() -> None:
    given = [finished(0, "a", 1.0), finished(1, "b", 1.1)], noisy(1.0, 1.1), error, RMSE, lambda members: True, ALWAYS
    assert ensemble.held_out_scores(*given) == pytest.approx([np.hypot(1.0, 1.1) / 2] * 2, rel=0.05)


def test_a_set_that_is_not_allowed_is_not_selected() -> None:
    members = [finished(0, "a", 1.0), finished(1, "b", 1.1)]
    counts = ensemble.select(members, noisy(1.0, 1.1), error, RMSE, lambda chosen: len({e.number for e in chosen}) < 2, ALWAYS)
    assert sum(count > 0 for count in counts) == 1


def test_without_time_nothing_is_selected() -> None:
    assert ensemble.select([finished(0, "a", 1.0)], noisy(1.0), error, RMSE, lambda members: True, Clock(0.0)) == [0]


def test_the_weighted_mean_leaves_entity_label_and_threshold_alone() -> None:
    one = pl.DataFrame({"entity": [1.5], "label": [1.0], "probability_no": [0.2], "probability_yes": [0.8], "threshold": [0.3]})
    two = one.with_columns(probability_no=pl.lit(0.6), probability_yes=pl.lit(0.4), threshold=pl.lit(0.9))
    found = ensemble.weighted_mean([one, two], [3, 1]).row(0, named=True)
    assert found == pytest.approx(
        {"entity": 1.5, "label": 1.0, "probability_no": 0.3, "probability_yes": 0.7, "threshold": 0.3}
    )


def test_candidates_are_the_best_of_each_model_without_baseline_and_blend() -> None:
    trials = [finished(number, "a", 1.0 + number / 10) for number in (10, 11, 12, 13, 14, 15)]
    trials += [finished(5, "b", 3.0), finished(6, "none", 0.1), finished(7, BLEND, 0.2), finished(8, "b", 0.3, "failed")]
    assert [each.number for each in ensemble.candidates(trials, RMSE, "none")] == [10, 11, 12, 13, 14, 5]


def test_a_blend_costs_what_its_members_cost_together() -> None:
    cost = ensemble.cost([finished(0, "a", 1.0, latency_ms=2.0), finished(1, "b", 1.0, latency_ms=3.0)], 0.1, 0.1)
    assert (cost.latency_ms, cost.fit_seconds, cost.model_mb, cost.peak_mb) == (5.0, 4.0, 1.0, 101.0)


def test_the_configuration_of_a_blend_names_members_and_weights() -> None:
    members = [finished(0, "a", 1.0), finished(1, "b", 1.1), finished(2, "c", 1.2)]
    assert ensemble.config(members, [3, 0, 1]) == {
        "model": BLEND,
        "members": [{"model": "a", "n": 0}, {"model": "c", "n": 2}],
        "weights": [0.75, 0.25],
    }
