"""Endpoints about the server itself: health, readiness, metrics, description."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from evergreen.serving import docs_page, openapi
from evergreen.serving.http_messages import SECURITY, HttpRequest, HttpResponse, json_response
from evergreen.serving.metrics import CONTENT_TYPE, counter, gauge
from evergreen.serving.prediction_service import PredictionService

PAGE_HEADERS = tuple(
    (
        name,
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        if name == b"content-security-policy"
        else value,
    )
    for name, value in SECURITY
)
NOT_SERVING = "the deployed version cannot serve; see evergreen status and the server's log"
"""The reason may hold paths: it goes to the log, not to clients."""
NOT_DEPLOYED = "no version is deployed"
AWAY = "the model registry, or the store of its files, does not answer; the server tries again"
UNKNOWN = "who serves is unknown: the database does not answer; the server tries again"
NOT_READ = "does not answer"
NOT_WRITTEN = "predictions wait in memory: the disk takes none"
EXTENSIONS = ["binary_tensor_data", "classification"]
"""Of the Open Inference Protocol."""


@dataclass(frozen=True)
class SpoolState:
    """Predictions on their way to the ledger."""

    lag_bytes: float = 0.0
    """Written and not in the ledger yet."""
    lost: float = 0.0
    """Returned to clients and never written."""
    refused: float = 0.0
    """Set aside, since the ledger cannot hold them."""
    waiting: float = 0.0
    """In this worker's memory."""
    failing_since: datetime | None = None
    """Since when the disk takes none; None: it does."""


