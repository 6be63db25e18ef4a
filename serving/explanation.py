"""The explanation of a single prediction, within the time of a request: the contribution of each column.

Shapley values from the version's background rows: exact ones of a compiled model of trees and lines
(tasks.explanation.exact_shapley), else sampled ones (tasks.explanation.shapley). The contributions and the mean prediction of
the background rows sum to the prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evergreen.serving.loaded_model import ParsedRow, RowModel
from evergreen.tasks.explanation.compiled_contributions import encoded
from evergreen.tasks.explanation.shapley import Mixed, shapley_values, strongest_first

MAX_PREDICTIONS = 6_000
"""Most predictions per explanation of a compiled model: fewer background rows where there are many columns."""
MAX_PIPELINE_PREDICTIONS = 2_000
"""The same of a pipeline, which predicts more slowly."""
MAX_COLUMNS = 10
"""Columns that are named, the strongest first."""


def contributions(model: RowModel, parsed: ParsedRow) -> list[dict[str, Any]]:
    """The columns that contribute most to a prediction: column, value, contribution; then all others, then the mean prediction.

    The explained number is the probability of the last class, or the predicted amount; for clusters, which have no order, 1 for
    this cluster and 0 for another.
    """
    own = parsed.features
    names, values, mean = _exact(model, parsed) or _sampled(model, parsed)
    order = [int(each) for each in strongest_first(values)]
    strongest: list[dict[str, Any]] = [
        {"column": names[each], "value": own[names[each]], "contribution": float(values[each])} for each in order[:MAX_COLUMNS]
    ]
    rest = float(sum(values[each] for each in order[MAX_COLUMNS:]))
    return [
        *strongest,
        {"column": None, "value": "all other columns", "contribution": rest},
        {"column": None, "value": "mean prediction of the background rows", "contribution": mean},
    ]


Explained = tuple[Sequence[str], np.ndarray, float]
"""Columns, the contribution of each, and the mean prediction of the background rows."""


def _exact(model: RowModel, parsed: ParsedRow) -> Explained | None:
    """None for a model without exact contributions, and for a row that they do not fit."""
    if not model.exact or not parsed.point or not model.compiled:
        return None
    found = model.exact.values(encoded([parsed.point]))
    if found is None:
        return None
    values = found[0, :, -1]  # the last class, or the one number
    moved = np.flatnonzero(values)
    return [model.compiled.features[place] for place in moved], values[moved], float(model.exact.base[-1])


def _sampled(model: RowModel, parsed: ParsedRow) -> Explained:
    own, backgrounds = parsed.features, model.background or [parsed]
    names = [name for name in own if any(own[name] != each.features[name] for each in backgrounds)]
    most = MAX_PREDICTIONS if model.compiled else MAX_PIPELINE_PREDICTIONS
    explain = _mixed_encoded if model.compiled else _mixed_rows
    found = shapley_values(explain(model, parsed, backgrounds, names), 1, len(backgrounds), len(names), most, seed=0)
    return names, found.values[0, :, 0], float(found.base[0])


def _mixed_encoded(model: RowModel, parsed: ParsedRow, backgrounds: Sequence[ParsedRow], names: Sequence[str]) -> Mixed:
    """Of a compiled model: encoded rows are mixed, without encoding any row again."""
    compiled, own = model.compiled, parsed.point
    assert compiled
    assert own
    prediction = model.predict([parsed])[0]["prediction"]
    points = [each.point for each in backgrounds if each.point]

    def predict(taken: np.ndarray, _place: np.ndarray, other: np.ndarray) -> np.ndarray:
        return _explained(compiled.predict_mixed(own, points, names, taken, other), prediction)

    return predict


def _mixed_rows(model: RowModel, parsed: ParsedRow, backgrounds: Sequence[ParsedRow], names: Sequence[str]) -> Mixed:
    """Of a pipeline."""
    own, prediction = parsed.features, model.predict([parsed])[0]["prediction"]

    def predict(taken: np.ndarray, _place: np.ndarray, other: np.ndarray) -> np.ndarray:
        rows: list[ParsedRow] = []
        for mine, at in zip(taken, other, strict=True):
            features = backgrounds[int(at)].features
            theirs = {name: features[name] for name, one in zip(names, mine, strict=True) if not one}
            rows.append(ParsedRow({**own, **theirs}, None, None, None))
        outputs = model.predict(rows)
        return _explained({name: np.array([each[name] for each in outputs]) for name in outputs[0]}, prediction)

    return predict


def _explained(outputs: Mapping[str, np.ndarray], prediction: Any) -> np.ndarray:
    """The explained number of each row, as a column."""
    probabilities = [name for name in outputs if name != "prediction"]
    if probabilities:
        return outputs[probabilities[-1]][:, None]
    if isinstance(prediction, float):
        return outputs["prediction"].astype(float)[:, None]
    return (outputs["prediction"] == prediction).astype(float)[:, None]
