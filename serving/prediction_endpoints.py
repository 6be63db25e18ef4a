"""Endpoints for predictions of rows: plain JSON, MLflow's scoring protocol, the Open Inference Protocol V2."""

from collections.abc import Mapping

import orjson

from evergreen.serving import mlflow_protocol, open_inference_protocol, protocols
from evergreen.serving.compression import compress
from evergreen.serving.feature import Feature
from evergreen.serving.http_messages import (
    JSON_OPTIONS,
    JSON_TYPE,
    SECURITY,
    HttpRequest,
    HttpResponse,
    json_response,
    require_shallow,
)
from evergreen.serving.loaded_model import ListModel, LoadedModel, RowModel
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.protocols import MalformedRequestError
from evergreen.serving.serving_versions import NotFoundError

LENGTH = b"inference-header-content-length"
OCTETS = (b"content-type", b"application/octet-stream")


class PredictionEndpoints:
    def __init__(self, service: PredictionService) -> None:
        self._service, self._versions = service, service.versions

    async def predict(self, request: HttpRequest) -> HttpResponse:
        """POST /v1/predict: a row, a list of rows, or {rows, explain}."""
        body, explain = await request.body(), request.flag("explain")
        if not explain and (found := self._service.predict_json(request.problem, body)):
            return HttpResponse(200, orjson.dumps((await found).as_json(), option=JSON_OPTIONS))
        require_shallow(body)
        given = protocols.parse(body)
        if type(given) is dict and not explain and "rows" not in given and "explain" not in given:
            received = orjson.Fragment(body) if b"\n" not in body else None
            prediction = await self._service.predict_one(request.problem, given, received)
            return HttpResponse(200, orjson.dumps(prediction.as_json(), option=JSON_OPTIONS))
        single = type(given) is dict and "rows" not in given
        if type(given) is dict:
            given = dict(given)
            explain = given.pop("explain", explain) is True or explain
        rows = [given] if single else protocols.plain_rows(given)
        predictions = await self._service.predict_rows(request.problem, rows, None, explain)
        found = [each.as_json() for each in predictions]
        return json_response(found[0] if single else {"predictions": found})

    async def invocations(self, request: HttpRequest) -> HttpResponse:
        """POST /invocations: MLflow's scoring protocol."""
        body, model, ignored = await request.body(), self._model(request), list[str]()
        require_shallow(body)
        content_type = (request.header(b"content-type") or b"").decode("latin-1")
        rows, options = mlflow_protocol.read_body(body, content_type, _features(model))
        if isinstance(model, RowModel) and self._service.params.serve.unknown_columns == "ignore":
            rows, ignored = mlflow_protocol.drop_columns(rows, model.keys)
        explain = request.flag("explain") or options.get("explain") is True
        predictions = await self._service.predict_rows(request.problem, rows, request.version, explain)
        unknown = [name for name in options if name not in mlflow_protocol.PARAMS]
        return json_response(mlflow_protocol.response(predictions, ignored, unknown))

    async def infer(self, request: HttpRequest) -> HttpResponse:
        """POST /v2/models/NAME/infer."""
        model = self._require_tensors(request.problem, self._model(request))
        length = request.header(LENGTH)
        if length is not None and not (length.isdigit() and len(length) < 10):
            raise MalformedRequestError("Inference-Header-Content-Length must be a number")
        body = await request.body()
        require_shallow(body if length is None else body[: int(length)])
        given, rest = open_inference_protocol.read_request(body, None if length is None else int(length))
        rows = open_inference_protocol.read_rows(given, rest, model.features)
        predictions = await self._service.predict_rows(request.problem, rows, request.version)
        made, json_length = open_inference_protocol.response(request.problem, given, predictions)
        made, encoding = compress(made, request.header(b"accept-encoding"))
        headers = [JSON_TYPE] if json_length is None else [OCTETS, (LENGTH, str(json_length).encode())]
        if encoding:
            headers += [(b"content-encoding", encoding), (b"vary", b"accept-encoding")]
        return HttpResponse(200, made, (*headers, *SECURITY))

    async def metadata(self, request: HttpRequest) -> HttpResponse:
        """GET /v2/models/NAME."""
        versions = [each.version for each, _ in self._versions.loaded(request.problem)]
        model = self._require_tensors(request.problem, self._model(request))
        return json_response(open_inference_protocol.metadata(request.problem, versions, model.features, model.example_output))

    async def model_ready(self, request: HttpRequest) -> HttpResponse:
        """GET /v2/models/NAME/ready."""
        self._model(request)
        return json_response({"name": request.problem, "ready": True})

    def _model(self, request: HttpRequest) -> LoadedModel:
        """The champion, or the version of the path."""
        champion = self._versions.serving_set(request.problem).champion
        if request.version is None:
            return champion
        return self._versions.version(request.problem, request.version)[0]

    def _require_tensors(self, problem: str, model: LoadedModel) -> RowModel:
        if not isinstance(model, RowModel):
            raise NotFoundError(f"{problem}: returns lists, not tensors; POST /v1/recommend/{problem}")
        return model


def _features(model: LoadedModel) -> Mapping[str, Feature]:
    """The columns of a row in order; for a recommender the user."""
    if isinstance(model, RowModel):
        return model.features
    return {model.user: Feature(model.user, "text")} if isinstance(model, ListModel) else {}
