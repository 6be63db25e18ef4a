"""Loading of a registered version into memory, from the registry, params and the project's files."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from evergreen.serving import column_rules, missing_values
from evergreen.serving.feature import Feature, Type
from evergreen.serving.loaded_model import ListModel, LoadedModel, PredictRows, RowModel
from evergreen.serving.online_features import OnlineFeatures
from evergreen.tasks.config.params import KindName, Params, Tabular
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.model_files import onnx_runtime

if TYPE_CHECKING:
    from evergreen.serving.event_log import EventLog
    from evergreen.serving.fresh_features import FreshFeatures
    from evergreen.tasks.config.data import Source
    from evergreen.tasks.release.model_registry import Registry

NO_READERS: Mapping[str, Callable[[str], Any]] = MappingProxyType({})
TYPES: Mapping[str, Type] = {"string": "text", "datetime": "date"}
"""MLflow's name of a type -> ours; all others are numbers."""


def load(
    params: Params,
    layout: Layout,
    registry: "Registry",
    events: "EventLog",
    problem: str,
    version: int,
    readers: Mapping[str, Callable[[str], Any]] = NO_READERS,
    source: "Source | None" = None,
    fresh: "FreshFeatures | None" = None,
) -> LoadedModel:
    """The version, ready to predict. Raises ModelError if it cannot be loaded.

    `readers`: see Feature.read. `source`: the contract of the table whose columns are the features; None: that of params.
    `fresh`: the features of the problem; None: those of the features step.
    """
    section = params.section(problem)
    if section.predicts == "lists":
        from evergreen.serving.recommender_service import OnlineRecommender

        model = registry.load(problem, version)
        recommender = OnlineRecommender(params, problem, layout, model, version, events)
        return ListModel(recommender, section.features.item, section.features.user)
    described, compiled = registry.model_input(problem, version), registry.load_compiled(problem, version)
    kind, rules = params.kind(problem), column_rules.from_params(params, section)
    types = _types(described.features, section)
    if source is None and section.features.by_cutoff is False:
        source = params.ingest.get(section.features.table)
    features = [
        Feature(
            name, type_, rules.get(name, ()), readers.get(name), frozenset(described.levels.get(name, ())),
            missing_values.of_column(source, name, type_), name not in described.optional,
        )
        for name, type_ in types.items()
    ]  # fmt: skip
    load_pipeline = partial(_load_pipeline, registry, problem, version, kind, features)
    online_features = fresh
    if fresh and (unknown := [name for name in described.features if name not in fresh.names]):
        raise ModelError(f"{problem}: v{version} reads {unknown[0]}, which params.yaml no longer defines; train again")
    if section.features.by_cutoff is True and not fresh:
        online_features = OnlineFeatures(partial(layout.newest_rows, problem), section.features.entity, described.features)
    return RowModel(
        problem, version, kind, features, described.example, compiled or load_pipeline(),
        entity=section.features.entity, online_features=online_features, load_pipeline=load_pipeline,
        background=described.background,
    )  # fmt: skip


def _types(registered: Mapping[str, str], section: Tabular) -> dict[str, Type]:
    """Feature -> type: as registered; a text with the role `date` in params is a date."""
    roles = section.features.roles
    return {name: "date" if roles.get(name) == "date" else TYPES.get(type_, "number") for name, type_ in registered.items()}


def _load_pipeline(
    registry: "Registry", problem: str, version: int, kind: KindName, features: Sequence[Feature]
) -> PredictRows:
    """The registered pipeline as a function of rows. Imports the training libraries."""
    import pandas as pd

    from evergreen.tasks import problems

    model, predictions = registry.load(problem, version), problems.kind(kind).predict_rows  # type: ignore[attr-defined]

    def column(feature: Feature, values: list[Any]) -> "pd.Series":
        if feature.type == "number":
            return pd.Series(values, dtype="float64")
        if feature.type == "date":
            return pd.Series(pd.to_datetime(values, utc=True, format="ISO8601")).dt.tz_localize(None)
        return pd.Series([None if each is None else onnx_runtime.text(each, "") for each in values], dtype="str")

    def predict(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        frame = pd.DataFrame({each.name: column(each, [row[each.name] for row in rows]) for each in features})
        columns = {name: values.tolist() for name, values in predictions(model, frame).items()}
        return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]

    return predict
