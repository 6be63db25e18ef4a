"""The explanation of a single prediction, within the time of a request: the contribution of each column.

The Shapley values of tasks.explanation.shapley, with the version's example rows as background rows. So the contributions and
the mean prediction of the example rows sum to the prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evergreen.serving.loaded_model import ParsedRow, RowModel
from evergreen.tasks.explanation.shapley import rows_between, sample_walks, shapley_values, strongest_first

Row = Mapping[str, Any]
"""Column -> value."""
ORDERS = 4
"""Random orders of the columns for each background row; as many are reversed."""
MAX_PREDICTIONS = 2_000
"""Most predictions per explanation: fewer orders where there are many columns."""
MAX_COLUMNS = 10
"""Columns that are named, the strongest first."""


def contributions(model: RowModel, parsed: ParsedRow) -> list[dict[str, Any]]:
    """The columns that contribute most to a prediction: column, value, contribution; then all others, then the mean prediction.

    The explained number is the probability of the last class, or the predicted amount; for clusters, which have no order, 1 for
    this cluster and 0 for another.
    """
    own = parsed.features
    backgrounds = [model.parse(row).features for row in model.example] or [own]
    names = [name for name in own if any(own[name] != each[name] for each in backgrounds)]
    values, mean = _values(model, own, backgrounds, names)
    order = [int(each) for each in strongest_first(values)]
    found: list[dict[str, Any]] = [
        {"column": names[each], "value": own[names[each]], "contribution": float(values[each])} for each in order[:MAX_COLUMNS]
    ]
    rest = float(sum(values[each] for each in order[MAX_COLUMNS:]))
    return [
        *found,
        {"column": None, "value": "all other columns", "contribution": rest},
        {"column": None, "value": "mean prediction of the example rows", "contribution": mean},
    ]


def _values(model: RowModel, own: Row, backgrounds: Sequence[Row], names: Sequence[str]) -> tuple[np.ndarray, float]:
    """The contribution of each of `names`, and the mean prediction of `backgrounds`; all rows are predicted at once."""
    orders = max(1, min(ORDERS, MAX_PREDICTIONS // (2 * max(1, len(names)) * len(backgrounds))))
    walks = list(sample_walks(range(len(backgrounds)), len(names), orders, np.random.default_rng(0))) if names else []

    def take(row: Row, column: int) -> Row:
        return {**row, names[column]: own[names[column]]}

    paths = [rows_between(backgrounds[start], order, take) for start, order in walks]
    predictions = _predict(model, [own, *backgrounds, *(row for path in paths for row in path)])
    first, between = predictions[1 : 1 + len(backgrounds)], iter(predictions[1 + len(backgrounds) :])
    along = [
        (order, np.array([first[start], *(next(between) for _ in path), predictions[0]]))
        for (start, order), path in zip(walks, paths, strict=True)
    ]
    return shapley_values(along) if along else np.zeros(0), float(first.mean())


def _predict(model: RowModel, rows: Sequence[Row]) -> np.ndarray:
    """The explained number of each row; the first one is the row that is explained."""
    predictions = model.predict([model.parse(row) for row in rows])
    probabilities = [name for name in predictions[0] if name != "prediction"]
    if probabilities:
        return np.array([each[probabilities[-1]] for each in predictions])
    if isinstance(predictions[0]["prediction"], float):
        return np.array([each["prediction"] for each in predictions])
    return np.array([float(each["prediction"] == predictions[0]["prediction"]) for each in predictions])
