"""The Open Inference Protocol V2 (KServe, Triton): tensors in JSON or in the binary extension."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from evergreen.serving.feature import Feature
from evergreen.serving.protocols import MalformedRequestError, Row, RowPrediction, from_columns, parse_with_nan
from evergreen.tasks.core.errors import RequestError
from evergreen.tasks.model_files.onnx_runtime import PROBABILITY_PREFIX

NUMBERS = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4",
    "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Datatype of a tensor -> NumPy's, in the byte order of the binary extension."""
RANGES = {
    name: (float(limits.min), float(limits.max)) if name.startswith("FP") else (int(limits.min), int(limits.max))
    for name, limits in (
        (name, np.finfo(type_) if name.startswith("FP") else np.iinfo(type_))
        for name, type_ in NUMBERS.items()
        if name != "BOOL"
    )
}
"""Datatype of numbers -> its lowest and highest value."""
NOTHING = frozenset[type]()
FITTING = {
    "FP64": frozenset({float, int, type(None)}), "BYTES": frozenset({str, type(None)}), "BOOL": frozenset({bool, type(None)}),
}  # fmt: skip
"""Datatype that holds every JSON value of these types."""
PYTHON_MISSING = frozenset({"None", "nan", "NaN", "NaT", "<NA>"})
"""A missing text as Python clients write it: tritonclient sends str(value). A category of that name stays one."""
MAX_DIMENSIONS = 8
DATATYPES = {"number": "FP64", "text": "BYTES", "date": "BYTES"}
"""Type of a feature -> datatype of its tensor."""


