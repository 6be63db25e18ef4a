"""Try a model: a row or a request for a list, the prediction with its contributions, and what another value would change.

The console predicts by itself with its own copy of the version: nothing is asked of the server, and nothing is recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console.visits import Visit, whole_number
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import DataError, EvergreenError, ModelError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.serving.feature import Feature
    from evergreen.serving.loaded_model import ListModel, LoadedModel, RowModel

MODELS = 4
"""Versions that the console keeps in memory."""
PREFIX = "f."
"""Of the form's fields that are features."""
LIST_FIELDS = ("users", "items", "place", "k", "show", "diversity", "explore")
LARGE = 2**53
"""From here on not every whole number is a float."""
SHOWN_LEVELS = 200
"""A category with more values than these gets a text field."""


@dataclass(frozen=True)
class Field:
    """One field of the form."""

    name: str
    type: str
    value: str
    levels: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Trial:
    """A prediction for the values of the form."""

    output: Mapping[str, Any]
    reasons: Sequence[Mapping[str, Any]] = ()
    before: Any = None
    """The explained number of the form that was sent before, if one was."""
    now: float | None = None
    seconds: float = 0.0
    notes: Sequence[str] = ()


def show(visit: Visit) -> Response:
    """The form. ?entity=KEY fills it with the features of that entity, ?id=ID with those of a prediction."""
    problem, line = visit.problem, None
    model = _model(visit, problem)
    if _is_list(model):
        given = {name: visit.query.get(name, "") for name in LIST_FIELDS}
        return _show_list(visit, problem, model, given)
    row: Mapping[str, Any] = model.request_example or {}
    try:
        row = _known_row(visit, problem, model) or row
    except EvergreenError as error:
        line = str(error)
    return visit.render(
        "try.html", problem=problem, model=model, fields=_fields(model, row), trial=None, line=line, entity=model.entity
    )


def predict(visit: Visit) -> Response:
    """The prediction for the values of the form; of a part of the page, the prediction alone."""
    problem = visit.problem
    model = _model(visit, problem)
    if _is_list(model):
        return _show_list(visit, problem, model, {name: visit.form.get(name, "") for name in LIST_FIELDS})
    row = {name: visit.form.get(PREFIX + name, "") for name in model.features}
    trial, line = None, None
    try:
        trial = _predict(model, {name: _value(model.features[name], text) for name, text in row.items()}, visit)
    except EvergreenError as error:
        line = str(error)
    template = "trial.html" if visit.partial else "try.html"
    return visit.render(
        template, problem=problem, model=model, fields=_fields(model, row), trial=trial, line=line, entity=model.entity
    )


