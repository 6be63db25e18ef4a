"""The three protocols give the same rows, and reject malformed requests with the reason."""

import struct

import numpy as np
import orjson
import pytest

from evergreen.serving import mlflow_protocol, open_inference_protocol, protocols
from evergreen.serving.feature import Feature
from evergreen.serving.protocols import MalformedRequestError, RowPrediction, UnsupportedTypeError
from evergreen.tasks.core.errors import RequestError

FEATURES = {
    "size": Feature("size", "number"),
    "colour": Feature("colour", "text", levels=frozenset({"red", "blue", "None", "7"})),
}
DATED = {"built": Feature("built", "date"), "size": FEATURES["size"]}
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


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"size,colour\n3.5,red\n,blue\n", ROWS),
        (b"\xef\xbb\xbfcolour,size\r\nred,3.5\r\nblue,nan\r\n", ROWS),
        (b",size,colour\n0,3.5,7.0\n", [{"": "0", "size": 3.5, "colour": "7"}]),
        (b'colour\n"a,\n""b"""\nTrue\n\n""\n', [{"colour": 'a,\n"b"'}, {"colour": True}, {"colour": None}]),
        (b"size\n", []),
        (b"size\ncheap\n", [{"size": "cheap"}]),
    ],
    ids=["plain", "mark and line ends", "index", "quotes", "no rows", "not a number"],
)
def test_a_csv_body_gives_typed_rows_and_an_empty_cell_is_missing(body, rows):
    assert mlflow_protocol.read_body(body, "text/csv; charset=UTF-8", FEATURES) == (rows, {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "needs a line of column names"),
        (b"size,size\n1,2\n", "duplicate column"),
        (b"size\n1,2\n", "row 1 has 2 values, expected 1"),
        (b"size\n\xff\n", "must be UTF-8"),
        (b'size\n"1\n', "text/csv: unexpected end of data"),
        (b"size\n" + b"9" * 200_000, "field larger than field limit"),
    ],
)
def test_a_malformed_csv_body_is_an_error_with_the_reason(body, reason):
    with pytest.raises(MalformedRequestError, match=reason):
        mlflow_protocol.read_body(body, "text/csv", FEATURES)


@pytest.mark.parametrize(
    "type_", ["application/vnd.apache.parquet", "multipart/form-data; boundary=x", "text/csv; charset=latin-1", "text/html"]
)
def test_another_content_type_is_unsupported_by_name(type_):
    with pytest.raises(UnsupportedTypeError, match=r"must be (application/json or text/csv|utf-8)"):
        mlflow_protocol.read_body(b"{}", type_, FEATURES)


@pytest.mark.parametrize(
    "type_", ["", "application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"]
)
def test_nan_in_a_json_body_is_missing_and_a_string_with_it_stays(type_):
    body = (
        rb'{"dataframe_split": {"columns": ["size", "colour"], "data": [[NaN, "NaN \" NaN"], [-1.5, NaN]]}, "params": {"a": 1}}'
    )
    rows, params = mlflow_protocol.read_body(body, type_, FEATURES)
    assert rows == [{"size": None, "colour": 'NaN " NaN'}, {"size": -1.5, "colour": None}]
    assert params == {"a": 1}


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "-NaN", "NaNN", "1e999"])
def test_other_words_for_numbers_stay_invalid(number):
    with pytest.raises(MalformedRequestError, match="invalid JSON"):
        mlflow_protocol.read_body(f'{{"inputs": [[{number}, NaN]]}}'.encode(), "", FEATURES)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (0, "1970-01-01"),
        (1_709_164_800_000, "2024-02-29"),
        (-86_400_000.0, "1969-12-31"),
        (1_709_164_800_500, "2024-02-29T00:00:00.500000"),
        ("NaT", None),
        ("2024-02-29T00:00:00", "2024-02-29T00:00:00"),
        (None, None),
        (10**18, 10**18),
        (1e300, 1e300),
        (True, True),
        ([1], [1]),
    ],
)
def test_a_date_in_milliseconds_as_pandas_writes_it_is_read(given, found):
    assert mlflow_protocol.read_rows({"inputs": {"built": [given], "size": [1]}}, DATED) == [{"built": found, "size": 1}]


def test_a_number_that_the_contract_reads_as_a_date_is_no_count_of_milliseconds():
    def read_day(text: str) -> str:
        if len(text) != 8:
            raise ValueError(text)
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"

    features = {"built": Feature("built", "date", (), read_day)}
    rows = mlflow_protocol.read_rows({"dataframe_records": [{"built": 20240229}, {"built": 1_709_164_800_000}]}, features)
    assert [each["built"] for each in rows] == ["2024-02-29", "2024-02-29"]


