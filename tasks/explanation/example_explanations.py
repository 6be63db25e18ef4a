"""Contributions of columns to single predictions, and the three examples that the page explains in full."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from evergreen.tasks.explanation.column_values import MAX_COLUMNS, as_text
from evergreen.tasks.explanation.compiled_contributions import CompiledContributions
from evergreen.tasks.explanation.model_outputs import Predict
from evergreen.tasks.explanation.shapley import BACKGROUND_ROWS, Mixed, shapley_values, strongest_first
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.tabular import row_subset
from evergreen.tasks.problems.tabular.rows import Rows

EXPLAINED = 120
"""Most rows that are explained."""
MAX_PREDICTIONS = 200_000
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
    """Shapley values of the predictions of some rows, which start from the mean prediction of background rows.

    places: the explained rows, the three examples first; values: explained row x column x output; base: mean prediction per
    output; background: their places; error: the largest standard error of a value, relative to the largest contribution; 0 for
    exact values.
    """

    def __init__(
        self,
        predict: Predict,
        outputs: Sequence[str],
        rows: Rows,
        columns: Sequence[str],
        seed: int,
        compiled: Compiled | None = None,
        most: int = MAX_PREDICTIONS,
    ) -> None:
        """`compiled`: the same model, for exact values. `most`: rows that the model is asked for."""
        self.outputs, self.columns, self.features = list(outputs), list(columns), rows.features
        self.predictions = predict(rows.features)
        background = self.background = self._background()
        count = max(3, min(EXPLAINED, most // (4 * len(background) * max(1, len(columns) - 1)), len(rows)))
        self.examples = self._examples()
        spread = row_subset.evenly(np.arange(len(rows)), count)
        self.places = self.examples + [each for each in spread if each not in self.examples]
        own, others = self.features.iloc[self.places], self.features.iloc[background]
        exact = _exact(compiled, len(self.outputs), self.columns, own, others) if compiled and compiled.tables else None
        if exact:
            self.values, self.base, self.error = *exact, 0.0
        else:
            mixed = _mixed(predict, own, others, self.columns)
            found = shapley_values(mixed, len(self.places), len(background), len(columns), most, seed)
            self.values, self.base = found.values, found.base
            self.error = float(np.nanmax(found.error, initial=0.0) / max(np.abs(self.values).max(initial=0.0), 1e-12))
        self.values = np.where(np.abs(self.values) > 1e-12, self.values, 0.0)

    def _background(self) -> np.ndarray:
        """Rows at even ranks of the first output, so that their mean prediction is about that of all rows."""
        order = np.argsort(self.predictions[:, 0], kind="stable")
        count = min(BACKGROUND_ROWS, len(order))
        return order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]

    def _examples(self) -> list[int]:
        """The rows with the largest, the median and the smallest prediction, each once."""
        order = np.argsort(self.predictions[:, 0], kind="stable")
        return list(dict.fromkeys(int(order[place]) for place in (-1, len(order) // 2, 0)))

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


def _exact(
    compiled: Compiled, outputs: int, columns: Sequence[str], own: pd.DataFrame, background: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray] | None:
    """Row x column x output, and the mean prediction per output, for as many outputs as ExplainedKind.outputs has.

    None for rows that exact contributions do not fit.
    """
    explainer = CompiledContributions(compiled, compiled.encode_columns(background, len(background)))
    found = explainer.values(compiled.encode_columns(own, len(own)))
    if found is None:
        return None
    kept = slice(1, 2) if len(compiled.signature.classes) == 2 else slice(0, outputs)
    place = {name: each for each, name in enumerate(compiled.features)}
    values = np.zeros((len(own), len(columns), outputs))
    for column, name in enumerate(columns):
        if name in place:
            values[:, column] = found[:, place[name], kept]
    return values, explainer.base[kept]


def _mixed(predict: Predict, own: pd.DataFrame, background: pd.DataFrame, columns: Sequence[str]) -> Mixed:
    """The predictions of rows that take some columns from `own` and the others from `background`."""
    both = pd.concat([own, background], ignore_index=True)

    def predict_mixed(taken: np.ndarray, place: np.ndarray, other: np.ndarray) -> np.ndarray:
        rows = both.take(len(own) + other)
        for column, name in enumerate(columns):
            rows[name] = both[name].take(np.where(taken[:, column], place, len(own) + other)).array
        return predict(rows.reset_index(drop=True))

    return predict_mixed


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
