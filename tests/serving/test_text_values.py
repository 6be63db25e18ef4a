"""Requests with numbers and dates as text are read as the table was; a category that training never saw is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from evergreen.serving import missing_values, text_values
from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import RowModel
from evergreen.serving.metrics import Metrics
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import RequestError
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.data.snapshot import facts_file

SOURCE = {
    "csv": "t.csv",
    "separator": ";",
    "types": {"price": "number", "paid": "date", "colour": "text", "new": "boolean"},
    "number_formats": {"price": "1.234,5 €"},
    "date_formats": {"paid": "%d.%m.%y"},
    "null_values": ["unknown"],
    "missing": {"price": ["-9"], "colour": ["none"]},
}
COLUMNS = {"price": "number", "paid": "date", "colour": "category", "rooms": "number", "new": "category"}


@pytest.fixture
def model(tmp_path: Path) -> RowModel:
    section = {"question": "How much?", "features": {"table": "t", "target": "y", "columns": COLUMNS}}
    whole = {"project": {"name": "p"}, "ingest": {"t": SOURCE}, "problems": {"homes": "regression"}, "homes": section}
    (tmp_path / "params.yaml").write_text(json.dumps(whole))
    known = loading.load(tmp_path / "params.yaml")
    layout = Layout(tmp_path)
    write_json(facts_file(layout), {"tables": {"t": {"contract": {"types": {"rooms": "integer", "price": "number"}}}}})
    source = text_values.source(known, "homes", layout)
    readers = text_values.readers(source)
    kinds: dict[str, Any] = {"price": "number", "paid": "date", "colour": "text", "rooms": "number", "new": "text"}
    levels = {"colour": frozenset({"red", "7", "False", "none"}), "new": frozenset({"true", "false"})}
    features = [
        Feature(name, kind, (), readers.get(name), levels.get(name, frozenset()), missing_values.of_column(source, name, kind))
        for name, kind in kinds.items()
    ]
    return RowModel("homes", 1, "regression", features, [], lambda rows: [{"prediction": row["price"]} for row in rows])


ROW = {"price": 1.5, "paid": "2024-01-31", "colour": "red", "rooms": 3, "new": "true"}


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("price", "1.234,50 €", 1234.5),
        ("price", "unknown", None),
        ("paid", "31.01.24", "2024-01-31"),
        ("paid", "31.01.2024", "2024-01-31"),
        ("rooms", "3.0", 3),
        ("rooms", "3", 3),
        ("colour", "blue", "blue"),
        ("colour", "", None),
        ("colour", " unknown ", None),
        ("colour", "none", "none"),
        ("price", "", None),
        ("price", -9, None),
        ("price", -9.5, -9.5),
        ("paid", "", None),
        ("new", "Yes", "true"),
        ("new", False, "false"),
        ("new", "", None),
        ("colour", False, "False"),
        ("colour", True, True),
    ],
)
def test_a_text_is_read_as_the_table_was(model: RowModel, column: str, value: Any, found: Any):
    assert model.parse({**ROW, column: value}).features == {**ROW, column: found}


@pytest.mark.parametrize(("column", "value"), [("price", "cheap"), ("paid", "soon"), ("rooms", "2.5")])
def test_a_text_that_does_not_fit_is_rejected_by_name(model: RowModel, column: str, value: str):
    with pytest.raises(RequestError, match=f"{column} = '{value}': must be a "):
        model.parse({**ROW, column: value})


@pytest.mark.parametrize(("value", "unseen"), [("red", 0), (7, 0), (7.0, 0), (None, 0), ("blue", 1), (False, 0), (True, 1)])
def test_a_category_that_training_never_saw_is_counted_by_column(model: RowModel, value: Any, unseen: int):
    metrics = Metrics()
    metrics.count_unseen("homes", model.unseen(model.parse({**ROW, "colour": value})))
    assert metrics.unseen["homes", "colour"] == unseen
