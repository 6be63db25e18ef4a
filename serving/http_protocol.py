"""HTTP connections with limits: size and time of a head, connections of one client and of all, clients that do not read.

uvicorn's own protocol limits none of these (docs/decisions/uvicorn.md). One worker shares one `ConnectionLimits`. A connection
without a request in progress is *idle*: where a limit is reached, the one that is idle longest gives way to the new one, so
connections that send nothing keep nobody out.
"""

import asyncio
import resource
import select
from collections import Counter
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from evergreen.serving.access_control import SECURITY_HEADERS
from evergreen.serving.app import App
from evergreen.serving.direct_requests import MAX_BODY, PER_READ, DirectRequest, ResponseWriter
from evergreen.serving.http_messages import HttpResponse
from evergreen.serving.rate_limit import rate_limit_key
from evergreen.tasks.config.operations import Serve

MAX_HEADERS = 100
MAX_PIPELINED = 100
"""Requests of one connection that wait for the one in progress."""
STALLED_SECONDS = 30.0
"""A client that takes none of a waiting response for this long is cut off."""
SWEEP_SECONDS = 1.0
OTHER_FILES = 128
"""File descriptors that connections leave to models, databases and the spool."""
FILES = 65_536
"""A worker raises its limit of open files to this, where the system allows."""
KEEP_ALIVE_SECONDS = 75
LEFT = getattr(select, "POLLRDHUP", 0)
"""The other side sends no more; systems without it report connections that ended only. `poll` reports errors always."""
SHORT_URL = 256
"""Bytes of an address that is remembered in parts."""
HEADERS = b"".join(f"{name}: {value}\r\n".encode() for name, value in SECURITY_HEADERS)


class HeadError(Exception):
    """A head beyond the limits. It ends the parsing."""


