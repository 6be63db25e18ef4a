"""Requests that are answered directly get the bytes, ledger rows and metrics that the ASGI application would give."""

import asyncio
import copy
import dataclasses
import itertools
import json
import logging
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from evergreen.flows.operations.http_server import application
from evergreen.serving import http_protocol, json_rows
from evergreen.serving.access_control import AccessControl
from evergreen.serving.app import App
from evergreen.serving.direct_requests import MAX_BODY, DirectRequest
from evergreen.serving.http_messages import HttpResponse
from evergreen.serving.http_protocol import ConnectionLimits, LimitedProtocol
from evergreen.tasks.config import loading
from tests.projects import Deployed

PATH = "/v1/predict/dear"
ROW = {"size": 30.5, "colour": "red", "built": "1990-05-04"}


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5000), "sockname": ("127.0.0.1", 80)})
        self.written, self.closed = list[bytes](), False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Worker:
    """An application with a model in memory. Ids count from 0 in each `ask`, so that two answers can be the same."""

    def __init__(self, app: App, runner: asyncio.Runner) -> None:
        self.app, self.runner = app, runner
        self.parts: Any = app.service
        self.config = http_protocol.configure(app, app.service.params.serve, log_config=None, lifespan="off")
        self.config.load()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def connect(self, direct: bool) -> tuple[LimitedProtocol, Transport]:
        limits = ConnectionLimits(self.app.service.params.serve)
        state = ServerState()
        state.default_headers = [(b"date", b"today")]
        made = LimitedProtocol(limits, self.app if direct else None, config=self.config, server_state=state, app_state={})
        transport = Transport()
        made.connection_made(transport)
        return made, transport

    async def ask(self, direct: bool, *parts: bytes) -> tuple[bytes, bool, list[Any], dict[str, Any]]:
        """What comes back, whether the connection is closed, the rows for the ledger, and what the metrics gain."""
        numbers = itertools.count()
        self.parts._writer.new_id = lambda: f"id-{next(numbers)}"
        before, spool = self.counts(), self.parts._writer.spool
        spool._waiting.clear()
        made, transport = self.connect(direct)
        for part in parts:
            made.data_received(part)
            await asyncio.sleep(0)
        for _ in range(2000):
            if made.cycle is not None and made.cycle.response_complete and not made.pipeline:
                break
            await asyncio.sleep(0.001)
        await asyncio.gather(*self.parts._background._tasks)
        made.connection_lost(None)
        rows = [(*row[:4], *row[5:7], json.loads(json.dumps(row[7], default=_text)), row[8]) for row in spool._waiting]
        gained = {
            name: {key: more for key, value in found.items() if (more := value - before[name].get(key, 0))}
            for name, found in self.counts().items()
        }
        return b"".join(transport.written), transport.closed, rows, gained

    def counts(self) -> dict[str, Any]:
        metrics = self.app.service.metrics
        return {name: dict(getattr(metrics, name)) for name in ("requests", "rows", "failures", "unseen")}

    def compare(self, *parts: bytes) -> bytes:
        """The bytes of both ways, which must be the same."""
        direct, through_asgi = (self.run(self.ask(each, *parts)) for each in (True, False))
        assert direct == through_asgi
        return direct[0]


def _text(fragment: Any) -> Any:
    return orjson.loads(orjson.dumps(fragment))


