"""How much each input feature counts in a fitted model."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline  # pyright: ignore[reportMissingTypeStubs]

from evergreen.tasks.problems.base import Model
from evergreen.tasks.problems.tabular import preprocessing
from evergreen.tasks.problems.tabular.weighted_ensemble import Blend


def importance(model: Model) -> dict[str, float]:
    """Each input feature's share, largest first: of the gain for trees, of the weights without sign for lines and networks.

    Categories count with all their columns; a blend has the weighted mean of its members. Empty for a model that has neither.
    """
    inner = getattr(model, "estimator_", getattr(model, "regressor_", model))
    if isinstance(inner, Blend):
        return _importance_of(inner)
    if inner is not model and not isinstance(inner, Pipeline):
        return importance(inner)
    if not isinstance(inner, Pipeline):
        return {}
    steps: Any = inner.named_steps
    weights = _weights(steps["model"])
    return {} if weights is None else preprocessing.fold_back(steps["prepare"], weights)


def _weights(last: Any) -> Any:
    """One number per column of the matrix that the fitted estimator `last` gets; None where it has none."""
    if hasattr(last, "booster_"):
        return last.booster_.feature_importance("gain").astype(float)
    if hasattr(last, "feature_importances_"):
        return last.feature_importances_
    return np.abs(np.atleast_2d(last.coef_)).sum(axis=0) if hasattr(last, "coef_") else None


def _importance_of(blend: Blend) -> dict[str, float]:
    found: dict[str, float] = {}
    for weight, each in zip(blend.weights_, blend.models_, strict=True):
        for name, share in importance(each).items():
            found[name] = found.get(name, 0.0) + weight * share
    total = sum(found.values()) or 1.0
    return {name: share / total for name, share in sorted(found.items(), key=lambda item: -item[1])}
