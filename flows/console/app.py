"""The console as an ASGI application: routes, sign-in, form tokens, errors and headers."""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from evergreen.flows.console import (
    actions,
    compare,
    files,
    find,
    history,
    overview,
    problem_page,
    rejected,
    sign_in,
    templates,
    trial,
)
from evergreen.flows.console.sign_in import SESSION_SECONDS, SignIn, Visitor
from evergreen.flows.console.visits import NotFoundError, View, Visit
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger(__name__)

MAX_FORM_BYTES = 256 * 1024
STATIC = Path(__file__).parent / "static"
COOKIE = "evergreen_console"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of each page. Styles of single elements are allowed: the width of a bar is one."""


class Console:
    """The application of one project. `access`: who may enter."""

    def __init__(self, layout: Layout, access: SignIn) -> None:
        self._layout, self._access = layout, access
        self._templates: Environment = templates.environment()
        self._params = load(layout.params)
        """As they were when they could be read last."""
        session = Middleware(
            SessionMiddleware,
            secret_key=sign_in.session_secret(layout.var),
            session_cookie=COOKIE,
            max_age=SESSION_SECONDS,
            same_site="strict",
        )
        self.app = Starlette(routes=self._routes(), middleware=[session])

    def _routes(self) -> list[Route | Mount]:
        shown: dict[str, View] = {
            "/": overview.show,
            "/data": rejected.show,
            "/reports/{path:path}": files.show,
            "/problems/{problem}": problem_page.show,
            "/problems/{problem}/evaluation": problem_page.show_evaluation,
            "/problems/{problem}/history": history.show,
            "/problems/{problem}/try": trial.show,
            "/problems/{problem}/find": find.show,
            "/problems/{problem}/predictions/{id:path}": find.show_one,
            "/problems/{problem}/compare": compare.show,
        }
        done: dict[str, View] = {
            "/problems/{problem}/try": trial.predict,
            "/problems/{problem}/suggestion": actions.answer_suggestion,
            "/problems/{problem}/rollout": actions.steer_rollout,
            "/problems/{problem}/rollback": actions.roll_back,
            "/problems/{problem}/retrain": actions.retrain,
        }
        return [
            *(Route(path, self._endpoint(view), methods=["GET"]) for path, view in shown.items()),
            *(
                Route(path, self._endpoint(view, acts=view is not trial.predict), methods=["POST"])
                for path, view in done.items()
            ),
            Route("/sign-in", self._sign_in, methods=["GET", "POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
            Route("/health", _health),
            Mount("/static", _Static(directory=STATIC)),
            Route("/{rest:path}", self._endpoint(_nothing_here), methods=["GET", "POST"]),
        ]

    def _endpoint(self, view: View, acts: bool = False) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if (denied := self._denied(request)) is not None:
                return denied
            visitor = await run_in_threadpool(self._access.visitor, request.session)
            if visitor is None:
                return self._ask_to_sign_in(request)
            form = await _form(request)
            if isinstance(form, Response):
                return _with_headers(form)
            if request.method == "POST" and not sign_in.has_token(request.session, form.pop("token", "")):
                form, view_ = {}, _refuse("This form has expired. Go back, reload the page and send it again.", 403)
            elif acts and not visitor.may_act:
                view_ = _refuse(f"The key {visitor.name} has the scope read, which allows no action; sign in with admin.", 403)
            else:
                view_ = view
            return _with_headers(await run_in_threadpool(self._answer, view_, request, visitor, form))

        return answer

    def _answer(self, view: View, request: Request, visitor: Visitor, form: dict[str, str]) -> Response:
        broken = self._read_params()
        visit = Visit(
            layout=self._layout,
            params=self._params,
            visitor=visitor,
            path={name: str(value) for name, value in request.path_params.items()},
            query=dict(request.query_params),
            form=form,
            address=request.url.path,
            partial="hx-request" in request.headers,
            token=sign_in.form_token(request.session),
            templates=self._templates,
        )
        if broken:
            return visit.render("message.html", 422, title="params.yaml cannot be read", line=broken)
        try:
            return view(visit)
        except NotFoundError as error:
            return visit.render("message.html", 404, title="Not here", line=str(error))
        except EvergreenError as error:
            return visit.render("message.html", 422, title="This did not work", line=str(error))
        except Exception as error:  # one page may not end the console
            log.exception("%s", request.url.path)
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. The log of the console has the rest."
            return visit.render("message.html", 500, title="A fault of the console", line=line)

    def _read_params(self) -> str | None:
        """Read params.yaml anew, or return what is wrong with it: somebody may be at work on it."""
        try:
            self._params = load(self._layout.params)
        except EvergreenError as error:
            return str(error)
        return None

    def _denied(self, request: Request) -> Response | None:
        denial = self._access.check(request.headers, request.client.host if request.client else "", request.url.path)
        return (
            None
            if denial is None
            else PlainTextResponse(orjson.loads(denial.body)["error"], denial.status, dict(denial.headers))
        )

    def _ask_to_sign_in(self, request: Request) -> Response:
        wanted = request.url.path if request.method == "GET" else "/"
        if "hx-request" in request.headers:  # a part of a page cannot show the form
            return _with_headers(Response(status_code=401, headers={"hx-redirect": "/sign-in"}))
        return _with_headers(RedirectResponse(f"/sign-in?to={quote(wanted)}", 303))

    async def _sign_in(self, request: Request) -> Response:
        if (denied := self._denied(request)) is not None:
            return denied
        if not self._access.required:
            return RedirectResponse("/", 303)
        form, line = await _form(request), None
        if isinstance(form, Response):
            return _with_headers(form)
        to = form.get("to") or request.query_params.get("to") or "/"
        to = to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/"
        if request.method == "POST":
            if not sign_in.has_token(request.session, form.get("token", "")):
                line = "This form has expired. Try again."
            else:
                line = await run_in_threadpool(self._access.sign_in, request.session, form.get("key", "").strip())
                if line is None:
                    return _with_headers(RedirectResponse(to, 303))
        token = sign_in.form_token(request.session)
        page = self._templates.get_template("console/sign_in.html")
        name = self._params.project.name
        return _with_headers(HTMLResponse(page.render(project=name, line=line, to=to, token=token), 401 if line else 200))

    async def _sign_out(self, request: Request) -> Response:
        form = await _form(request)
        if isinstance(form, dict) and sign_in.has_token(request.session, form.get("token", "")):
            request.session.clear()
        return _with_headers(RedirectResponse("/sign-in", 303))


def build(layout: Layout, host: str, user: str) -> Starlette:
    """The console of a project, bound to `host`. `user`: stands in the history where no key is needed.

    Raises ProjectError if other machines can reach `host` and there is no key.
    """
    from evergreen.flows import settings

    return Console(layout, SignIn(load(layout.params).serve, host, settings.keys(layout), user)).app


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: MutableMapping[str, Any]) -> Response:
        response = await super().get_response(path, scope)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["cache-control"] = "no-cache"
        return response


async def _health(request: Request) -> Response:
    return PlainTextResponse("ok")


async def _form(request: Request) -> dict[str, str] | Response:
    """The fields of a form that is sent as text; of several of one name, the last."""
    if request.method != "POST":
        return {}
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            return PlainTextResponse(f"The form is larger than {MAX_FORM_BYTES // 1024} KB.", 413)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=5_000))
    except ValueError as error:
        return PlainTextResponse(f"The form cannot be read: {error}.", 400)


def _with_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _nothing_here(visit: Visit) -> Response:
    raise NotFoundError(f"{visit.address[:200]}: no page has this address; go back to the overview")


def _refuse(line: str, status: int) -> View:
    return lambda visit: visit.render("message.html", status, title="Not done", line=line)
