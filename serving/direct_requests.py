"""Requests that are answered without an ASGI task: their coroutine runs in the callback that completes them.

The coroutine is the one that the ASGI application awaits (App.respond), so the answer is the same. Left out are the task, the
ASGI messages and the second write (docs/decisions/direct-requests.md).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from evergreen.serving.http_messages import JSON_HEADERS, HttpResponse

log = logging.getLogger(__name__)

MAX_BODY = HIGH_WATER_LIMIT
"""A larger body goes to the ASGI application, which reads it in pieces and counts them."""
PER_READ = 16
"""Requests of one connection that are answered directly per read; the rest takes turns with other connections."""
CLOSE = b"connection: close\r\n"
FAILED = HttpResponse(500, b"Internal Server Error", ((b"content-type", b"text/plain; charset=utf-8"),))


class DirectRequest:
    """One request. For uvicorn's protocol it stands in the place of a RequestResponseCycle: the attributes are that class's."""

    __slots__ = ("_awaited", "_cancelled", "_coroutine", "_done", "body", "disconnected", "keep_alive", "message_event",
                 "more_body", "response_complete")  # fmt: skip

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive, self.message_event = keep_alive, self
        self.body = b""
        self.more_body, self.response_complete, self.disconnected = True, False, False
        self._coroutine: Coroutine[Any, Any, HttpResponse | None]
        self._awaited: asyncio.Future[Any] | None = None
        self._cancelled = False

    def set(self) -> None:
        """Called by uvicorn for a `message_event`: nobody waits for the body."""

    def start(self, coroutine: Coroutine[Any, Any, HttpResponse | None], done: Callable[[HttpResponse | None], None]) -> None:
        """Run `coroutine` until it awaits something that is not there yet, and go on once it is. `done` gets its result."""
        self._coroutine, self._done = coroutine, done
        self._step()

    def cancel(self) -> None:
        """Cancel what the coroutine awaits, as asyncio.Task.cancel does."""
        self._cancelled = True
        if self._awaited is not None:
            self._awaited.cancel()

    def uncancel(self) -> None:
        """For a coroutine that goes on; a DirectRequest keeps no count."""

    def _step(self, _: "asyncio.Future[Any] | None" = None) -> None:
        coroutine = self._coroutine
        # a cancellation has no effect on what was there already
        missed = self._cancelled and (self._awaited is None or not self._awaited.cancelled())
        self._cancelled = False
        try:
            awaited = coroutine.throw(asyncio.CancelledError()) if missed else coroutine.send(None)
        except StopIteration as end:
            self._done(end.value)
        except BaseException as error:
            log.exception("a request failed")
            self._done(FAILED)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
        else:
            self._awaited = awaited
            if awaited is None:  # asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(self._step)
                return
            awaited._asyncio_future_blocking = False  # as asyncio.Task does
            awaited.add_done_callback(self._step)


class ResponseWriter:
    """Bytes of responses. Heads of JSON are made once a second: uvicorn's default headers have the date."""

    def __init__(self) -> None:
        self._defaults: list[tuple[bytes, bytes]] | None = None
        self._of_json: dict[int, bytes] = {}

    def write(self, response: HttpResponse, defaults: list[tuple[bytes, bytes]], keep_alive: bool) -> tuple[bytes, bool]:
        """Head and body as uvicorn writes them, and whether the connection closes then."""
        tail, headers = b"", response.headers
        if headers is not JSON_HEADERS:
            said = any(name == b"connection" and value == b"close" for name, value in headers)
            keep_alive, tail = keep_alive and not said, b"" if said or keep_alive else CLOSE
            head = _head(response.status, (*defaults, *headers))
        else:
            if defaults is not self._defaults:
                self._defaults = defaults
                self._of_json.clear()
            tail = b"" if keep_alive else CLOSE
            if (head := self._of_json.get(response.status)) is None:
                head = self._of_json[response.status] = _head(response.status, (*defaults, *headers))
        return b"%s%d\r\n%s\r\n%s" % (head, len(response.body), tail, response.body), not keep_alive


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"%s%scontent-length: " % (STATUS_LINE[status], b"".join(b"%s: %s\r\n" % pair for pair in headers))
