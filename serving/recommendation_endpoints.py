"""Endpoints of recommenders, and those of events."""

from dataclasses import asdict

from evergreen.serving.http_messages import HttpRequest, HttpResponse, json_response
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.protocols import MalformedRequestError
from evergreen.tasks.core.errors import RequestError


class RecommendationEndpoints:
    def __init__(self, service: PredictionService) -> None:
        self._service = service

    async def recommend(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/recommend."""
        from evergreen.tasks.problems.recommender.list_request import Request

        given = await request.json()
        if not isinstance(given, dict):
            raise MalformedRequestError("needs an object, such as {users: [7], k: 10}")
        lists = await self._service.lists.recommend(request.problem, Request.read(given))
        return json_response({"problem": request.problem, "lists": lists})

    async def events(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/events. Status 422 if every event is rejected."""
        given = await request.json()
        events = given.get("events", [given]) if isinstance(given, dict) else given
        if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
            raise MalformedRequestError("needs an event, a list of events, or {events: [...]}")
        limit = self._service.params.serve.max_rows
        if len(events) > limit:
            raise RequestError("events", f"at most {limit} per request (serve.max_rows)", len(events))
        counts = await self._service.record_events(request.problem, events)
        rejected = [{"event": dict(each.event), "reason": each.reason} for each in counts.rejected]
        all_rejected = rejected and not counts.accepted and not counts.duplicate
        found = {"accepted": counts.accepted, "duplicate": counts.duplicate, "rejected": rejected}
        return json_response(found, 422 if all_rejected else 200)

    async def withdraw(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/events/NAME/withdraw. Status 422 if every id is unknown."""
        given = await request.json()
        ids = given.get("ids") if isinstance(given, dict) and set(given) == {"ids"} else None
        if not isinstance(ids, list) or not ids:
            raise MalformedRequestError('needs {"ids": [...]}, the ids of events')
        limit = self._service.params.serve.max_rows
        if len(ids) > limit:
            raise RequestError("ids", f"at most {limit} per request (serve.max_rows)", len(ids))
        for each in ids:
            if not isinstance(each, str):
                raise RequestError("ids", "must be texts, the ids of events", each)
        found = await self._service.withdraw_events(request.problem, ids)
        return json_response(asdict(found), 422 if len(found.unknown) == len(set(ids)) else 200)
