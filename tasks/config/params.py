"""params.yaml as a frozen model: the project, its tables, its problems and a section per problem.

This module is the public front of the room: it exports every section. `loading.load` reads the file.
"""

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from evergreen.tasks.config.base import Days, Name, Options, Section
from evergreen.tasks.config.data import Expectation, Reference, Rules, Source
from evergreen.tasks.config.features import (
    Aggregate,
    Attributes,
    Cutoffs,
    Features,
    FeatureSource,
    Interactions,
    Population,
    Ratio,
    Role,
    Share,
    Table,
    Target,
)
from evergreen.tasks.config.modelling import Costs, Evaluate, Gate, Pipeline, Range, Train, Tune
from evergreen.tasks.config.operations import Answers, Cron, Monitor, Retrain, Rollout, Schedule, ScoringInput, Serve
from evergreen.tasks.config.recommender import Fraction, Id, ListRules, Lists, Sources, Switches
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest

__all__ = [
    "Aggregate",
    "Answers",
    "Attributes",
    "Costs",
    "Cutoffs",
    "Days",
    "Evaluate",
    "Expectation",
    "FeatureSource",
    "Features",
    "Fraction",
    "Gate",
    "Id",
    "Interactions",
    "KindName",
    "ListRules",
    "Lists",
    "Monitor",
    "Name",
    "Options",
    "Params",
    "Pipeline",
    "Population",
    "Problem",
    "Project",
    "Range",
    "Ratio",
    "Recommend",
    "Reference",
    "Retrain",
    "Role",
    "Rollout",
    "Rules",
    "Schedule",
    "ScoringInput",
    "Section",
    "Serve",
    "Share",
    "Source",
    "Sources",
    "Switches",
    "Table",
    "Tabular",
    "Target",
    "Train",
    "Tune",
]

KindName = Literal["classification", "regression", "clustering", "recommendation"]


class Project(Section):
    """The project as a whole."""

    name: str
    """Project name, on the report page and in the registry."""
    id: Annotated[str, Field(pattern=r"^[a-z0-9]{0,32}$")] = ""
    """Distinguishes the project from others of the same name on a shared server; `evergreen init` draws it. A clone or copy of
    the project has the same id. "": the name alone."""
    seed: int = 0
    """Seed of all random draws. The same seed and data give the same models."""
    as_of: date | None = None
    """Last known day (inclusive, local time): later rows are left out. null: the newest day in the data; if no table has a time
    column, the day on which it was read."""
    prune: Cron | None = None
    """Schedule of `evergreen prune`, in UTC, for example "0 3 * * 0": Sundays at 3:00. null: not scheduled."""

    @property
    def key(self) -> str:
        """The project on a shared server: what does not change when its folder is moved or, with an id, its name changes."""
        return self.id or self.name

    @property
    def shared_name(self) -> str:
        """The name with the id, for people on a shared server."""
        return f"{self.name}-{self.id}" if self.id else self.name


FORMS: dict[str, type[Section]] = {"events": Features, "table": Table}
"""Tag -> form of the features of a tabular problem."""


def _form(features: Any) -> str:
    """The tag: only a plain table names its table."""
    known = features if isinstance(features, dict) else dict(features) if isinstance(features, Section) else {}
    return "table" if "table" in known else "events"


class Tabular(Section):
    """Classification, regression or clustering: one row per entity and cutoff, or per row of a plain table."""

    predicts: ClassVar[Literal["rows"]] = "rows"
    """One prediction per row of features."""

    question: str
    """The question in one plain sentence, shown on the report page."""
    features: Annotated[Annotated[Features, Tag("events")] | Annotated[Table, Tag("table")], Discriminator(_form)]
    """Features computed from events (entity, cutoffs, aggregates), or a plain table (table, target, columns)."""
    pipeline: Pipeline = Pipeline()
    tune: Tune = Tune()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    answers: Answers = Answers()
    rollout: Rollout = Rollout()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def fresh_needs_events(self) -> "Tabular":
        if self.answers.features == "fresh" and not self.features.by_cutoff:
            raise ValueError("a plain table has no events: answers.features must be batch")
        return self

    @model_validator(mode="after")
    def windows_need_cutoffs(self) -> "Tabular":
        if not self.features.by_cutoff and (self.retrain.window != "expanding" or self.train.half_life_days):
            raise ValueError(
                "rows of a plain table have no cutoffs: retrain.window must be expanding, train.half_life_days null"
            )
        return self


class Recommend(Section):
    """Recommendation: one list of items per user."""

    predicts: ClassVar[Literal["lists"]] = "lists"
    """One ranked list per user."""

    question: str
    """The question in one plain sentence, shown on the report page."""
    features: Interactions
    pipeline: Sources = Sources()
    lists: Lists = Lists()
    tune: Tune = Tune()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def purchases_have_their_own_weights(self) -> "Recommend":
        if self.retrain.window == "weighted" or self.train.half_life_days:
            raise ValueError(
                "pipeline.half_life_days weights purchases: retrain.window must be expanding or sliding, "
                "train.half_life_days null"
            )
        return self


Problem = Tabular | Recommend
SECTIONS: dict[str, type[Tabular] | type[Recommend]] = {
    "classification": Tabular,
    "regression": Tabular,
    "clustering": Tabular,
    "recommendation": Recommend,
}
"""Kind -> model of its section."""


class Params(Section):
    """All of params.yaml. Each name under `problems` has its own section at the top level of the file."""

    project: Project
    ingest: dict[Name, Source]
    """Table -> source."""
    validate_: Annotated[dict[str, Rules], Field(alias="validate")] = {}
    """Table -> validation rules."""
    problems: dict[Name, KindName]
    """Problem -> kind."""
    serve: Serve = Serve()
    """HTTP service."""
    sections: dict[str, Problem] = {}
    """Problem -> section."""

    def kind(self, problem: str) -> KindName:
        """The kind of `problem`. Raises ParamsError for an unknown one."""
        self.section(problem)
        return self.problems[problem]

    def narrow(self, names: Sequence[str]) -> "Params":
        """The same with the problems `names` alone; without names, with all. Raises ParamsError for an unknown one."""
        for name in names:
            self.section(name)
        return self.model_copy(update={"problems": {name: self.problems[name] for name in names or self.problems}})

    def section(self, problem: str) -> Problem:
        """The section of `problem`. Raises ParamsError, with the most similar name, for an unknown one."""
        if problem not in self.sections:
            raise ParamsError(f"{problem}: no such problem in params.yaml{nearest(problem, self.sections)}")
        return self.sections[problem]
