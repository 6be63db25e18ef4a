"""Connections: heads, clients and time are limited, and a request whose client left is cancelled."""

import asyncio
import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from evergreen.serving import http_protocol
from evergreen.serving.http_protocol import ConnectionLimits, LimitedProtocol
from evergreen.tasks.config.operations import Serve

POLICY = Serve(max_head_kb=2, head_seconds=0.3, max_connections_per_client=20)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n"


class Application:
    """Answers with the path; /slow waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.limits: ConnectionLimits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            self.begun.set()
            if scope["path"] == "/slow":
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            return
        if scope["path"] == "/body":
            while (await receive()).get("more_body"):
                pass
        body = bytes(30_000_000) if scope["path"] == "/large" else scope["path"].encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def application() -> Application:
    return Application()


@pytest.fixture(scope="module")
def connect(application: Application) -> Iterator[Callable[[], socket.socket]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_protocol, "SWEEP_SECONDS", 0.05)
        patch.setattr(http_protocol, "STALLED_SECONDS", 0.3)
        config = http_protocol.configure(application, POLICY, log_config=None)
        application.limits = config.http.args[0]  # pyright: ignore
        server, bound = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0), backlog=200)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        made = list[socket.socket]()

        def connect() -> socket.socket:
            made.append(socket.create_connection(bound.getsockname(), timeout=10))
            return made[-1]

        yield connect
        for each in made:
            each.close()
        server.should_exit = True
        thread.join(30)


def answer(link: socket.socket, sent: bytes = b"") -> bytes:
    """All that comes until the server closes or has nothing more to say."""
    found = b""
    try:
        link.sendall(sent)
        link.settimeout(2.0)
        while not found.endswith((b"}", b"/", b"/body")) and (part := link.recv(65536)):
            found += part
    except (ConnectionResetError, BrokenPipeError):
        pass
    return found


def is_cut_off(link: socket.socket, part: bytes, times: int, pause: float) -> bool:
    """Whether the server closes the connection while `part` is sent again and again."""
    for _ in range(times):
        try:
            link.sendall(part)
        except (ConnectionResetError, BrokenPipeError):
            return True
        time.sleep(pause)
    return False


def status(reply: bytes) -> int:
    return int(reply[9:12] or 0)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", "more than 100 headers"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 150, "more than 100 headers"),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 3000 + b"\r\n\r\n", "the request's head is larger than 2 KiB (serve.max_head_kb)"),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 3000, "the request's head is larger than 2 KiB (serve.max_head_kb)"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 3000, "the request's head is larger than 2 KiB (serve.max_head_kb)"),
        (b"GET /" + b"b" * 3000, "the request's head is larger than 2 KiB (serve.max_head_kb)"),
        (b"GET /" + b"b" * 3000 + b" HTTP/1.1\r\n\r\n", "the request's head is larger than 2 KiB (serve.max_head_kb)"),
    ],
)
def test_a_head_beyond_a_limit_is_refused(connect, head, says):
    reply = answer(connect(), head)
    assert status(reply) == 431
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"] == says
    assert b"x-content-type-options: nosniff" in reply


@pytest.mark.parametrize("part", [b"a: b\r\n", b"a: " + b"b" * 500, b"a" * 500])
def test_trailers_without_end_close_the_connection(connect, part):
    link = connect()
    link.sendall(b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    assert is_cut_off(link, part, 5000, 0.0005)


def test_a_long_body_in_small_chunks_is_no_long_head(connect):
    body = b"".join(b"1\r\nx\r\n" for _ in range(3000)) + b"0\r\n\r\n"
    assert status(answer(connect(), b"POST /body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body)) == 200


def test_invalid_http_is_400_and_says_nothing_of_the_server(connect):
    reply = answer(connect(), b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (status(reply), reply.partition(b"\r\n\r\n")[2]) == (400, b'{"error":"invalid HTTP"}')


@pytest.mark.parametrize("sent", [b"", b"GE", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_is_not_complete_in_time_is_closed(connect, sent):
    assert status(answer(connect(), sent)) == (408 if sent else 0)
    link = connect()
    assert status(answer(link, GET)) == 200
    if sent:  # the next request of the same connection
        assert status(answer(link, sent)) == 408


def test_a_trickle_of_bytes_gains_no_time(connect):
    assert is_cut_off(connect(), b"x", 1000, 0.02)


def test_idle_connections_keep_nobody_out(connect, application):
    many = [connect() for _ in range(60)]
    for place, each in enumerate(many):
        each.sendall(b"GET / HT" if place % 2 else b"")
    for _ in range(5):
        assert status(answer(connect(), GET)) == 200
    assert len(application.limits.connections) <= POLICY.max_connections_per_client
    assert application.limits.dropped["gave_way"] >= 40


def test_connections_in_use_do_not_give_way(connect, application):
    busy = [connect() for _ in range(POLICY.max_connections_per_client)]
    for each in busy:
        each.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    reply = answer(connect(), b"")
    assert (status(reply), b"too many connections" in reply) == (503, True)
    for each in busy:
        each.close()
    until = time.monotonic() + 10
    while application.limits.connections and time.monotonic() < until:
        time.sleep(0.02)
    assert not application.limits.connections


def test_work_ends_when_its_client_leaves(connect, application):
    application.cancelled.clear()
    link = connect()
    link.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    time.sleep(0.1)
    assert not application.cancelled.is_set()
    link.close()
    assert application.cancelled.wait(10)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("behind", [GET * 3, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n" + bytes(90_000)])
def test_work_ends_when_its_client_leaves_while_nothing_is_read(connect, application, behind, reset):
    """The server reads no further request while one is answered, and so not the end of the connection either."""
    application.cancelled.clear()
    before, link = application.limits.dropped["left"], connect()
    if reset:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.sendall(SLOW + behind)
    time.sleep(0.2)
    assert not application.cancelled.is_set()
    link.close()
    assert application.cancelled.wait(10)
    assert application.limits.dropped["left"] == before + 1


def test_a_slow_body_is_no_leaving(connect):
    link = connect()
    link.sendall(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + bytes(100_000))
    time.sleep(0.3)
    assert status(answer(link, bytes(100_000))) == 200


def test_a_client_that_does_not_read_is_cut_off(connect, application):
    before = application.limits.dropped["not_reading"]
    link = connect()
    link.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    until = time.monotonic() + 10
    while application.limits.dropped["not_reading"] == before and time.monotonic() < until:
        time.sleep(0.02)
    assert application.limits.dropped["not_reading"] == before + 1


@pytest.mark.parametrize(
    "sent",
    [SLOW, SLOW + GET * 200, SLOW + b"nonsense\r\n", GET + SLOW, LARGE, LARGE + GET, LARGE + LARGE + GET, GET + LARGE + SLOW],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_is_no_error_in_the_log(connect, application, caplog, sent, reset):
    application.begun.clear()
    others, link = set(application.limits.connections), connect()
    if reset:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.sendall(sent)
    assert application.begun.wait(10)
    link.close()
    until = time.monotonic() + 10
    while set(application.limits.connections) - others and time.monotonic() < until:
        time.sleep(0.01)
    assert status(answer(connect(), GET)) == 200  # the loop has run since
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_too_many_pipelined_requests_end_the_connection(connect):
    link = connect()
    link.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + GET * 500)
    link.settimeout(10)
    assert link.recv(100) == b""


def test_a_few_pipelined_requests_are_answered_in_order(connect):
    link = connect()
    link.sendall(b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(20)))
    found = b""
    while b"/19" not in found:
        found += link.recv(65536)
    places = [found.index(b"\r\n\r\n/%d" % number) for number in range(20)]
    assert places == sorted(places)


def test_uvicorn_has_what_the_protocol_overrides():
    for name in ("_start_asgi_task", "send_400_response", "on_response_complete", "on_headers_complete"):
        assert getattr(uvicorn.protocols.http.httptools_impl.HttpToolsProtocol, name) is not getattr(LimitedProtocol, name)
