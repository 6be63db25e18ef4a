"""Generated and hostile requests: never a 500, never an internal detail in a response."""

import gzip
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from evergreen.flows import settings
from evergreen.serving import model_loading
from evergreen.serving.access_control import SECURITY_HEADERS
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ModelError
from tests import ROOT, projects
from tests.projects import Deployed
from tests.serving.live import Live, serving

LIMITS = "serve: {max_body_kb: 64, max_rows: 20, timeout_seconds: 2.0}\n"
CONFORMS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
"""Generated requests per path."""
ROW = {"size": 3.0, "colour": "red", "built": "1999-05-05"}
POSTS = {
    "/v1/predict/dear": ROW,
    "/v1/models/dear/invocations": {"dataframe_records": [ROW]},
    "/v2/models/dear/infer": {
        "inputs": [
            {"name": name, "shape": [1], "datatype": "FP64" if name == "size" else "BYTES", "data": [value]}
            for name, value in ROW.items()
        ]
    },
    "/v1/recommend/recommend": {"users": [7], "k": 3},
    "/v1/events/recommend": {"id": "e1", "user": 7, "item": 1003},
    "/v1/events/recommend/withdraw": {"ids": ["e1"]},
    "/v1/labels/dear": {"entity": "7", "at": "2017-05-05", "value": 1},
}


@pytest.fixture(scope="module")
def live(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    layout = deployed(tmp_path_factory.mktemp("fuzz") / "shop", ("dear", "recommend"), LIMITS)
    with serving(layout) as found:
        yield found


@pytest.mark.slow
def test_responses_follow_the_openapi_description_and_none_is_a_500(live):
    described = schemathesis.openapi.from_url(f"http://127.0.0.1:{live.port}/openapi.json")
    seen = set[str]()
    for found in described.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CONFORMS)

        ask()
        seen.add(operation.path)
    assert set(POSTS) < seen


