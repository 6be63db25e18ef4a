"""MLflow's scoring protocol: POST /invocations with dataframe_split, dataframe_records, instances or inputs, or as text/csv.

Values are as MLflow's client, and pandas' to_json and to_csv, write them: NaN and NaT are missing, dates may be milliseconds
since 1970, and a frame may have columns that the model does not read.
"""

import csv
import io
from collections.abc import Mapping, Sequence, Set
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from evergreen.serving.feature import Feature
from evergreen.serving.protocols import (
    MalformedRequestError,
    Row,
    RowPrediction,
    UnsupportedTypeError,
    from_columns,
    parse_with_nan,
)

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")
"""Content types that are read as JSON: without one, and curl's default, too."""
CSV_TYPE = "text/csv"
PARAMS = ("explain",)
"""Keys of `params`."""
EPOCH = datetime(1970, 1, 1)
BOOLEANS = {"True": True, "False": False}
"""Truth values as pandas' to_csv writes them."""


def read_body(body: bytes, content_type: str, features: Mapping[str, Feature]) -> tuple[Sequence[Row], Mapping[str, Any]]:
    """The rows of a request and its `params`.

    Raises MalformedRequestError, and UnsupportedTypeError for a content type that is neither JSON nor CSV.
    """
    if _is_csv(content_type):
        return read_csv(body, features), {}
    given = parse_with_nan(body)
    params = given.get("params") if isinstance(given, Mapping) else None
    if params is not None and not isinstance(params, Mapping):
        raise MalformedRequestError("params: needs an object, such as {explain: true}")
    return read_rows(given, features), params or {}


@lru_cache(maxsize=64)
def _is_csv(content_type: str) -> bool:
    """Whether a body is CSV; otherwise it is JSON. Raises UnsupportedTypeError if it is neither."""
    type_, _, options = content_type.partition(";")
    type_ = type_.strip().lower()
    charset = options.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    if charset not in ("", "utf-8", "utf8"):
        raise UnsupportedTypeError(f"content-type {content_type[:80]}: the charset must be utf-8")
    if type_ != CSV_TYPE and type_ not in JSON_TYPES:
        raise UnsupportedTypeError(f"content-type {type_[:80]}: must be application/json or {CSV_TYPE}")
    return type_ == CSV_TYPE


def read_rows(given: Any, features: Mapping[str, Feature]) -> Sequence[Row]:
    """Rows in one of FORMS; lists of values without names are in the order of `features`."""
    if not isinstance(given, Mapping):
        raise MalformedRequestError(f"needs an object with one of {', '.join(FORMS)}")
    forms = [form for form in FORMS if form in given]
    if len(forms) != 1:
        raise MalformedRequestError(f"needs exactly one of {', '.join(FORMS)}; found {', '.join(forms) or 'none'}")
    rows, dates = _rows(forms[0], given[forms[0]], list(features)), _dates(features)
    return [_with_dates(row, dates) for row in rows] if dates else rows


def _rows(form: str, value: Any, names: Sequence[str]) -> Sequence[Row]:
    if form == "dataframe_split":
        return _split(value)
    if form == "inputs" and isinstance(value, Mapping):
        return from_columns(value)
    if not isinstance(value, list):
        raise MalformedRequestError(f"{form}: needs a list of rows")
    return [each if type(each) is dict else _zipped(form, names, each) for each in value]


