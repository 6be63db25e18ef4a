"""The weighted mean of the predictions of several fitted models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from evergreen.model_types import stored_type


class Blend(MetaEstimatorMixin, BaseEstimator):
    """Models side by side. `models`: unfitted, all for the same task; `weights`: one per model, above 0.

    Fitted: `models_`, and `weights_` that sum to 1.
    """

    def __init__(self, models: Sequence[Any] = (), weights: Sequence[float] = ()) -> None:
        self.models = models
        self.weights = weights

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "Blend":
        total = float(sum(self.weights))
        self.weights_ = [float(each) / total for each in self.weights]
        made: list[Any] = [clone(each) for each in self.models]
        self.models_ = [each.fit(X, y) for each in made]
        return self

    def mean(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted mean of one array of answers per model."""
        return sum(weight * each for weight, each in zip(self.weights_, answers, strict=True))  # pyright: ignore


@stored_type
class BlendClassifier(ClassifierMixin, Blend):
    """The weighted mean of probabilities."""

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "BlendClassifier":
        super().fit(X, y)
        self.classes_ = self.models_[0].classes_
        return self

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return self.mean([each.predict_proba(X) for each in self.models_])

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


@stored_type
class BlendRegressor(RegressorMixin, Blend):
    """The weighted mean of predictions."""

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        check_is_fitted(self)
        return self.mean([each.predict(X) for each in self.models_])
