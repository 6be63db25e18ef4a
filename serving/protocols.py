"""What clients say and want to hear: plain JSON rows, MLflow's scoring protocol, and the Open Inference Protocol V2.

Each protocol turns a body into rows (feature -> value, as JSON has them) and answers into a body. All are pure.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from evergreen.tasks.core.errors import RequestError

Row = Mapping[str, Any]
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""Of MLflow's scoring protocol."""
NUMBERS = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4",
    "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Datatype of a V2 tensor -> NumPy's, in the byte order of the binary extension."""
DIMENSIONS = 8
DATATYPES = {"number": "FP64", "text": "BYTES", "date": "BYTES"}
"""Type of a feature -> datatype of its tensor."""


class MalformedError(Exception):
    """A body that is not what the protocol says; status 400."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one row, and what it is known by."""

    id: str
    version: int
    variant: str
    said: Mapping[str, Any]
    explanation: Sequence[Mapping[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        found = {"id": self.id, "version": self.version, "variant": self.variant, **self.said}
        return found if self.explanation is None else {**found, "explanation": self.explanation}


def parse(body: bytes) -> Any:
    """Raises MalformedError for what is no JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is no JSON: {error}; a value that is not known is null") from None


# --- plain rows --------------------------------------------------------------------------------------------------------------


def plain_rows(given: Any) -> Sequence[Row]:
    """A list of rows, or {"rows": [...]}."""
    rows = given.get("rows") if isinstance(given, Mapping) else given
    if not isinstance(rows, list) or not all(type(each) is dict for each in rows):
        raise MalformedError("needs a row, such as {feature: value}, or a list of rows")
    return rows


# --- MLflow ------------------------------------------------------------------------------------------------------------------


def mlflow_rows(given: Any, features: Sequence[str]) -> Sequence[Row]:
    """Rows of one of FORMS; lists of values without names are in the order of `features`."""
    if not isinstance(given, Mapping):
        raise MalformedError(f"needs an object with one of {', '.join(FORMS)}")
    forms = [form for form in FORMS if form in given]
    if len(forms) != 1:
        raise MalformedError(f"needs exactly one of {', '.join(FORMS)}; found {', '.join(forms) or 'none'}")
    value = given[forms[0]]
    if forms[0] == "dataframe_split":
        return _split(value)
    if forms[0] == "inputs" and isinstance(value, Mapping):
        return _columns(value)
    if not isinstance(value, list):
        raise MalformedError(f"{forms[0]}: needs a list of rows")
    return [_named(forms[0], each, features) for each in value]


def _split(value: Any) -> Sequence[Row]:
    columns, data = (value.get("columns"), value.get("data")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or not all(type(each) is str for each in columns):
        raise MalformedError("dataframe_split: needs columns, a list of names, and data, a list of rows")
    if len(set(columns)) < len(columns):
        raise MalformedError("dataframe_split: a column is there twice")
    return [_zipped("dataframe_split", columns, each) for each in data]


def _columns(value: Mapping[str, Any]) -> Sequence[Row]:
    lists = {name: each if isinstance(each, list) else [each] for name, each in value.items()}
    lengths = {len(each) for each in lists.values()}
    if len(lengths) > 1:
        raise MalformedError(f"inputs: columns of different lengths ({', '.join(map(str, sorted(lengths)))})")
    return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]


def _named(form: str, row: Any, features: Sequence[str]) -> Row:
    return row if type(row) is dict and form != "dataframe_split" else _zipped(form, features, row)


def _zipped(form: str, names: Sequence[str], row: Any) -> Row:
    if not isinstance(row, list) or len(row) != len(names):
        shown = f"{len(row)} values" if isinstance(row, list) else "no list"
        raise MalformedError(f"{form}: a row is {shown} where {len(names)} are needed")
    return dict(zip(names, row, strict=True))


def mlflow_answer(answers: Sequence[Answered]) -> dict[str, Any]:
    """`predictions`, as MLflow's own server gives them; beside them the probabilities, ids, versions and variants."""
    names = [name for name in answers[0].said if name != "prediction"] if answers else []
    found: dict[str, Any] = {"predictions": [each.said["prediction"] for each in answers]}
    found |= {name: [each.said[name] for each in answers] for name in names}
    found |= {"ids": [each.id for each in answers], "versions": [each.version for each in answers]}
    found["variants"] = [each.variant for each in answers]
    if any(each.explanation is not None for each in answers):
        found["explanations"] = [each.explanation for each in answers]
    return found


# --- V2 ----------------------------------------------------------------------------------------------------------------------


def v2_request(body: bytes, json_length: int | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part and what follows it. `json_length`: of the header Inference-Header-Content-Length, where it is there."""
    if json_length is None:
        given, rest = parse(body), b""
    elif 0 <= json_length <= len(body):
        given, rest = parse(body[:json_length]), body[json_length:]
    else:
        raise MalformedError(f"Inference-Header-Content-Length {json_length}: the body has {len(body)} bytes")
    if not isinstance(given, dict) or not isinstance(given.get("inputs"), list) or not given["inputs"]:
        raise MalformedError("needs an object with inputs, a list of tensors")
    return given, rest


def v2_rows(given: Mapping[str, Any], rest: bytes, features: Sequence[str]) -> Sequence[Row]:
    """Rows of one tensor per feature (shape [n] or [n, 1]), or of one 2-D tensor with a column per feature in their order."""
    tensors: dict[str, tuple[list[int], list[Any]]] = {}
    for tensor in given["inputs"]:
        name, shape, values, used = _tensor(tensor, rest)
        if name in tensors:
            raise MalformedError(f"inputs: {name} is there twice")
        tensors[name], rest = (shape, values), rest[used:]
    if rest:
        raise MalformedError(f"{len(rest)} bytes behind the last tensor belong to none")
    if len(tensors) == 1 and len(features) != 1:
        ((name, (shape, values)),) = tensors.items()
        if len(shape) == 2 and shape[1] == len(features) and name not in features:
            width = len(features)
            return [dict(zip(features, values[at : at + width], strict=True)) for at in range(0, len(values), width)]
    for name, (shape, _) in tensors.items():
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1) or not shape:
            raise RequestError(name, f"must be of shape [n] or [n, 1], or one tensor of shape [n, {len(features)}]", shape)
    return _columns({name: values for name, (_, values) in tensors.items()})


def _tensor(tensor: Any, rest: bytes) -> tuple[str, list[int], list[Any], int]:
    """Name, shape, values row after row, and how many bytes of `rest` they took."""
    if not isinstance(tensor, Mapping) or not isinstance(name := tensor.get("name"), str):
        raise MalformedError("inputs: a tensor needs name, shape, datatype and data")
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
        raise MalformedError(f"{name}: shape must be a list of whole numbers")
    if len(shape) > DIMENSIONS:
        raise MalformedError(f"{name}: a tensor has at most {DIMENSIONS} dimensions")
    if not isinstance(kind, str) or (kind != "BYTES" and kind not in NUMBERS):
        raise MalformedError(f"{name}: datatype must be BYTES or one of {', '.join(NUMBERS)}")
    options = tensor.get("parameters")
    size = options.get("binary_data_size") if isinstance(options, Mapping) else None
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if size is None:
        values = list(_flat(tensor.get("data"), name))
        used = 0
    else:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise MalformedError(f"{name}: binary_data_size {size} where {len(rest)} bytes are left")
        values, used = _binary(name, kind, rest[:size], count), size
    if len(values) != count:
        raise MalformedError(f"{name}: {len(values)} values where the shape says {count}")
    return name, shape, values, used


def _flat(data: Any, name: str, depth: int = 0) -> Iterable[Any]:
    if not isinstance(data, list) or depth > 1:
        raise MalformedError(f"{name}: data must be a list of values, or of rows")
    for each in data:
        if isinstance(each, list):
            yield from _flat(each, name, depth + 1)
        else:
            yield each


def _binary(name: str, kind: str, data: bytes, count: int) -> list[Any]:
    """Values of the binary extension: numbers as they lie in memory; of a text 4 bytes say how long it is. NaN is null."""
    if kind != "BYTES":
        width = np.dtype(NUMBERS[kind]).itemsize
        if len(data) != count * width:
            raise MalformedError(f"{name}: {len(data)} bytes where {count} of {kind} take {count * width}")
        array = np.frombuffer(data, NUMBERS[kind])
        if kind.startswith("FP") and np.isinf(array).any():
            raise RequestError(name, "must be a finite number, or NaN for a value that is not known")
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
        raise MalformedError(f"{name}: its bytes are no list of texts, each with its length before it")
    return found


def v2_answer(problem: str, given: Mapping[str, Any], answers: Sequence[Answered]) -> tuple[bytes, int | None]:
    """The body, and how long its JSON part is where tensors follow in binary."""
    wanted = _wanted(given, answers)
    outputs, tail = [], list[bytes]()
    for name, binary in wanted.items():
        values = [each.said[name] for each in answers]
        output: dict[str, Any] = {"name": name, "datatype": _datatype(values), "shape": [len(values)]}
        if binary:
            tail.append(_as_binary(output["datatype"], values))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    found: dict[str, Any] = {"model_name": problem, "model_version": str(answers[0].version) if answers else ""}
    if isinstance(given.get("id"), str):
        found["id"] = given["id"]
    said = {"ids": ",".join(each.id for each in answers), "variants": ",".join(each.variant for each in answers)}
    said |= {"versions": ",".join(str(each.version) for each in answers)}
    found |= {"parameters": said, "outputs": outputs}
    head = orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
    return head + b"".join(tail), len(head) if tail else None


def _wanted(given: Mapping[str, Any], answers: Sequence[Answered]) -> dict[str, bool]:
    """Output -> whether it is wanted in binary. Raises RequestError for one that the model does not give."""
    names = list(answers[0].said) if answers else ["prediction"]
    options = given.get("parameters")
    everywhere = isinstance(options, Mapping) and options.get("binary_data_output") is True
    asked = given.get("outputs")
    if not asked:
        return dict.fromkeys(names, everywhere)
    if not isinstance(asked, list) or not all(isinstance(each, Mapping) for each in asked):
        raise MalformedError("outputs: needs a list of objects with a name")
    found = {}
    for each in asked:
        name, own = each.get("name"), each.get("parameters")
        if name not in names:
            raise RequestError("outputs", f"must be among {', '.join(names)}", name)
        binary = own.get("binary_data", everywhere) if isinstance(own, Mapping) else everywhere
        found[name] = binary is True
    return found


def _datatype(values: Sequence[Any]) -> str:
    kinds = {type(each) for each in values}
    return "FP64" if float in kinds else "INT64" if kinds == {int} else "BOOL" if kinds == {bool} else "BYTES"


def _as_binary(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return np.array(values, NUMBERS[datatype]).tobytes()
    texts = [str(each).encode() for each in values]
    return b"".join(struct.pack("<I", len(each)) + each for each in texts)


def v2_metadata(
    problem: str, versions: Sequence[int], features: Mapping[str, str], outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """`features`: name -> its type. `outputs`: an answer, whose values have the types."""
    return {
        "name": problem,
        "versions": [str(each) for each in versions],
        "platform": "evergreen",
        "inputs": [{"name": name, "datatype": DATATYPES[type_], "shape": [-1]} for name, type_ in features.items()],
        "outputs": [{"name": name, "datatype": _datatype([value]), "shape": [-1]} for name, value in outputs.items()],
    }
