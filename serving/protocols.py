"""Plain JSON rows, and what all protocols share: a prediction for one row, and parsing of JSON.

Each protocol (this one, mlflow_protocol, open_inference_protocol) turns a body into rows (feature -> JSON value), and
predictions into a body. All are pure functions.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

Row = Mapping[str, Any]
NAN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|NaN', re.DOTALL)
"""A string of JSON, or a NaN outside strings."""


class MalformedRequestError(Exception):
    """A body that does not follow the protocol; status 400."""


class UnsupportedTypeError(Exception):
    """A content type or encoding that the path does not read; status 415."""


class BodyTooLargeError(Exception):
    """Status 413."""


class BodiesTooLargeError(Exception):
    """The bodies of all open requests together; status 503."""


class RowPrediction(NamedTuple):
    """The prediction for one row, with its id and the version that made it."""

    id: str
    version: int
    variant: str
    output: Mapping[str, Any]
    """`prediction`, and for a classifier `probability_<class>` of each class."""
    explanation: Sequence[Mapping[str, Any]] | None = None

    def as_json(self) -> dict[str, Any]:
        found = {"id": self.id, "version": self.version, "variant": self.variant, **self.output}
        return found if self.explanation is None else {**found, "explanation": self.explanation}


def parse(body: bytes) -> Any:
    """Raises MalformedRequestError for invalid JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(f"invalid JSON: {error}; write null for a missing value") from None


def parse_with_nan(body: bytes) -> Any:
    """JSON as pandas, NumPy and C++ write it: NaN is null. Raises MalformedRequestError for invalid JSON."""
    if b"NaN" in body:
        body = NAN.sub(lambda found: b"null" if found[0] == b"NaN" else found[0], body)
    return parse(body)


def plain_rows(given: Any) -> Sequence[Row]:
    """A list of rows, or {"rows": [...]}."""
    rows = given.get("rows") if isinstance(given, Mapping) else given
    if not isinstance(rows, list) or not all(type(each) is dict for each in rows):
        raise MalformedRequestError("needs a row, such as {feature: value}, or a list of rows")
    return rows


def from_columns(values: Mapping[str, Any]) -> Sequence[Row]:
    """Rows from feature -> list of values; a value that is not a list is a list of one."""
    lists = {name: each if isinstance(each, list) else [each] for name, each in values.items()}
    lengths = {len(each) for each in lists.values()}
    if len(lengths) > 1:
        raise MalformedRequestError(f"inputs: columns of different lengths ({', '.join(map(str, sorted(lengths)))})")
    return [dict(zip(lists, each, strict=True)) for each in zip(*lists.values(), strict=True)]