def explain(visit: Visit, problem: str, version: int, features: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The contributions to a prediction of that version, computed again. Raises ModelError where the version is gone."""
    from evergreen.serving.explanation import contributions
    from evergreen.serving.loaded_model import RowModel

    model = loaded(visit.layout, problem, version)
    if not isinstance(model, RowModel):
        return ()
    known = {name: features.get(name) for name in model.features}
    return contributions(model, model.parse(as_json(known)))


def _predict(model: "RowModel", row: Mapping[str, Any], visit: Visit) -> Trial:
    import time

    from evergreen.serving.explanation import contributions

    parsed = model.parse(row)
    began = time.perf_counter()
    output = model.predict([parsed])[0]
    seconds = time.perf_counter() - began
    reasons = contributions(model, parsed)
    now = sum(each["contribution"] for each in reasons)
    return Trial(output, reasons, _float(visit.form.get("before", "")), now, seconds)


def _show_list(visit: Visit, problem: str, model: "ListModel", given: Mapping[str, str]) -> Response:
    import time

    from evergreen.tasks.problems.recommender.list_request import Request

    trial, line = None, None
    if any(given.values()) or visit.form:
        try:
            request = Request.read(_list_request(given, visit.params.serve.max_k))
            began = time.perf_counter()
            found = model.recommend(request)[0]
            trial = Trial({"items": found["items"]}, notes=found["notes"], seconds=time.perf_counter() - began)
        except EvergreenError as error:
            line = str(error)
    template = "trial_list.html" if visit.partial else "try_list.html"
    return visit.render(template, problem=problem, model=model, given=given, trial=trial, line=line)


def _list_request(given: Mapping[str, str], max_k: int) -> dict[str, Any]:
    """The fields of a Request. Raises DataError for a text that is no number."""
    found: dict[str, Any] = {
        "users": tuple(filter(None, [given["users"].strip()])),
        "items": tuple(each for part in given["items"].split(",") if (each := part.strip())),
    }
    found |= {name: given[name].strip() for name in ("place", "show") if given[name].strip()}
    for name, read in (("k", int), ("diversity", float), ("explore", float)):
        if text := given[name].strip():
            try:
                found[name] = read(text)
            except ValueError:
                raise DataError(f"{name} = {text[:40]}: must be a number") from None
    if found.get("k", 1) > max_k:
        raise DataError(f"k = {found['k']}: at most {max_k} items per list (serve.max_k)")
    return found


def _model(visit: Visit, problem: str) -> "Any":
    """The version that the address names, or the champion. Raises ModelError where nothing is deployed."""
    version = whole_number("version", visit.query.get("version") or visit.form.get("version") or "")
    if version is None:
        version = settings.deployments(visit.layout).champion(problem)
    if version is None:
        raise ModelError(f"{problem}: nothing is deployed yet; run evergreen train {problem}")
    model: Any = loaded(visit.layout, problem, version)
    if _is_list(model):
        model.recommender.refresh()
    return model


@lru_cache(MODELS)
def loaded(layout: Layout, problem: str, version: int) -> "LoadedModel":
    from evergreen.serving import model_loading, text_values

    params = load(layout.params)
    source = text_values.source(params, problem, layout)
    registry, events = settings.registry(layout), settings.events(layout)
    made = model_loading.load(params, layout, registry, events, problem, version, text_values.readers(source), source)
    made.self_check()
    return made


def _is_list(model: Any) -> bool:
    return model.kind == "recommendation"


def _known_row(visit: Visit, problem: str, model: "RowModel") -> Mapping[str, Any] | None:
    """The features of the entity or of the prediction that the address names; without either, of the newest prediction."""
    from evergreen.monitoring.ledger import lookup

    if (entity := visit.query.get("entity", "").strip()) and model.online_features:
        return as_json(model.online_features.lookup(entity)[0])
    ledger = settings.ledger(visit.layout)
    place = None
    if entity:
        place = next(iter(lookup.find_by_entity(ledger, problem, entity, 1)), None)
    elif id_ := visit.query.get("id", "").strip():
        place = lookup.find_by_id(ledger, problem, id_)
    elif newest := ledger.latest(problem):
        row = next(ledger.read(problem, since=newest - lookup.MOMENT, last=1).features.iter_rows(named=True), None)
        return row and as_json(row)
    if place is None:
        if entity:
            raise DataError(f"{entity[:80]}: no prediction for it is in the ledger, so its values are not known here")
        return None
    found = lookup.read_one(ledger, problem, place).features
    return as_json(found.row(0, named=True)) if found.height else None


def _fields(model: "RowModel", row: Mapping[str, Any]) -> list[Field]:
    return [_field(each, row.get(each.name)) for each in model.features.values()]


def _field(feature: "Feature", value: Any) -> Field:
    levels = sorted(feature.levels) if len(feature.levels) <= SHOWN_LEVELS else []
    whole = isinstance(value, float) and value.is_integer() and abs(value) < LARGE
    text = "" if value is None or value != value else str(int(value) if whole else value)
    if levels and text and text not in levels:
        levels = [*levels, text]
    return Field(feature.name, feature.type, text, levels)


def _value(feature: "Feature", text: str) -> Any:
    """What a client would send: null for an empty field, a number where the text is one."""
    if not text.strip():
        return None
    if feature.type != "number":
        return text
    try:
        number = float(text)
    except ValueError:
        return text  # the contract may read it; otherwise the model names the rule
    return int(number) if number.is_integer() and abs(number) < LARGE else number


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values as a client sends them."""
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
