"""The HTTP service as an ASGI application: routing, access control, errors, timeouts, start and stop."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from evergreen.serving import routes
from evergreen.serving.fair_queue import CALLER
from evergreen.serving.http_messages import (
    JSON_TYPE,
    SECURITY,
    BodyBudget,
    ClientDisconnectedError,
    HeaderLookup,
    HttpRequest,
    HttpResponse,
    Receive,
    Send,
    error_response,
    json_response,
)
from evergreen.serving.label_endpoints import LabelEndpoints
from evergreen.serving.prediction_endpoints import PredictionEndpoints
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.protocols import BodiesTooLargeError, BodyTooLargeError, MalformedRequestError, UnsupportedTypeError
from evergreen.serving.recommendation_endpoints import RecommendationEndpoints
from evergreen.serving.serving_versions import NotFoundError, ServiceUnavailableError
from evergreen.serving.status_endpoints import SpoolState, StatusEndpoints
from evergreen.tasks.core.errors import DataError, EvergreenError, ParamsError, RequestError

if TYPE_CHECKING:
    from evergreen.serving.access_control import AccessControl, Denial

log = logging.getLogger(__name__)

RETRY_LATER = (b"retry-after", b"1")


class Cancellable(Protocol):
    """What runs the coroutine of a request: an asyncio.Task or a DirectRequest."""

    def cancel(self) -> Any: ...

    def uncancel(self) -> Any: ...


class App:
    """`access`: None admits everyone. `spool_state`: as it is now, for /metrics. `required`: the problems that must answer
    before the server is ready; none: any of them.

    The lifespan protocol starts and stops the service.
    """

    def __init__(
        self,
        service: PredictionService,
        access: "AccessControl | None" = None,
        spool_state: Callable[[], SpoolState] = SpoolState,
        required: Sequence[str] = (),
    ) -> None:
        self.service, self._access, self._params = service, access, service.params
        self._bodies = BodyBudget(self._params.serve.max_body_kb * 1024)
        self._open_requests: Counter[str] = Counter()
        """Caller -> requests in progress."""
        self._metrics = service.metrics
        self._in_flight: dict[Cancellable, float] = {}
        self._overdue: set[Cancellable] = set()
        self._timeouts: asyncio.Task[None] | None = None
        in_flight = self._in_flight
        self._status = StatusEndpoints(
            service, self._problems_of_paths, spool_state, lambda: len(in_flight), self._visible, required
        )
        self.routes = routes.build(
            self._params,
            PredictionEndpoints(service),
            RecommendationEndpoints(service),
            LabelEndpoints(service, self._denied_problem),
            self._status,
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        response = await self.respond(scope, receive, task)
        if response is None:
            return
        headers = [*response.headers, (b"content-length", str(len(response.body)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def respond(self, scope: Mapping[str, Any], body: "Receive | bytes", work: Cancellable) -> HttpResponse | None:
        """The response to a request, whatever it came through; None if its client left.

        `body`: all of it, or ASGI's way to read it. `work`: what runs this coroutine, cancelled at the timeout.
        """
        began = time.perf_counter()
        self._in_flight[work] = began
        route, response = None, None
        try:
            found = self._route(scope, body)
            if isinstance(found, HttpResponse):
                response = self._denied(None, scope) or found
            else:
                route, request = found
                response = self._denied(route, scope) or await self._answer(route, request)
        except asyncio.CancelledError:
            work.uncancel()
            if work in self._overdue:
                limit = self._params.serve.timeout_seconds
                response = error_response(503, f"timeout after {limit:g} s (serve.timeout_seconds); try again", RETRY_LATER)
            else:  # its client left
                response = None
        except ClientDisconnectedError:
            response = None
        except Exception as error:  # noqa: BLE001 - every error gets a response
            response = self._error(error)
        finally:
            self._in_flight.pop(work, None)
            self._overdue.discard(work)
        if response is not None:
            self._metrics.count_request(
                route.name if route else "none", route.problem if route else "", response.status, time.perf_counter() - began
            )
        return response

    async def _answer(self, route: routes.Route, request: HttpRequest) -> HttpResponse:
        """The response of the endpoint, unless its caller has too many open requests."""
        if route.public:
            return await route.endpoint(request)
        caller, limit = self._caller(request.scope), self._params.serve.max_open_requests
        if self._open_requests[caller] >= limit:
            line = f"more than {limit} open requests (serve.max_open_requests); wait for some of them"
            return error_response(429, line, RETRY_LATER)
        self._open_requests[caller] += 1
        CALLER.set(caller)
        try:
            return await route.endpoint(request)
        finally:
            request.release()
            self._open_requests[caller] -= 1
            if not self._open_requests[caller]:
                del self._open_requests[caller]

    def _caller(self, scope: Mapping[str, Any]) -> str:
        client = (scope.get("client") or ("",))[0]
        return client if self._access is None else self._access.caller(HeaderLookup(scope["headers"]), client)

    def _route(self, scope: Mapping[str, Any], body: "Receive | bytes") -> tuple[routes.Route, HttpRequest] | HttpResponse:
        path, version = scope["path"], None
        methods = self.routes.get(path)
        if methods is None and (versioned := routes.VERSIONED.match(path)):
            methods = self.routes.get(f"{versioned[1]}{versioned[3] or ''}")
            version = int(versioned[2])
        if methods is None:
            return self._not_found(path)
        method = scope["method"]
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(methods)
            return error_response(405, f"{method[:16]}: this path allows {allowed}", (b"allow", allowed.encode()))
        return route, HttpRequest(scope, body, route.problem, version, self._bodies)

    def _not_found(self, path: str) -> HttpResponse:
        named = routes.NAMED.match(path)
        if named and named[1] not in self._params.problems:
            return error_response(404, f"{named[1]}: unknown problem")
        return error_response(404, "unknown path; GET /docs lists the paths")

    def _denied(self, route: routes.Route | None, scope: Mapping[str, Any]) -> HttpResponse | None:
        """`route`: None if the server has no such path or method, which a key may not find out about other problems."""
        if self._access is None or (route is not None and route.public):
            return None
        if route is None:
            named = routes.NAMED.match(scope["path"])
            needed, problem = None, named[1] if named else ""
        else:
            needed, problem = route.scope, None if route.in_body else route.problem or None
        client = scope.get("client")
        headers = HeaderLookup(scope["headers"])
        denial = self._access.check(needed, headers, client[0] if client else "", scope["path"], problem)
        return None if denial is None else _denial_response(denial)

    def _denied_problem(self, request: HttpRequest, problem: str) -> HttpResponse | None:
        denial = self._access.check_problem(HeaderLookup(request.scope["headers"]), problem) if self._access else None
        return None if denial is None else _denial_response(denial)

    def _visible(self, request: HttpRequest) -> list[str]:
        """The problems that a request may learn of."""
        known = self._params.problems
        return [*known] if self._access is None else self._access.visible(HeaderLookup(request.scope["headers"]), known)

    def _error(self, error: Exception) -> HttpResponse:
        """The response to an error. Errors of the server itself go to the log, and their text to nobody."""
        if isinstance(error, RequestError):
            found = {"error": str(error), "field": error.field, "value": error.value, "rule": error.rule}
            return json_response(found if error.row is None else {**found, "row": error.row}, 422)
        if isinstance(error, MalformedRequestError):
            return error_response(400, str(error))
        if isinstance(error, UnsupportedTypeError):
            return error_response(415, str(error))
        if isinstance(error, BodyTooLargeError):
            limit = self._params.serve.max_body_kb
            return error_response(413, f"the body is larger than {limit} KiB (serve.max_body_kb)", (b"connection", b"close"))
        if isinstance(error, BodiesTooLargeError):
            line = "the bodies of all open requests are too large; try again"
            return error_response(503, line, RETRY_LATER, (b"connection", b"close"))
        if isinstance(error, NotFoundError):
            return error_response(404, str(error))
        if isinstance(error, DataError | ParamsError):
            return error_response(422, str(error))
        if isinstance(error, ServiceUnavailableError):
            if error.__cause__ is not None:
                log.error("%s", error, exc_info=error.__cause__)
            return error_response(503, str(error), RETRY_LATER)
        if isinstance(error, EvergreenError):
            log.error("%s", error)
            return error_response(503, "unavailable now; see the server's log", RETRY_LATER)
        log.error("a request failed", exc_info=error)
        return error_response(500, "internal error; see the server's log")

    def _problems_of_paths(self) -> dict[str, str]:
        return {path: next(iter(methods.values())).problem for path, methods in self.routes.items()}

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.service.start()
                self._timeouts = asyncio.create_task(self._cancel_overdue())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def stop(self) -> None:
        """Once this returns, all predictions are written."""
        self._status.stopping = True
        if self._timeouts:
            self._timeouts.cancel()
            with suppress(asyncio.CancelledError):
                await self._timeouts
        await self.service.stop()

    async def _cancel_overdue(self) -> None:
        """Cancel the requests that exceed serve.timeout_seconds."""
        limit = self._params.serve.timeout_seconds
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            oldest = time.perf_counter() - limit
            for work, began in list(self._in_flight.items()):
                if began < oldest and work not in self._overdue:
                    self._overdue.add(work)
                    work.cancel()


def _denial_response(denial: "Denial") -> HttpResponse:
    headers = tuple((name.encode(), value.encode()) for name, value in denial.headers)
    return HttpResponse(denial.status, denial.body, (JSON_TYPE, *SECURITY, *headers))
