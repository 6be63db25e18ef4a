"""The HTTP reference and the Prometheus reference, from a server application that holds two example versions."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docs.generate.markdown import cell, code, table

ROOT = Path(__file__).parents[2]
ROWS, LISTS = "coupons", "basket"
"""The problems of the examples; addresses show NAME in their place."""


def application() -> Any:
    """The server application over two example versions: one that predicts rows, and one that recommends lists."""
    from evergreen.serving.app import App
    from evergreen.serving.feature import Feature
    from evergreen.serving.loaded_model import ListModel, RowModel
    from evergreen.serving.metrics import Metrics
    from evergreen.serving.prediction_service import PredictionService
    from evergreen.serving.serving_set import ServingSet
    from evergreen.tasks.config import loading

    known = loading.load(ROOT / "params.yaml")
    sections = {ROWS: known.section("redeem"), LISTS: known.section("recommend")}
    known = known.model_copy(update={"problems": {ROWS: "classification", LISTS: "recommendation"}, "sections": sections})
    income = Feature("income", "text", levels=frozenset({"50-74K"}))
    features = [Feature("baskets_56d", "number"), Feature("spend_56d", "number"), income]
    row = {"baskets_56d": 12, "spend_56d": 318.4, "income": "50-74K"}
    output = {"prediction": 0, "probability_0": 0.962, "probability_1": 0.038}
    rows = RowModel(
        ROWS, 3, "classification", features, [row], lambda asked: [output for _ in asked],
        entity="household_id", online_features=SimpleNamespace(fresh=False),  # type: ignore[arg-type]
    )  # fmt: skip
    rows.self_check()
    recommender = SimpleNamespace(problem=LISTS, version=2, users=lambda: [1], items=lambda: [1082185])
    lists = ListModel(recommender, "product_id", "household_id")  # type: ignore[arg-type]
    sets = {ROWS: ServingSet(rows), LISTS: ServingSet(lists)}
    metrics = Metrics()
    metrics.count_request("predict", ROWS, 200, 0.001)
    metrics.count_batch(ROWS, 3)
    metrics.count_parity(ROWS, mismatch=False)
    metrics.rows[ROWS, 3, "champion"] += 1
    metrics.failures[ROWS, 3, "champion"] += 1
    watcher: Any = SimpleNamespace(serving_set=sets.get, errors={})
    return App(PredictionService(known, watcher, None, None, metrics))


def ask(app: Any, path: str) -> bytes:
    """The body of the answer to GET `path`."""
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        parts.append(message.get("body", b""))
        assert message.get("status", 200) == 200, path

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "client": None}
    asyncio.run(app(scope, receive, send))
    return b"".join(parts)


def pages() -> Iterator[tuple[str, str]]:
    app = application()
    yield "reference/http.md", http(json.loads(ask(app, "/openapi.json")))
    yield "reference/metrics.md", metrics(ask(app, "/metrics").decode())


# --- HTTP --------------------------------------------------------------------------------------------------------------------


def http(described: Mapping[str, Any]) -> str:
    """Each address with an example of its request and of its answer."""
    parts = [HTTP]
    groups: dict[str, dict[str, str]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            heading, text = f"{method.upper()} {_named(path)}", "\n".join(_operation(operation))
            found = groups.setdefault(operation.get("tags", ["server"])[0], {})
            if text in found.values() and not path.startswith("/v2"):  # the same without the name of a problem
                text = "As above, for the problem that `serve.default_problem` names, or for the only one that fits.\n"
            if "{version}" in path:
                text = "As above, for one of the loaded versions.\n"
            found.setdefault(heading, text)
    for tag, operations in groups.items():
        parts.append(f"\n## {TAGS.get(tag, tag)}\n")
        parts += [f"### {heading}\n\n{text}" for heading, text in operations.items()]
    return "\n".join(parts) + "\n"


HTTP = """\
# HTTP

This page comes from the OpenAPI description of a server with two problems, `coupons` (classification) and `basket`
(recommendation).
Your own server shows its problems, features and examples at `/docs`, and as OpenAPI at `/openapi.json`. NAME is a problem.