def read_request(body: bytes, json_length: int | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part, and the bytes after it. `json_length`: the header Inference-Header-Content-Length, if present."""
    if json_length is None:
        given, rest = parse_with_nan(body), b""
    elif 0 <= json_length <= len(body):
        given, rest = parse_with_nan(body[:json_length]), body[json_length:]
    else:
        raise MalformedRequestError(f"Inference-Header-Content-Length {json_length}: the body has {len(body)} bytes")
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list) or not given["inputs"]:
        raise MalformedRequestError("needs an object with inputs, a list of tensors")
    return given, rest


def read_rows(given: Mapping[str, Any], rest: bytes, features: Mapping[str, Feature]) -> Sequence[Row]:
    """Rows of one tensor per feature (shape [n] or [n, 1]), or of one 2-D tensor with a column per feature in order."""
    return [_without_missing_words(row, features) for row in _rows(given, rest, list(features))]


def _without_missing_words(row: Row, features: Mapping[str, Feature]) -> Row:
    if PYTHON_MISSING.isdisjoint(row.values()):
        return row
    missing = [
        name
        for name, value in row.items()
        if type(value) is str and value in PYTHON_MISSING and name in features and value not in features[name].levels
    ]
    return {**row, **dict.fromkeys(missing)}


def _rows(given: Mapping[str, Any], rest: bytes, features: Sequence[str]) -> Sequence[Row]:
    tensors: dict[str, tuple[list[int], list[Any]]] = {}
    for tensor in given["inputs"]:
        name, shape, values, used = _tensor(tensor, rest)
        if name in tensors:
            raise MalformedRequestError(f"inputs: duplicate tensor {name}")
        tensors[name], rest = (shape, values), rest[used:]
    if rest:
        raise MalformedRequestError(f"{len(rest)} extra bytes after the last tensor")
    if len(tensors) == 1 and len(features) != 1:
        ((name, (shape, values)),) = tensors.items()
        if len(shape) == 2 and shape[1] == len(features) and name not in features:
            width = len(features)
            return [dict(zip(features, values[at : at + width], strict=True)) for at in range(0, len(values), width)]
    for name, (shape, _) in tensors.items():
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1) or not shape:
            raise RequestError(name, f"must be of shape [n] or [n, 1], or one tensor of shape [n, {len(features)}]", shape)
    return from_columns({name: values for name, (_, values) in tensors.items()})


def _tensor(tensor: Any, rest: bytes) -> tuple[str, list[int], list[Any], int]:
    """Name, shape, values in row-major order, and the number of bytes of `rest` that they used."""
    if not isinstance(tensor, Mapping) or not isinstance(name := tensor.get("name"), str):
        raise MalformedRequestError("inputs: a tensor needs name, shape, datatype and data")
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
        raise MalformedRequestError(f"{name}: shape must be a list of whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise MalformedRequestError(f"{name}: a tensor has at most {MAX_DIMENSIONS} dimensions")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in NUMBERS):
        raise MalformedRequestError(f"{name}: datatype must be BYTES or one of {', '.join(NUMBERS)}")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if size is None:
        values, used = list(_flat(tensor.get("data"), name)), 0
        _check_values(name, datatype, values)
    else:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise MalformedRequestError(f"{name}: binary_data_size {size}, but {len(rest)} bytes are left")
        values, used = _from_binary(name, datatype, rest[:size], count), size
    if len(values) != count:
        raise MalformedRequestError(f"{name}: {len(values)} values, but the shape says {count}")
    return name, shape, values, used


def _flat(data: Any, name: str, depth: int = 0) -> Iterable[Any]:
    if not isinstance(data, list) or depth > 1:
        raise MalformedRequestError(f"{name}: data must be a list of values, or of rows")
    for each in data:
        if isinstance(each, list):
            yield from _flat(each, name, depth + 1)
        else:
            yield each


def _check_values(name: str, datatype: str, values: Sequence[Any]) -> None:
    """Raises RequestError for a value in JSON that its datatype does not hold; null is missing in each."""
    if FITTING.get(datatype, NOTHING).issuperset(map(type, values)):
        return
    if datatype == "BYTES":
        fits, rule = (lambda value: type(value) is str), "must be texts"
    elif datatype == "BOOL":
        fits, rule = (lambda value: type(value) is bool), "must be true or false"
    else:
        low, high = RANGES[datatype]
        whole = not datatype.startswith("FP")
        rule = f"must be whole numbers from {low} to {high}" if whole else f"must be numbers of at most {high:.6g}"

        def fits(value: Any) -> bool:
            return (
                type(value) in (int, float) and low <= value <= high and (not whole or type(value) is int or value.is_integer())
            )

    for row, value in enumerate(values):
        if value is not None and not fits(value):
            error = RequestError(name, f"{rule} (datatype {datatype}), or null", value)
            error.row = row
            raise error


def _from_binary(name: str, datatype: str, data: bytes, count: int) -> list[Any]:
    """Values of the binary extension: numbers as in memory; texts with a 4-byte length before each. NaN becomes null."""
    if datatype != "BYTES":
        width = np.dtype(NUMBERS[datatype]).itemsize
        if len(data) != count * width:
            raise MalformedRequestError(f"{name}: {len(data)} bytes, but {count} values of {datatype} take {count * width}")
        array = np.frombuffer(data, NUMBERS[datatype])
        if datatype.startswith("FP") and np.isinf(array).any():
            raise RequestError(name, "must be a finite number, or NaN for a missing value")
        return [None if each != each else each for each in array.tolist()]
    found, at = list[Any](), 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        if at + 4 + length > len(data):
            break
        try:
            found.append(data[at + 4 : at + 4 + length].decode())
        except UnicodeDecodeError:
            raise RequestError(name, "must be UTF-8") from None
        at += 4 + length
    if at != len(data):
        raise MalformedRequestError(f"{name}: the bytes must be texts, each with its length before it")
    return found


def response(problem: str, given: Mapping[str, Any], predictions: Sequence[RowPrediction]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part if binary tensors follow."""
    outputs, tail = [], list[bytes]()
    for name, wanted in _requested(given, predictions).items():
        if wanted.classes is None:
            values: list[Any] = [each.output[name] for each in predictions]
            output: dict[str, Any] = {"name": name, "datatype": _datatype(values), "shape": [len(values)]}
        else:
            ranked = [_most_probable(each.output, wanted.classes) for each in predictions]
            values = [one for each in ranked for one in each]
            output = {"name": name, "datatype": "BYTES", "shape": [len(ranked), len(ranked[0]) if ranked else 0]}
        if wanted.binary:
            tail.append(_to_binary(output["datatype"], values))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    found: dict[str, Any] = {"model_name": problem, "model_version": str(predictions[0].version) if predictions else ""}
    if isinstance(given.get("id"), str):
        found["id"] = given["id"]
    parameters = {"ids": ",".join(each.id for each in predictions)}
    parameters |= {"variants": ",".join(each.variant for each in predictions)}
    parameters |= {"versions": ",".join(str(each.version) for each in predictions)}
    found |= {"parameters": parameters, "outputs": outputs}
    head = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
    return head + b"".join(tail), len(head) if tail else None


@dataclass(frozen=True)
class _Wanted:
    """How an output is requested."""

    binary: bool
    classes: int | None = None
    """tritonclient's class_count: so many classes, the most probable first, in place of the values."""


def _most_probable(output: Mapping[str, Any], count: int) -> list[str]:
    """`probability:index:class` of the most probable classes, as the classification extension writes them."""
    classes = [(name.removeprefix(PROBABILITY_PREFIX), value) for name, value in output.items() if name != "prediction"]
    order = sorted(range(len(classes)), key=lambda place: -classes[place][1])
    return [f"{classes[place][1]:f}:{place}:{classes[place][0]}" for place in order[:count]]


def _requested(given: Mapping[str, Any], predictions: Sequence[RowPrediction]) -> dict[str, _Wanted]:
    """Requested output -> how. Raises RequestError for an output that the model does not have."""
    names = list(predictions[0].output) if predictions else ["prediction"]
    parameters = given.get("parameters")
    all_binary = isinstance(parameters, Mapping) and parameters.get("binary_data_output") is True
    outputs = given.get("outputs")
    if not outputs:
        return dict.fromkeys(names, _Wanted(all_binary))
    if not isinstance(outputs, list) or not all(isinstance(each, Mapping) for each in outputs):
        raise MalformedRequestError("outputs: needs a list of objects with a name")
    found = {}
    for each in outputs:
        name, own = each.get("name"), each.get("parameters")
        if name not in names:
            raise RequestError("outputs", f"must be among {', '.join(names)}", name)
        options = own if isinstance(own, Mapping) else {}
        count = options.get("classification")
        if count is not None:
            _check_class_count(name, count, names)
        found[name] = _Wanted(options.get("binary_data", all_binary) is True, count)
    return found


def _check_class_count(name: str, count: Any, names: Sequence[str]) -> None:
    if type(count) is not int or count < 1:
        raise RequestError("classification", "must be a whole number from 1 on", count)
    if name != "prediction" or not any(each.startswith(PROBABILITY_PREFIX) for each in names):
        raise RequestError("classification", "is for the output prediction of a classifier", name)


def _datatype(values: Sequence[Any]) -> str:
    types = {type(each) for each in values}
    return "FP64" if float in types else "INT64" if types == {int} else "BOOL" if types == {bool} else "BYTES"


def _to_binary(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return np.array(values, NUMBERS[datatype]).tobytes()
    texts = [str(each).encode() for each in values]
    return b"".join(struct.pack("<I", len(each)) + each for each in texts)


def metadata(
    problem: str, versions: Sequence[int], features: Mapping[str, Feature], output: Mapping[str, Any]
) -> dict[str, Any]:
    """`output`: an example, for the datatypes. The output `prediction` of a classifier names the classes in its parameters, and
    an input that a request may leave out says so in its own."""
    outputs = [{"name": name, "datatype": _datatype([value]), "shape": [-1]} for name, value in output.items()]
    classes = [name.removeprefix(PROBABILITY_PREFIX) for name in output if name.startswith(PROBABILITY_PREFIX)]
    if classes:
        outputs[0]["parameters"] = {"classes": classes}
    return {
        "name": problem,
        "versions": [str(each) for each in versions],
        "platform": "evergreen",
        "inputs": [_input(each) for each in features.values()],
        "outputs": outputs,
    }


def _input(feature: Feature) -> dict[str, Any]:
    found = {"name": feature.name, "datatype": DATATYPES[feature.type], "shape": [-1]}
    return found if feature.required else {**found, "parameters": {"optional": True}}
