"""What the service takes and says: as OpenAPI, with examples of each model's own, and as a page without script or network."""

import html
import json
from collections.abc import Mapping
from typing import Any

from evergreen.serving.loaded_model import Feature, Lists, Rows, Served
from evergreen.tasks.config.params import Params

TYPES: Mapping[str, list[str]] = {
    "number": ["number", "null"],
    "text": ["string", "number", "boolean", "null"],
    "date": ["string", "null"],
}


def openapi(params: Params, champions: Mapping[str, Served | None], paths: Mapping[str, str]) -> dict[str, Any]:
    """The description of the `paths` that there are, each with the problem that it means ("": none).

    `champions`: problem -> who answers, if anybody does.
    """
    found: dict[str, Any] = {}
    for problem, served in champions.items():
        made: dict[str, Any] = {}
        if isinstance(served, Rows):
            made = _rows(params, problem, served)
        elif isinstance(served, Lists):
            made = _lists(params, problem, served)
        found |= {path: each for path, each in made.items() if paths.get(path) == problem}
    found |= _own()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Evergreen: {params.project.name}",
            "version": "1",
            "description": "Answers of every deployed problem. Errors are {error}, of a field also {field, value, rule}.",
        },
        "paths": found,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {name: {"type": ["string", "null"]} for name in ("error", "field", "value", "rule")}
                    | {"row": {"type": ["integer", "null"]}},
                }
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _rows(params: Params, problem: str, served: Rows) -> dict[str, Any]:
    features = served.features
    row = {
        "type": "object",
        "properties": {name: {"type": TYPES[each.type], **_ruled(each)} for name, each in features.items()},
    }
    if served.entity:
        row["properties"][served.entity] = {"type": ["string", "number", "null"], "description": "Whom the row is about."}
    if served.newest:
        row["properties"]["cutoff"] = {"type": ["string", "null"], "format": "date"}
    row["additionalProperties"] = False
    whole = {**row, "required": list(features)}
    example = dict(served.example[0]) if served.example else {}
    rows = {"whole": {"summary": "All features", "value": example}}
    if served.newest and served.entity:
        key = next(iter(served.newest.keys()), None)
        if key is not None:
            rows["key"] = {"summary": "The key alone: its newest features are looked up", "value": {served.entity: key}}
    rows["list"] = {"summary": "Several rows", "value": [dict(each) for each in served.example[:2]]}
    asked = params.section(problem).question
    answer = {"id": "3f9a1c0e5d7b2468-0", "version": served.version, "variant": "champion", **served.said}
    either = {"anyOf": [row, {"type": "array", "items": row}]}
    predict = _operation(f"{asked}", "rows", either, rows, _answers(answer))
    predict["parameters"] = [
        {
            "name": "explain",
            "in": "query",
            "schema": {"type": "boolean"},
            "description": "Add the contribution of each column.",
        }
    ]
    names = list(features)
    split = {
        "summary": "dataframe_split",
        "value": {"dataframe_split": {"columns": names, "data": [[example.get(name) for name in names]]}},
    }
    records = {"summary": "dataframe_records", "value": {"dataframe_records": [example]}}
    mlflow = {
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
            "dataframe_records": {"type": "array", "items": whole},
            "instances": {"type": "array", "items": {"anyOf": [whole, {"type": "array"}]}},
            "inputs": {"anyOf": [{"type": "object"}, {"type": "array"}]},
            "params": {"type": "object"},
        },
        "minProperties": 1,
    }
    said = {name: [value] for name, value in served.said.items() if name != "prediction"}
    told = {"predictions": [served.said.get("prediction")], **said, "ids": [answer["id"]], "versions": [served.version]}
    score = _operation(
        f"{asked} (MLflow's scoring protocol)", "MLflow", mlflow, {"split": split, "records": records}, _answers(told)
    )
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64" if each.type == "number" else "BYTES", "data": [example.get(name)]}
        for name, each in features.items()
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
    v2 = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": {"type": "object"}},
            "parameters": {"type": "object"},
        },
    }
    infer = _operation(
        f"{asked} (Open Inference Protocol V2)", "V2", v2, {"tensors": {"value": {"inputs": tensors}}}, _answers({})
    )
    about = _operation(f"What {problem} takes and says", "V2", None, {}, _answers({}))
    return {
        f"/v1/predict/{problem}": {"post": predict},
        "/v1/predict": {"post": predict},
        f"/v1/models/{problem}/invocations": {"post": score},
        "/invocations": {"post": score},
        f"/v2/models/{problem}": {"get": about},
        f"/v2/models/{problem}/ready": {"get": _operation(f"Whether {problem} answers", "V2", None, {}, _answers({}))},
        f"/v2/models/{problem}/infer": {"post": infer},
        f"/v1/labels/{problem}": {"post": _labels(served.said.get("prediction"))},
        "/v1/labels": {"post": _labels(served.said.get("prediction"))},
    }


