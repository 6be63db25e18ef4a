"""The HTTP service, as an ASGI application: an address is found by one look into a dict, and rows are answered without frames.

Addresses (the problem may be left out of those that end in /NAME where serve.default, or a single problem, says which):

    POST /v1/predict/NAME                     plain JSON: a row, or a list of rows
    POST /invocations, /v1/models/NAME[/versions/V]/invocations    MLflow's scoring protocol
    GET  /v2[/health/live|ready], /v2/models/NAME[/versions/V][/ready]; POST .../infer    Open Inference Protocol V2
    POST /v1/recommend/NAME, /v1/events/NAME, /v1/labels/NAME
    GET  /health, /ready, /metrics, /openapi.json, /docs
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from evergreen.serving import openapi, protocols
from evergreen.serving.access_control import SECURITY, too_deep
from evergreen.serving.loaded_model import Lists, Rows
from evergreen.serving.metrics import TYPE, gauge
from evergreen.serving.prediction_service import Answering, UnavailableError, UnknownError
from evergreen.serving.protocols import MalformedError
from evergreen.tasks.core.errors import DataError, EvergreenError, ParamsError, RequestError

if TYPE_CHECKING:
    from evergreen.serving.access_control import Guard, Refusal
    from evergreen.serving.deployment_watcher import Watch
    from evergreen.serving.keys import Scope

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON = (b"content-type", b"application/json")
STATIC = tuple((name.encode(), value.encode()) for name, value in SECURITY)
HTML = tuple(
    (
        name,
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        if name == b"content-security-policy"
        else value,
    )
    for name, value in STATIC
)
NUMBERED = re.compile(r"^(/v[12]/models/[^/]+)/versions/(\d{1,9})(/[a-z]+)?$")
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Call:
    """A request, its body not yet read."""

    __slots__ = ("_app", "_receive", "problem", "scope", "version")

    def __init__(self, app: "App", scope: Mapping[str, Any], receive: Receive, problem: str, version: int | None) -> None:
        self._app, self.scope, self._receive, self.problem, self.version = app, scope, receive, problem, version

    def header(self, name: bytes) -> bytes | None:
        """`name` in small letters."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    def wants(self, name: str) -> bool:
        """Whether the address says so, as in ?explain=true."""
        query = self.scope["query_string"]
        return bool(query) and parse_qs(query.decode("latin-1")).get(name, [""])[-1].lower() in ("1", "true", "yes")

    async def body(self) -> bytes:
        """Raises TooLargeError beyond serve.max_body_kb, GoneError where the client went away."""
        message = await self._receive()
        part = message.get("body", b"")
        if not message.get("more_body") and message["type"] == "http.request":
            if len(part) > self._app.most:
                raise TooLargeError
            return part
        parts, size = [part], len(part)
        while message["type"] == "http.request" and message.get("more_body"):
            if size > self._app.most:
                raise TooLargeError
            message = await self._receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        if message["type"] != "http.request":
            raise GoneError
        if size > self._app.most:
            raise TooLargeError
        return b"".join(parts)

    async def json(self) -> Any:
        body = await self.body()
        if too_deep(body):
            raise MalformedError("the body's lists and objects lie too deep in each other")
        return protocols.parse(body)


class TooLargeError(Exception):
    """Status 413."""


class GoneError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON, *STATIC)


Handle = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    scope: "Scope | None"
    """What a key must be for; None: any."""
    handle: Handle
    problem: str = ""
    open: bool = False
    """Whether it asks for no key at all."""