def _split(value: Any) -> Sequence[Row]:
    columns, data = (value.get("columns"), value.get("data")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or not all(type(each) is str for each in columns):
        raise MalformedRequestError("dataframe_split: needs columns, a list of names, and data, a list of rows")
    if len(set(columns)) < len(columns):
        raise MalformedRequestError("dataframe_split: duplicate column")
    return [_zipped("dataframe_split", columns, each) for each in data]


def _zipped(form: str, names: Sequence[str], row: Any) -> Row:
    if not isinstance(row, list):
        raise MalformedRequestError(f"{form}: a row must be a list of {len(names)} values")
    if len(row) != len(names):
        raise MalformedRequestError(f"{form}: a row has {len(row)} values, expected {len(names)}")
    return dict(zip(names, row, strict=True))


def _dates(features: Mapping[str, Feature]) -> Sequence[Feature]:
    return [each for each in features.values() if each.type == "date"]


def _with_dates(row: Row, dates: Sequence[Feature]) -> Row:
    for each in dates:
        value = row.get(each.name)
        if value is not None and (type(value) is not str or value == "NaT"):
            row = {**row, each.name: _date(each, value)}
    return row


def _date(feature: Feature, value: Any) -> Any:
    """The value in ISO 8601 if it is a number: as the contract reads it, else milliseconds since 1970. NaT is missing."""
    if value == "NaT":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if feature.read and float(value).is_integer():
        try:
            return feature.read(str(int(value)))
        except ValueError:
            pass
    try:
        moment = EPOCH + timedelta(milliseconds=value)
    except (OverflowError, ValueError):
        return value  # the model rejects it by name
    return moment.date().isoformat() if moment.time() == moment.min.time() else moment.isoformat()


def read_csv(body: bytes, features: Mapping[str, Feature]) -> Sequence[Row]:
    """The rows of a CSV file with a line of column names, as pandas' to_csv writes it. An empty cell is missing."""
    try:
        lines = [line for line in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if line]
    except UnicodeDecodeError:
        raise MalformedRequestError(f"{CSV_TYPE}: must be UTF-8") from None
    except csv.Error as error:
        raise MalformedRequestError(f"{CSV_TYPE}: {error}") from None
    if not lines:
        raise MalformedRequestError(f"{CSV_TYPE}: needs a line of column names")
    names = lines[0]
    if len(set(names)) < len(names):
        raise MalformedRequestError(f"{CSV_TYPE}: duplicate column")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(names):
            raise MalformedRequestError(f"{CSV_TYPE}: row {number} has {len(line)} values, expected {len(names)}")
    return [{name: _cell(features.get(name), cell) for name, cell in zip(names, line, strict=True)} for line in lines[1:]]


def _cell(feature: Feature | None, cell: str) -> Any:
    """A number where the feature is one and no contract reads its texts; a category as training spells it."""
    if cell == "" or feature is None or feature.read is not None:
        return cell or None
    if feature.type == "number":
        try:
            number = float(cell)
        except ValueError:
            return cell  # the model rejects it by name
        return None if number != number else number
    if cell in feature.levels:
        return cell
    if cell in BOOLEANS:
        return BOOLEANS[cell]
    whole = cell.removesuffix(".0")  # pandas makes 7.0 of 7 in a column with missing values
    return whole if whole in feature.levels else cell


def drop_columns(rows: Sequence[Row], kept: Set[str]) -> tuple[Sequence[Row], list[str]]:
    """The rows without columns that are not in `kept`, and the names of those columns."""
    if all(row.keys() <= kept for row in rows):
        return rows, []
    dropped = list(dict.fromkeys(name for row in rows for name in row if name not in kept))
    return [{name: value for name, value in row.items() if name in kept} for row in rows], dropped


def response(predictions: Sequence[RowPrediction], ignored: Sequence[str] = (), params: Sequence[str] = ()) -> dict[str, Any]:
    """`predictions` as MLflow's own server returns them, then probabilities, ids, versions and variants.

    `ignored`, `params`: columns and keys of `params` that were ignored; named if there are any.
    """
    names = [name for name in predictions[0].output if name != "prediction"] if predictions else []
    found: dict[str, Any] = {"predictions": [each.output["prediction"] for each in predictions]}
    found |= {name: [each.output[name] for each in predictions] for name in names}
    found |= {"ids": [each.id for each in predictions], "versions": [each.version for each in predictions]}
    found["variants"] = [each.variant for each in predictions]
    if any(each.explanation is not None for each in predictions):
        found["explanations"] = [each.explanation for each in predictions]
    if ignored:
        found["ignored_columns"] = list(ignored)
    if params:
        found["ignored_params"] = list(params)
    return found
