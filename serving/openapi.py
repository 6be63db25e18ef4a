"""The OpenAPI description of the service: each address with its types, and examples made from the contract."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evergreen.serving import openapi_schemas
from evergreen.serving.loaded_model import ListModel, LoadedModel, RowModel
from evergreen.serving.open_inference_protocol import DATATYPES
from evergreen.serving.openapi_schemas import SHARED, STRING, Schema, array, named, one_or_more, ref, row_schema
from evergreen.tasks.config.params import Params

if TYPE_CHECKING:
    from evergreen.serving.fresh_features import FreshFeatures

EXAMPLE_ID = "3f9a1c0e5d7b2468-0"
JSON = "application/json"
Examples = dict[str, dict[str, Any]]
"""Name -> summary and value."""


@dataclass(frozen=True)
class Operation:
    """One method of one address. `name`: of its operation id; followed by that of the problem, if the address has one."""

    path: str
    name: str
    summary: str
    tag: str
    response: Schema
    method: str = "get"
    problem: str = ""
    body: Schema | None = None
    examples: Examples = field(default_factory=dict)
    example_response: Any = None
    example_version: int | None = None
    """Of an address with a version in it."""
    explains: bool = False
    """Whether ?explain=true adds contributions."""
    rejects: bool = False
    """Whether status 422 may have the body of status 200."""
    types: Mapping[str, Schema] = field(default_factory=dict)
    """More content types of the response."""
    csv: str | None = None
    """An example of a request as text/csv, if it is read."""


def describe(params: Params, champions: Mapping[str, LoadedModel | None], paths: Mapping[str, str]) -> dict[str, Any]:
    """The description of `paths`: path -> its problem ("": none). `champions`: problem -> the version that serves, if any."""
    schemas, operations = dict(SHARED), list[Operation]()
    for problem, model in champions.items():
        question = params.section(problem).question
        if isinstance(model, RowModel):
            schemas |= openapi_schemas.of_rows(problem, model)
            operations += _row_operations(question, problem, model)
        elif isinstance(model, ListModel):
            schemas |= openapi_schemas.of_lists(problem, model)
            operations += _list_operations(question, problem, model)
    found: dict[str, Any] = {}
    for each in (*operations, *_server_operations()):
        served = paths.get(each.path.replace("/versions/{version}", ""))
        if served == each.problem or (served is not None and not each.problem):
            found.setdefault(each.path, {})[each.method] = _as_json(each)
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
            "schemas": schemas,
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _as_json(operation: Operation) -> dict[str, Any]:
    named_in_path = operation.problem in operation.path.split("/")[3:]
    parts = [operation.name, *([operation.problem] if named_in_path else [])]
    content: dict[str, Any] = {
        JSON: {"schema": operation.response},
        **{type_: {"schema": each} for type_, each in operation.types.items()},
    }
    if operation.response == STRING:
        content = {type_: {"schema": each} for type_, each in operation.types.items()}
    if operation.example_response is not None:
        content[JSON]["example"] = operation.example_response
    responses: dict[str, Any] = {"200": {"description": "Success", "content": content}}
    if operation.rejects:
        either = {"anyOf": [ref("Error"), operation.response]}
        responses["422"] = {"description": "All were rejected", "content": {JSON: {"schema": either}}}
    responses["default"] = {"description": "The error", "content": {JSON: {"schema": ref("Error")}}}
    found: dict[str, Any] = {"summary": operation.summary, "tags": [operation.tag]}
    parameters = []
    if operation.example_version is not None:
        parts.append("version")
        version = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
        parameters.append(
            {"name": "version", "in": "path", "required": True, "schema": version, "example": operation.example_version}
        )
    if operation.explains:
        about = "Add the contribution of each column."
        parameters.append({"name": "explain", "in": "query", "schema": {"type": "boolean"}, "description": about})
    if parameters:
        found["parameters"] = parameters
    found |= {"operationId": "_".join(parts), "responses": responses}
    if operation.body is not None:
        body: dict[str, Any] = {
            JSON: {"schema": operation.body, **({"examples": operation.examples} if operation.examples else {})}
        }
        if operation.csv is not None:
            body["text/csv"] = {"schema": STRING, "example": operation.csv}
        found["requestBody"] = {"required": True, "content": body}
    return found


def _row_operations(question: str, problem: str, model: RowModel) -> Iterator[Operation]:
    row, example = row_schema(problem, model), model.request_example
    response = {"id": EXAMPLE_ID, "version": model.version, "variant": "champion", **model.example_output}
    predictions = {"anyOf": [ref(named(problem, "Prediction")), ref(named(problem, "Predictions"))]}
    examples: Examples = {}
    if example:
        examples["row"] = {"summary": "All features", "value": example}
        examples["list"] = {"summary": "Several rows", "value": [example, example]}
    either = {"anyOf": [row, array(row), ref(named(problem, "Rows"))]}
    note = f" {model.entity} alone gets the prediction from its newest features." if model.online_features else ""
    for path in (f"/v1/predict/{problem}", "/v1/predict"):
        yield Operation(
            path,
            "predict",
            f"{question}{note}",
            "rows",
            predictions,
            "post",
            problem,
            either,
            examples,
            response,
            explains=True,
        )
    more = {name: [value] for name, value in model.example_output.items() if name != "prediction"}
    frame = {"predictions": [model.example_output.get("prediction")], **more}
    frame |= {"ids": [EXAMPLE_ID], "versions": [model.version], "variants": ["champion"]}
    frames: Examples = {}
    if example:
        split = {"columns": list(example), "data": [list(example.values())]}
        frames["split"] = {"summary": "dataframe_split", "value": {"dataframe_split": split}}
        frames["records"] = {"summary": "dataframe_records", "value": {"dataframe_records": [example]}}
    yield from _invocations(question, problem, model.version, frames, frame, _csv(example) if example else None)
    yield from _open_inference(question, problem, model)
    if model.online_features and model.online_features.fresh is True:
        yield from _row_events(problem, model.online_features)
    yield from _labels(problem, model.example_output.get("prediction"))


def _invocations(
    question: str, problem: str, version: int, examples: Examples, response: Any, csv: str | None
) -> Iterator[Operation]:
    for path, number in (
        (f"/v1/models/{problem}/invocations", None),
        (f"/v1/models/{problem}/versions/{{version}}/invocations", version),
        ("/invocations", None),
    ):
        yield Operation(
            path, "invocations", f"{question} (MLflow's scoring protocol)", "MLflow", ref(named(problem, "FramePredictions")),
            "post", problem, ref(named(problem, "Frame")), examples, response, number, explains=True, csv=csv,
        )  # fmt: skip


def _csv(row: Mapping[str, Any]) -> str:
    """The row with a line of names, each value in quotes."""
    cells = ["" if value is None else str(value) for value in row.values()]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\n" for line in (row, cells))


def _open_inference(question: str, problem: str, model: RowModel) -> Iterator[Operation]:
    examples: Examples = {}
    if model.request_example:
        tensors = [_tensor(name, DATATYPES[each.type], model.request_example[name]) for name, each in model.features.items()]
        examples["tensors"] = {"value": {"inputs": tensors}}
    about, ready, infer = (
        "Inputs and outputs of the model",
        "Whether a version serves",
        f"{question} (Open Inference Protocol V2)",
    )
    for middle, number in (("", None), ("/versions/{version}", model.version)):
        path = f"/v2/models/{problem}{middle}"
        yield Operation(path, "metadata", about, "V2", ref("ModelMetadata"), problem=problem, example_version=number)
        yield Operation(
            f"{path}/ready", "model_ready", ready, "V2", ref("ModelReadiness"), problem=problem, example_version=number
        )
        yield Operation(
            f"{path}/infer", "infer", infer, "V2", ref("InferResponse"), "post", problem, ref("InferRequest"), examples,
            example_version=number, types={"application/octet-stream": {"type": "string", "format": "binary"}},
        )  # fmt: skip


def _tensor(name: str, datatype: str, value: Any) -> dict[str, Any]:
    shown = str(value) if datatype == "BYTES" and value is not None else value
    return {"name": name, "shape": [1], "datatype": datatype, "data": [shown]}


def _list_operations(question: str, problem: str, model: ListModel) -> Iterator[Operation]:
    user, item = model.example_user, model.example_item()
    examples: Examples = {
        "user": {"summary": "A user", "value": {"users": [user], "k": 5}},
        "rules": {"summary": "With a rule", "value": {"users": [user], "k": 5, "rules": {"max_per_category": 1}}},
        "anonymous": {"summary": "An anonymous user", "value": {"k": 5}},
    }
    for path in (f"/v1/recommend/{problem}", "/v1/recommend"):
        yield Operation(path, "recommend", question, "lists", ref("Lists"), "post", problem, ref("ListRequest"), examples)
    event: Examples = {"event": {"value": {"id": "till-7-000123", "user": user, "item": item}}}
    either = {"anyOf": [ref("Event"), array(ref("Event")), openapi_schemas.closed(["events"], {"events": array(ref("Event"))})]}
    counts = {"accepted": 1, "duplicate": 0, "rejected": []}
    for path in (f"/v1/events/{problem}", "/v1/events"):
        yield Operation(
            path, "events", "Purchase events; idempotent by id", "lists", ref("EventCounts"), "post", problem, either, event,
            counts, rejects=True,
        )  # fmt: skip
    yield _withdrawal(problem, "lists")
    record: Examples = {"records": {"value": {"dataframe_records": [{model.user: user}]}}}
    yield from _invocations(f"{question} Lists for users", problem, model.version, record, None, None)
    yield from _labels(problem, [item])


def _withdrawal(problem: str, tag: str) -> Operation:
    ids: Examples = {"ids": {"value": {"ids": ["till-7-000123"]}}}
    return Operation(
        f"/v1/events/{problem}/withdraw", "withdraw", "Withdraw events: answers are as if they had never been", tag,
        ref("Withdrawal"), "post", problem, ref("Withdraw"), ids, {"withdrawn": 1, "duplicate": 0, "unknown": []}, rejects=True,
    )  # fmt: skip


def _row_events(problem: str, fresh: "FreshFeatures") -> Iterator[Operation]:
    """Operations on the rows that features are computed from."""
    event = ref("RowEvent")
    either = {"anyOf": [event, array(event), openapi_schemas.closed(["events"], {"events": array(event)})]}
    row: Examples = {"row": {"value": {"table": fresh.tables[0], "row": {fresh.entity: "…"}}}}
    yield Operation(
        f"/v1/events/{problem}", "events", "Rows of the tables of events; idempotent by id", "rows", ref("EventCounts"),
        "post", problem, either, row, {"accepted": 1, "duplicate": 0, "rejected": []}, rejects=True,
    )  # fmt: skip
    yield _withdrawal(problem, "rows")


def _labels(problem: str, value: Any) -> Iterator[Operation]:
    example: Examples = {"label": {"value": {"id": EXAMPLE_ID, "value": value}}}
    counts = {"matched": 1, "pending": 0, "duplicate": 0, "changed": 0, "rejected": []}
    for path in (f"/v1/labels/{problem}", "/v1/labels"):
        yield Operation(
            path, "labels", "Labels of earlier predictions", "labels", ref("LabelCounts"), "post", problem,
            one_or_more(ref("Label")), example, counts, rejects=True,
        )  # fmt: skip


def _server_operations() -> Iterator[Operation]:
    runs, health = "Whether the server runs", ref("Health")
    yield Operation("/health", "health", runs, "server", health, example_response={"status": "alive"})
    yield Operation("/ping", "ping", f"{runs}, as MLflow's client asks", "MLflow", health)
    yield Operation("/ready", "ready", "Which versions serve", "server", ref("Readiness"))
    yield Operation("/v2", "server_metadata", "The server", "V2", ref("ServerMetadata"))
    yield Operation("/v2/health/live", "server_live", runs, "V2", health)
    yield Operation("/v2/health/ready", "server_ready", "Whether models serve", "V2", ref("Readiness"))
    for path, name, about, type_ in (
        ("/version", "version", "Evergreen's version, as MLflow's client asks for it", "text/plain"),
        ("/metrics", "metrics", "Metrics in Prometheus text format", "text/plain"),
        ("/docs", "docs", "This description as a page", "text/html"),
    ):
        tag = "MLflow" if name == "version" else "server"
        yield Operation(path, name, about, tag, STRING, types={type_: STRING})
    yield Operation("/openapi.json", "openapi", "This description", "server", {"type": "object"})