HOSTILE = {
    "nothing": b"",
    "no JSON": b"<xml/>",
    "half": b'{"size": 3.0, "colour": "re',
    "two": b"{}{}",
    "scalar": b"7",
    "null": b"null",
    "text": b'"row"',
    "list of nothing": b"[]",
    "list of nulls": b"[null]",
    "list of lists": b"[[[]]]",
    "invalid UTF-8": b'{"size": 3.0, "colour": "\xff\xfe", "built": null}',
    "UTF-16": json.dumps(ROW).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(ROW).encode(),
    "half a surrogate": b'{"size": 3.0, "colour": "\\ud800", "built": null}',
    "NUL": b'{"size": 3.0, "colour": "\\u0000", "built": "\\u0000"}',
    "NaN": b'{"size": NaN, "colour": "red", "built": null}',
    "Infinity": b'{"size": -Infinity, "colour": "red", "built": null}',
    "beyond float": b'{"size": 1e999, "colour": "red", "built": null}',
    "long number": b'{"size": ' + b"9" * 5000 + b', "colour": "red", "built": null}',
    "long fraction": b'{"size": 0.' + b"1" * 5000 + b', "colour": "red", "built": null}',
    "beyond 64 bits": b'{"users": [18446744073709551616], "k": 9223372036854775808, "size": -9223372036854775809}',
    "keys twice": b'{"size": 1, "size": [2], "size": {"size": 3}, "colour": "red", "built": null}',
    "deep list": b"[" * 30_000,
    "deep and closed": b"[" * 30_000 + b"]" * 30_000,
    "deep value": b'{"size": ' + b"[" * 900 + b"]" * 900 + b', "colour": "red", "built": null}',
    "deep objects": b'{"rows": [' + b'{"size":' * 300 + b"1" + b"}" * 300 + b"]}",
    "many keys": json.dumps({f"k{number}": number for number in range(3000)}).encode(),
    "long key": json.dumps({"k" * 60_000: 1}).encode(),
    "types": b'{"size": {"a": 1}, "colour": [1], "built": 1e300, "users": {"a": 1}, "k": "x", "value": {"a": []}}',
    "dates": b'{"size": 1, "colour": "red", "built": "9999-99-99T99:99:99+99:99", "value": 1, "at": "0000-00-00"}',
    "far day": b'{"value": 1, "entity": "7", "at": "9999-12-31T23:59:59-23:59", "user": 7, "item": 1003, "time": "0001-01-01"}',
    "lists": b'{"users": [[], {}, null, true, "", 1e300, "\\u0000"], "items": [[]], "k": 1e9, "rules": {"__class__": 1}}',
    "long list": json.dumps({"users": list(range(2000)), "k": 10**6}).encode(),
    "negative": b'{"users": [7], "k": -1, "blend": -1, "diversity": 1e308, "explore": null, "rules": null, "as_of": 20170101}',
    "labels": b'[{"value": 1}, {"id": [], "value": 1}, {"entity": {}, "at": [], "value": null}, {"value": 1e999}]',
    "tensors": b'{"inputs": [{"name": "size", "shape": [9223372036854775807, 2], "datatype": "FP64", "data": [1]}]}',
    "no tensors": b'{"inputs": [{"name": [], "shape": "x", "datatype": null, "data": {}}], "outputs": [3], "id": [3]}',
    "frames": b'{"dataframe_split": {"columns": ["size", "size"], "data": [[1]]}}',
    "ragged": b'{"inputs": {"size": [1, 2], "colour": ["red"], "built": 3}}',
    "gzip": gzip.compress(json.dumps(ROW).encode()),
    "bomb": gzip.compress(bytes(100_000_000)),
    "half a stream": gzip.compress(json.dumps(ROW).encode() * 100)[:-9],
    "bomb in rows": gzip.compress(b'{"dataframe_records": [' + b"{}," * 10_000_000 + b"{}]}"),
    "NaN everywhere": b'{"dataframe_split": {"columns": ["size", "colour"], "data": [[NaN, NaN]]}, "params": NaN}',
    "NaN in a key": b'{"inputs": {NaN: [1]}}',
    "epochs": b'{"instances": [[1e400, 1e300, -1e300], [1, 99999999999999999999, 99999999999999999999]]}',
    "huge integers": b'{"inputs": [{"name": "size", "shape": [2], "datatype": "INT8", "data": [99999999999999999999, 1]}]}',
    "class counts": b'{"inputs": [{"name": "size", "shape": [0], "datatype": "FP64", "data": []}], '
    b'"outputs": [{"name": "prediction", "parameters": {"classification": 18446744073709551615}}]}',
    "params": b'{"instances": [], "params": [1]}',
    "empty frame": b'{"dataframe_split": {"columns": [], "data": []}}',
    "columns that are no names": b'{"dataframe_split": {"columns": [1, null, ["size"]], "data": [[1, 2, 3]]}}',
    "columns and no rows": b'{"dataframe_split": {"columns": ["a"], "data": {"a": 1}}}',
    "csv": b"size,colour,built\n1,red,1999-05-05\n",
    "csv of one quote": b'size,colour\n"',
    "csv with NUL": b"size,colour,built\n1,\x00,\x00\n",
    "csv of commas": b"," * 50_000,
    "csv of rows": b"size\n" * 10_000,
}


def proper(reply: httpx.Response) -> Any:
    """The JSON of a response below 500 without internal details."""
    assert reply.status_code < 500, (reply.status_code, reply.text)
    for word in ("Traceback", 'File "', ".py", "site-packages", "sqlite", str(ROOT), "/tmp/"):
        assert word not in reply.text
    return reply.json()


@pytest.mark.parametrize("path", POSTS)
def test_a_valid_request_succeeds(live, path):
    assert live.client.post(path, json=POSTS[path]).status_code == 200