@pytest.fixture(scope="module")
def worker(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    layout = deployed(tmp_path_factory.mktemp("direct"), ("dear",), serve="serve: {parity_share: 0}\n")
    app, watcher = application(layout, loading.load(layout.params), "127.0.0.1")
    with asyncio.Runner() as runner:
        yield Worker(app, runner)
    watcher.stop()


def request(body: bytes, path: str = PATH, method: str = "POST", headers: Sequence[str] = (), version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: 127.0.0.1", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8), st.sampled_from(["red", "green", "mauve", " ", "1990-05-04", "12.5"]),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip
ROWS = st.fixed_dictionaries(
    {}, optional={name: st.one_of(st.just(value), VALUES) for name, value in {**ROW, "cutoff": "2020-01-01", "x": 1}.items()}
)
BODIES = st.one_of(
    st.just(ROW), ROWS, st.lists(ROWS, max_size=3), ROWS.map(lambda row: {"rows": [row], "explain": False}),
    ROWS.map(lambda row: {"dataframe_records": [row]}), VALUES,
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)  # fmt: skip
REQUESTS = st.builds(
    request, BODIES,
    path=st.sampled_from([PATH, PATH, "/invocations", "/v1/predict", f"{PATH}?explain=true", "/v1/%70redict/dear", "/health",
                          "/v1/predict/nobody", "/v2/models/dear/infer", "/", "/v1/models/dear/versions/9/invocations"]),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "DELETE"]),
    headers=st.lists(st.sampled_from(["content-encoding: gzip", "connection: close", "origin: http://elsewhere", "a: b",
                                      "content-type: text/csv", "expect: 100-continue"]), max_size=2, unique=True),
    version=st.sampled_from(["1.1", "1.1", "1.1", "1.0"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=3), cut=st.integers(0, 400))
def test_both_ways_give_the_same_bytes_rows_and_counts(worker, requests, cut):
    sent = b"".join(requests)
    worker.compare(*(part for part in (sent[:cut], sent[cut:]) if part))


TEXTS = st.one_of(
    st.sampled_from(["30.5", "null", "-0", "1e3", "1e999", "01", "NaN", "true", "9007199254740993", "18446744073709551616"]),
    st.sampled_from(['"red"', '" red "', '""', '"\\u0072ed"', '"\\ud800"', '"mauve"', '"1990-05-04"', '"1990-05-04T10:00"',
                     '"12.5"', '"x\ty"', "[1]", "{}"]),
    st.text(max_size=4).map(json.dumps), st.floats(allow_nan=False, allow_infinity=False).map(repr),
)  # fmt: skip
"""Values as JSON, or nearly."""
MEMBERS = st.tuples(st.sampled_from([*ROW, *ROW, "size", "owner", "cutoff", "x"]), TEXTS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    more=st.lists(MEMBERS, max_size=3),
    absent=st.sampled_from([None, None, None, *ROW]),
    end=st.sampled_from(["}", "} ", "}x", ",}"]),
)
def test_a_row_read_from_its_json_is_the_row_that_is_parsed(worker, more, absent, end):
    champion = worker.parts.versions.serving_set("dear").champion
    members = [(name, json.dumps(value)) for name, value in ROW.items() if name != absent] + more
    body = ("{" + ",".join(f"{json.dumps(name)}: {value}" for name, value in members) + end).encode("utf-8", "surrogatepass")
    found = champion.read(body)
    if found is not None:
        expected = champion.parse(orjson.loads(body))
        same = [float("nan") if each is None else float(each) for each in expected.point.numbers]
        read = [float("nan") if each is None else float(each) for each in found.point.numbers]
        assert np.array_equal(read, same, equal_nan=True)
        assert found.point.words == expected.point.words
        assert (found.features, found.entity, found.cutoff, found.fresh) == (expected.features, None, None, False)
        assert champion.unseen(found) == champion.unseen(expected) == []


def test_a_whole_row_makes_no_dictionary_on_its_way_to_the_model(worker, monkeypatch):
    monkeypatch.setattr("evergreen.serving.protocols.parse", lambda body: 1 / 0)
    assert worker.run(worker.ask(True, row_request()))[0].startswith(b"HTTP/1.1 200")
    champion = worker.parts.versions.serving_set("dear").champion
    for changed in ({"colour": "mauve"}, {"owner": "ann"}, {"size": "30.5"}):  # `parse` looks at these
        assert champion.read(json.dumps({**ROW, **changed}).encode()) is None


@pytest.mark.parametrize(
    ("names", "readable"), [(["a b", "ümläut"], True), (['a"b'], False), (["a\\b"], False), (["rows"], False), ([], False)]
)
def test_names_that_json_escapes_and_keys_of_other_bodies_are_left_to_the_parser(names, readable):
    read = json_rows.reader(dict.fromkeys(names, True))
    assert (read is not None) is readable
    if read:
        assert read(orjson.dumps(dict.fromkeys(names, 1))) == tuple(1.0 for _ in names)
        assert read(orjson.dumps(dict.fromkeys(names, "1"))) is None


def row_request(**changed: Any) -> bytes:
    return request(json.dumps({**ROW, **changed}).encode())


@pytest.mark.parametrize(("share", "shadow"), [(0.5, False), (1.0, False), (0.0, True)])
@pytest.mark.parametrize("fails", [False, True])
def test_a_rollout_is_the_same_both_ways(worker, monkeypatch, share, shadow, fails):
    logging.getLogger("evergreen.serving.row_predictor").setLevel(logging.CRITICAL)
    watcher, serving = worker.parts.versions.watcher, worker.parts.versions.serving_set("dear")
    candidate = copy.copy(serving.champion)
    candidate.version, candidate.batcher = 99, None
    if fails:
        candidate.predict = lambda rows: 1 / 0
    found = set()
    for rollout in range(12):
        made = dataclasses.replace(serving, candidate=candidate, share=share, shadow=shadow, rollout=rollout)
        monkeypatch.setattr(watcher, "serving_set", lambda problem, made=made: made)
        found.add(worker.compare(row_request(size=rollout + 1)).partition(b'"version":')[2][:2])
    expected = {b"1,"} if shadow or fails else {b"99"} if share == 1 else {b"1,", b"99"}
    assert found == expected


@pytest.mark.parametrize("policy", [{"rate_limit_per_second": 3.0}, {"require_api_key": "always"}, {"max_open_requests": 1}])
def test_access_rules_hold_both_ways(worker, monkeypatch, policy):
    class Keys:
        def active_keys(self) -> dict[str, Any]:
            return {"x": None}  # pyright: ignore

    known = worker.app.service.params.serve.model_copy(update=policy)
    statuses = list[list[int]]()
    for direct in (True, False):
        monkeypatch.setattr(worker.app, "_access", AccessControl(known, "127.0.0.1", Keys()))  # pyright: ignore
        monkeypatch.setattr(worker.app, "_params", worker.app._params.model_copy(update={"serve": known}))
        answers = [worker.run(worker.ask(direct, row_request())) for _ in range(5)]
        statuses.append([int(each[0][9:12]) for each in answers])
    expected = {"rate_limit_per_second": [200, 200, 200, 429, 429], "require_api_key": [401] * 5}.get(
        next(iter(policy)), [200] * 5
    )
    assert statuses == [expected, expected]


def test_an_answer_is_one_write_without_a_task(worker, monkeypatch):
    async def ask() -> int:
        made, transport = worker.connect(direct=True)
        made.data_received(row_request())
        assert isinstance(made.cycle, DirectRequest)
        tasks = len(asyncio.all_tasks())
        while not transport.written:
            await asyncio.sleep(0)
        assert tasks == 1
        return len(transport.written)

    assert worker.run(ask()) == 1


def test_a_body_that_is_large_or_slow_goes_to_the_application(worker):
    async def ask(body: bytes, sent: int) -> list[Any]:
        made, transport = worker.connect(direct=True)
        whole = request(body)
        made.data_received(whole[:sent])
        assert isinstance(made.cycle, DirectRequest)
        if sent == 100:
            made.check(0.0)
        made.data_received(whole[sent:])
        assert not isinstance(made.cycle, DirectRequest)
        while not made.cycle.response_complete:
            await asyncio.sleep(0)
        return transport.written

    body = json.dumps(ROW).encode()
    for padded, sent in ((body, 100), (body + b" " * MAX_BODY, MAX_BODY // 2)):
        assert worker.run(ask(padded, sent))[0].startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_ends_its_request(worker, monkeypatch):
    ended = list[str]()

    async def slow(*_: Any) -> HttpResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    async def ask() -> list[bytes]:
        made, transport = worker.connect(direct=True)
        made.data_received(row_request())
        await asyncio.sleep(0.01)
        assert not ended
        made.connection_lost(None)
        await asyncio.sleep(0.01)
        return transport.written

    monkeypatch.setattr(worker.app, "_answer", slow)
    assert worker.run(ask()) == []
    assert ended == ["cancelled"]
    assert not worker.app._in_flight


def test_a_request_beyond_its_time_gets_an_answer(worker, monkeypatch):
    async def slow(*_: Any) -> HttpResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async def ask() -> bytes:
        made, transport = worker.connect(direct=True)
        made.data_received(row_request())
        (work,) = worker.app._in_flight
        worker.app._overdue.add(work)
        work.cancel()
        while not transport.written:
            await asyncio.sleep(0)
        return transport.written[0]

    monkeypatch.setattr(worker.app, "_answer", slow)
    assert worker.run(ask()).startswith(b"HTTP/1.1 503")


def test_an_open_request_is_answered_while_the_server_stops(worker):
    async def ask() -> Transport:
        made, transport = worker.connect(direct=True)
        made.data_received(row_request())
        made.shutdown()
        while not transport.written:
            await asyncio.sleep(0)
        return transport

    transport = worker.run(ask())
    assert transport.closed
    assert b"connection: close" in transport.written[0]
