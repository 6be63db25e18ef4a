"""One registered version in memory: parses rows and predicts. A compiled model predicts without data frames."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import orjson

from evergreen.serving import examples, json_rows
from evergreen.serving.batching import MicroBatcher
from evergreen.serving.column_rules import Rule
from evergreen.serving.feature import Feature
from evergreen.serving.online_features import OnlineFeatures
from evergreen.tasks.config.params import KindName
from evergreen.tasks.core.errors import EvergreenError, ModelError, RequestError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.explanation.compiled_contributions import CompiledContributions, encoded
from evergreen.tasks.model_files.onnx_runtime import Compiled, EncodedRow, text

if TYPE_CHECKING:
    from evergreen.serving.fresh_features import FreshFeatures
    from evergreen.serving.recommender_service import OnlineRecommender
    from evergreen.tasks.problems.recommender.list_request import RecommendedLists, Request

CUTOFF = "cutoff"
"""Optional key of a row of event features: the last day that the features know."""
PredictRows = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
"""Rows of features -> the output for each."""


@dataclass(slots=True)
class ParsedRow:
    given: Mapping[str, Any] | bytes
    """The features alone, as received or as looked up, or their JSON."""
    entity: str | None
    cutoff: date | None
    """The last day that the features know, if known."""
    point: EncodedRow | None
    """Input of a compiled model; None for a pipeline."""
    fresh: bool = False
    """Whether the features were computed from events as new as the request."""
    known: bool = False
    """Whether each category of type text is missing or one that training saw."""

    @property
    def features(self) -> Mapping[str, Any]:
        """The features alone."""
        found = self.given
        if isinstance(found, bytes):
            found = self.given = orjson.loads(found)
        return found


class LoadedModel:
    """A registered version in memory. Thread-safe."""

    problem: str
    version: int
    kind: KindName

    def self_check(self) -> Sequence[Mapping[str, Any]] | None:
        """Predict the version's own example, which also warms it up, and return the outputs.

        None: the version has no example rows. Raises ModelError if it fails or a number is not finite.
        """
        raise NotImplementedError


class RowModel(LoadedModel):
    """A version that predicts from rows of features: classification, regression, clustering."""

    def __init__(
        self,
        problem: str,
        version: int,
        kind: KindName,
        features: Sequence[Feature],
        example: Sequence[Mapping[str, Any]],
        model: Compiled | PredictRows,
        *,
        entity: str | None = None,
        online_features: "OnlineFeatures | FreshFeatures | None" = None,
        load_pipeline: Callable[[], PredictRows] | None = None,
        background: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`model`: the compiled model or the pipeline. `load_pipeline`: loads the pipeline of a compiled model. `background`:
        rows that contributions start from; without any, the example."""
        self.problem, self.version, self.kind = problem, version, kind
        self.features = {each.name: each for each in features}
        dates = [each.name for each in features if each.type == "date"]
        self.example = tuple(examples.without_missing(each, dates) for each in example)
        """Rows of the training data, for the self-check; never shown."""
        self.request_example = examples.make_row(features)
        """A row that a client may send, made from the contract; None if no row was found that this version accepts."""
        self._background = tuple(examples.without_missing(each, dates) for each in background) or self.example
        self.compiled = model if isinstance(model, Compiled) else None
        self.entity, self.online_features = entity, online_features
        self._pipeline = None if isinstance(model, Compiled) else model
        self._load_pipeline, self._loading = load_pipeline, Lock()
        self._levels = tuple((each.name, each.levels) for each in features if each.levels)
        self._other_levels = tuple((each.name, each.levels) for each in features if each.levels and each.type != "text")
        self._ruled = tuple((each.name, each.rules) for each in features if each.rules)
        self._texts = tuple((each.name, each.levels, each.missing) for each in features if each.type == "text")
        self._sentinels = tuple((each.name, each.missing) for each in features if each.type == "number" and each.missing)
        self.keys: frozenset[str] = frozenset(
            {*self.features, *([entity] if entity else []), *([CUTOFF] if online_features else [])}
        )
        """The keys that a row may have."""
        self.example_output: Mapping[str, Any] = {}
        """The output for `request_example`, or else for the first example row; set by `self_check`."""
        self.batcher: MicroBatcher[ParsedRow] | None = None
        """Set by the server that collects rows for this model."""
        self._width = len(self.features)
        fast = self.compiled is not None and len(self.compiled.features) == self._width
        self._read_plain = self.compiled.encode_plain if self.compiled and fast else None
        self._read_json = self._json_reader(self.compiled) if self.compiled and fast else None

    def _json_reader(self, compiled: Compiled) -> Callable[[bytes], EncodedRow | None] | None:
        """Reads a body as `read` says; None for a version whose values need a closer look than their types."""
        is_number = {name: self.features[name].type == "number" for name in compiled.features}
        parse = json_rows.reader(is_number)
        if parse is None or self._other_levels or any(compiled.reads_number(name) is not is_number[name] for name in is_number):
            return None
        place = {name: each for each, name in enumerate(compiled.features)}
        encode = compiled.typed_encoder({name: levels for name, levels, _ in self._texts})
        checks = json_rows.Checks(
            tuple((place[name], missing) for name, levels, missing in self._texts if not levels and missing),
            tuple((place[name], missing) for name, missing in self._sentinels),
            tuple((place[name], rule.holds) for name, rules in self._ruled for rule in rules),
        )

        def read(body: bytes) -> EncodedRow | None:
            values = parse(body)
            return encode(values) if values is not None and checks.hold(values) else None

        return read

    def read(self, body: bytes) -> ParsedRow | None:
        """A row as `parse` gives it, from JSON with all features and no other key, in a fraction of the time.

        None for a body that `parse` must look at.
        """
        point = self._read_json(body) if self._read_json else None
        return ParsedRow(body, None, None, point, known=True) if point else None

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """A row of features as JSON values, optionally with the entity's key and the cutoff; or the entity's key alone. An
        optional feature without a key is missing.

        Raises RequestError for an unknown column, for required ones without a key, and
        for a value of a wrong type or outside its rules.
        """
        if self._read_plain and (point := self._read_plain(row)):
            extra = len(row) - self._width
            if extra:
                extra -= (self.entity in row) + (self.online_features is not None and CUTOFF in row)
            if not extra and not self._has_words(row):  # every key is a feature, the entity or the cutoff
                return self._parse_plain(row, point)
        return self._parse(row)

    def _has_words(self, row: Mapping[str, Any]) -> bool:
        """Whether a value may be a missing one, or a category in other words. `row`: with values of the right types."""
        for name, levels, missing in self._texts:
            value = row[name]
            if value is not None and value not in levels and (levels or value.strip() in missing):
                return True
        return any(row[name] in missing for name, missing in self._sentinels)

    def _parse_plain(self, row: Mapping[str, Any], point: EncodedRow) -> ParsedRow:
        """A row with all features and values of the right types."""
        for name, rules in self._ruled:
            _check_rules(rules, name, row[name])
        if len(row) == self._width:
            return ParsedRow(row, None, None, point, known=True)
        return ParsedRow({name: row[name] for name in self.features}, *self._entity_and_cutoff(row), point, known=True)

    def _parse(self, row: Mapping[str, Any]) -> ParsedRow:
        entity, cutoff = self._entity_and_cutoff(row)
        fresh = False
        if entity is not None and self.online_features and len(row) == 1:
            features, cutoff = self.online_features.lookup(entity)
            if fresh := self.online_features.fresh:
                features = {name: features[name] for name in self.features}
        else:
            self._reject_unknown(row)
            features = row if row.keys() == self.features.keys() else self._complete(row)
            for name, each in self.features.items():
                if (value := _converted(each, features[name])) is not features[name]:
                    features = {**features, name: value}
                _check_value(each, features[name])
        point = self.compiled.encode(features) if self.compiled else None
        return ParsedRow(features, entity, cutoff, point, fresh)

    @cached_property
    def background(self) -> list[ParsedRow]:
        """Of the background rows those that the rules of today accept."""
        found: list[ParsedRow] = []
        for row in self._background:
            with suppress(RequestError):
                found.append(self.parse(row))
        return found

    @cached_property
    def exact(self) -> CompiledContributions | None:
        """Exact contributions; None for a model that has none."""
        points = [each.point for each in self.background if each.point]
        if not self.compiled or not self.compiled.tables or not points:
            return None
        return CompiledContributions(self.compiled, encoded(points))

    def unseen(self, row: ParsedRow) -> list[str]:
        """The categories whose value training never saw."""
        leveled = self._other_levels if row.known else self._levels
        values = ((name, levels, row.features[name]) for name, levels in leveled)
        odd = ((name, levels, value) for name, levels, value in values if value not in levels and value is not None)
        return [name for name, levels, value in odd if text(value, "") not in levels]

    def predict(self, rows: Sequence[ParsedRow]) -> list[dict[str, Any]]:
        """The output for each row: `prediction`, and for a classifier `probability_<class>` of each class."""
        if self.compiled:
            return self.compiled.predict_encoded([each.point for each in rows if each.point])
        assert self._pipeline is not None
        return self._pipeline([each.features for each in rows])

    def predict_with_pipeline(self, rows: Sequence[ParsedRow]) -> list[dict[str, Any]]:
        """The same with the pipeline that was compiled. The first call loads it, which takes seconds."""
        with self._loading:
            if self._pipeline is None:
                assert self._load_pipeline is not None
                self._pipeline = self._load_pipeline()
        return self._pipeline([each.features for each in rows])

    def self_check(self) -> Sequence[Mapping[str, Any]]:
        name = f"{self.problem} v{self.version}"
        try:
            outputs = self.predict([self.parse(row) for row in self.example])
        except (EvergreenError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{name}: self-check failed: {error}. Train again, or roll back.") from error
        for output in outputs:
            for key, value in output.items():
                if isinstance(value, float) and not math.isfinite(value):
                    reason = f"{key} = {value} is not a finite number"
                    raise ModelError(f"{name}: self-check failed: {reason}. Train again, or roll back.")
        self.example_output = self._predict_example() or (outputs[0] if outputs else {})
        return outputs

    def _predict_example(self) -> Mapping[str, Any]:
        """The output for `request_example`; empty, and then there is no such example, if this version does not accept it."""
        try:
            found = self.predict([self.parse(self.request_example)])[0] if self.request_example else {}
        except Exception:  # noqa: BLE001 - a version serves without an example
            found = {}
        if not found or any(isinstance(value, float) and not math.isfinite(value) for value in found.values()):
            self.request_example = None
            return {}
        return found

    def _entity_and_cutoff(self, row: Mapping[str, Any]) -> tuple[str | None, date | None]:
        key = row.get(self.entity) if self.entity else None
        if key is not None and not isinstance(key, str | int | float):
            raise RequestError(str(self.entity), "must be a text or a number", key)
        return None if key is None else entity_key(key), _cutoff(row.get(CUTOFF)) if self.online_features else None

    def _reject_unknown(self, row: Mapping[str, Any]) -> None:
        for name in row:
            if name not in self.keys:
                raise RequestError(name, f"unknown column of {self.problem}{nearest(name, self.keys)}", row[name])

    def _complete(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The features alone, with None for optional ones that the row lacks.

        Raises RequestError, naming them, for required ones that it lacks, and for a row without any feature.
        """
        absent = [name for name in self.features if name not in row]
        lacking = absent if len(absent) == self._width else [name for name in absent if self.features[name].required]
        if lacking:
            more = f", and so {'is' if len(lacking) == 2 else 'are'} {', '.join(lacking[1:])}" if lacking[1:] else ""
            alternative = f", or give {self.entity} alone" if self.online_features else ""
            raise RequestError(lacking[0], f"is missing from the row{more}; write null for a missing value{alternative}")
        return {name: row.get(name) for name in self.features}


class ListModel(LoadedModel):
    """A version of a recommender."""

    kind = "recommendation"

    def __init__(self, recommender: "OnlineRecommender", item: str, user: str) -> None:
        self.problem, self.version = recommender.problem, recommender.version
        self.recommender, self.item, self.user = recommender, item, user

    @cached_property
    def example_user(self) -> Any:
        """An id as users have it, which no user has."""
        return examples.make_id(self.recommender.users())

    def example_item(self) -> Any:
        """The id of an item that can be recommended; None without any."""
        return next(iter(self.recommender.items()), None)

    def recommend(self, request: "Request") -> list[dict[str, Any]]:
        """One list per user of the request: user, items (item, score, source, explanation), notes, as_of, trained_until; with
        exploration also the propensity of each item.

        Raises DataError and ParamsError for an invalid request.
        """
        return _as_json(request, self.recommender.recommend(request))

    def cached(self, request: "Request") -> list[dict[str, Any]] | None:
        """The same from the cache, if it is there. Takes microseconds."""
        found = self.recommender.cached(request)
        return None if found is None else _as_json(request, found)

    def self_check(self) -> None:
        """OnlineRecommender recommended once when it was made."""


def _as_json(request: "Request", lists: "RecommendedLists") -> list[dict[str, Any]]:
    users = list(request.users) or [None]
    days = {"as_of": lists.as_of, "trained_until": lists.learned}
    found: list[dict[str, Any]] = [{"user": user, "items": [], "notes": [], **days} for user in users]
    explanation: Sequence[str | None] = lists.explanation or [None] * len(lists.row)
    columns = (lists.row, lists.item, lists.score, lists.source, explanation)
    for row, item, score, source, reason in zip(*(_as_list(each) for each in columns), strict=True):
        one = {"item": item, "score": None if score != score else score, "source": source, "explanation": reason}
        found[row]["items"].append(one)
    for note in lists.notes:
        found[note.row]["notes"].append(str(note))
    if lists.propensity is not None:
        for one in found:
            one["propensities"] = []
        for row, chance in zip(lists.row.tolist(), lists.propensity.tolist(), strict=True):
            found[row]["propensities"].append(chance)
    return found


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _converted(feature: Feature, value: Any) -> Any:
    """A text as its contract reads it, None for what the contract calls missing, and true or false as training spells it.

    `value` itself if it does not fit.
    """
    if isinstance(value, str):
        if value.strip() in feature.missing and value not in feature.levels:
            return None
        if feature.read is None:
            return value
        try:
            value = feature.read(value)
        except ValueError:
            return value
    elif isinstance(value, int | float) and value in feature.missing:
        return None
    if isinstance(value, bool):
        return next((level for level in feature.levels if level.lower() == str(value).lower()), value)
    return value


def _check_value(feature: Feature, value: Any) -> None:
    """Raises RequestError for a value of a wrong type or outside its rules."""
    if value is not None:
        if feature.type == "number":
            if not isinstance(value, float | int) or value in (math.inf, -math.inf):
                raise RequestError(feature.name, "must be a finite number, or null", value)
        elif not isinstance(value, str | int | float):
            raise RequestError(feature.name, "must be a text, or null", value)
        elif feature.type == "date" and not isinstance(value, datetime):
            _check_date(feature.name, value)
    _check_rules(feature.rules, feature.name, value)


def _check_rules(rules: Sequence[Rule], name: str, value: Any) -> None:
    for rule in rules:
        if not rule.holds(value):
            raise RequestError(name, rule.text, value)


def _check_date(name: str, value: Any) -> None:
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        raise RequestError(name, "must be a date, such as 2024-03-31 or 2024-03-31T17:00", value) from None


def _cutoff(value: Any) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise RequestError(CUTOFF, "must be a day, such as 2024-03-31", value) from None


def entity_key(value: Any) -> str:
    """The key of an entity as text: 7 and 7.0 are the same entity."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
