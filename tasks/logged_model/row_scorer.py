"""A logged model of rows: classification, regression or clustering."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import LEVELS
from evergreen.tasks.logged_model.frames import read_features
from evergreen.tasks.logged_model.manifest import Manifest
from evergreen.tasks.model_files.onnx_runtime import PROBABILITY_PREFIX

PredictRows = Callable[[pd.DataFrame], dict[str, np.ndarray]]
"""Features -> the columns of a prediction: `prediction`, and `probability_<class>` of each class."""
OUTPUTS = ("prediction", "probabilities", "all")
"""Values of the parameter `output` of a classifier."""


class RowScorer:
    """Predicts frames by the data contract of training."""

    def __init__(self, folder: Path, manifest: Manifest, predict: PredictRows) -> None:
        self.manifest, self._predict = manifest, predict
        self._levels = json.loads((folder / LEVELS).read_text())

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> Any:
        """The predictions of the rows of a frame, in their order.

        `params`: `output` of a classifier is prediction (the classes, an array), probabilities (a column for each class) or
        all (a frame of both). Raises DataError for another output, and for what the contract does not allow.
        """
        output = (params or {}).get("output") or OUTPUTS[0]
        if output not in OUTPUTS:
            raise DataError(f"params: output = {output}: must be one of {', '.join(OUTPUTS)}")
        columns = self._predict(read_features(model_input, self.manifest, self._levels))
        if output == "prediction":
            return columns["prediction"]
        if output == "probabilities":
            columns = {name: values for name, values in columns.items() if name != "prediction"}
            if not columns:
                raise DataError("params: output = probabilities: only a classifier has probabilities; use prediction")
        return pd.DataFrame(columns, index=model_input.index)


def predict_with_pipeline(model: Any) -> PredictRows:
    """The pipeline of scikit-learn as a function of features."""

    def predict(features: pd.DataFrame) -> dict[str, np.ndarray]:
        found = {"prediction": np.asarray(model.predict(features))}
        if hasattr(model, "predict_proba"):
            chances = model.predict_proba(features)
            found |= {f"{PROBABILITY_PREFIX}{name}": chances[:, place] for place, name in enumerate(model.classes_)}
        return found

    return predict