A body is JSON, a V2 binary tensor request, or CSV for MLflow's protocol; gzip or deflate may compress it.
A server bound to an address other than this machine's own needs an API key:
send `Authorization: Bearer KEY` or `X-API-Key: KEY`. See [API keys](../how-to/api-keys.md).

## Statuses

| status | when | body |
| --- | --- | --- |
| 200 | the request succeeded | the result |
| 400 | the body is not valid JSON, or not the shape of its protocol | `error` |
| 401 | a key is needed, unknown or revoked | `error` |
| 403 | the key lacks the scope or is for other problems; without keys, `Host` or `Origin` is another machine's | `error` |
| 404 | unknown address, problem or version | `error` |
| 405 | the address takes another method | `error`, header `allow` |
| 413 | the body is larger than `serve.max_body_kb` | `error` |
| 415 | a `content-encoding` other than gzip and deflate; on `/invocations`, a content type other than JSON and CSV | `error` |
| 422 | a value breaks a rule | `error`, `field`, `value`, `rule`, and `row` for one of several |
| 422 | every event, or every label, of the request was rejected | as for 200 |
| 429 | more requests than `serve.rate_limit_per_second` | `error`, header `retry-after` |
| 500 | a defect; the server's log has the traceback | `error` |
| 503 | no version is loaded, `serve.timeout_seconds` ran out, or a database is unavailable | `error`, header `retry-after` |
"""
WIDTH = 100
"""Longer examples take several lines."""
TAGS = {
    "rows": "Predictions",
    "lists": "Recommendations and purchases",
    "labels": "Labels",
    "MLflow": "MLflow scoring protocol",
    "V2": "Open Inference Protocol V2",
    "server": "Server",
}


def _named(path: str) -> str:
    return "/".join("NAME" if part in (ROWS, LISTS) else part for part in path.split("/"))


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield re.sub(rf"\b({ROWS}|{LISTS})\b", "NAME", operation["summary"]) + "\n"
    rows = [
        (code(each["name"]), each.get("description", "")) for each in operation.get("parameters", ()) if each["in"] == "query"
    ]
    if rows:
        yield table(("query parameter", "meaning"), rows) + "\n"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name, example in body.get("examples", {}).items():
        yield f"{example.get('summary', f'Request, {name}')}:\n"
        yield _json(example["value"])
    answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("example")
    if answer:
        yield "Response:\n"
        yield _json(answer)


def _json(value: Any) -> str:
    text = json.dumps(value)
    if len(text) > WIDTH:
        text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(value, indent=1))
    return f"```json\n{text}\n```\n"


# --- Prometheus --------------------------------------------------------------------------------------------------------------


def metrics(text: str) -> str:
    """The series of /metrics, and those of var/metrics.prom."""
    from prometheus_client.parser import text_string_to_metric_families

    served = [
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            _labels(family.samples),
            family.documentation,
        )
        for family in text_string_to_metric_families(text)
    ]
    return METRICS.format(served=_series(served), monitored=_series(monitored()))


METRICS = """\
# Prometheus metrics

## The server, `/metrics`

Every worker reports the counts of all workers of its server. On an address that needs keys, `/metrics` needs a key with the
scope `admin`.

{served}

`deploy/prometheus/prometheus.yaml` scrapes these series and those of monitoring.
`deploy/prometheus/alerts.yaml` has alert rules, and `deploy/grafana/evergreen.json` a dashboard over all of them.

## Monitoring, `var/metrics.prom`

`evergreen monitor` writes the newest monitoring run of each problem to this file. Point the textfile collector of Prometheus'
node_exporter at the folder.

{monitored}

See the [runbook](../runbook.md) for what to do when one of them rises.
"""


def monitored() -> list[tuple[str, str, str, str]]:
    from evergreen.flows.operations.prometheus_textfile import FAMILIES

    return [(name, kind, ", ".join(("problem", *labels)), about) for name, (kind, labels, about) in FAMILIES.items()]


def _series(rows: Sequence[tuple[str, str, str, str]]) -> str:
    return table(
        ("series", "type", "labels", "meaning"),
        [(code(name), kind, labels, cell(about)) for name, kind, labels, about in rows],
    )


def _labels(samples: Iterable[Any]) -> str:
    found = dict.fromkeys(name for sample in samples for name in sample.labels)
    return ", ".join(name for name in found if name != "le")
