"""The noise ceiling: the largest share of the target's variance that any model could explain, from rows that repeat.

Rows with equal features can have different targets. No model with these columns can explain that part of the variance.
"""

import math
from dataclasses import replace

import numpy as np

from evergreen.tasks.core import bootstrap
from evergreen.tasks.diagnosis.examination import Examination, Fit
from evergreen.tasks.diagnosis.recommendation import Facts
from evergreen.tasks.diagnosis.single_columns import target_columns
from evergreen.tasks.problems.tabular import row_subset

MIN_ROWS, MIN_SHARE = 30, 0.05
"""Fewest rows, and smallest share of all, that must repeat another row to estimate the ceiling."""


def estimate_ceiling(examination: Examination, facts: Facts, chosen: Fit) -> Facts:
    """`facts` with the share of the target's variance that the model explains, and the ceiling where enough rows repeat."""
    train = examination.folds[-1][0]
    y, _ = target_columns(examination, train)
    variance = float(y.var(axis=0).sum())
    groups = row_subset.group_equal_rows(examination.data, train)
    sizes = np.bincount(groups)
    repeated = sizes[groups] > 1
    explained = _explained_share(chosen)
    if not variance or repeated.sum() < max(MIN_ROWS, MIN_SHARE * len(train)):
        return replace(facts, explained=explained)
    means = np.stack([np.bincount(groups, column) / sizes for column in y.T], axis=1)
    freedom = (sizes[sizes > 1] - 1).sum()
    within = float(((y - means[groups]) ** 2).sum() / freedom)
    error = within / variance * math.sqrt(2 / freedom)
    return replace(facts, explained=explained, ceiling=max(0.0, 1 - within / variance), ceiling_error=error)


def _explained_share(fit: Fit) -> float:
    """1 - mean squared error / variance, over the folds; of probabilities for classes."""
    shares = []
    for frame in fit.predictions:
        if "prediction" in frame.columns:
            target, predictions = (frame[name].to_numpy()[:, None] for name in ("label", "prediction"))
        else:
            from evergreen.tasks.problems.classification.scores import arrays

            place, predictions, _ = arrays(frame)
            target = (place[:, None] == np.arange(predictions.shape[1])).astype(float)
        spread = float(((target - target.mean(axis=0)) ** 2).sum())
        shares.append(1 - float(((target - predictions) ** 2).sum()) / spread if spread else math.nan)
    return bootstrap.mean(shares)
