"""Endpoint for labels: what the outcome of earlier predictions was."""

from collections.abc import Callable
from dataclasses import asdict

from evergreen.serving.http_messages import HttpRequest, HttpResponse, json_response
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.protocols import MalformedRequestError
from evergreen.tasks.core.errors import RequestError


class LabelEndpoints:
    """`denied`: the response to a request whose key does not allow a problem; None: it does."""

    def __init__(self, service: PredictionService, denied: Callable[[HttpRequest, str], HttpResponse | None]) -> None:
        self._service, self._denied = service, denied

    async def labels(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/labels. Invalid labels are rejected one by one; status 422, with the first reason, if every label is."""
        given = await request.json()
        problem = request.problem
        if isinstance(given, dict) and isinstance(given.get("problem"), str):
            problem = given["problem"]
            given = {name: value for name, value in given.items() if name != "problem"}
        if denial := self._denied(request, problem):
            return denial
        if not problem:
            raise RequestError("problem", "is missing: name it in the path (/v1/labels/NAME) or as problem")
        if isinstance(given, dict):
            given = given["labels"] if set(given) == {"labels"} else [given]
        if not isinstance(given, list):
            raise MalformedRequestError("needs a label, a list of labels, or {problem, labels: [...]}")
        limit = self._service.params.serve.max_rows
        if len(given) > limit:
            raise RequestError("labels", f"at most {limit} per request (serve.max_rows)", len(given))
        found = await self._service.record_labels(problem, given)
        if found.rejected and len(found.rejected) == len(given):
            return json_response({"error": found.rejected[0].reason, **asdict(found)}, 422)
        return json_response(asdict(found))
