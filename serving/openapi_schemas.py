"""The schemas of the OpenAPI description: those that all problems share, and those of one problem."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evergreen.serving.feature import Feature
from evergreen.serving.loaded_model import CUTOFF, ListModel, RowModel

Schema = dict[str, Any]
TYPES: Mapping[str, list[str]] = {
    "number": ["number", "null"],
    "text": ["string", "number", "boolean", "null"],
    "date": ["string", "null"],
}
"""Type of a feature -> types of its JSON value."""
ID = ["string", "number"]
STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
STRINGS, INTEGERS = {"type": "array", "items": STRING}, {"type": "array", "items": INTEGER}
ANY: Schema = {}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_or_more(items: Schema) -> Schema:
    return {"anyOf": [items, array(items)]}


def closed(required: Sequence[str], properties: Mapping[str, Schema]) -> Schema:
    """An object without other keys."""
    return {**opened(required, properties), "additionalProperties": False}


def opened(required: Sequence[str], properties: Mapping[str, Schema]) -> Schema:
    """An object that may have other keys."""
    found: Schema = {"type": "object", "properties": dict(properties)}
    return {**found, "required": list(required)} if required else found


def named(problem: str, what: str) -> str:
    """The name of a schema of one problem: dear, Row -> DearRow."""
    return "".join(part[:1].upper() + part[1:] for part in re.split("[_-]", problem)) + what


_DAY = {"type": ["string", "null"], "format": "date"}
_MADE = {"id": STRING, "version": INTEGER, "variant": {"type": "string", "enum": ["champion", "candidate"]}}
_TENSOR = {
    "name": STRING,
    "shape": array({"type": "integer", "minimum": 0}),
    "datatype": STRING,
    "data": array(ANY),
    "parameters": {"type": "object"},
}
_METADATA_TENSOR = {"name": STRING, "datatype": STRING, "shape": INTEGERS, "parameters": {"type": "object"}}

SHARED: Mapping[str, Schema] = {
    "Error": opened(
        ["error"],
        {name: {"type": ["string", "null"]} for name in ("field", "value", "rule")}
        | {"error": STRING, "row": {"type": ["integer", "null"]}},
    ),
    "Contribution": opened(
        ["column", "value", "contribution"], {"column": {"type": ["string", "null"]}, "value": ANY, "contribution": NUMBER}
    ),
    "Health": opened(["status"], {"status": STRING}),
    "Readiness": opened(
        ["ready", "problems"],
        {
            "ready": {"type": "boolean"},
            "database": STRING,
            "journal": STRING,
            "problems": {
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": INTEGER},
                "description": "Problem -> variant -> version.",
            },
            "errors": {"type": "object", "additionalProperties": STRING},
        },
    ),
    "Label": closed(
        ["value"],
        {"value": ANY, "id": STRING, "entity": {"type": ID}}
        | {name: {"type": "string", "description": "A day or a time"} for name in ("at", "known_at")},
    ),
    "LabelCounts": opened(
        ["matched", "pending", "duplicate", "changed", "rejected"],
        dict.fromkeys(("matched", "pending", "duplicate", "changed"), INTEGER) | {"rejected": array(ref("RejectedLabel"))},
    ),
    "RejectedLabel": opened(["index", "reason"], {"index": INTEGER, "reason": STRING}),
    "Event": opened(
        [],
        {name: {"type": ID} for name in ("id", "user", "item", "basket", "place")}
        | {"time": {"type": "string", "description": "A day or a time"}, "quantity": {"type": "number", "minimum": 0}},
    ),
    "RowEvent": closed(["row"], {"table": STRING, "id": STRING, "row": {"type": "object"}}),
    "EventCounts": opened(
        ["accepted", "duplicate", "rejected"],
        {"accepted": INTEGER, "duplicate": INTEGER, "rejected": array(ref("RejectedEvent"))},
    ),
    "RejectedEvent": opened(["event", "reason"], {"event": {"type": "object"}, "reason": STRING}),
    "Withdraw": closed(["ids"], {"ids": {**STRINGS, "minItems": 1}}),
    "Withdrawal": opened(
        ["withdrawn", "duplicate", "unknown"], {"withdrawn": INTEGER, "duplicate": INTEGER, "unknown": STRINGS}
    ),
    "Split": opened(["columns", "data"], {"columns": STRINGS, "data": array(array(ANY))}),
    "ServerMetadata": opened(["name", "version", "extensions"], {"name": STRING, "version": STRING, "extensions": STRINGS}),
    "ModelMetadata": opened(
        ["name", "versions", "platform", "inputs", "outputs"],
        {
            "name": STRING,
            "versions": STRINGS,
            "platform": STRING,
            "inputs": array(ref("MetadataTensor")),
            "outputs": array(ref("MetadataTensor")),
        },
    ),
    "MetadataTensor": opened(["name", "datatype", "shape"], _METADATA_TENSOR),
    "ModelReadiness": opened(["name", "ready"], {"name": STRING, "ready": {"type": "boolean"}}),
    "InferRequest": opened(
        ["inputs"],
        {
            "id": STRING,
            "inputs": {**array(ref("InputTensor")), "minItems": 1},
            "outputs": array(ref("RequestedOutput")),
            "parameters": {"type": "object"},
        },
    ),
    "InputTensor": opened(["name", "shape", "datatype"], _TENSOR),
    "RequestedOutput": opened(["name"], {"name": STRING, "parameters": {"type": "object"}}),
    "InferResponse": opened(
        ["model_name", "model_version", "outputs"],
        {
            "model_name": STRING,
            "model_version": STRING,
            "id": STRING,
            "parameters": {"type": "object"},
            "outputs": array(ref("OutputTensor")),
        },
    ),
    "OutputTensor": opened(["name", "shape", "datatype"], _TENSOR),
    "ListRequest": closed(
        [],
        {
            "users": array({"type": [*ID, "null"]}),
            "items": array({"type": ID}),
            "place": {"type": ["string", "integer", "null"]},
            "k": {"type": ["integer", "null"], "minimum": 1},
            "show": {"type": ["string", "null"], "enum": ["all", "rebuy", "discover", "blend", None]},
            "blend": {"type": ["number", "null"]},
            "diversity": {"type": ["number", "null"]},
            "explore": {"type": ["number", "null"]},
            "rules": {"type": "object"},
            "as_of": _DAY,
            "explain": {"type": "boolean"},
        },
    ),
    "Lists": opened(["problem", "lists"], {"problem": STRING, "lists": array(ref("RecommendedList"))}),
    "RecommendedList": opened(
        ["id", "version", "variant", "user", "items", "notes", "as_of", "trained_until"],
        {
            **_MADE,
            "user": {"type": [*ID, "null"]},
            "items": array(ref("RecommendedItem")),
            "notes": STRINGS,
            "as_of": {"type": "string", "format": "date"},
            "trained_until": {"type": "string", "format": "date"},
            "propensities": {**array(NUMBER), "description": "With exploration: the chance of each item at its rank."},
        },
    ),
    "RecommendedItem": opened(
        ["item", "score", "source", "explanation"],
        {
            "item": {"type": ID},
            "score": {"type": ["number", "null"]},
            "source": STRING,
            "explanation": {"type": ["string", "null"]},
        },
    ),
}


def of_rows(problem: str, model: RowModel) -> dict[str, Schema]:
    """The schemas of a problem that predicts rows: what it takes, and what it returns."""
    columns = {name: _column(each) for name, each in model.features.items()}
    required = [name for name, each in model.features.items() if each.required]
    keys: dict[str, Schema] = {}
    if model.entity and model.entity not in columns:
        keys[model.entity] = {"type": [*ID, "null"], "description": "The entity that the row is about."}
    if model.online_features:
        keys[CUTOFF] = {**_DAY, "description": "The last day that the features know."}
    row, frame, prediction = named(problem, "Row"), named(problem, "Frame"), named(problem, "Prediction")
    outputs = {name: _output(value) for name, value in model.example_output.items()}
    found = {
        row: closed(required, {**columns, **keys}),
        named(problem, "Rows"): closed(["rows"], {"rows": array(row_schema(problem, model)), "explain": {"type": "boolean"}}),
        prediction: opened([*_MADE, *outputs], {**_MADE, **outputs, "explanation": array(ref("Contribution"))}),
        named(problem, "Predictions"): opened(["predictions"], {"predictions": array(ref(prediction))}),
        named(problem, "Record"): opened(required, {**columns, **keys}),
        frame: _frame(array(ref(named(problem, "Record")))),
        named(problem, "FramePredictions"): _frame_predictions(outputs),
    }
    if model.entity and model.online_features:
        found[named(problem, "Key")] = closed([model.entity], {model.entity: {"type": ID}})
    return found


def row_schema(problem: str, model: RowModel) -> Schema:
    """A row: all features, or the entity's key alone where the newest features are looked up."""
    row = ref(named(problem, "Row"))
    return {"anyOf": [row, ref(named(problem, "Key"))]} if model.entity and model.online_features else row


