"""Endpoint for labels: what the outcome of earlier predictions was."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from evergreen.serving.http_messages import HttpRequest, HttpResponse, json_response
from evergreen.serving.loaded_model import entity_key
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.protocols import MalformedRequestError
from evergreen.tasks.core.errors import RequestError

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.label_matching import Label

FIELDS = ("at", "entity", "id", "known_at", "value")


class LabelEndpoints:
    def __init__(self, service: PredictionService) -> None:
        self._service = service

    async def labels(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/labels. Status 422 if every label is rejected."""
        given = await request.json()
        problem = request.problem
        if isinstance(given, dict) and isinstance(given.get("problem"), str):
            problem = given["problem"]
            given = {name: value for name, value in given.items() if name != "problem"}
        if not problem:
            raise RequestError("problem", "is missing: name it in the path (/v1/labels/NAME) or as problem")
        if isinstance(given, dict):
            given = given["labels"] if set(given) == {"labels"} else [given]
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise MalformedRequestError("needs a label, a list of labels, or {problem, labels: [...]}")
        limit = self._service.params.serve.max_rows
        if len(given) > limit:
            raise RequestError("labels", f"at most {limit} per request (serve.max_rows)", len(given))
        found = await self._service.record_labels(problem, [_label(each, place) for place, each in enumerate(given)])
        all_rejected = found.rejected and len(found.rejected) == len(given)
        return json_response(asdict(found), 422 if all_rejected else 200)


def _label(given: Mapping[str, Any], place: int) -> "Label":
    """Raises RequestError, with the number `place`, for an invalid label."""
    try:
        return _read(given)
    except RequestError as error:
        error.row = place
        raise


def _read(given: Mapping[str, Any]) -> "Label":
    from evergreen.monitoring.ledger.label_matching import Label

    for name in given:
        if name not in FIELDS:
            raise RequestError(name, f"unknown field; a label has {', '.join(FIELDS)}", given[name])
    if given.get("value") is None:
        raise RequestError("value", "is missing: a label needs its value")
    id_, entity = given.get("id"), given.get("entity")
    if id_ is None and entity is None:
        raise RequestError("id", "is missing: name the prediction by its id, or by entity and at")
    if entity is not None and not isinstance(entity, str | int | float):
        raise RequestError("entity", "must be a text or a number", entity)
    at, known = _moment(given, "at"), _moment(given, "known_at")
    if isinstance(known, date) and not isinstance(known, datetime):
        known = datetime.combine(known, datetime.min.time())
    key = None if entity is None else entity_key(entity)
    return Label(given["value"], None if id_ is None else str(id_), key, at, known)


def _moment(given: Mapping[str, Any], name: str) -> datetime | date | None:
    value = given.get(name)
    if value is None:
        return None
    try:
        return date.fromisoformat(value) if len(value) == len("YYYY-MM-DD") else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise RequestError(name, "must be a day or a time, such as 2024-03-31T17:00:00Z", value) from None
