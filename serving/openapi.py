"""The OpenAPI description of the service, with examples from the models that serve."""

from collections.abc import Mapping
from typing import Any

from evergreen.serving.loaded_model import Feature, ListModel, LoadedModel, RowModel
from evergreen.tasks.config.params import Params

TYPES: Mapping[str, list[str]] = {
    "number": ["number", "null"],
    "text": ["string", "number", "boolean", "null"],
    "date": ["string", "null"],
}
EXAMPLE_ID = "3f9a1c0e5d7b2468-0"
ERROR = {"description": "The error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
_REJECTED_SCHEMA = {"anyOf": [{"$ref": "#/components/schemas/Error"}, {"type": "object", "required": ["rejected"]}]}


def describe(params: Params, champions: Mapping[str, LoadedModel | None], paths: Mapping[str, str]) -> dict[str, Any]:
    """The description of `paths`: path -> its problem ("": none). `champions`: problem -> the version that serves, if any."""
    found: dict[str, Any] = {}
    for problem, model in champions.items():
        described: dict[str, Any] = {}
        if isinstance(model, RowModel):
            described = _row_paths(params, problem, model)
        elif isinstance(model, ListModel):
            described = _list_paths(params, problem, model)
        found |= {path: each for path, each in described.items() if paths.get(path) == problem}
    found |= _server_paths()
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {name: {"type": ["string", "null"]} for name in ("error", "field", "value", "rule")}
        | {"row": {"type": ["integer", "null"]}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Evergreen: {params.project.name}",
            "version": "1",
            "description": "Predictions of every deployed problem. An error is {error}; for a field also {field, value, rule}.",
        },
        "paths": found,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {"Error": error},
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _row_paths(params: Params, problem: str, model: RowModel) -> dict[str, Any]:
    question, output = params.section(problem).question, model.example_output
    labels = _labels(output.get("prediction"))
    predict, invocations = _predict(question, model), _invocations(question, model)
    about = _operation("Inputs and outputs of the model", "V2", None, {}, _success({}))
    return {
        f"/v1/predict/{problem}": {"post": predict},
        "/v1/predict": {"post": predict},
        f"/v1/models/{problem}/invocations": {"post": invocations},
        "/invocations": {"post": invocations},
        f"/v2/models/{problem}": {"get": about},
        f"/v2/models/{problem}/ready": {"get": _operation("Whether a version serves", "V2", None, {}, _success({}))},
        f"/v2/models/{problem}/infer": {"post": _infer(question, model)},
        f"/v1/labels/{problem}": {"post": labels},
        "/v1/labels": {"post": labels},
    }


def _row_schema(model: RowModel) -> dict[str, Any]:
    properties = {name: {"type": TYPES[each.type], **_rules(each)} for name, each in model.features.items()}
    if model.entity:
        properties[model.entity] = {"type": ["string", "number", "null"], "description": "The entity that the row is about."}
    if model.online_features:
        properties["cutoff"] = {"type": ["string", "null"], "format": "date"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _predict(question: str, model: RowModel) -> dict[str, Any]:
    row = _row_schema(model)
    examples = {"row": {"summary": "All features", "value": _example_row(model)}}
    if model.online_features and model.entity:
        key = next(iter(model.online_features.keys()), None)
        if key is not None:
            summary = "The entity's key alone: its newest features are looked up"
            examples["key"] = {"summary": summary, "value": {model.entity: key}}
    examples["list"] = {"summary": "Several rows", "value": [dict(each) for each in model.example[:2]]}
    response = {"id": EXAMPLE_ID, "version": model.version, "variant": "champion", **model.example_output}
    either = {"anyOf": [row, {"type": "array", "items": row}]}
    found = _operation(question, "rows", either, examples, _success(response))
    about = "Add the contribution of each column."
    found["parameters"] = [{"name": "explain", "in": "query", "schema": {"type": "boolean"}, "description": about}]
    return found


def _invocations(question: str, model: RowModel) -> dict[str, Any]:
    names, example = list(model.features), _example_row(model)
    row = {**_row_schema(model), "required": names}
    schema = {
        "type": "object",
        "properties": {
            "dataframe_split": {
                "type": "object",
                "required": ["columns", "data"],
                "properties": {
                    "columns": {"type": "array", "items": {"type": "string"}},
                    "data": {"type": "array", "items": {"type": "array"}},
                },
            },
            "dataframe_records": {"type": "array", "items": row},
            "instances": {"type": "array", "items": {"anyOf": [row, {"type": "array"}]}},
            "inputs": {"anyOf": [{"type": "object"}, {"type": "array"}]},
            "params": {"type": "object"},
        },
        "minProperties": 1,
    }
    split = {"dataframe_split": {"columns": names, "data": [[example.get(name) for name in names]]}}
    examples = {
        "split": {"summary": "dataframe_split", "value": split},
        "records": {"summary": "dataframe_records", "value": {"dataframe_records": [example]}},
    }
    more = {name: [value] for name, value in model.example_output.items() if name != "prediction"}
    response = {"predictions": [model.example_output.get("prediction")], **more}
    response |= {"ids": [EXAMPLE_ID], "versions": [model.version]}
    return _operation(f"{question} (MLflow's scoring protocol)", "MLflow", schema, examples, _success(response))


def _infer(question: str, model: RowModel) -> dict[str, Any]:
    example = _example_row(model)
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64" if each.type == "number" else "BYTES", "data": [example.get(name)]}
        for name, each in model.features.items()
    ]
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": {"type": "object"}},
            "parameters": {"type": "object"},
        },
    }
    examples = {"tensors": {"value": {"inputs": tensors}}}
    return _operation(f"{question} (Open Inference Protocol V2)", "V2", schema, examples, _success({}))