class ConnectionLimits:
    """The connections of one worker."""

    def __init__(self, policy: Serve) -> None:
        self.max_head, self.head_seconds = policy.max_head_kb * 1024, policy.head_seconds
        self.max_per_client, self.max_total = policy.max_connections_per_client, _file_limit() - OTHER_FILES
        self.connections = dict[LimitedProtocol, None]()
        self.idle = dict[LimitedProtocol, None]()
        """Without a request in progress, longest first."""
        self.dropped: Counter[str] = Counter()
        """Reason -> connections that were closed for it."""
        self._by_client: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self.writer = ResponseWriter()

    def admit(self, made: "LimitedProtocol") -> bool:
        """Register a connection; False, and it is refused, where none is idle that could give way to it."""
        if self._by_client[made.caller] >= self.max_per_client:
            oldest = next((each for each in self.idle if each.caller == made.caller), None)
        elif len(self.connections) >= self.max_total:
            oldest = next(iter(self.idle), None)
        else:
            oldest = made
        if oldest is None:
            self.dropped["refused"] += 1
            return False
        if oldest is not made:
            oldest.drop("gave_way")
        self.connections[made] = self.idle[made] = None
        self._by_client[made.caller] += 1
        if self._sweep is None:
            self._sweep = made.loop.call_later(SWEEP_SECONDS, self.sweep, made.loop)
        return True

    def forget(self, lost: "LimitedProtocol") -> None:
        self.idle.pop(lost, None)
        if lost in self.connections:
            del self.connections[lost]
            self._by_client[lost.caller] -= 1
            if not self._by_client[lost.caller]:
                del self._by_client[lost.caller]

    def sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections whose head is overdue, and those of clients that left or do not read."""
        self._sweep = loop.call_later(SWEEP_SECONDS, self.sweep, loop) if self.connections else None
        now = loop.time()
        for each in list(self.connections):
            each.check(now)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request whose client has left is cancelled."""

    cycle: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    """The newest request: uvicorn's RequestResponseCycle, or a DirectRequest; None before the first."""
    parser: Any  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, limits: ConnectionLimits, app: App | None, *arguments: Any, **options: Any) -> None:
        """`app`: answers what may be answered directly; None: all goes through ASGI."""
        super().__init__(*arguments, **options)
        self._limits, self._direct, self.caller = limits, app, ""
        self._max_head, self._idle = limits.max_head, limits.idle
        self._direct_left = PER_READ
        self._idle_since = 0.0
        self._head_due: float | None = None
        """When the head must be complete, in the loop's time; None: none has begun, or it is."""
        self._outside = self._head = 0
        """Bytes of the present message that are not its body: received, and in complete lines."""
        self._unsent, self._unsent_since = 0, 0.0
        self._unread = False
        """Whether the present message is not complete."""
        self._fault: tuple[int, str] | None = None
        """Status and reason of a refusal."""
        self._current: Any = None
        """The request that is being answered; `cycle` may be one that waits behind it."""
        self._running: asyncio.Task[None] | DirectRequest | None = None
        """What answers it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.caller = rate_limit_key(self.client[0] if self.client else "")
        self._head_due = self.loop.time() + self._limits.head_seconds
        if not self._limits.admit(self):
            self._refuse(503, "too many connections; try again")

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.forget(self)
        if self._running and not self._current.response_complete:
            self._current.disconnected = True
            self._running.cancel()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head_due is None and self in self._idle:
            self._head_due = self.loop.time() + self._limits.head_seconds
        self._outside += len(data)
        self._direct_left = PER_READ
        super().data_received(data)
        if self._outside > self._max_head and not self.transport.is_closing():
            self._refuse(431, self._too_large())

    def on_message_begin(self) -> None:
        """As uvicorn's, without the scope, which a direct request does not need."""
        self._head, self._unread, self.expect_100_continue = 0, True, False
        self.url, self.headers = b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._head += len(url)
        if self._head > self._max_head:
            self._fail(431, self._too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value) + 4
        headers, name = self.headers, name.lower()
        if self._head > self._max_head:
            self._fail(431, self._too_large())
        if len(headers) >= MAX_HEADERS:
            self._fail(431, f"more than {MAX_HEADERS} headers")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._fail(429, f"more than {MAX_PIPELINED} requests wait on this connection")
        self._head_due = None
        self._idle.pop(self, None)
        if self._may_be_direct():
            self.cycle = DirectRequest(self.parser.should_keep_alive())
        else:
            self._start_asgi()

    def _start_asgi(self) -> None:
        """Give the request to the ASGI application, with the scope that uvicorn makes when a message begins."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _may_be_direct(self) -> bool:
        """Whether the request may be answered once its body is there, without ASGI."""
        return (
            self._direct is not None
            and self._direct_left > 0
            and (self.cycle is None or self.cycle.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.get_method() != b"HEAD"
            and not self.parser.should_upgrade()
        )

    def on_chunk_header(self) -> None:
        """A chunk of a body begins: each may have extensions, and the last one trailers."""
        self._outside = 0

    def on_body(self, body: bytes) -> None:
        self._outside -= len(body)
        waiting = self.cycle
        if not isinstance(waiting, DirectRequest):
            super().on_body(body)
            return
        waiting.body = waiting.body + body if waiting.body else body
        if len(waiting.body) > MAX_BODY:
            self._hand_over(waiting)

    def on_message_complete(self) -> None:
        self._outside, self._unread, self._head_due = 0, False, None
        found = self.cycle
        if not isinstance(found, DirectRequest):
            super().on_message_complete()
            return
        assert self._direct
        self._direct_left -= 1
        path, query = split_url(self.url)
        scope: dict[str, Any] = {
            "method": self.parser.get_method().decode("ascii"), "path": self.root_path + path, "query_string": query,
            "headers": self.headers, "client": self.client,
        }  # fmt: skip
        found.more_body, self._current, self._running = False, found, found
        found.start(self._direct.respond(scope, found.body, found), partial(self._on_response, found))

    def _on_response(self, request: DirectRequest, response: HttpResponse | None) -> None:
        """Head and body in one write."""
        request.response_complete = True
        if response is None or self.transport.is_closing():
            return
        sent, closes = self._limits.writer.write(response, self.server_state.default_headers, request.keep_alive)
        self.transport.write(sent)
        if closes:
            self.transport.close()
        self.on_response_complete()

    def _hand_over(self, waiting: DirectRequest) -> None:
        """Give a request to the ASGI application, which reads the rest of its body."""
        self.cycle = None
        self._start_asgi()
        self.cycle.keep_alive &= waiting.keep_alive
        if waiting.body:
            super().on_body(waiting.body)

    def on_response_complete(self) -> None:
        if self._unread:  # what is left of the request is thrown away, for so long
            self._head_due = self.loop.time() + self._limits.head_seconds
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.cycle.response_complete:
            self._limits.idle[self], self._idle_since = None, self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for a request that cannot be parsed."""
        self._refuse(*(self._fault or (400, "invalid HTTP")))

    def drop(self, reason: str) -> None:
        """Close the connection without an answer."""
        self._limits.dropped[reason] += 1
        self._limits.forget(self)
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if its head is overdue, or if its client left or stopped reading."""
        if self.flow.read_paused and self._has_left():
            self.drop("left")
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or not self._unsent:
            self._unsent_since = now
        self._unsent = unsent
        if unsent and now - self._unsent_since > STALLED_SECONDS:
            self.drop("not_reading")
        elif isinstance(self.cycle, DirectRequest) and self.cycle.more_body:
            self._hand_over(self.cycle)  # its body is slow: the application limits its time
        elif self._head_due is None:
            if self in self._limits.idle and now - self._idle_since > self.timeout_keep_alive:
                self.transport.close()
        elif now > self._head_due and not self.transport.is_closing():
            if self._outside:
                self._limits.dropped["slow_head"] += 1
                self._refuse(408, f"the request's head took longer than {self._limits.head_seconds:g} s (serve.head_seconds)")
            else:
                self.drop("silent")

    def _has_left(self) -> bool:
        """Whether the client closed its side, which a transport that does not read at present does not notice.

        Not seen where the client had sent more than the system's buffers hold: its end comes behind that.
        """
        found = select.poll()
        found.register(self.transport.get_extra_info("socket").fileno(), LEFT)
        return bool(found.poll(0))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        self._running = task = self.loop.create_task(cycle.run_asgi(partial(_answer, app, cycle)))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _fail(self, status: int, line: str) -> None:
        """End the parsing: uvicorn then calls `send_400_response`."""
        self._fault = status, line
        raise HeadError(line)

    def _too_large(self) -> str:
        return f"the request's head is larger than {self._limits.max_head // 1024} KiB (serve.max_head_kb)"

    def _refuse(self, status: int, line: str) -> None:
        """Answer in the place of the application, unless it is answering, and close."""
        if not self.cycle or self.cycle.response_complete:
            body = b'{"error":"%s"}' % line.encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + HEADERS + head + body)
        self.transport.close()


async def _answer(app: Any, cycle: Any, scope: Any, receive: Any, send: Any) -> None:
    """Run `app` for one request. It ends in silence where it was cancelled because its client left."""
    try:
        await app(scope, receive, send)
    except asyncio.CancelledError:
        if not cycle.disconnected:
            raise


def configure(app: Any, policy: Serve, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration of a worker. Raises the limit of open files."""
    with suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(hard, FILES), hard))
    common = {
        "ws": "none", "lifespan": "on", "interface": "asgi3", "access_log": False, "server_header": False,
        "proxy_headers": False, "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    }  # fmt: skip
    direct = app if isinstance(app, App) else None
    return uvicorn.Config(app, http=partial(LimitedProtocol, ConnectionLimits(policy), direct), **{**common, **options})  # pyright: ignore[reportArgumentType]


def split_url(url: bytes) -> tuple[str, bytes]:
    """Path, with its escapes resolved, and query. Raises httptools.HttpParserInvalidURLError."""
    return _split_short(url) if len(url) <= SHORT_URL else _split(url)


def _split(url: bytes) -> tuple[str, bytes]:
    found = httptools.parse_url(url)
    return unquote(found.path.decode("ascii")), found.query or b""


_split_short = lru_cache(1024)(_split)


def _file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
