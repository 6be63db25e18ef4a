"""The three protocols give the same rows, and reject malformed requests with the reason."""

import struct

import numpy as np
import orjson
import pytest

from evergreen.serving import mlflow_protocol, open_inference_protocol, protocols
from evergreen.serving.protocols import MalformedRequestError, RowPrediction
from evergreen.tasks.core.errors import RequestError

FEATURES = ["size", "colour"]
ROWS = [{"size": 3.5, "colour": "red"}, {"size": None, "colour": "blue"}]
PREDICTIONS = [
    RowPrediction("a-0", 3, "champion", {"prediction": "no", "probability_no": 0.75, "probability_yes": 0.25}),
    RowPrediction("a-1", 4, "candidate", {"prediction": "yes", "probability_no": 0.5, "probability_yes": 0.5}),
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
def test_every_mlflow_form_gives_the_same_rows(given):
    assert mlflow_protocol.read_rows(given, FEATURES) == ROWS


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "needs an object"),
        ({}, "exactly one of .* found none"),
        ({"instances": [], "inputs": []}, "found instances, inputs"),
        ({"instances": 3}, "instances: needs a list of rows"),
        ({"instances": [[3.5]]}, "a row has 1 values, expected 2"),
        ({"dataframe_split": {"columns": ["size"]}}, "needs columns, a list of names, and data"),
        ({"dataframe_split": {"columns": ["size", "size"], "data": []}}, "duplicate column"),
        ({"dataframe_split": {"columns": ["size"], "data": [[1, 2]]}}, "a row has 2 values, expected 1"),
        ({"inputs": {"size": [1], "colour": ["red", "blue"]}}, r"columns of different lengths \(1, 2\)"),
    ],
)
def test_a_malformed_mlflow_request_is_an_error_with_the_reason(given, reason):
    with pytest.raises(MalformedRequestError, match=reason):
        mlflow_protocol.read_rows(given, FEATURES)


def test_the_mlflow_response_has_predictions_ids_versions_and_variants():
    found = mlflow_protocol.response(PREDICTIONS)
    assert found["predictions"] == ["no", "yes"]
    assert found["probability_yes"] == [0.25, 0.5]
    assert (found["ids"], found["versions"], found["variants"]) == (["a-0", "a-1"], [3, 4], ["champion", "candidate"])


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def texts(*values):
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)


def read(given, rest=b"", features=FEATURES):
    body = orjson.dumps(given)
    return open_inference_protocol.read_rows(
        *open_inference_protocol.read_request(body + rest, len(body) if rest else None), features
    )


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_one_tensor_per_feature_gives_rows(shape):
    data = [3.5, None] if shape == [2] else [[3.5], [None]]
    assert read({"inputs": [tensor("size", "FP64", shape, data), tensor("colour", "BYTES", shape, ["red", "blue"])]}) == ROWS


def test_binary_tensors_give_the_same_rows_and_nan_is_null():
    sizes, colours = np.array([3.5, np.nan], "<f4").tobytes(), texts("red", "blue")
    inputs = [
        {"name": "size", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(sizes)}},
        {"name": "colour", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(colours)}},
    ]
    assert read({"inputs": inputs}, sizes + colours) == ROWS


@pytest.mark.parametrize("data", [[1.0, 2.0, 3.0, 4.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_a_matrix_has_a_column_per_feature(data):
    found = read({"inputs": [tensor("input", "FP64", [2, 2], data)]}, features=["a", "b"])
    assert found == [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"inputs": []}, "needs an object with inputs"),
        ({"inputs": [{"name": "size"}]}, "size: shape must be a list"),
        ({"inputs": [tensor("size", "FP128", [1], [1])]}, "datatype must be BYTES or one of"),
        ({"inputs": [tensor("size", "FP64", [2], [1])]}, "1 values, but the shape says 2"),
        ({"inputs": [tensor("size", "FP64", [1], 1)]}, "data must be a list"),
        ({"inputs": [tensor("size", "FP64", [1], [1])] * 2}, "duplicate tensor size"),
        (
            {"inputs": [{"name": "size", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 9}}]},
            "binary_data_size 9, but 0 bytes are left",
        ),
    ],
)
def test_a_malformed_tensor_is_an_error_with_the_reason(given, reason):
    with pytest.raises(MalformedRequestError, match=reason):
        read(given)


@pytest.mark.parametrize(
    ("values", "size", "reason"),
    [
        (np.array([1.0, 2.0]).tobytes()[:-1], 15, "15 bytes, but 2 values of FP64 take 16"),
        (np.array([1.0, 2.0]).tobytes() + b"x", 16, "1 extra bytes after the last tensor"),
    ],
)
def test_binary_data_of_a_wrong_length_is_an_error(values, size, reason):
    given = {"inputs": [{"name": "size", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": size}}]}
    with pytest.raises(MalformedRequestError, match=reason):
        read(given, values)


def test_a_tensor_of_a_wrong_shape_and_an_infinite_number_name_their_field():
    with pytest.raises(RequestError, match=r"size = \[1, 2\]: must be of shape") as caught:
        read({"inputs": [tensor("size", "FP64", [1, 2], [1, 2]), tensor("colour", "BYTES", [1], ["red"])]})
    assert caught.value.field == "size"
    infinite = np.array([np.inf]).tobytes()
    with pytest.raises(RequestError, match="size: must be a finite number"):
        read({"inputs": [{"name": "size", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]}, infinite)


def test_each_output_is_json_or_binary_as_requested():
    wanted = [{"name": "probability_yes", "parameters": {"binary_data": True}}, {"name": "prediction"}]
    body, head = open_inference_protocol.response("dear", {"id": "mine", "outputs": wanted}, PREDICTIONS)
    assert head is not None
    head_json = orjson.loads(body[:head])
    assert (head_json["id"], head_json["model_name"], head_json["parameters"]["ids"]) == ("mine", "dear", "a-0,a-1")
    assert [each["name"] for each in head_json["outputs"]] == ["probability_yes", "prediction"]
    assert head_json["outputs"][1] == {"name": "prediction", "datatype": "BYTES", "shape": [2], "data": ["no", "yes"]}
    assert np.frombuffer(body[head:]).tolist() == [0.25, 0.5]


def test_binary_texts_have_their_length_before_them():
    body, head = open_inference_protocol.response(
        "dear", {"parameters": {"binary_data_output": True}, "outputs": [{"name": "prediction"}]}, PREDICTIONS
    )
    assert body[head:] == texts("no", "yes")


def test_an_unknown_output_is_an_error_by_name():
    with pytest.raises(RequestError, match="outputs = 'odds': must be among prediction, probability_no"):
        open_inference_protocol.response("dear", {"outputs": [{"name": "odds"}]}, PREDICTIONS)


@pytest.mark.parametrize("body", [b"", b"{", b"[NaN]", b"[1e999]", b"\xff"])
def test_invalid_json_is_an_error(body):
    with pytest.raises(MalformedRequestError, match="invalid JSON"):
        protocols.parse(body)


@pytest.mark.parametrize("given", [3, "x", [1], {"rows": 3}, [[1]]])
def test_a_body_without_rows_is_an_error(given):
    with pytest.raises(MalformedRequestError, match="needs a row"):
        protocols.plain_rows(given)
