"""Contributions of columns to single predictions, and the three examples that the page explains in full."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.explanation.column_values import MAX_COLUMNS, as_text
from evergreen.tasks.explanation.model_outputs import Predict
from evergreen.tasks.explanation.shapley import rows_between, sample_walks, shapley_values, strongest_first
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.tabular_kind import Rows

EXPLAINED, ORDERS = 120, 2
"""Rows that are explained; random orders of the columns for each, beside their reverses."""
MAX_PREDICTIONS = 150_000
"""Most rows that the contributions may ask the model for."""
EXAMPLE_COLUMNS = 6
"""Columns of an example that are named."""
CONTRIBUTIONS = {
    "output": pl.String,
    "column": pl.String,
    "row": pl.Int64,
    "contribution": pl.Float64,
    "value": pl.String,
    "place": pl.Float64,
}
"""Columns of the table of contributions; a category has no place, whatever column comes first."""
TITLES = ("the largest prediction", "the median prediction", "the smallest prediction")


class Contributions:
    """Shapley values of the predictions of some rows, which start from the mean prediction of all rows.

    places: the explained rows, the three examples first; values: explained row x column x output; base: mean prediction per
    output.
    """

    def __init__(self, predict: Predict, outputs: Sequence[str], rows: Rows, columns: Sequence[str], seed: int) -> None:
        self.outputs, self.columns, self.features = list(outputs), list(columns), rows.features
        self.predictions = predict(rows.features)
        count = max(3, min(EXPLAINED, MAX_PREDICTIONS // (2 * ORDERS * (len(columns) + 1)), len(rows)))
        self.examples = self._examples()
        spread = row_subset.evenly(np.arange(len(rows)), count)
        self.places = self.examples + [each for each in spread if each not in self.examples]
        self.base = self.predictions.mean(axis=0)
        self.values = self._values(predict, np.random.default_rng(seed))

    def _examples(self) -> list[int]:
        """The rows with the largest, the median and the smallest prediction, each once."""
        order = np.argsort(self.predictions[:, 0], kind="stable")
        return list(dict.fromkeys(int(order[place]) for place in (-1, len(order) // 2, 0)))

    def _values(self, predict: Predict, random: np.random.Generator) -> np.ndarray:
        """Contributions that sum to prediction minus base.

        The sampled background rows do not have quite the mean prediction of all rows. That remainder is shared among the
        columns in proportion to the size of their contributions.
        """
        values = shapley_values(self._walks(predict, random)).transpose(1, 0, 2)
        remainder = self.predictions[self.places] - self.base - values.sum(axis=1)
        weight = np.abs(values) + 1e-12
        values = values + remainder[:, None, :] * weight / weight.sum(axis=1, keepdims=True)
        return np.where(np.abs(values) > 1e-12, values, 0.0)

    def _walks(self, predict: Predict, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Order of the columns, and predictions (step x row x output); each explained row has its own background row."""
        explained = self.features.iloc[self.places]

        def take(row: pd.DataFrame, column: int) -> pd.DataFrame:
            name, row = self.columns[column], row.copy(deep=False)
            row[name] = explained[name].to_numpy()
            return row

        draws = (random.integers(0, len(self.features), len(self.places)) for _ in range(ORDERS))
        for background, order in sample_walks(draws, len(self.columns), 1, random):
            ends = self.predictions[background][None], self.predictions[self.places][None]
            between = rows_between(self.features.iloc[background], order, take)
            if between:
                rows = pd.concat(between, ignore_index=True).astype(self.features.dtypes.to_dict())
                ends = ends[0], predict(rows).reshape(len(between), len(self.places), -1), ends[1]
            yield order, np.concatenate(ends)

    def table(self) -> pl.DataFrame:
        """output, column, row, contribution, value (text), place (0 to 1: rank of the value among those of its column)."""
        parts = []
        strength = np.abs(self.values).mean(axis=0)
        for output, name in enumerate(self.outputs):
            for column in np.argsort(-strength[:, output])[:MAX_COLUMNS]:
                values = self.features[self.columns[column]].iloc[self.places]
                parts.append(
                    pl.DataFrame(
                        {
                            "output": name,
                            "column": self.columns[column],
                            "row": self.places,
                            "contribution": self.values[:, column, output],
                            "value": [as_text(each) for each in values],
                            "place": _ranks(values),
                        },
                        CONTRIBUTIONS,
                    )
                )
        return pl.concat(parts) if parts else pl.DataFrame()

    def of(self, place: int) -> list[dict[str, Any]]:
        """Contributions to the first output of the explained row at `place`, the strongest first."""
        row, values = self.features.iloc[self.places[place]], self.values[place, :, 0]
        return [
            {"column": self.columns[each], "value": as_text(row[self.columns[each]]), "contribution": float(values[each])}
            for each in strongest_first(values)
        ]


def _ranks(values: pd.Series) -> list[float | None]:
    """Rank of each value among its column's, from 0 to 1; null for what is missing or has no order."""
    if pd.api.types.is_string_dtype(values):
        return [None] * len(values)
    ranks = (values.rank() - 1) / max(values.notna().sum() - 1, 1)
    return [None if math.isnan(each) else float(each) for each in ranks]


def explain_examples(rows: Rows, contributions: Contributions) -> list[dict[str, Any]]:
    """The largest, the median and the smallest prediction of the first output, with their contributions."""
    found = []
    for place, (row, title) in enumerate(zip(contributions.examples, TITLES, strict=False)):
        parts = contributions.of(place)
        found.append(
            {
                "title": title,
                "entity": str(rows.entity[row]),
                "label": as_text(rows.target[row]),
                "output": contributions.outputs[0],
                "prediction": float(contributions.predictions[row, 0]),
                "mean_prediction": float(contributions.base[0]),
                "contributions": parts[:EXAMPLE_COLUMNS],
                "rest": float(sum(each["contribution"] for each in parts[EXAMPLE_COLUMNS:])),
            }
        )
    return found
