"""One trial."""

from evergreen.tasks.search.trials import should_prune
from tests.tasks.search.toy_search import AUC


def test_a_trial_is_pruned_when_it_is_behind_on_each_fold_by_more_than_folds_differ() -> None:
    bar = [0.80, 0.81, 0.82]
    assert should_prune([0.70], bar, AUC)
    assert not should_prune([0.79], bar, AUC)
    assert not should_prune([0.70, 0.815], bar, AUC)
