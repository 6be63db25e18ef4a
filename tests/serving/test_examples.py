"""Example requests are made from the contract: the version accepts them, and they show nothing of the training data."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evergreen.serving import examples
from evergreen.serving.column_rules import from_params
from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import RowModel
from evergreen.tasks.config import loading

MakeFeature = Callable[[str, dict[str, Any]], Feature]

RULES = [
    ("between", {"min_value": 0, "strict_min": True, "max_value": 0.001}),
    ("between", {"min_value": 70_000}),
    ("between", {"max_value": -5, "strict_max": True}),
    ("in_set", {"value_set": ["mauve", "teal"]}),
    ("not_be_in_set", {"value_set": ["a", "text"]}),
    ("match_regex", {"regex": "^[A-Z]$"}),
    ("not_be_null", {}),
]
NAMES = {"between": "be_between", "in_set": "be_in_set", "match_regex": "match_regex"}


@pytest.fixture
def feature(tmp_path: Path) -> MakeFeature:
    return partial(make_feature, tmp_path)


def make_feature(folder: Path, kind: str, given: dict[str, Any]) -> Feature:
    """A feature with one rule of params.yaml."""
    name = f"expect_column_values_to_{NAMES.get(kind, kind)}"
    type_ = "number" if kind == "between" else "text"
    columns = {"x": "number" if kind == "between" else "category"}
    whole = {
        "project": {"name": "p"},
        "ingest": {"t": {"csv": "t.csv"}},
        "validate": {"t": {"expectations": [{"type": name, "kwargs": {"column": "x", **given}}]}},
        "problems": {"p": "regression"},
        "p": {"question": "?", "features": {"table": "t", "target": "y", "columns": columns}},
    }
    (folder / "params.yaml").write_text(json.dumps(whole))
    known = loading.load(folder / "params.yaml")
    return Feature("x", type_, from_params(known, known.section("p"))["x"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "given"), RULES, ids=str)
def test_an_example_keeps_the_rules_of_its_column(kind: str, given: dict[str, Any], feature: MakeFeature):
    found = feature(kind, given)
    row = examples.make_row([found])
    assert row is not None
    assert row["x"] is not None
    assert all(rule.holds(row["x"]) for rule in found.rules)


def test_without_a_value_that_keeps_all_rules_there_is_no_example(feature: MakeFeature):
    hard = feature("match_regex", {"regex": "^[0-9]{40}$"})
    assert examples.make_row([hard]) == {"x": None}  # missing is allowed
    needed = Feature("x", "text", (*hard.rules, *feature("not_be_null", {}).rules))
    assert examples.make_row([needed]) is None


def test_an_example_is_no_row_of_the_training_data_and_no_user():
    stored = [
        {"size": 123.456, "colour": "secret", "built": "NaT"},
        {"size": float("nan"), "colour": None, "built": "1987-06-05"},
    ]
    features = [Feature("size", "number"), Feature("colour", "text"), Feature("built", "date")]
    model = RowModel("dear", 1, "regression", features, stored, lambda rows: [{"prediction": float(len(rows))} for _ in rows])
    assert [row["built"] for row in model.example] == [None, "1987-06-05"]
    assert model.example[1]["size"] is None
    assert model.self_check() == [{"prediction": 2.0}] * 2
    assert model.example_output == {"prediction": 1.0}
    assert model.request_example is not None
    assert not {*model.request_example.values()} & {value for row in stored for value in row.values()}
    assert examples.make_id([1, 2, 7]) == 3
    assert examples.make_id(["ada", "user-1"]) == "user-2"
    assert examples.make_id([]) == 1


def test_an_example_that_the_version_rejects_is_withdrawn():
    def predict(rows):
        return [{"prediction": 1.0 / (row["size"] - 1)} for row in rows]

    model = RowModel("dear", 1, "regression", [Feature("size", "number")], [{"size": 3.0}], predict)
    with pytest.raises(ZeroDivisionError):
        model.predict([model.parse({"size": 1})])
    assert model.self_check() == [{"prediction": 0.5}]
    assert (model.request_example, model.example_output) == (None, {"prediction": 0.5})