def _list_paths(params: Params, problem: str, model: ListModel) -> dict[str, Any]:
    user, item = model.example_user(), model.example_item()
    event = {
        "type": "object",
        "properties": {name: {} for name in ("id", "user", "item", "basket", "time", "place", "quantity")},
    }
    either = {"anyOf": [event, {"type": "array", "items": event}]}
    event_example = {"event": {"value": {"id": "till-7-000123", "user": user, "item": item}}}
    counts = {"accepted": 1, "duplicate": 0, "rejected": []}
    events = _operation("Purchase events; idempotent by id", "lists", either, event_example, _counts(counts))
    rows = {"type": "object", "properties": {"dataframe_records": {"type": "array", "items": {"type": "object"}}}}
    invocations = _operation(
        "Lists for users (MLflow's scoring protocol)", "MLflow", rows,
        {"records": {"value": {"dataframe_records": [{model.user: user}]}}}, _success({}),
    )  # fmt: skip
    recommend = _recommend(params.section(problem).question, user)
    return {
        f"/v1/recommend/{problem}": {"post": recommend},
        "/v1/recommend": {"post": recommend},
        f"/v1/events/{problem}": {"post": events},
        "/v1/events": {"post": events},
        f"/v1/models/{problem}/invocations": {"post": invocations},
        f"/v1/labels/{problem}": {"post": _labels([item])},
        "/v1/labels": {"post": _labels([item])},
    }


def _recommend(question: str, user: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            "users": {"type": "array", "items": {"type": ["string", "number", "null"]}},
            "items": {"type": "array", "items": {"type": ["string", "number"]}},
            "place": {"type": ["string", "integer", "null"]},
            "k": {"type": ["integer", "null"], "minimum": 1},
            "show": {"enum": ["all", "rebuy", "discover", "blend", None]},
            "blend": {"type": ["number", "null"]},
            "diversity": {"type": ["number", "null"]},
            "explore": {"type": ["number", "null"]},
            "rules": {"type": "object"},
            "as_of": {"type": ["string", "null"], "format": "date"},
            "explain": {"type": "boolean"},
        },
        "additionalProperties": False,
    }
    examples = {
        "user": {"summary": "A user", "value": {"users": [user], "k": 5}},
        "rules": {"summary": "With a rule", "value": {"users": [user], "k": 5, "rules": {"max_per_category": 1}}},
        "anonymous": {"summary": "An anonymous user", "value": {"k": 5}},
    }
    return _operation(question, "lists", schema, examples, _success({}))


def _labels(value: Any) -> dict[str, Any]:
    label = {
        "type": "object",
        "properties": {"value": {}, "id": {"type": "string"}, "entity": {"type": ["string", "number"]}}
        | {name: {"type": "string", "description": "A day or a time"} for name in ("at", "known_at")},
        "required": ["value"],
    }
    either = {"anyOf": [label, {"type": "array", "items": label}]}
    example = {"label": {"value": {"id": EXAMPLE_ID, "value": value}}}
    return _operation("Labels of earlier predictions", "labels", either, example, _counts({"matched": 1, "pending": 0}))


def _server_paths() -> dict[str, Any]:
    found = {
        "/health": {"get": _operation("Whether the server runs", "server", None, {}, _success({"status": "alive"}))},
        "/ready": {"get": _operation("Which versions serve", "server", None, {}, _success({}))},
        "/v2": {"get": _operation("The server", "V2", None, {}, _success({}))},
        "/v2/health/live": {"get": _operation("Whether the server runs", "V2", None, {}, _success({}))},
        "/v2/health/ready": {"get": _operation("Whether models serve", "V2", None, {}, _success({}))},
    }
    for path, about, type_ in (
        ("/metrics", "Metrics in Prometheus text format", "text/plain"),
        ("/docs", "This description as a page", "text/html"),
        ("/openapi.json", "This description", "application/json"),
    ):
        response = {"description": about, "content": {type_: {}}}
        found[path] = {"get": {"summary": about, "tags": ["server"], "responses": {"200": response, "default": ERROR}}}
    return found


def _operation(
    summary: str, tag: str, schema: Mapping[str, Any] | None, examples: Mapping[str, Any], responses: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": {**responses, "default": ERROR}}
    if schema is not None:
        content: dict[str, Any] = {"schema": schema}
        if examples:
            content["examples"] = dict(examples)
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _success(example: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"type": "object"}}
    if example:
        content["example"] = example
    return {"200": {"description": "Success", "content": {"application/json": content}}}


def _counts(example: Any) -> dict[str, Any]:
    rejected = {"description": "All were rejected", "content": {"application/json": {"schema": _REJECTED_SCHEMA}}}
    return {**_success(example), "422": rejected}


def _example_row(model: RowModel) -> dict[str, Any]:
    return dict(model.example[0]) if model.example else {}


def _rules(feature: Feature) -> dict[str, str]:
    return {"description": "; ".join(each.text for each in feature.rules)} if feature.rules else {}