class StatusEndpoints:
    """`paths`: path -> its problem ("": none). `spool_state`, `in_flight`: as they are now.

    `visible`: the problems that a request may learn of. `required`: those without which the server is not ready.
    """

    def __init__(
        self,
        service: PredictionService,
        paths: Callable[[], Mapping[str, str]],
        spool_state: Callable[[], "SpoolState"],
        in_flight: Callable[[], int],
        visible: Callable[[HttpRequest], Sequence[str]],
        required: Sequence[str] = (),
    ) -> None:
        self._required = required
        self._service, self._versions, self._paths = service, service.versions, paths
        self._spool_state, self._in_flight, self._visible = spool_state, in_flight, visible
        self.stopping = False

    async def health(self, request: HttpRequest) -> HttpResponse:
        """GET /health."""
        return json_response({"status": "alive"})

    async def ready(self, request: HttpRequest) -> HttpResponse:
        """GET /ready: 503 if no version serves at all, one of `required` has none, or the server is stopping.

        `decisions_read_at`: when this worker last read who serves. While the database does not answer it grows old, `database`
        says since when, and the loaded versions keep serving. `journal`: predictions are answered and wait in memory, for lack
        of space.
        `problems` and `errors` hold what the caller's key allows: without a key, where one is required, nothing.
        """
        loaded = {problem: self._versions.loaded(problem) for problem in self._service.params.problems}
        missing = [problem for problem in self._required if not loaded[problem]]
        watcher = self._versions.watcher
        unknown = watcher.read_at is None and watcher.unread_since is not None
        is_ready = any(loaded.values()) and not missing and not unknown and not self.stopping
        seen = self._visible(request)
        versions = {problem: {variant: model.version for model, variant in loaded[problem]} for problem in seen}
        reasons = {each: why for each in seen if (why := self._why_not(each, bool(loaded[each])))}
        errors = {"errors": reasons} if reasons else {}
        read_at, unread, unwritten = watcher.read_at, watcher.unread_since, self._spool_state().failing_since
        heard = {"decisions_read_at": read_at.isoformat(timespec="seconds")} if read_at else {}
        database = {"database": f"{NOT_READ} since {unread.isoformat(timespec='seconds')}"} if unread else {}
        journal = {"journal": f"{NOT_WRITTEN} since {unwritten.isoformat(timespec='seconds')}"} if unwritten else {}
        found = {"ready": is_ready, "problems": versions, **heard, **database, **journal, **errors}
        return json_response(found, 200 if is_ready else 503)

    def _why_not(self, problem: str, serves: bool) -> str | None:
        """Why the deployed version of a problem does not answer, or none is deployed where one must be; None: no reason."""
        watcher = self._versions.watcher
        if problem in watcher.errors:
            return AWAY if problem in watcher.away else NOT_SERVING
        if not serves and watcher.read_at is None and watcher.unread_since:
            return UNKNOWN
        return NOT_DEPLOYED if not serves and problem in self._required else None

    async def server(self, request: HttpRequest) -> HttpResponse:
        """GET /v2."""
        return json_response({"name": "evergreen", "version": _version(), "extensions": EXTENSIONS})

    async def server_version(self, request: HttpRequest) -> HttpResponse:
        """GET /version, as MLflow's client asks."""
        return HttpResponse(200, _version().encode(), ((b"content-type", b"text/plain; charset=utf-8"), *SECURITY))

    async def metrics(self, request: HttpRequest) -> HttpResponse:
        """GET /metrics."""
        answerable = [
            (problem, model.version, variant)
            for problem in self._service.params.problems
            for model, variant in self._versions.loaded(problem)
        ]
        for key in answerable:  # at 0 before the first failure: a rate does not see that a series begins at 1
            self._service.metrics.failures[key] += 0
        loaded = [((problem, str(version), variant), 1.0) for problem, version, variant in answerable]
        answering = {problem for (problem, _, variant), _ in loaded if variant == "champion"}
        deployed = answering | set(self._versions.watcher.errors)
        champions = [((problem,), float(problem in answering)) for problem in sorted(deployed)]
        shares = []
        for problem in self._service.params.problems:
            serving = self._versions.watcher.serving_set(problem)
            share = serving.share if serving and serving.candidate and not serving.shadow else 0.0
            shares.append(((problem,), share))
        spool = self._spool_state()
        gauges = [
            gauge("evergreen_build_info", "Version of Evergreen.", ["version"], [((_version(),), 1.0)]),
            gauge("evergreen_model_info", "Versions that serve.", ("problem", "version", "variant"), loaded),
            gauge(
                "evergreen_champion_serving",
                "1 if the champion, or the one before, answers; 0 if none loads.",
                ["problem"],
                champions,
            ),
            gauge("evergreen_rollout_traffic_ratio", "Share of the traffic that the candidate serves.", ["problem"], shares),
            gauge("evergreen_ledger_lag_bytes", "Spooled predictions not yet in the ledger.", [], [((), spool.lag_bytes)]),
            counter("evergreen_predictions_lost_total", "Predictions served but never spooled.", [], [((), spool.lost)]),
            counter("evergreen_predictions_refused_total", "Predictions that the ledger refused.", [], [((), spool.refused)]),
            gauge(
                "evergreen_journal_writable",
                "1 if this worker can write predictions to disk.",
                [],
                [((), float(spool.failing_since is None))],
            ),
            gauge("evergreen_predictions_waiting", "Predictions in this worker's memory.", [], [((), spool.waiting)]),
            gauge("evergreen_requests_in_flight", "Open requests of this worker.", [], [((), float(self._in_flight()))]),
        ]
        return HttpResponse(200, self._service.metrics.text(gauges), ((b"content-type", CONTENT_TYPE.encode()), *SECURITY))

    async def openapi(self, request: HttpRequest) -> HttpResponse:
        """GET /openapi.json."""
        return json_response(self._description(request))

    async def docs(self, request: HttpRequest) -> HttpResponse:
        """GET /docs."""
        page = docs_page.render(self._description(request)).encode()
        return HttpResponse(200, page, ((b"content-type", b"text/html; charset=utf-8"), *PAGE_HEADERS))

    def _description(self, request: HttpRequest) -> dict[str, Any]:
        champions = {}
        for problem in self._visible(request):
            serving = self._versions.watcher.serving_set(problem)
            champions[problem] = serving.champion if serving else None
        return openapi.describe(self._service.params, champions, self._paths())


def _version() -> str:
    """Evergreen's version; "" in a bundle, which holds copied modules and no installed package."""
    try:
        return version("evergreen")
    except PackageNotFoundError:
        return ""
