"""One loaded version of a problem: what it takes, and what it says. No frame on the way of a compiled model's answers."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from evergreen.serving.batching import Batch
from evergreen.serving.online_features import Newest
from evergreen.tasks.config.params import Expectation, KindName, Params, Recommend, Table, Tabular
from evergreen.tasks.core.errors import EvergreenError, ModelError, RequestError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files import onnx_runtime
from evergreen.tasks.model_files.onnx_runtime import Compiled, Point

if TYPE_CHECKING:
    from evergreen.serving.event_log import EventLog
    from evergreen.serving.recommender_service import Recommendations
    from evergreen.tasks.problems.recommender.list_builder import Answer, Request
    from evergreen.tasks.release.model_registry import Registry

Type = Literal["number", "text", "date"]
TYPES: Mapping[str, Type] = {"string": "text", "datetime": "date"}
"""MLflow's name of a type -> ours; all others are numbers."""
CUTOFF = "cutoff"
"""A row of features made from events may say which day they were known on."""


@dataclass(frozen=True)
class Domain:
    """A rule of params.yaml (section validate) that holds for every value of a feature."""

    holds: Callable[[Any], bool]
    rule: str


@dataclass(frozen=True)
class Feature:
    name: str
    type: Type
    domains: tuple[Domain, ...] = ()
    """A missing value keeps all of them but `not null`."""


@dataclass(slots=True)
class Asked:
    """A row that was read."""

    features: Mapping[str, Any]
    """The features alone, as they came or as they were looked up."""
    entity: str | None
    cutoff: date | None
    """The last day that the features know, where that is known."""
    point: Point | None
    """What a compiled model takes; None where the pipeline answers."""


class Served:
    """A version of a problem, loaded. Several threads may ask it at once."""

    problem: str
    version: int
    kind: KindName

    def check(self) -> Sequence[Mapping[str, Any]] | None:
        """Answer the version's own example, which also warms it, and give the answers back.

        Raises ModelError where that fails or gives no finite number. None: there is no example of rows.
        """
        raise NotImplementedError


