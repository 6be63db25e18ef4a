"""The explanation of one prediction, beside exact Shapley values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMRegressor
from sklearn.pipeline import Pipeline

from evergreen.serving.explanation import contributions
from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import RowModel
from evergreen.tasks.config.modelling import Pipeline as PipelineSettings
from evergreen.tasks.model_files import onnx_export
from evergreen.tasks.model_files.onnx_runtime import Compiled
from evergreen.tasks.problems.tabular import preprocessing
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


def compiled_and_pipeline() -> tuple[RowModel, RowModel, list[dict[str, Any]]]:
    """The same boosted trees over a number, a category and a date, compiled and not."""
    draw = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "size": np.where(draw.random(400) < 0.1, np.nan, draw.normal(size=400)),
            "colour": pd.Series(draw.choice(["red", "blue", "green"], 400), dtype="str"),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 300, 400), "D"),
        }
    )
    target = frame["size"].fillna(1) * (frame["colour"] == "red") + frame["day"].dt.month / 6
    model = Pipeline(
        [
            (
                "prepare",
                preprocessing.preprocess(PipelineSettings(), {}, ["size"], ["colour"], [], "continuous", 0, True, ["day"], []),
            ),
            ("model", LGBMRegressor(n_estimators=30, verbosity=-1, n_jobs=1)),
        ]
    ).fit(frame, target)
    features = [Feature("size", "number"), Feature("colour", "text"), Feature("day", "date")]
    rows = json.loads(str(frame.to_json(orient="records", date_format="iso")))
    compiled = Compiled(onnx_export.compile_model(model, frame))

    def predict(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        read = pd.DataFrame(list(given)).astype({"size": float, "colour": "str"})
        read["day"] = pd.to_datetime(read["day"])
        return [{"prediction": float(each)} for each in model.predict(read)]

    loaded = [RowModel("pay", 1, "regression", features, rows[:5], each, background=rows[5:45]) for each in (compiled, predict)]
    return loaded[0], loaded[1], rows[60:64]


def test_compiled_models_and_pipelines_have_the_same_contributions_in_the_columns_of_the_user() -> None:
    compiled, pipeline, rows = compiled_and_pipeline()
    assert compiled.exact
    assert not pipeline.exact
    for row in rows:
        fast, slow = (contributions(model, model.parse(row)) for model in (compiled, pipeline))
        sampled = {each["column"]: each["contribution"] for each in slow[:-2]}
        largest = max(map(abs, sampled.values()))
        exact = {each["column"]: each["contribution"] for each in fast[:-2]}
        assert exact == pytest.approx(sampled, abs=0.03 * largest)
        assert {each["column"] for each in fast} == {"size", "colour", "day", None}
        assert sum(each["contribution"] for each in fast) == pytest.approx(
            compiled.predict([compiled.parse(row)])[0]["prediction"]
        )


def test_a_row_like_all_example_rows_is_explained_by_their_mean_alone() -> None:
    row = {"a": 0.5, "b": 1.0, "c": -1.0, "d": 2.0}
    model = loaded([row, row])
    found = contributions(model, model.parse(row))
    assert [each["column"] for each in found] == [None, None]
    assert [each["contribution"] for each in found] == pytest.approx([0.0, pairs(table([row]))[0]])
