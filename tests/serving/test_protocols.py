"""The three protocols say the same of the same rows, and refuse what is none of theirs in words."""

import struct

import numpy as np
import orjson
import pytest

from evergreen.serving import protocols
from evergreen.serving.protocols import Answered, MalformedError
from evergreen.tasks.core.errors import RequestError

FEATURES = ["size", "colour"]
ROWS = [{"size": 3.5, "colour": "red"}, {"size": None, "colour": "blue"}]
ANSWERS = [
    Answered("a-0", 3, "champion", {"prediction": "no", "probability_no": 0.75, "probability_yes": 0.25}),
    Answered("a-1", 4, "candidate", {"prediction": "yes", "probability_no": 0.5, "probability_yes": 0.5}),
]


@pytest.mark.parametrize(
    "given",
    [
        {"dataframe_split": {"columns": ["colour", "size"], "index": [7, 9], "data": [["red", 3.5], ["blue", None]]}},
        {"dataframe_records": ROWS},
        {"instances": ROWS},
        {"instances": [[3.5, "red"], [None, "blue"]]},
        {"inputs": {"size": [3.5, None], "colour": ["red", "blue"]}},
        {"inputs": [[3.5, "red"], [None, "blue"]], "params": {"explain": True}},
    ],
    ids=["split", "records", "named", "positions", "columns", "lists"],
)
def test_every_form_of_mlflow_gives_the_same_rows(given):
    assert protocols.mlflow_rows(given, FEATURES) == ROWS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "needs an object"),
        ({}, "exactly one of .* found none"),
        ({"instances": [], "inputs": []}, "found instances, inputs"),
        ({"instances": 3}, "instances: needs a list of rows"),
        ({"instances": [[3.5]]}, "1 values where 2 are needed"),
        ({"dataframe_split": {"columns": ["size"]}}, "needs columns, a list of names, and data"),
        ({"dataframe_split": {"columns": ["size", "size"], "data": []}}, "a column is there twice"),
        ({"dataframe_split": {"columns": ["size"], "data": [[1, 2]]}}, "2 values where 1 are needed"),
        ({"inputs": {"size": [1], "colour": ["red", "blue"]}}, r"columns of different lengths \(1, 2\)"),
    ],
)
def test_what_is_no_form_of_mlflow_is_refused_with_the_reason(given, said):
    with pytest.raises(MalformedError, match=said):
        protocols.mlflow_rows(given, FEATURES)


def test_mlflow_is_answered_with_predictions_and_with_what_they_are_known_by():
    found = protocols.mlflow_answer(ANSWERS)
    assert found["predictions"] == ["no", "yes"]
    assert found["probability_yes"] == [0.25, 0.5]
    assert (found["ids"], found["versions"], found["variants"]) == (["a-0", "a-1"], [3, 4], ["champion", "candidate"])


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def texts(*values):
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)


def read(given, rest=b"", features=FEATURES):
    body = orjson.dumps(given)
    return protocols.v2_rows(*protocols.v2_request(body + rest, len(body) if rest else None), features)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_a_tensor_for_each_feature_is_rows(shape):
    data = [3.5, None] if shape == [2] else [[3.5], [None]]
    assert read({"inputs": [tensor("size", "FP64", shape, data), tensor("colour", "BYTES", shape, ["red", "blue"])]}) == ROWS


def test_tensors_in_binary_are_the_same_rows_and_nan_is_null():
    sizes, colours = np.array([3.5, np.nan], "<f4").tobytes(), texts("red", "blue")
    inputs = [
        {"name": "size", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(sizes)}},
        {"name": "colour", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(colours)}},
    ]
    assert read({"inputs": inputs}, sizes + colours) == ROWS