class Rows(Served):
    """A version of a problem that answers rows of features: classification, regression, clustering."""

    def __init__(
        self,
        problem: str,
        version: int,
        kind: KindName,
        features: Sequence[Feature],
        example: Sequence[Mapping[str, Any]],
        answers: "Compiled | Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]",
        *,
        entity: str | None = None,
        newest: Newest | None = None,
        pipeline: Callable[[], Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]] | None = None,
    ) -> None:
        """`answers`: the compiled model, or what the pipeline says to rows. `pipeline`: loads what the pipeline says."""
        self.problem, self.version, self.kind = problem, version, kind
        self.features = {each.name: each for each in features}
        self.example = tuple(dict(each) for each in example)
        self.compiled = answers if isinstance(answers, Compiled) else None
        self.entity, self.newest = entity, newest
        self._ask = None if isinstance(answers, Compiled) else answers
        self._load, self._loading = pipeline, Lock()
        self._ruled = tuple((each.name, each.domains) for each in features if each.domains)
        self._keys = frozenset({*self.features, *([entity] if entity else []), *([CUTOFF] if newest else [])})
        self.said: Mapping[str, Any] = {}
        """The answer to the first row of the example, once it was checked."""
        self.batch: Batch[Asked] | None = None
        """Where a server collects its rows."""
        self._width = len(self.features)
        plain = self.compiled is not None and len(self.compiled.features) == self._width
        self._read_plain = self.compiled.read_plain if self.compiled and plain else None

    def read(self, row: Mapping[str, Any]) -> Asked:
        """A row of features as JSON has them, perhaps with the entity's key and the cutoff; or the entity's key alone.

        Raises RequestError for a column that is unknown or missing, and for a value of another type or out of its domain.
        """
        if self._read_plain and (point := self._read_plain(row)):
            more = len(row) - self._width
            if more:
                more -= (self.entity in row) + (self.newest is not None and CUTOFF in row)
            if not more:  # all features are there, so what is over is known too
                return self._read_quickly(row, point)
        return self._read(row)

    def _read_quickly(self, row: Mapping[str, Any], point: Point) -> Asked:
        """A row of all features whose values are of their types."""
        for name, domains in self._ruled:
            _keep(domains, name, row[name])
        if len(row) == self._width:
            return Asked(row, None, None, point)
        return Asked({name: row[name] for name in self.features}, *self._about(row), point)

    def _read(self, row: Mapping[str, Any]) -> Asked:
        entity, cutoff = self._about(row)
        if entity is not None and self.newest and len(row) == 1:
            features, cutoff = self.newest.of(entity)
        else:
            features = row if len(row) == self._width else {name: row[name] for name in self.features if name in row}
            self._refuse_unknown(row)
            for name, each in self.features.items():
                if name not in row:
                    raise RequestError(name, self._missing_rule())
                _check(each, row[name])
        point = self.compiled.read(features) if self.compiled else None
        return Asked(features, entity, cutoff, point)

    def answer(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The answer to each: `prediction`, and of a classifier `probability_<class>` of each class."""
        if self.compiled:
            return self.compiled.answer([each.point for each in asked if each.point])
        assert self._ask is not None
        return self._ask([each.features for each in asked])

    def answer_by_pipeline(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The same by the pipeline that was compiled; loads it at the first call, which takes seconds."""
        with self._loading:
            if self._ask is None:
                assert self._load is not None
                self._ask = self._load()
        return self._ask([each.features for each in asked])

    def check(self) -> Sequence[Mapping[str, Any]]:
        what = f"{self.problem} v{self.version}"
        try:
            said = self.answer([self.read(row) for row in self.example])
        except (EvergreenError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{what}: does not answer its own example: {error}. Train again, or roll back.") from error
        for answer in said:
            for name, value in answer.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ModelError(f"{what}: answers {name} = {value} to its own example. Train again, or roll back.")
        self.said = said[0] if said else {}
        return said

    def _about(self, row: Mapping[str, Any]) -> tuple[str | None, date | None]:
        key = row.get(self.entity) if self.entity else None
        if key is not None and not isinstance(key, str | int | float):
            raise RequestError(str(self.entity), "must be a text or a number", key)
        return None if key is None else key_of(key), _day(row.get(CUTOFF)) if self.newest else None

    def _refuse_unknown(self, row: Mapping[str, Any]) -> None:
        for name in row:
            if name not in self._keys:
                from evergreen.tasks.config.params import nearest

                raise RequestError(name, f"is no column of {self.problem}{nearest(name, self._keys)}", row[name])

    def _missing_rule(self) -> str:
        either = f", or give {self.entity} alone" if self.newest else ""
        return f"is missing from the row; give null for a value that is not known{either}"


class Lists(Served):
    """A version of a recommender."""

    kind = "recommendation"

    def __init__(self, recommendations: "Recommendations", item: str, user: str) -> None:
        self.problem, self.version = recommendations.problem, recommendations.version
        self.recommendations, self.item, self.user = recommendations, item, user

    def example_user(self) -> Any:
        """Somebody who bought."""
        return next(iter(self.recommendations.users()), None)

    def example_item(self) -> Any:
        """Something that can be bought."""
        return next(iter(self.recommendations.items()), None)

    def lists(self, request: "Request") -> list[dict[str, Any]]:
        """One for each user of the request: user, items (item, score, source, explanation), notes, as_of, learned.

        Raises DataError and ParamsError for a wish that cannot be.
        """
        return self._told(request, self.recommendations.answer(request))

    def kept(self, request: "Request") -> list[dict[str, Any]] | None:
        """The same, where it was given before and still holds; takes microseconds."""
        found = self.recommendations.kept(request)
        return None if found is None else self._told(request, found)

    def _told(self, request: "Request", answer: "Answer") -> list[dict[str, Any]]:
        users = list(request.users) or [None]
        days = {"as_of": answer.as_of, "learned": answer.learned}
        found: list[dict[str, Any]] = [{"user": user, "items": [], "notes": [], **days} for user in users]
        explanation: Sequence[str | None] = answer.explanation or [None] * len(answer.row)
        columns = (answer.row, answer.item, answer.score, answer.source, explanation)
        for row, item, score, source, why in zip(*(_plain(each) for each in columns), strict=True):
            one = {"item": item, "score": None if score != score else score, "source": source, "explanation": why}
            found[row]["items"].append(one)
        for note in answer.notes:
            found[note.row]["notes"].append(str(note))
        return found

    def check(self) -> None:
        """It answered when it was made (see Recommendations)."""


def load(params: Params, layout: Layout, registry: "Registry", events: "EventLog", problem: str, version: int) -> Served:
    """The version, ready to answer. Raises ModelError for one that cannot be loaded."""
    section = params.section(problem)
    if isinstance(section, Recommend):
        from evergreen.serving.recommender_service import Recommendations

        model = registry.load(problem, version)
        return Lists(
            Recommendations(params, problem, layout, model, version, events), section.features.item, section.features.user
        )
    described, found = registry.described(problem, version), registry.load_compiled(problem, version)
    kind, rules = params.kind(problem), _domains(params, section)
    types = _types(described.features, section)
    features = [Feature(name, type_, rules.get(name, ())) for name, type_ in types.items()]
    pipeline = partial(_pipeline, registry, problem, version, kind, features)
    newest = None
    if not isinstance(section.features, Table):
        newest = Newest(layout.features(problem) / "rows.parquet", section.features.entity, described.features)
    return Rows(
        problem, version, kind, features, described.example, found or pipeline(),
        entity=section.features.entity, newest=newest, pipeline=pipeline,
    )  # fmt: skip


def _types(registered: Mapping[str, str], section: Tabular) -> dict[str, Type]:
    """Feature -> its type: as registered, where a date, which JSON has as a text, is one by its role in params."""
    roles = section.features.columns if isinstance(section.features, Table) else {}
    return {name: "date" if roles.get(name) == "date" else TYPES.get(type_, "number") for name, type_ in registered.items()}


def _pipeline(
    registry: "Registry", problem: str, version: int, kind: KindName, features: Sequence[Feature]
) -> Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]:
    """What the registered pipeline says to rows. Imports what training does."""
    import pandas as pd

    from evergreen.tasks import problems

    model, said = registry.load(problem, version), problems.kind(kind).said  # type: ignore[attr-defined]

    def column(feature: Feature, values: list[Any]) -> "Any":
        if feature.type == "number":
            return pd.Series(values, dtype="float64")
        if feature.type == "date":
            return pd.Series(pd.to_datetime(values, utc=True, format="ISO8601")).dt.tz_localize(None)
        return pd.Series([None if each is None else onnx_runtime.text(each, "") for each in values], dtype="str")

    def ask(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        frame = pd.DataFrame({each.name: column(each, [row[each.name] for row in rows]) for each in features})
        columns = {name: values.tolist() for name, values in said(model, frame).items()}
        return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]

    return ask


def _check(feature: Feature, value: Any) -> None:
    """Raises RequestError for a value that is of another type or out of its domain."""
    if value is not None:
        if feature.type == "number":
            if not isinstance(value, float | int) or value in (math.inf, -math.inf):
                raise RequestError(feature.name, "must be a number, or null", value)
        elif not isinstance(value, str | int | float):
            raise RequestError(feature.name, "must be a text, or null", value)
        elif feature.type == "date" and not isinstance(value, datetime):
            _moment(feature.name, value)
    _keep(feature.domains, feature.name, value)


def _keep(domains: Sequence[Domain], name: str, value: Any) -> None:
    for domain in domains:
        if not domain.holds(value):
            raise RequestError(name, domain.rule, value)


def _plain(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _moment(name: str, value: Any) -> None:
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        raise RequestError(name, "must be a date, such as 2024-03-31 or 2024-03-31T17:00", value) from None


def _day(value: Any) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise RequestError(CUTOFF, "must be a day, such as 2024-03-31", value) from None


def key_of(value: Any) -> str:
    """Of an entity, as text: 7 and 7.0 are the same one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- domains that params.yaml declares ---------------------------------------------------------------------------------------


def _domains(params: Params, section: Tabular) -> dict[str, tuple[Domain, ...]]:
    """Feature -> what its values must keep: the rules on rows of its table's column, for features that are such a column."""
    if isinstance(section.features, Table):
        sources = [(section.features.table, list(section.features.columns))]
    else:
        sources = [(each.table, list(each.columns)) for each in section.features.attributes]
    found: dict[str, tuple[Domain, ...]] = {}
    for table, columns in sources:
        rules = params.validate_.get(table)
        for rule in rules.expectations if rules and isinstance(section.features, Table) else ():
            name = rule.kwargs.get("column")
            if name in columns and rule.severity == "error":
                found[name] = (*found.get(name, ()), *_domain(rule))
    return found


def _domain(rule: Expectation) -> Iterator[Domain]:
    given = rule.kwargs
    if given.get("mostly", 1) < 1 or "row_condition" in given:
        return  # not a rule for each value
    if rule.type == "expect_column_values_to_not_be_null":
        yield Domain(lambda value: value is not None, "must not be null")
    elif rule.type == "expect_column_values_to_be_in_set":
        allowed = list(given.get("value_set") or [])
        yield Domain(lambda value: value is None or value in allowed, f"must be one of {', '.join(map(str, allowed))}")
    elif rule.type == "expect_column_values_to_not_be_in_set":
        banned = list(given.get("value_set") or [])
        yield Domain(lambda value: value is None or value not in banned, f"must be none of {', '.join(map(str, banned))}")
    elif rule.type == "expect_column_values_to_be_between":
        yield from _between(given)
    elif rule.type == "expect_column_values_to_match_regex":
        form = re.compile(str(given["regex"]))
        yield Domain(lambda value: value is None or form.search(str(value)) is not None, f"must match {form.pattern}")


def _between(given: Mapping[str, Any]) -> Iterator[Domain]:
    low, high = given.get("min_value"), given.get("max_value")
    if isinstance(low, int | float):
        strict = bool(given.get("strict_min"))
        yield Domain(partial(_above, low, strict), f"must be {'above' if strict else 'at least'} {low}")
    if isinstance(high, int | float):
        strict = bool(given.get("strict_max"))
        yield Domain(partial(_below, high, strict), f"must be {'below' if strict else 'at most'} {high}")


def _above(low: float, strict: bool, value: Any) -> bool:
    return not isinstance(value, int | float) or (value > low if strict else value >= low)


def _below(high: float, strict: bool, value: Any) -> bool:
    return not isinstance(value, int | float) or (value < high if strict else value <= high)
