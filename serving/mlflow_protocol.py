"""MLflow's scoring protocol: POST /invocations with dataframe_split, dataframe_records, instances or inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from evergreen.serving.protocols import MalformedRequestError, Row, RowPrediction, from_columns

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def read_rows(given: Any, features: Sequence[str]) -> Sequence[Row]:
    """Rows in one of FORMS; lists of values without names are in the order of `features`."""
    if not isinstance(given, Mapping):
        raise MalformedRequestError(f"needs an object with one of {', '.join(FORMS)}")
    forms = [form for form in FORMS if form in given]
    if len(forms) != 1:
        raise MalformedRequestError(f"needs exactly one of {', '.join(FORMS)}; found {', '.join(forms) or 'none'}")
    value = given[forms[0]]
    if forms[0] == "dataframe_split":
        return _split(value)
    if forms[0] == "inputs" and isinstance(value, Mapping):
        return from_columns(value)
    if not isinstance(value, list):
        raise MalformedRequestError(f"{forms[0]}: needs a list of rows")
    return [each if type(each) is dict else _zipped(forms[0], features, each) for each in value]


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


def response(predictions: Sequence[RowPrediction]) -> dict[str, Any]:
    """`predictions` as MLflow's own server returns them, then probabilities, ids, versions and variants."""
    names = [name for name in predictions[0].output if name != "prediction"] if predictions else []
    found: dict[str, Any] = {"predictions": [each.output["prediction"] for each in predictions]}
    found |= {name: [each.output[name] for each in predictions] for name in names}
    found |= {"ids": [each.id for each in predictions], "versions": [each.version for each in predictions]}
    found["variants"] = [each.variant for each in predictions]
    if any(each.explanation is not None for each in predictions):
        found["explanations"] = [each.explanation for each in predictions]
    return found