@pytest.mark.parametrize("data", [[1.0, 2.0, 3.0, 4.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_one_matrix_has_a_column_for_each_feature(data):
    found = read({"inputs": [tensor("input", "FP64", [2, 2], data)]}, features=["a", "b"])
    assert found == [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inputs": []}, "needs an object with inputs"),
        ({"inputs": [{"name": "size"}]}, "size: shape must be a list"),
        ({"inputs": [tensor("size", "FP128", [1], [1])]}, "datatype must be BYTES or one of"),
        ({"inputs": [tensor("size", "FP64", [2], [1])]}, "1 values where the shape says 2"),
        ({"inputs": [tensor("size", "FP64", [1], 1)]}, "data must be a list"),
        ({"inputs": [tensor("size", "FP64", [1], [1])] * 2}, "size is there twice"),
        (
            {"inputs": [{"name": "size", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 9}}]},
            "binary_data_size 9 where 0 bytes are left",
        ),
    ],
)
def test_what_is_no_tensor_is_refused_with_the_reason(given, said):
    with pytest.raises(MalformedError, match=said):
        read(given)


@pytest.mark.parametrize(
    ("values", "size", "said"),
    [
        (np.array([1.0, 2.0]).tobytes()[:-1], 15, "15 bytes where 2 of FP64 take 16"),
        (np.array([1.0, 2.0]).tobytes() + b"x", 16, "1 bytes behind the last tensor belong to none"),
    ],
)
def test_binary_of_another_length_than_its_shape_is_refused(values, size, said):
    given = {"inputs": [{"name": "size", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": size}}]}
    with pytest.raises(MalformedError, match=said):
        read(given, values)


def test_a_tensor_of_another_shape_and_an_infinite_number_name_their_field():
    with pytest.raises(RequestError, match=r"size = \[1, 2\]: must be of shape") as caught:
        read({"inputs": [tensor("size", "FP64", [1, 2], [1, 2]), tensor("colour", "BYTES", [1], ["red"])]})
    assert caught.value.field == "size"
    infinite = np.array([np.inf]).tobytes()
    with pytest.raises(RequestError, match="size: must be a finite number"):
        read({"inputs": [{"name": "size", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]}, infinite)


def test_outputs_come_as_json_or_in_binary_as_each_was_asked_for():
    wanted = [{"name": "probability_yes", "parameters": {"binary_data": True}}, {"name": "prediction"}]
    body, head = protocols.v2_answer("dear", {"id": "mine", "outputs": wanted}, ANSWERS)
    assert head is not None
    told = orjson.loads(body[:head])
    assert (told["id"], told["model_name"], told["parameters"]["ids"]) == ("mine", "dear", "a-0,a-1")
    assert [each["name"] for each in told["outputs"]] == ["probability_yes", "prediction"]
    assert told["outputs"][1] == {"name": "prediction", "datatype": "BYTES", "shape": [2], "data": ["no", "yes"]}
    assert np.frombuffer(body[head:]).tolist() == [0.25, 0.5]


def test_texts_in_binary_have_their_length_before_them():
    body, head = protocols.v2_answer(
        "dear", {"parameters": {"binary_data_output": True}, "outputs": [{"name": "prediction"}]}, ANSWERS
    )
    assert body[head:] == texts("no", "yes")


def test_an_output_that_is_not_given_is_refused_by_name():
    with pytest.raises(RequestError, match="outputs = 'odds': must be among prediction, probability_no"):
        protocols.v2_answer("dear", {"outputs": [{"name": "odds"}]}, ANSWERS)


@pytest.mark.parametrize("body", [b"", b"{", b"[NaN]", b"[1e999]", b"\xff"])
def test_what_is_no_json_is_refused(body):
    with pytest.raises(MalformedError, match="the body is no JSON"):
        protocols.parse(body)


@pytest.mark.parametrize("given", [3, "x", [1], {"rows": 3}, [[1]]])
def test_what_is_no_row_is_refused(given):
    with pytest.raises(MalformedError, match="needs a row"):
        protocols.plain_rows(given)
