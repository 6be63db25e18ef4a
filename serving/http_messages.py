"""Requests, whose body is read later, and responses of the endpoints."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from evergreen.serving import protocols
from evergreen.serving.access_control import SECURITY_HEADERS
from evergreen.serving.compression import decompress
from evergreen.serving.json_depth import MAX_DEPTH, too_deep
from evergreen.serving.protocols import BodiesTooLargeError, BodyTooLargeError, MalformedRequestError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON_TYPE = (b"content-type", b"application/json")
SECURITY = tuple((name.encode(), value.encode()) for name, value in SECURITY_HEADERS)
JSON_HEADERS = (JSON_TYPE, *SECURITY)
JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


BODIES = 16
"""So many bodies of the largest size may be in memory at once, in pieces or whole."""


class BodyBudget:
    """Bytes of the bodies that open requests hold. Bodies that arrive in one piece are small and do not count."""

    def __init__(self, max_body: int) -> None:
        self.max_body, self._left = max_body, BODIES * max_body

    def take(self, size: int) -> None:
        """Raises BodiesTooLargeError if too much is held."""
        if size > self._left:
            raise BodiesTooLargeError
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class ClientDisconnectedError(Exception):
    """The client has disconnected."""


class HttpRequest:
    """`problem` and `version` are those of the path; the body is read on demand."""

    __slots__ = ("_budget", "_max_bytes", "_receive", "held", "problem", "scope", "version")

    def __init__(
        self, scope: Mapping[str, Any], receive: Receive | bytes, problem: str, version: int | None, budget: BodyBudget
    ) -> None:
        """`receive`: the whole body, or ASGI's way to read it."""
        self.scope, self._receive, self.problem, self.version, self._budget = scope, receive, problem, version, budget
        self._max_bytes, self.held = budget.max_body, 0

    def header(self, name: bytes) -> bytes | None:
        """`name` in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return None

    def flag(self, name: str) -> bool:
        """Whether the query string sets it, such as ?explain=true."""
        query = self.scope["query_string"]
        return bool(query) and parse_qs(query.decode("latin-1")).get(name, [""])[-1].lower() in ("1", "true", "yes")

    async def body(self) -> bytes:
        """The body, decompressed. Raises BodyTooLargeError beyond serve.max_body_kb, compressed or not; UnsupportedTypeError
        and MalformedRequestError for a compressed body that cannot be read; ClientDisconnectedError if the client disconnects.
        """
        body = self._receive if isinstance(self._receive, bytes) else await self._read(self._receive)
        if len(body) > self._max_bytes:
            raise BodyTooLargeError
        encoding = self.header(b"content-encoding")
        return body if encoding is None else decompress(body, encoding, self._max_bytes)

    async def _read(self, receive: Receive) -> bytes:
        message = await receive()
        part = message.get("body", b"")
        if not message.get("more_body") and message["type"] == "http.request":
            return part
        parts, size = [part], len(part)
        self._hold(size)
        while message["type"] == "http.request" and message.get("more_body"):
            if size > self._max_bytes:
                raise BodyTooLargeError
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._hold(len(parts[-1]))
        if message["type"] != "http.request":
            raise ClientDisconnectedError
        return b"".join(parts)

    def _hold(self, size: int) -> None:
        self._budget.take(size)
        self.held += size

    def release(self) -> None:
        """Count the body no more: the request has ended."""
        if self.held:
            self._budget.give_back(self.held)
            self.held = 0

    async def json(self) -> Any:
        """The parsed body. Raises MalformedRequestError for invalid or too deeply nested JSON."""
        body = await self.body()
        require_shallow(body)
        return protocols.parse(body)


def require_shallow(body: bytes) -> None:
    """Raises MalformedRequestError for JSON nested deeper than MAX_DEPTH."""
    if too_deep(body):
        raise MalformedRequestError(f"the JSON is nested too deep; the limit is {MAX_DEPTH} levels")


class HttpResponse(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = JSON_HEADERS


class HeaderLookup:
    """Headers by lower-case name, as AccessControl reads them."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def get(self, name: str, /) -> str | None:
        wanted = name.encode()
        for key, value in self._pairs:
            if key == wanted:
                return value.decode("latin-1")
        return None


def json_response(value: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, orjson.dumps(value, default=str, option=JSON_OPTIONS))


def error_response(status: int, line: str, *headers: tuple[bytes, bytes]) -> HttpResponse:
    """{"error": line}"""
    return HttpResponse(status, orjson.dumps({"error": line}), (JSON_TYPE, *SECURITY, *headers))