def test_superfluous_columns_are_dropped_and_named():
    rows = [{"size": 1, "hue": 2}, {"size": 2, "name": 3}]
    assert mlflow_protocol.drop_columns(rows, {"size"}) == ([{"size": 1}, {"size": 2}], ["hue", "name"])
    assert mlflow_protocol.drop_columns(ROWS, FEATURES.keys()) == (ROWS, [])
    assert mlflow_protocol.response([], ["hue"])["ignored_columns"] == ["hue"]
    assert "ignored_columns" not in mlflow_protocol.response([])


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def texts(*values):
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)


def read(given, rest=b"", features=FEATURES):
    body = orjson.dumps(given)
    return open_inference_protocol.read_rows(
        *open_inference_protocol.read_request(body + rest, len(body) if rest else None), features
    )


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("INT8", [-128, 127, None, 3.0], [128, -129, 1.5, True, "1"]),
        ("UINT64", [0, 2**64 - 1], [-1]),
        ("INT64", [-(2**63), 2**63 - 1], [float(2**63), 1e300]),
        ("FP16", [65504, -1.5], [1e5, "1.5", False]),
        ("FP32", [3.4e38], [3.5e38]),
        ("FP64", [1e308, 2**63], ["", {}]),
        ("BOOL", [True, False, None], [0, 1, "true"]),
        ("BYTES", ["", "x", None], [1, True, {"b64": ""}]),
    ],
)
def test_values_in_json_must_fit_their_datatype(datatype, good, bad):
    features = {"x": Feature("x", "number")}
    rows = read({"inputs": [tensor("x", datatype, [len(good)], good)]}, features=features)
    assert [row["x"] for row in rows] == good
    for value in bad:
        with pytest.raises(
            (RequestError, MalformedRequestError), match=f"x.*(must be .*{datatype}|but the shape says 2)"
        ) as caught:
            read({"inputs": [tensor("x", datatype, [2], [good[0], value])]}, features=features)
        assert getattr(caught.value, "row", 1) == 1


@pytest.mark.parametrize("word", ["nan", "NaN", "NaT", "<NA>"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_missing_text_as_python_clients_write_it_is_missing_unless_it_is_a_category(word, binary):
    given, rest = tensor("colour", "BYTES", [2], [word, "None"]), b""
    if binary:
        rest = texts(word, "None")
        given = {"name": "colour", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(rest)}}
    found = read({"inputs": [tensor("size", "FP64", [2], [1, 2]), given]}, rest)
    assert [row["colour"] for row in found] == [None, "None"]


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
    features = {name: Feature(name, "number") for name in "ab"}
    found = read({"inputs": [tensor("input", "FP64", [2, 2], data)]}, features=features)
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


@pytest.mark.parametrize(("count", "width"), [(1, 1), (2, 2), (9, 2)])
@pytest.mark.parametrize("binary", [True, False])
def test_class_count_gives_the_most_probable_classes(count, width, binary):
    wanted = {"name": "prediction", "parameters": {"classification": count, "binary_data": binary}}
    body, head = open_inference_protocol.response("dear", {"outputs": [wanted]}, PREDICTIONS)
    (output,) = orjson.loads(body[:head])["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, width])
    expected = ["0.750000:0:no", "0.250000:1:yes"][:width] + ["0.500000:0:no", "0.500000:1:yes"][:width]
    assert (body[head:] == texts(*expected)) if binary else output["data"] == expected


@pytest.mark.parametrize(
    ("name", "count", "rule"),
    [("prediction", 0, "from 1 on"), ("prediction", "2", "from 1 on"), ("probability_yes", 1, "is for the output prediction")],
)
def test_an_impossible_class_count_is_an_error(name, count, rule):
    wanted = {"name": name, "parameters": {"classification": count}}
    with pytest.raises(RequestError, match=rule):
        open_inference_protocol.response("dear", {"outputs": [wanted]}, PREDICTIONS)


def test_the_metadata_of_a_classifier_name_its_classes():
    found = open_inference_protocol.metadata("dear", [3], FEATURES, PREDICTIONS[0].output)
    assert found["outputs"][0] == {
        "name": "prediction", "datatype": "BYTES", "shape": [-1], "parameters": {"classes": ["no", "yes"]},
    }  # fmt: skip
    assert [each["datatype"] for each in found["inputs"]] == ["FP64", "BYTES"]
    assert "parameters" not in open_inference_protocol.metadata("spend", [3], FEATURES, {"prediction": 1.5})["outputs"][0]