class Headers:
    """Of a request, by name in small letters, as the guard asks for them."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def get(self, name: str, /) -> str | None:
        wanted = name.encode()
        for key, value in self._pairs:
            if key == wanted:
                return value.decode("latin-1")
        return None


class App:
    """Answers over HTTP. `guard`: who may come in; None: whoever reaches it. `lag`: bytes written and not yet in the ledger.

    `begin` and `end` run when the server starts and ends (the lifespan protocol).
    """

    def __init__(
        self,
        answering: Answering,
        watch: "Watch[Any]",
        guard: "Guard | None" = None,
        lag: Callable[[], float] = lambda: 0.0,
        lost: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._answering, self._watch, self._guard, self._lag, self._lost = answering, watch, guard, lag, lost
        self._params, self._policy, self._metrics = answering.params, answering.params.serve, answering.metrics
        self.most = self._policy.max_body_kb * 1024
        self._underway: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._ending = False
        self._sweeper: asyncio.Task[None] | None = None
        self._routes = self._made_routes()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    # --- one request --------------------------------------------------------------------------------------------------------

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None
        self._underway[task] = begun
        route, call, reply = None, None, None
        try:
            found = self._found(scope, receive)
            if isinstance(found, Reply):
                reply = found
            else:
                route, call = found
                reply = self._refused(route, scope) or await route.handle(call)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            reply = _error(503, f"not answered within {self._policy.max_seconds:g} s; try again", (b"retry-after", b"1"))
        except GoneError:
            reply = None
        except Exception as error:  # noqa: BLE001 - a server answers
            reply = self._excuse(error)
        finally:
            self._underway.pop(task, None)
            self._late.discard(task)
        if reply is None:
            return
        self._metrics.request(
            route.name if route else "none", route.problem if route else "", reply.status, time.perf_counter() - begun
        )
        headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def _found(self, scope: Mapping[str, Any], receive: Receive) -> "tuple[Route, Call] | Reply":
        path, version = scope["path"], None
        methods = self._routes.get(path)
        if methods is None and (numbered := NUMBERED.match(path)):
            methods = self._routes.get(f"{numbered[1]}{numbered[3] or ''}")
            version = int(numbered[2])
        if methods is None:
            return self._nowhere(path)
        method = scope["method"]
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(methods)
            return _error(405, f"{method[:16]}: this address takes {allowed}", (b"allow", allowed.encode()))
        return route, Call(self, scope, receive, route.problem, version)

    def _nowhere(self, path: str) -> Reply:
        """Status 404, which tells of the problems to those who named another."""
        named = re.match(r"^/v[12]/(?:models|predict|recommend|events|labels)/([^/]{1,64})", path)
        if named and named[1] not in self._params.problems:
            return _error(404, f"{named[1]}: no such problem")
        return _error(404, "no such address; GET /docs tells of those there are")

    def _refused(self, route: Route, scope: Mapping[str, Any]) -> Reply | None:
        if self._guard is None or route.open:
            return None
        client = scope.get("client")
        refusal = self._guard.admit(route.scope, Headers(scope["headers"]), client[0] if client else "", scope["path"])
        return None if refusal is None else _as_reply(refusal)

    def _excuse(self, error: Exception) -> Reply:
        """What to answer to an error. What is not the request's fault is told to the log alone."""
        if isinstance(error, RequestError):
            told = {"error": str(error), "field": error.field, "value": error.value, "rule": error.rule}
            return _json(told if error.row is None else {**told, "row": error.row}, 422)
        if isinstance(error, MalformedError):
            return _error(400, str(error))
        if isinstance(error, TooLargeError):
            return _error(
                413, f"the body is larger than {self._policy.max_body_kb} KiB (serve.max_body_kb)", (b"connection", b"close")
            )
        if isinstance(error, UnknownError):
            return _error(404, str(error))
        if isinstance(error, DataError | ParamsError):
            return _error(422, str(error))
        if isinstance(error, UnavailableError):
            if error.__cause__ is not None:
                log.error("%s", error, exc_info=error.__cause__)
            return _error(503, str(error), (b"retry-after", b"1"))
        if isinstance(error, EvergreenError):
            log.error("%s", error)
            return _error(503, "cannot be answered now; the server's log says why", (b"retry-after", b"1"))
        log.error("a request failed", exc_info=error)
        return _error(500, "the server failed; its log says why")

    # --- addresses ----------------------------------------------------------------------------------------------------------

    def _made_routes(self) -> dict[str, dict[str, Route]]:
        found: dict[str, dict[str, Route]] = {}

        def add(
            method: str, path: str, name: str, scope: "Scope | None", handle: Handle, problem: str = "", open: bool = False
        ) -> None:
            found.setdefault(path, {})[method] = Route(name, scope, handle, problem, open)

        kinds = self._params.problems
        rows = self._default([name for name in kinds if kinds[name] != "recommendation"])
        lists = self._default([name for name in kinds if kinds[name] == "recommendation"])
        any_ = self._policy.default or (next(iter(kinds)) if len(kinds) == 1 else None)
        for problem in kinds:
            for path in (f"/v1/predict/{problem}", *(["/v1/predict"] if problem == rows else [])):
                add("POST", path, "predict", "predict", self._predict, problem)
            model = f"/v1/models/{problem}"
            for path in (f"{model}/invocations", *(["/invocations"] if problem == rows else [])):
                add("POST", path, "invocations", "predict", self._invocations, problem)
            add("GET", f"/v2/models/{problem}", "v2", "predict", self._v2_metadata, problem)
            add("GET", f"/v2/models/{problem}/ready", "v2", "predict", self._v2_ready, problem)
            add("POST", f"/v2/models/{problem}/infer", "infer", "predict", self._infer, problem)
            for path in (f"/v1/labels/{problem}", *(["/v1/labels"] if problem == any_ else [])):
                add("POST", path, "labels", "labels", self._labels, problem)
            if kinds[problem] == "recommendation":
                for path in (f"/v1/recommend/{problem}", *(["/v1/recommend"] if problem == lists else [])):
                    add("POST", path, "recommend", "predict", self._recommend, problem)
                for path in (f"/v1/events/{problem}", *(["/v1/events"] if problem == lists else [])):
                    add("POST", path, "events", "events", self._events, problem)
        if "/v1/labels" not in found:
            add("POST", "/v1/labels", "labels", "labels", self._labels)
        for path in ("/health", "/v2/health/live", "/ping"):
            add("GET", path, "health", None, self._health, open=True)
        for path in ("/ready", "/v2/health/ready"):
            add("GET", path, "ready", None, self._ready, open=True)
        add("GET", "/v2", "v2", "predict", self._v2)
        add("GET", "/metrics", "metrics", "admin", self._tell_metrics)
        add("GET", "/openapi.json", "openapi", None, self._openapi)
        add("GET", "/docs", "docs", None, self._docs)
        return found

    def _default(self, names: Sequence[str]) -> str | None:
        return self._policy.default if self._policy.default in names else names[0] if len(names) == 1 else None

    # --- rows ---------------------------------------------------------------------------------------------------------------

    async def _predict(self, call: Call) -> Reply:
        body = await call.body()
        if too_deep(body):
            raise MalformedError("the body's lists and objects lie too deep in each other")
        given = protocols.parse(body)
        explain = call.wants("explain")
        if type(given) is dict and not explain and "rows" not in given and "explain" not in given:
            written = orjson.Fragment(body) if b"\n" not in body else None
            answer = await self._answering.row(call.problem, given, written)
            return Reply(200, orjson.dumps(answer.plain(), option=OPTIONS))
        single = type(given) is dict and "rows" not in given
        if type(given) is dict:
            given = dict(given)
            explain = given.pop("explain", explain) is True or explain
        rows = [given] if single else protocols.plain_rows(given)
        answers = [each.plain() for each in await self._answering.rows(call.problem, rows, None, explain)]
        return _json(answers[0] if single else {"predictions": answers})

    async def _invocations(self, call: Call) -> Reply:
        given = await call.json()
        features = self._features(call)
        options = given.get("params") if isinstance(given, dict) else None
        explain = call.wants("explain") or (isinstance(options, dict) and options.get("explain") is True)
        rows = protocols.mlflow_rows(given, features)
        answers = await self._answering.rows(call.problem, rows, call.version, explain)
        return _json(protocols.mlflow_answer(answers))

    async def _infer(self, call: Call) -> Reply:
        features = self._features(call)
        if isinstance(self._answering.lineup(call.problem).champion, Lists):
            raise UnknownError(f"{call.problem}: its answers are lists and no tensors; POST /v1/recommend/{call.problem}")
        if call.header(b"content-encoding") not in (None, b"identity"):
            return _error(415, "content-encoding: send the body as it is")
        length = call.header(b"inference-header-content-length")
        if length is not None and not (length.isdigit() and len(length) < 10):
            raise MalformedError("Inference-Header-Content-Length must be a number")
        body = await call.body()
        if too_deep(body if length is None else body[: int(length)]):
            raise MalformedError("the body's lists and objects lie too deep in each other")
        given, rest = protocols.v2_request(body, None if length is None else int(length))
        answers = await self._answering.rows(call.problem, protocols.v2_rows(given, rest, features), call.version)
        made, head = protocols.v2_answer(call.problem, given, answers)
        if head is None:
            return Reply(200, made)
        told = ((b"content-type", b"application/octet-stream"), (b"inference-header-content-length", str(head).encode()))
        return Reply(200, made, (*told, *STATIC))

    def _features(self, call: Call) -> list[str]:
        served = self._answering.lineup(call.problem).champion
        if call.version is not None:
            served, _ = self._answering.version(call.problem, call.version)
        return list(served.features) if isinstance(served, Rows) else [served.user] if isinstance(served, Lists) else []

    async def _v2(self, call: Call) -> Reply:
        from importlib.metadata import version

        return _json({"name": "evergreen", "version": version("evergreen"), "extensions": ["binary_tensor_data"]})

    async def _v2_metadata(self, call: Call) -> Reply:
        served = self._answering.lineup(call.problem).champion
        if call.version is not None:
            served, _ = self._answering.version(call.problem, call.version)
        versions = [each.version for each, _ in self._answering.loaded(call.problem)]
        if not isinstance(served, Rows):
            raise UnknownError(f"{call.problem}: its answers are lists and no tensors; POST /v1/recommend/{call.problem}")
        types = {name: each.type for name, each in served.features.items()}
        return _json(protocols.v2_metadata(call.problem, versions, types, served.said))

    async def _v2_ready(self, call: Call) -> Reply:
        if call.version is not None:
            self._answering.version(call.problem, call.version)
        else:
            self._answering.lineup(call.problem)
        return _json({"name": call.problem, "ready": True})

    # --- lists, purchases, truths -------------------------------------------------------------------------------------------

    async def _recommend(self, call: Call) -> Reply:
        from evergreen.tasks.problems.recommender.list_builder import Request

        given = await call.json()
        if not isinstance(given, dict):
            raise MalformedError("needs an object, such as {users: [7], k: 10}")
        lists = await self._answering.recommend(call.problem, Request.read(given))
        return _json({"problem": call.problem, "lists": lists})

    async def _events(self, call: Call) -> Reply:
        given = await call.json()
        events = given.get("events", [given]) if isinstance(given, dict) else given
        if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
            raise MalformedError("needs an event, a list of events, or {events: [...]}")
        self._require_few("events", events)
        seen = await self._answering.observe(call.problem, events)
        refused = [{"event": dict(each.event), "reason": each.reason} for each in seen.refused]
        nothing = refused and not seen.counted and not seen.known
        return _json({"counted": seen.counted, "known": seen.known, "refused": refused}, 422 if nothing else 200)

    async def _labels(self, call: Call) -> Reply:
        given = await call.json()
        problem = call.problem
        if isinstance(given, dict) and isinstance(given.get("problem"), str):
            problem = given["problem"]
            given = {name: value for name, value in given.items() if name != "problem"}
        if not problem:
            raise RequestError("problem", "which of them? name it in the address (/v1/labels/NAME) or as problem")
        if isinstance(given, dict):
            given = given["labels"] if set(given) == {"labels"} else [given]
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise MalformedError("needs a label, a list of labels, or {problem, labels: [...]}")
        self._require_few("labels", given)
        found = await self._answering.label(problem, [_label(each, place) for place, each in enumerate(given)])
        nothing = found.rejected and len(found.rejected) == len(given)
        return _json(asdict(found), 422 if nothing else 200)

    def _require_few(self, what: str, given: Sequence[Any]) -> None:
        if len(given) > self._policy.max_rows:
            raise RequestError(what, f"at most {self._policy.max_rows} at once (serve.max_rows)", len(given))

    # --- the server itself --------------------------------------------------------------------------------------------------

    async def _health(self, call: Call) -> Reply:
        return _json({"status": "alive"})

    async def _ready(self, call: Call) -> Reply:
        """503 while nothing answers at all, or the server is ending."""
        versions = {
            problem: {variant: served.version for served, variant in self._answering.loaded(problem)}
            for problem in self._params.problems
        }
        ready = any(versions.values()) and not self._ending
        why = "what should answer cannot; evergreen status and the server's log say why"  # no path for whoever asks
        troubles = {"troubles": dict.fromkeys(self._watch.troubles, why)} if self._watch.troubles else {}
        return _json({"ready": ready, "problems": versions, **troubles}, 200 if ready else 503)

    async def _tell_metrics(self, call: Call) -> Reply:
        everyone = [(problem, each) for problem in self._params.problems for each in self._answering.loaded(problem)]
        shares = []
        for problem in self._params.problems:
            lineup = self._watch.lineup(problem)
            shares.append(((problem,), lineup.share if lineup and lineup.candidate and not lineup.shadow else 0.0))
        labels = ("problem", "version", "variant")
        gauges = [
            gauge(
                "evergreen_version", "Versions that answer.", labels, [((p, str(s.version), v), 1.0) for p, (s, v) in everyone]
            ),
            gauge("evergreen_rollout_share", "Share of the traffic that a candidate answers.", ["problem"], shares),
            gauge("evergreen_ledger_lag_bytes", "Predictions written and not yet in the ledger.", [], [((), self._lag())]),
            gauge("evergreen_predictions_lost", "Predictions answered and never written.", [], [((), self._lost())]),
            gauge("evergreen_underway", "Requests in this worker.", [], [((), float(len(self._underway)))]),
        ]
        return Reply(200, self._metrics.text(gauges), ((b"content-type", TYPE.encode()), *STATIC))

    async def _openapi(self, call: Call) -> Reply:
        return _json(self._described())

    async def _docs(self, call: Call) -> Reply:
        page = openapi.page(self._described()).encode()
        return Reply(200, page, ((b"content-type", b"text/html; charset=utf-8"), *HTML))

    def _described(self) -> dict[str, Any]:
        champions = {}
        for problem in self._params.problems:
            lineup = self._watch.lineup(problem)
            champions[problem] = lineup.champion if lineup else None
        paths = {path: next(iter(methods.values())).problem for path, methods in self._routes.items()}
        return openapi.openapi(self._params, champions, paths)

    # --- from start to end --------------------------------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._answering.begin()
                self._sweeper = asyncio.create_task(self._sweep())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.end()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def end(self) -> None:
        """All that was answered is written when this returns."""
        self._ending = True
        if self._sweeper:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await self._answering.end()

    async def _sweep(self) -> None:
        """Give up what takes too long."""
        while True:
            await asyncio.sleep(min(1.0, self._policy.max_seconds / 4))
            oldest = time.perf_counter() - self._policy.max_seconds
            for task, begun in list(self._underway.items()):
                if begun < oldest and task not in self._late:
                    self._late.add(task)
                    task.cancel()


