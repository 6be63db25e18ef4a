import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from evergreen.tasks.config.params import Costs
from evergreen.tasks.problems.tabular import calibration
from evergreen.tasks.problems.tabular.calibration import Calibration, mapped, threshold_for


def chances(count=4000, slope=1.0, seed=0):
    """True class, and probabilities of two classes whose log-odds are `slope` times too large."""
    draw = np.random.default_rng(seed)
    odds = draw.normal(-1, 1.5, count)
    true_class = (draw.random(count) < expit(odds)).astype(int)
    second = expit(slope * odds)
    return true_class, np.column_stack([1 - second, second])


def loss(true_class, said):
    return -np.log(np.clip(said[np.arange(len(true_class)), true_class], 1e-15, 1)).mean()


def helping(true_class, said, methods, seed, entity=None):
    """Each row an entity of its own."""
    return calibration.helping(true_class, said, np.arange(len(said)) if entity is None else entity, methods, seed)


def test_repeats_of_cross_validation_are_no_new_evidence():
    """Right probabilities that each row has three times, with the noise of refits: one run in twenty may be calibrated."""
    calibrated = []
    for seed in range(60):
        true_class, said = chances(200, seed=seed)
        odds = logit(np.tile(said[:, 1], 3)) + np.random.default_rng(seed).normal(0, 0.05, 600)
        second, entity = expit(odds), np.tile(np.arange(200), 3)
        found = helping(np.tile(true_class, 3), np.column_stack([1 - second, second]), ["sigmoid"], seed, entity)
        calibrated.append(found is not None)
    assert np.mean(calibrated) < 0.12


def test_probabilities_that_are_right_stay_as_they_are():
    assert helping(*chances(), ["sigmoid", "isotonic"], 0) is None


@pytest.mark.parametrize("methods", [["sigmoid"], ["isotonic"], ["sigmoid", "isotonic"]])
def test_overconfident_probabilities_are_mended_on_rows_not_seen(methods):
    found = helping(*chances(slope=3), methods, 0)
    assert found is not None
    true_class, said = chances(slope=3, seed=1)
    assert loss(true_class, found.apply(said)) < loss(true_class, said) - 0.05
    best = loss(*chances(seed=1))
    assert loss(true_class, found.apply(said)) == pytest.approx(best, abs=0.01)


def test_steps_are_not_learned_from_few_rows():
    true_class, said = chances(300, slope=3)
    assert helping(true_class, said, ["isotonic"], 0) is None
    assert helping(true_class, said, ["sigmoid"], 0) is not None


def test_rows_of_a_class_that_the_model_does_not_know_teach_nothing():
    true_class, said = chances(slope=3)
    more = np.concatenate([true_class, [-1] * 50]), np.vstack([said, said[:50]])
    one, other = (helping(*each, ["sigmoid"], 0) for each in ((true_class, said), more))
    assert one is not None
    assert other is not None
    assert one.maps == other.maps


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_several_classes_still_sum_to_one_and_are_never_certain(method):
    draw = np.random.default_rng(0)
    said = draw.dirichlet([0.3, 0.3, 0.3], 2000)
    true_class = np.array([draw.choice(3, p=row**0.5 / (row**0.5).sum()) for row in said])
    found = Calibration(method).fit(true_class, said).apply(said)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found.min() > 0
    assert loss(true_class, found) < loss(true_class, said)


def test_a_slope_of_one_changes_nothing():
    _, said = chances(50)
    np.testing.assert_allclose(mapped(said, "sigmoid", [[1.0, 0.0]]), said, rtol=1e-9)
    np.testing.assert_allclose(logit(mapped(said, "sigmoid", [[2.0, 1.0]])[:, 1]), 2 * logit(said[:, 1]) + 1, rtol=1e-6)


pairs = st.lists(st.tuples(st.booleans(), st.integers(1, 19)), min_size=2, max_size=40).filter(
    lambda rows: any(positive for positive, _ in rows)
)


def counts(positive, chance, threshold):
    said = chance >= threshold
    return (positive & said).sum(), (~positive & said).sum(), (positive & ~said).sum()


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from([0.5, 0.8, 1.0]), st.sampled_from([0.2, 1.0, 7.0]))
def test_no_other_threshold_serves_the_aim_better(rows, recall, costly):
    positive, chance = np.array([each for each, _ in rows]), np.array([twentieth / 20 for _, twentieth in rows])
    price = Costs(false_negative=costly)

    def f1(hits, wrong, missed):
        return 2 * hits / (2 * hits + wrong + missed)

    def precision(hits, wrong, missed):
        return hits / (hits + wrong) if hits + wrong and hits >= recall * (hits + missed) else -1

    def saved(hits, wrong, missed):
        return -(wrong + costly * missed)

    for aim, worth in (("f1", f1), ("precision_at_recall", precision), ("cost", saved)):
        chosen = threshold_for(aim, positive, chance, recall, price)
        best = max(worth(*counts(positive, chance, each)) for each in [*np.unique(chance), 2.0])
        assert worth(*counts(positive, chance, chosen)) == pytest.approx(best), aim


def test_where_a_call_costs_more_than_it_can_bring_nobody_is_called():
    chance = np.linspace(0.01, 0.99, 50)
    upside_down = chance < 0.3
    assert threshold_for("cost", upside_down, chance, 0.8, Costs(false_positive=10)) > chance.max()
