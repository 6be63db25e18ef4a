"""What a model predicts, as columns of numbers: probabilities of classes, or an amount."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from evergreen.tasks.problems.base import Kind, Model

MAX_CLASSES = 3
"""Most classes that are explained."""

Predict = Callable[[pd.DataFrame], np.ndarray]
"""Rows of features -> row x output."""


def model_outputs(kind: Kind, model: Model) -> tuple[Predict, list[str]]:
    """The prediction function, and the name of each output: the positive class of two, the first MAX_CLASSES of more."""
    if kind.name == "regression":
        return lambda features: np.asarray(model.predict(features), dtype=float)[:, None], ["prediction"]
    classes = [str(each) for each in model.classes_]
    kept = slice(1, 2) if len(classes) == 2 else slice(0, MAX_CLASSES)
    return lambda features: model.predict_proba(features)[:, kept], classes[kept]