def _label(given: Mapping[str, Any], place: int) -> Any:
    from evergreen.monitoring.ledger.label_matching import Label

    fields = {"value", "id", "entity", "at", "known_at"}
    for name in given:
        if name not in fields:
            raise _at(place, RequestError(name, f"a label has {', '.join(sorted(fields))}", given[name]))
    if given.get("value") is None:
        raise _at(place, RequestError("value", "is missing: what turned out?"))
    id_, entity = given.get("id"), given.get("entity")
    if id_ is None and entity is None:
        raise _at(place, RequestError("id", "is missing: name the prediction by its id, or by entity and at"))
    at, known = _moment(given, "at", place), _moment(given, "known_at", place)
    if isinstance(known, date) and not isinstance(known, datetime):
        known = datetime.combine(known, datetime.min.time())
    return Label(given["value"], None if id_ is None else str(id_), None if entity is None else _key(entity, place), at, known)


def _key(value: Any, place: int) -> str:
    from evergreen.serving.loaded_model import key_of

    if not isinstance(value, str | int | float):
        raise _at(place, RequestError("entity", "must be a text or a number", value))
    return key_of(value)


def _moment(given: Mapping[str, Any], name: str, place: int) -> datetime | date | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        return date.fromisoformat(value) if len(value) == len("YYYY-MM-DD") else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _at(place, RequestError(name, "must be a day or a time, such as 2024-03-31T17:00:00Z", value)) from None


def _at(place: int, error: RequestError) -> RequestError:
    error.row = place
    return error


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value, default=str, option=OPTIONS))


def _error(status: int, line: str, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, orjson.dumps({"error": line}), (JSON, *STATIC, *headers))


def _as_reply(refusal: "Refusal") -> Reply:
    more = tuple((name.encode(), value.encode()) for name, value in refusal.headers)
    return Reply(refusal.status, refusal.body, (JSON, *STATIC, *more))
