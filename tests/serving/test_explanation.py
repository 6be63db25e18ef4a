"""The explanation of one prediction, beside exact Shapley values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from evergreen.serving.explanation import contributions
from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import RowModel
from tests.tasks.explanation.test_shapley import exact, pairs

NAMES = ("a", "b", "c", "d")


def table(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[row[name] for name in NAMES] for row in rows], dtype=float)


def loaded(example: Sequence[Mapping[str, Any]]) -> RowModel:
    """A version that predicts the sum and the products of `pairs`."""
    features = [Feature(name, "number") for name in NAMES]

    def predict(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{"prediction": float(each)} for each in pairs(table(rows))]

    return RowModel("pay", 1, "regression", features, example, predict)


def test_contributions_are_exact_where_columns_interact_in_pairs() -> None:
    example = [{"a": 0.5, "b": 1.0, "c": -1.0, "d": 2.0}, {"a": -0.5, "b": 0.0, "c": 3.0, "d": 1.0}]
    row = {"a": 1.5, "b": -2.0, "c": 0.5, "d": 1.0}
    model = loaded(example)
    found = contributions(model, model.parse(row))
    right = dict(zip(NAMES, exact(pairs, table([row])[0], table(example)), strict=True))
    assert {each["column"]: each["contribution"] for each in found[:-2]} == pytest.approx(right)
    assert [each["column"] for each in found[:-2]] == sorted(right, key=lambda name: -abs(right[name]))
    assert found[-1]["contribution"] == pytest.approx(pairs(table(example)).mean())
    assert sum(each["contribution"] for each in found) == pytest.approx(pairs(table([row]))[0])


def test_a_row_like_all_example_rows_is_explained_by_their_mean_alone() -> None:
    row = {"a": 0.5, "b": 1.0, "c": -1.0, "d": 2.0}
    model = loaded([row, row])
    found = contributions(model, model.parse(row))
    assert [each["column"] for each in found] == [None, None]
    assert [each["contribution"] for each in found] == pytest.approx([0.0, pairs(table([row]))[0]])
