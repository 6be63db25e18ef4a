"""The routes: path and method -> endpoint, found by one dict lookup.

The problem may be left out of paths that end in /NAME if serve.default_problem, or a single problem, says which it is:

    POST /v1/predict/NAME                     plain JSON: a row, or a list of rows
    POST /invocations, /v1/models/NAME[/versions/V]/invocations    MLflow's scoring protocol
    GET  /v2[/health/live|ready], /v2/models/NAME[/versions/V][/ready]; POST .../infer    Open Inference Protocol V2
    POST /v1/recommend/NAME, /v1/events/NAME, /v1/labels/NAME
    POST /v1/events/NAME/withdraw
    GET  /health, /ready, /ping, /version, /metrics, /openapi.json, /docs
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evergreen.serving.http_messages import HttpRequest, HttpResponse
from evergreen.serving.label_endpoints import LabelEndpoints
from evergreen.serving.prediction_endpoints import PredictionEndpoints
from evergreen.serving.recommendation_endpoints import RecommendationEndpoints
from evergreen.serving.status_endpoints import StatusEndpoints
from evergreen.tasks.config.params import Params

if TYPE_CHECKING:
    from evergreen.serving.keys import Scope

NAMED = re.compile(r"^/v[12]/(?:models|predict|recommend|events|labels)/([^/]{1,64})")
VERSIONED = re.compile(r"^(/v[12]/models/[^/]+)/versions/(\d{1,9})(/[a-z]+)?$")
Endpoint = Callable[[HttpRequest], Awaitable[HttpResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    """Label of its metrics."""
    scope: "Scope | None"
    """Scope that a key needs; None: any key."""
    endpoint: Endpoint
    problem: str = ""
    in_body: bool = False
    """Whether the body may name the problem: its endpoint checks the key."""
    public: bool = False
    """Needs no key."""


Routes = dict[str, dict[str, Route]]
"""Path -> method -> route."""


def build(
    params: Params,
    predictions: PredictionEndpoints,
    recommendations: RecommendationEndpoints,
    labels: LabelEndpoints,
    status: StatusEndpoints,
) -> Routes:
    """The routes of all problems."""
    found: Routes = {}

    def add(method: str, paths: Sequence[str], route: Route) -> None:
        for path in paths:
            found.setdefault(path, {})[method] = route

    kinds = params.problems
    predicts = {name: params.section(name).predicts for name in kinds}
    for_rows = _default(params, [name for name in kinds if predicts[name] == "rows"])
    for_lists = _default(params, [name for name in kinds if predicts[name] == "lists"])
    for_labels = params.serve.default_problem or (next(iter(kinds)) if len(kinds) == 1 else None)

    def with_default(path: str, problem: str, default: str | None) -> list[str]:
        return [f"{path}/{problem}", path] if problem == default else [f"{path}/{problem}"]

    for problem in kinds:
        predict = Route("predict", "predict", predictions.predict, problem)
        invocations = Route("invocations", "predict", predictions.invocations, problem)
        add("POST", with_default("/v1/predict", problem, for_rows), predict)
        add("POST", [f"/v1/models/{problem}/invocations", *(["/invocations"] if problem == for_rows else [])], invocations)
        add("GET", [f"/v2/models/{problem}"], Route("v2", "predict", predictions.metadata, problem))
        add("GET", [f"/v2/models/{problem}/ready"], Route("v2", "predict", predictions.model_ready, problem))
        add("POST", [f"/v2/models/{problem}/infer"], Route("infer", "predict", predictions.infer, problem))
        add("POST", [f"/v1/labels/{problem}"], Route("labels", "labels", labels.labels, problem))
        if predicts[problem] == "lists":
            recommend = Route("recommend", "predict", recommendations.recommend, problem)
            add("POST", with_default("/v1/recommend", problem, for_lists), recommend)
        if _takes_events(params, problem):
            events = Route("events", "events", recommendations.events, problem)
            add("POST", with_default("/v1/events", problem, for_lists), events)
            withdraw = Route("withdraw", "events", recommendations.withdraw, problem)
            add("POST", [f"/v1/events/{problem}/withdraw"], withdraw)
    add("POST", ["/v1/labels"], Route("labels", "labels", labels.labels, for_labels or "", in_body=True))
    add("GET", ["/health", "/v2/health/live", "/ping"], Route("health", None, status.health, public=True))
    add("GET", ["/ready", "/v2/health/ready"], Route("ready", None, status.ready, public=True))
    add("GET", ["/v2"], Route("v2", "predict", status.server))
    add("GET", ["/version"], Route("server", None, status.server_version))
    add("GET", ["/metrics"], Route("metrics", "admin", status.metrics))
    add("GET", ["/openapi.json"], Route("openapi", None, status.openapi))
    add("GET", ["/docs"], Route("docs", None, status.docs))
    return found


def _takes_events(params: Params, problem: str) -> bool:
    section = params.section(problem)
    return section.predicts == "lists" or section.answers.features == "fresh"


def _default(params: Params, names: Sequence[str]) -> str | None:
    default = params.serve.default_problem
    return default if default in names else names[0] if len(names) == 1 else None