@pytest.mark.parametrize("name", HOSTILE)
def test_an_invalid_body_is_an_error_of_one_line(live, name):
    for path in POSTS:
        for headers in (
            {},
            {"content-type": "application/json", "content-encoding": "gzip"},
            {"content-type": "text/csv"},
            {"content-type": "text/csv; charset=utf-8; header", "content-encoding": "deflate"},
            {"content-type": ";;;charset=latin;=", "content-encoding": "gzip, br"},
            {"content-type": "application/octet-stream", "inference-header-content-length": "7"},
        ):
            reply = live.client.post(path, content=HOSTILE[name], headers=headers)
            found = proper(reply)
            assert reply.status_code == 200 or isinstance(found.get("error", found.get("rejected")), str | list | int), found
            assert "\n" not in str(found.get("error", ""))
            assert len(reply.content) < 2_000 + 2 * len(HOSTILE[name]) or reply.status_code == 200


def test_any_value_in_a_request_may_be_replaced_by_anything(live):
    """Replaces each part of each valid request, one at a time."""
    others = [None, True, -1, 0.5, 2**63, 1e308, "", "x" * 5000, "\0", "../../etc/passwd", [], {}, [[]], {"$ref": "x"}, [None]]

    def changed(value: Any) -> Iterator[Any]:
        yield from others
        if isinstance(value, dict):
            for key, inner in value.items():
                yield {name: each for name, each in value.items() if name != key}
                for new in changed(inner):
                    yield {**value, key: new}
        if isinstance(value, list) and value:
            for new in changed(value[0]):
                yield [new, *value[1:]]

    for path, given in POSTS.items():
        for body in changed(given):
            proper(live.client.post(path, json=body))


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ncontent-length: 60\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: identity, chunked, identity\r\n",
        b"content-length: +5\r\n",
        b"content-length: -5\r\n",
        b"content-length: 5,5\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"content-length : 5\r\n",
        b"x: a\r\n continued\r\ncontent-length: 5\r\n",
        b"x\x00y: 1\r\ncontent-length: 5\r\n",
        b"x: \x01\x02\r\n",
        b"transfer-encoding:\x0bchunked\r\n",
    ],
)
def test_a_request_of_ambiguous_length_gets_at_most_one_response(live, head):
    """The rest is never read as a second request (request smuggling)."""
    start = b"POST /v1/predict/dear HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    found = live.raw(start + head + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert b"HTTP/1.1 5" not in found
    assert b"/smuggled" not in found
    assert found.count(b"HTTP/1.1 ") <= 1 or b"HTTP/1.1 400" in found.split(b"HTTP/1.1 ", 2)[1] or found.count(b" 404 ") == 0
    assert live.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /%ff%00%zz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET http://127.0.0.1:x/ HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"POST /v2/models/dear/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ninference-header-content-length: "
        + b"9" * 5000
        + b"\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/predict/dear?explain=%ff&explain="
        + b"1" * 3000
        + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n{}",
        b"GET /v1/models/dear/versions/999999999/invocations HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nauthorization: Bearer \xff\xfe\r\nhost: 127.0.0.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    ],
)
def test_a_malformed_request_does_not_stop_the_server(live, request_):
    assert b" 500 " not in live.raw(request_)[:20]
    assert live.client.get("/health").status_code == 200


WATCHED: list[str] = []
MARK = "zz-mark-zz"
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.split(".")[0] in (
        "open",
        "os",
        "shutil",
        "subprocess",
        "import",
        "socket",
        "glob",
        "exec",
        "compile",
    ):
        found = repr(arguments)
        if MARK in found and event not in ("socket.__new__",):
            WATCHED.append(f"{event} {found[:300]}")