def of_lists(problem: str, model: ListModel) -> dict[str, Schema]:
    """The schemas of a recommender in MLflow's protocol."""
    record = closed([], {model.user: {"type": [*ID, "null"]}})
    outputs = {"prediction": array({"type": ID}), "scores": array({"type": ["number", "null"]})}
    return {
        named(problem, "Record"): record,
        named(problem, "Frame"): _frame(array(ref(named(problem, "Record")))),
        named(problem, "FramePredictions"): _frame_predictions(outputs),
    }


def _column(feature: Feature) -> Schema:
    found: Schema = {"type": TYPES[feature.type]}
    return {**found, "description": "; ".join(each.text for each in feature.rules)} if feature.rules else found


def _output(value: Any) -> Schema:
    if isinstance(value, bool):
        return {"type": "boolean"}
    return NUMBER if isinstance(value, float) else INTEGER if isinstance(value, int) else STRING


def _frame(records: Schema) -> Schema:
    found = opened(
        [],
        {
            "dataframe_split": ref("Split"),
            "dataframe_records": records,
            "instances": array(ANY),
            "inputs": ANY,
            "params": {"type": "object"},
        },
    )
    return {**found, "minProperties": 1, "description": "Exactly one of dataframe_split, dataframe_records, instances, inputs."}


def _frame_predictions(outputs: Mapping[str, Schema]) -> Schema:
    columns = {"predictions" if name == "prediction" else name: array(each) for name, each in outputs.items()}
    more: dict[str, Schema] = {"ids": STRINGS, "versions": INTEGERS, "variants": STRINGS}
    some = {"explanations": array(array(ANY)), "ignored_columns": STRINGS, "ignored_params": STRINGS}
    return opened(["predictions", *more], {**columns, **more, **some})