def _lists(params: Params, problem: str, served: Lists) -> dict[str, Any]:
    wanted = {
        "type": "object",
        "properties": {
            "users": {"type": "array", "items": {"type": ["string", "number", "null"]}},
            "items": {"type": "array", "items": {"type": ["string", "number"]}},
            "place": {"type": ["string", "integer", "null"]},
            "k": {"type": ["integer", "null"], "minimum": 1},
            "show": {"enum": ["all", "again", "new", "blend", None]},
            "blend": {"type": ["number", "null"]},
            "diversity": {"type": ["number", "null"]},
            "explore": {"type": ["number", "null"]},
            "rules": {"type": "object"},
            "as_of": {"type": ["string", "null"], "format": "date"},
            "explain": {"type": "boolean"},
        },
        "additionalProperties": False,
    }
    user = served.example_user()
    examples = {
        "user": {"summary": "A user", "value": {"users": [user], "k": 5}},
        "rules": {"summary": "With a rule", "value": {"users": [user], "k": 5, "rules": {"max_per_category": 1}}},
        "stranger": {"summary": "Somebody unknown", "value": {"k": 5}},
    }
    event = {
        "type": "object",
        "properties": {name: {} for name in ("id", "user", "item", "basket", "time", "place", "quantity")},
    }
    one = {"id": "till-7-000123", "user": user, "item": served.example_item()}
    recommend = _operation(params.section(problem).question, "lists", wanted, examples, _answers({}))
    either = {"anyOf": [event, {"type": "array", "items": event}]}
    events = _operation(
        "Purchases: each counts once, however often it is sent", "lists", either, {"event": {"value": one}}, _counted({})
    )
    rows = {"type": "object", "properties": {"dataframe_records": {"type": "array", "items": {"type": "object"}}}}
    score = _operation(
        "Lists for users (MLflow's scoring protocol)", "MLflow", rows,
        {"records": {"value": {"dataframe_records": [{served.user: user}]}}}, _answers({}),
    )  # fmt: skip
    return {
        f"/v1/recommend/{problem}": {"post": recommend},
        "/v1/recommend": {"post": recommend},
        f"/v1/events/{problem}": {"post": events},
        "/v1/events": {"post": events},
        f"/v1/models/{problem}/invocations": {"post": score},
        f"/v1/labels/{problem}": {"post": _labels([served.example_item()])},
        "/v1/labels": {"post": _labels([served.example_item()])},
    }


def _labels(truth: Any) -> dict[str, Any]:
    label = {
        "type": "object",
        "properties": {"value": {}, "id": {"type": "string"}, "entity": {"type": ["string", "number"]}}
        | {name: {"type": "string", "description": "A day or a time"} for name in ("at", "known_at")},
        "required": ["value"],
    }
    either = {"anyOf": [label, {"type": "array", "items": label}]}
    example = {"id": "3f9a1c0e5d7b2468-0", "value": truth}
    return _operation(
        "Labels of predictions", "labels", either, {"label": {"value": example}}, _counted({"matched": 1, "pending": 0})
    )


def _own() -> dict[str, Any]:
    found = {
        "/health": {"get": _operation("Whether the server lives", "server", None, {}, _answers({"status": "alive"}))},
        "/ready": {"get": _operation("Which versions answer", "server", None, {}, _answers({}))},
        "/v2": {"get": _operation("The server", "V2", None, {}, _answers({}))},
        "/v2/health/live": {"get": _operation("Whether the server lives", "V2", None, {}, _answers({}))},
        "/v2/health/ready": {"get": _operation("Whether models answer", "V2", None, {}, _answers({}))},
    }
    for path, about, kind in (
        ("/metrics", "Counts, as Prometheus reads them", "text/plain"),
        ("/docs", "This description as a page", "text/html"),
        ("/openapi.json", "This description", "application/json"),
    ):
        answer = {"description": about, "content": {kind: {}}}
        found[path] = {"get": {"summary": about, "tags": ["server"], "responses": {"200": answer, "default": ERROR}}}
    return found


ERROR = {"description": "Why not", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
_ALL_REFUSED = {
    "anyOf": [
        {"$ref": "#/components/schemas/Error"},
        {"type": "object", "required": ["refused"]},
        {"type": "object", "required": ["rejected"]},
    ]
}
REFUSED = {"description": "Why none of them counts", "content": {"application/json": {"schema": _ALL_REFUSED}}}


def _operation(
    summary: str, tag: str, schema: Mapping[str, Any] | None, examples: Mapping[str, Any], answers: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": {**answers, "default": ERROR}}
    if schema is not None:
        content: dict[str, Any] = {"schema": schema}
        if examples:
            content["examples"] = dict(examples)
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _answers(example: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"type": "object"}}
    if example:
        content["example"] = example
    return {"200": {"description": "The answer", "content": {"application/json": content}}}


def _counted(example: Any) -> dict[str, Any]:
    return {**_answers(example), "422": REFUSED}


def _ruled(feature: Feature) -> dict[str, str]:
    return {"description": "; ".join(each.rule for each in feature.domains)} if feature.domains else {}


def page(described: Mapping[str, Any]) -> str:
    """The description for people: each address with its examples. No script, nothing from elsewhere."""
    parts = []
    for path, methods in described["paths"].items():
        for method, each in methods.items():
            parts.append(f"<section><h2><b>{method.upper()}</b> {html.escape(path)}</h2><p>{html.escape(each['summary'])}</p>")
            body = each.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in body.get("examples", {}).items():
                shown = html.escape(json.dumps(example["value"], indent=1, default=str))
                title = html.escape(str(example.get("summary", name)))
                parts.append(f"<details><summary>{title}</summary><pre>{shown}</pre></details>")
            answer = each["responses"]["200"].get("content", {}).get("application/json", {}).get("example")
            if answer:
                shown = html.escape(json.dumps(answer, indent=1, default=str))
                parts.append(f"<details><summary>answer</summary><pre>{shown}</pre></details>")
            parts.append("</section>")
    title = html.escape(described["info"]["title"])
    about = html.escape(described["info"]["description"])
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"{head}<h1>{title}</h1><p>{about}</p>{''.join(parts)}"


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}"
    "h2{font:600 1rem ui-monospace,monospace;margin:1.5rem 0 0}h2 b{color:#0a6b3d}p{margin:.2rem 0}"
    "pre{background:#f4f4f2;padding:.7rem;overflow-x:auto;max-height:24rem;font-size:.8rem}summary{cursor:pointer;color:#444}"
)