def test_no_part_of_a_request_reaches_the_file_system(live, monkeypatch):
    sys.addaudithook(_watch)
    monkeypatch.setitem(globals(), "_watching", True)
    with pytest.raises(FileNotFoundError, match=MARK):
        Path(f"/nowhere/{MARK}").read_text()  # the audit hook works
    assert WATCHED.pop().startswith("open ")
    named = f"../../{MARK}"
    for path in [
        f"/v1/predict/{named}", f"/v1/predict/{MARK}", f"/v2/models/{MARK}/infer", f"/v2/models/dear/versions/{MARK}/infer",
        f"/v1/models/..%2f..%2f{MARK}/invocations", f"/docs/{named}", f"/{MARK}%00.json", f"//{MARK}",
        f"/v1/labels/%2e%2e/{MARK}",
    ]:  # fmt: skip
        for method in ("GET", "POST"):
            assert live.client.request(method, path, content=b"{}").status_code in (400, 404, 405)
    for path, given in POSTS.items():
        for key in given:
            proper(live.client.post(path, json={**given, key: named}))
            proper(live.client.post(path, json={**given, key: [named]}))
        proper(live.client.post(path, json=given | {named: named}, headers={"x-forwarded-for": named, "cookie": named}))
        proper(live.client.post(f"{path}?explain={MARK}&path={named}", json=given))
    assert WATCHED == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/nowhere"),
        ("PUT", "/health"),
        ("POST", "/v1/predict/dear"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
    ],
)
def test_every_response_has_the_security_headers(live, method, path):
    reply = live.client.request(method, path)
    for name, value in SECURITY_HEADERS:
        assert name in reply.headers
        assert reply.headers[name] == value or (path == "/docs" and name == "content-security-policy")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_a_page_of_another_origin_is_denied(live):
    for headers in ({"host": "evil.example.org"}, {"origin": "https://evil.example.org"}):
        reply = live.client.post("/v1/events/recommend", json=POSTS["/v1/events/recommend"], headers=headers)
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(("method", "indent"), [("predict_json", None), ("predict_one", 1)])
def test_an_internal_error_is_logged_and_not_shown(live, method, indent, monkeypatch, caplog):
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret at /etc/evergreen")

    monkeypatch.setattr(live.app.service, method, fail)
    reply = live.client.post("/v1/predict/dear", content=json.dumps(ROW, indent=indent))
    assert reply.status_code == 500
    assert reply.json() == {"error": "internal error; see the server's log"}
    assert "secret at /etc/evergreen" in caplog.text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_not_read_to_the_end(live, chunked):
    content = iter([b" " * 40_000] * 40) if chunked else b" " * 80_000
    try:
        reply = live.client.post("/v1/predict/dear", content=content)
    except httpx.WriteError:  # the server closed before all was sent
        return
    assert reply.status_code == 413
    assert "64 KiB (serve.max_body_kb)" in reply.json()["error"]


def test_rows_above_the_limit_are_an_error(live):
    assert live.client.post("/v1/predict/dear", json=[ROW] * 20).status_code == 200
    reply = live.client.post("/v1/predict/dear", json=[ROW] * 21)
    assert reply.status_code == 422
    assert "at most 20 per request (serve.max_rows)" in reply.json()["error"]


def test_a_body_that_never_arrives_times_out(live):
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as link:
        link.sendall(b"POST /v1/predict/dear HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        assert link.recv(100).startswith(b"HTTP/1.1 503 ")


def test_a_version_with_a_changed_file_is_never_loaded(live):
    version = projects.deploy(live.layout, "dear", "logistic", C=0.3)
    registry, known = settings.registry(live.layout), loading.load(live.layout.params)
    load = lambda: model_loading.load(known, live.layout, registry, settings.events(live.layout), "dear", version)  # noqa: E731
    load().self_check()
    source = registry._store.folder("dear", version)
    assert source
    for file in ("compiled/model.onnx", "model.skops"):
        place = source / file
        content = place.read_bytes()
        place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ModelError, match="is not the file that was registered"):
            registry.load("dear", version) if file == "model.skops" else load()
        place.write_bytes(content)
