"""The typed, frozen view of params.yaml: every number a person may change, each with its unit and effect.

`load` reads the file once. A wrong key or value is refused with file, key, value, rule and the nearest right name.
"""

import difflib
import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from evergreen.tasks.config.base import Days, Name, Options, Section
from evergreen.tasks.config.operations import Monitor, Retrain, Rollout, Schedule, Serve
from evergreen.tasks.core.errors import ParamsError

KindName = Literal["classification", "regression", "clustering", "recommendation"]


class Project(Section):
    name: str
    """Names the project on its page and in the registry."""
    seed: int = 0
    """Seeds every random draw; the same seed and data give the same models."""
    as_of: date | None = None
    """Last day that counts as known (inclusive, local time). null: the newest day in the data; where no table has times, the
    day on which it was read."""


class Source(Section):
    """Where one table comes from. Exactly one of store, csv, parquet and sql."""

    store: str | None = None
    """Name of a table of the worked example's package."""
    csv: str | None = None
    """Path of a CSV file, relative to params.yaml."""
    parquet: str | None = None
    """Path or glob of parquet files, relative to params.yaml."""
    sql: str | None = None
    """A query; needs `url`."""
    url: str | None = None
    """SQLAlchemy URL of the database, or env:NAME to read it from the environment (do so for passwords)."""
    separator: str = ","
    """CSV: the character between two fields."""
    encoding: str = "utf8"
    """CSV: the encoding of the file, for example latin-1."""
    decimal: Literal[".", ","] = "."
    """CSV: the mark before the decimals of a number; a comma needs another separator."""
    null_values: tuple[str, ...] = ()
    """Texts that mean that a value is missing, for example ["NA", "?"]; an empty one always does."""
    columns: tuple[str, ...] | None = None
    """Columns to keep, in this order. null: all."""
    types: dict[str, Literal["integer", "number", "text", "boolean", "date", "datetime"]] = {}
    """Column types that must hold; a value that does not convert stops the run."""
    date_formats: dict[str, str] = {}
    """How dates are written in a column of text that `types` calls date or datetime, for example {paid: "%m/%d/%Y"}. Without:
    2024-12-31, 31/12/2024, 31.12.2024, with a time or not."""
    time: str | None = None
    """Column that says when a row became known; rows after `as_of` are left out. null: known from the start."""
    stored_timezone: str | None = None
    """Time zone that the time column is stored in, for example UTC. null: already local."""
    local_timezone: str | None = None
    """Time zone of the business, for example America/New_York; times are converted to it before anything else."""

    @model_validator(mode="after")
    def one_source(self) -> "Source":
        named = [name for name in ("store", "csv", "parquet", "sql") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of store, csv, parquet, sql; has {', '.join(named) or 'none'}")
        if (self.sql is None) != (self.url is None):
            raise ValueError("sql and url go together")
        if (self.stored_timezone is None) != (self.local_timezone is None):
            raise ValueError("stored_timezone and local_timezone go together")
        if self.decimal == self.separator:
            raise ValueError(f"decimal and separator are both {self.decimal}; one of them is something else")
        undated = next((name for name in self.date_formats if self.types.get(name) not in ("date", "datetime")), None)
        if undated is not None:
            raise ValueError(f"date_formats names {undated}, which types does not call date or datetime")
        return self


class Expectation(Section):
    """One rule in the vocabulary of Great Expectations."""

    type: str
    """Expectation type, for example expect_column_values_to_be_between."""
    kwargs: dict[str, Any] = {}
    """Its arguments, for example {column: quantity, min_value: 0}."""
    severity: Literal["error", "warning"] = "error"
    """error: rows that break it go to quarantine (a row rule) or the run stops (a table rule). warning: reported only."""
    name: str | None = None
    """Short name in reports and in quarantine. null: type and column."""


class Reference(Section):
    """Values of a column that another table must know."""

    to: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    """Table and column that know them, for example products.product_id."""
    where: str | None = None
    """SQL condition on the rows that the rule is about. null: all; a missing value is never asked for."""
    severity: Literal["error", "warning"] = "error"
    """error: rows with an unknown value go to quarantine. warning: reported only."""
    join_columns: tuple[str, ...] = ()
    """Columns of that table that the other rules may look at; they are not kept."""


class Rules(Section):
    """What must hold of one table before anything learns from it."""

    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest share of rows (0 to 1) that may go to quarantine; above it the run stops."""
    unique: tuple[str, ...] = ()
    """Columns that together are unique; later duplicates go to quarantine. Empty: no such rule."""
    drop_duplicates: bool = False
    """Drop rows that repeat an earlier row in every column, before the rules; their number is reported."""
    references: dict[str, Reference] = {}
    """Column -> the table and column that must know its values."""
    derived: dict[str, str] = {}
    """Name -> SQL expression on the columns: further columns that rules may look at; they are not kept."""
    expectations: tuple[Expectation, ...] = ()
    """The rules, checked in one pass."""


class Aggregate(Section):
    """One number per entity and window, computed from events."""

    name: str
    """Feature name; the window is appended, as in spend_28d."""
    table: str
    """Table of events; it needs `entity` and a time column (the one its source names, or that of `join`)."""
    column: str | None = None
    """Column to aggregate. null with count."""
    function: Literal["count", "sum", "mean", "min", "max", "std", "n_unique", "days_since_last", "days_since_first"] = "count"
    """What to compute over the rows of a window; the two days_* ones look at all history and have no window."""
    where: str | None = None
    """SQL condition on one event, for example coupon_disc > 0 or end_date > cutoff (the row's cutoff). null: every event."""
    join: tuple[str, str] | None = None
    """Table and its key that add columns to the event, for example [products, product_id]; an event counts from the day on
    which both are known."""
    windows_days: tuple[Days, ...] | None = None
    """Windows for this aggregate. null: those of the features section."""

    @model_validator(mode="after")
    def column_where_needed(self) -> "Aggregate":
        counts = self.function in ("count", "days_since_last", "days_since_first")
        if counts == (self.column is not None):
            raise ValueError(f"{self.function} {'takes no column; use where' if counts else 'needs column'}")
        return self


class Ratio(Section):
    name: str
    """Feature name."""
    numerator: str
    """A feature."""
    denominator: str | float
    """A feature, or a number; where it is zero the ratio is missing."""


class Share(Section):
    """Which share of a total each of the largest categories has, per entity."""

    name: str
    """Prefix of the features, one per category."""
    table: str
    """Table of events."""
    category: str
    """Column of the category; it may come from `join`."""
    value: str
    """Column that is summed."""
    join: tuple[str, str] | None = None
    """Table and its key to join for the category, for example [products, product_id]."""
    top: Annotated[int, Field(ge=1)] = 10
    """How many categories get a feature: the largest by value up to the first cutoff."""
    window_days: Days = 56
    """Days before the cutoff, inclusive."""


class Attributes(Section):
    table: str
    """Table of facts about the entity, one row each, known from the start."""
    columns: tuple[str, ...]
    """Columns to join by the entity."""


class Population(Section):
    table: str
    """Table of events."""
    within_days: Days
    """Only entities with an event in that many days before the cutoff, inclusive, get a row."""


class Cutoffs(Section):
    first: date
    """Earliest cutoff: the last day (inclusive) that its features may use."""
    every_days: Days = 14
    """Days between two cutoffs, counted backwards from the last day whose label is complete."""


class Target(Section):
    table: str
    """Table of events after the cutoff."""
    function: Literal["any", "none", "sum", "count"]
    """any and none give 0 or 1; sum needs `column`."""
    column: str | None = None
    """Column to sum."""
    where: str | None = None
    """SQL condition on the event's columns."""

    @model_validator(mode="after")
    def column_where_needed(self) -> "Target":
        if (self.function == "sum") == (self.column is None):
            raise ValueError("sum needs column" if self.column is None else f"{self.function} takes no column; use where")
        return self


Role = Literal["number", "category", "text", "date"]
"""What a column of a plain table is: a number; a name (also a number that only names); words; a date or time."""


class FeatureSource(Section):
    """What features are made of. What differs between the forms is asked here, and of `by_cutoff`, which each form has:
    whether features are as of a cutoff, so that there are newest ones.
    """

    @property
    def roles(self) -> dict[str, Role]:
        """Feature -> what it is, where params say so."""
        return {}

    @property
    def source_name(self) -> str:
        """What they are made of, in a word."""
        return "events"

    @property
    def target_column(self) -> str | None:
        """Column of the rows that is predicted. None: it is none of their columns."""
        return None

    @property
    def time_column(self) -> str | None:
        """Column that orders the rows. None: their cutoff does, or nothing."""
        return None

    @property
    def label_horizon_days(self) -> int | None:
        """Days after the cutoff whose events give the label. None: the project's tables give none after training."""
        return None

    @property
    def tables(self) -> list[str]:
        """The tables that are read, each once, in the order of the section."""
        return list(dict.fromkeys(name for name in self._tables() if name))

    def _tables(self) -> list[str | None]:
        raise NotImplementedError


class Features(FeatureSource):
    """A point-in-time table: one row per entity and cutoff, nothing after the cutoff in it."""

    by_cutoff: ClassVar[Literal[True]] = True

    entity: str
    """Key of the things that rows are about."""
    horizon_days: Days
    """The label looks at the days 1 to this after the cutoff."""
    cutoffs: Cutoffs
    """Which days rows are made for."""
    population: Population | None = None
    """Which entities get a row. null: all seen so far."""
    target: Target | None = None
    """What is predicted. null: nothing (clustering)."""
    windows_days: tuple[Days, ...] = (7, 28)
    """Default windows before the cutoff, in days, inclusive."""
    aggregates: tuple[Aggregate, ...] = ()
    """Numbers per entity and window."""
    ratios: tuple[Ratio, ...] = ()
    """Quotients of features."""
    shares: tuple[Share, ...] = ()
    """Shares by category."""
    calendar: tuple[Literal["month", "week_of_year", "day_of_year"], ...] = ()
    """Facts about the cutoff itself; the two cyclic ones come as sine and cosine."""
    attributes: tuple[Attributes, ...] = ()
    """Facts about the entity."""
    keep: tuple[str, ...] | None = None
    """Features that the model sees, in this order. null: all."""

    @property
    def label_horizon_days(self) -> int | None:
        return self.horizon_days if self.target else None

    def _tables(self) -> list[str | None]:
        return [
            self.population and self.population.table,
            self.target and self.target.table,
            *(part.table for part in (*self.aggregates, *self.shares, *self.attributes)),
            *(part.join[0] for part in (*self.aggregates, *self.shares) if part.join),
        ]


class Table(FeatureSource):
    """A plain table, one row per case: its columns are the features, and what is predicted is one of them too."""

    by_cutoff: ClassVar[Literal[False]] = False

    table: str
    """The table."""
    target: str | None = None
    """Column that is predicted; rows without it teach nothing. null: nothing is predicted (clustering)."""
    positive_class: str | None = None
    """classification, two classes: the one that probability, precision and recall are about. null: the later one in order."""
    columns: Annotated[dict[str, Role], Field(min_length=1)]
    """Feature -> what it is."""
    entity: str | None = None
    """Column that says whom a row is about; never a feature. The rows of one entity stay on one side of every split, and
    intervals are over entities. null: each row is about another one."""
    time: str | None = None
    """Column (date or time) that orders the rows: what judges is always later than what was learned from. null: no order."""
    gap_days: Annotated[int, Field(ge=0)] = 0
    """With time: days between what is learned from and what judges it, for truths that take that long to be known."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows that the search never sees and the model is judged on: the newest with time, else drawn by a hash of
    the row, so that they stay the same when rows are added."""

    @model_validator(mode="after")
    def roles_apart(self) -> "Table":
        for name in ("target", "entity"):
            if getattr(self, name) in self.columns:
                raise ValueError(f"{name} = {getattr(self, name)} is also a feature; take it out of columns")
        if self.gap_days and self.time is None:
            raise ValueError("gap_days needs time")
        return self

    @property
    def roles(self) -> dict[str, Role]:
        return self.columns

    @property
    def source_name(self) -> str:
        return self.table

    @property
    def target_column(self) -> str | None:
        return self.target

    @property
    def time_column(self) -> str | None:
        return self.time

    def _tables(self) -> list[str | None]:
        return [self.table]


class Interactions(FeatureSource):
    """The events a recommender learns from: one line per user, basket and item."""

    by_cutoff: ClassVar[Literal[True]] = True

    table: str
    """Table of purchases; its source names the time column, or `order` numbers its rows."""
    order: str | None = None
    """Column that numbers the orders of a shop without dates; the newest orders of all users are laid side by side and count as
    made on the last known day. null: the table has times."""
    order_scope: Literal["user", "shop"] = "user"
    """user: each user's orders are counted on their own (1, 2, 3, …). shop: one sequence for all, in the order of time."""
    days_per_order: Days = 7
    """Days that one order stands for where there are no dates, so that whatever is given in days has a meaning."""
    horizon_orders: Days = 1
    """Where there are no dates: the truth is in so many orders after the cutoff."""
    user: str
    """Key of the user."""
    item: str
    """Key of the item."""
    basket: str
    """Key of the basket."""
    items: str | None = None
    """Table of facts about items, one row each. null: none."""
    category: str | None = None
    """Column of `items` that groups them; used for features and rules."""
    groups: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    """Up to two more columns of `items` that group them, such as type and brand: for the ranker alone."""
    name: str | None = None
    """Column of `items` that says in words what an item is, for the reasons of answers. null: its category."""
    stock: str | None = None
    """Column that says what is in stock: true, or a number above 0; an item without a value there is not. null: unknown."""
    stock_table: str | None = None
    """Table with the key of the item and the column `stock`, for stock that changes more often than `items`. null: `items`."""
    place: str | None = None
    """Column of `table` with the place of a purchase, such as a shop, where other things may be popular. null: none."""
    exclude: dict[str, tuple[str, ...]] = {}
    """Column of `items` to values that are not goods; their events are left out."""
    where: str | None = None
    """SQL condition on the event's columns, for example quantity > 0."""
    attributes: tuple[Attributes, ...] = ()
    """Facts about the user by which scores may be shown: name the columns under evaluate.slices."""
    min_users: int = 5
    """An item bought by fewer users is not in the catalogue; the truth is not restricted to it."""
    horizon_days: int = 28
    """The truth is what is bought in the days 1 to this after the cutoff. With `order`: horizon_orders times days_per_order."""

    @model_validator(mode="before")
    @classmethod
    def horizon_of_orders(cls, given: Any) -> Any:
        if not (isinstance(given, dict) and given.get("order")):
            return given
        unit, count = (given.get(name, cls.model_fields[name].default) for name in ("days_per_order", "horizon_orders"))
        days = unit * count if isinstance(unit, int) and isinstance(count, int) else given.get("horizon_days", 1)
        if given.get("horizon_days", days) != days:
            raise ValueError("order counts the horizon in orders; give horizon_orders in place of horizon_days")
        return {**given, "horizon_days": days}

    @property
    def entity(self) -> str:
        return self.user

    @property
    def source_name(self) -> str:
        return self.table

    @property
    def label_horizon_days(self) -> int:
        return self.horizon_days

    def _tables(self) -> list[str | None]:
        return [self.table, self.items, self.stock_table, *(part.table for part in self.attributes)]


class Pipeline(Section):
    """What happens to features inside each fold. A list instead of one value makes it part of the search."""

    impute: Options[Literal["median", "mean", "zero", "none"]] = ("median",)
    """How missing numbers are filled for models that need them all (boosted trees read gaps, and any scale, as they are).
    A missing category is a category of its own."""
    scale: Options[Literal["standard", "robust", "quantile", "none"]] = ("standard",)
    """How numbers are scaled."""
    log: Options[bool] = (False,)
    """Signed logarithm of numbers before scaling: for counts and money."""
    encode: Options[Literal["onehot", "ordinal", "target"]] = ("onehot",)
    """How categories of low cardinality become numbers."""
    encode_high: Options[Literal["target", "frequency", "ordinal"]] = ("target",)
    """How categories of high cardinality become numbers (target: cross-fitted; clustering has none and takes frequency)."""
    high_cardinality: int = 20
    """More distinct categories than this count as high."""
    min_category_count: Options[Annotated[int, Field(ge=0)]] = (0,)
    """Categories of low cardinality in fewer training rows than this count as one. 0: each counts for itself."""
    missing_indicator: Options[bool] = (False,)
    """Also tell models that need all numbers which ones were missing: a column of its own for each that ever was."""
    spline_knots: Options[Annotated[int, Field(ge=0)]] = (0,)
    """At so many quantiles the effect of a number on a linear model may change its slope; what lies in the outer hundredths
    counts as their edge. 0: straight lines. Large and wide tables get fewer; boosted trees need none."""
    target_log: Options[bool | Literal["auto"]] = (False,)
    """regression: learn the signed logarithm of the target, for amounts that differ by factors. auto: where the training rows
    have no target below 0 and a long tail that the logarithm shortens."""
    text_vocabulary: Annotated[int, Field(ge=1)] = 2000
    """Plain tables: most telling words, and pairs of neighbours, that are kept of a column of text."""
    text_components: Annotated[int, Field(ge=1)] = 20
    """Plain tables: dimensions that these words are projected to."""
    select: Options[Literal["none", "variance", "univariate", "model"]] = ("none",)
    """Which features stay: all, those that vary, the best by a univariate test, the best by a linear model with l1."""
    select_share: Options[Annotated[float, Field(gt=0, le=1)]] = (0.5,)
    """Share of features that univariate and model keep."""
    reduce: Options[Literal["none", "pca", "svd"]] = ("none",)
    """Projection to fewer dimensions."""
    components: Options[Annotated[int, Field(ge=1)]] = (10,)
    """Dimensions after the projection."""
    offset: Options[str | None] = (None,)
    """regression: a feature whose value is a good first guess, so that models learn only the rest. null: none."""


class Switches(Section):
    """Which sources propose candidates beside own purchases and what is popular; one that is off costs nothing.

    [true, false] makes a source part of the search.
    """

    tifu_knn: Options[bool] = (True,)
    """What similar users buy (TIFU-kNN)."""
    ease: Options[bool] = (True,)
    """What goes with what the user buys (EASE)."""
    item_knn: Options[bool] = (False,)
    """What is bought by the same users as what the user buys (item-kNN)."""
    co_visitation: Options[bool] = (False,)
    """What lies in the same baskets as what the user buys (co-visitation)."""
    als: Options[bool] = (False,)
    """A factor model (implicit ALS)."""
    segment_popularity: Options[bool] = (False,)
    """What is popular among users of the same segment: those who buy at the same place (features.place), else those who stand
    out by the same category."""


class Sources(Section):
    """How a list is made. A list instead of one value makes it part of the search."""

    k: Annotated[int, Field(ge=1)] = 10
    """Length of a list; metrics are at this k."""
    sources: Switches = Switches()
    """Where candidates come from."""
    candidates: Annotated[int, Field(ge=10)] = 70
    """Candidates per user that the ranker sorts: so many bought before, and so many new ones."""
    half_life_days: Options[Annotated[float, Field(gt=0)]] = (90.0,)
    """Days after which a purchase counts half."""
    ease_penalty: Options[Annotated[float, Field(gt=0)]] = (150.0,)
    """Ridge penalty of the item-to-item model (EASE)."""
    user_neighbours: Options[Annotated[int, Field(ge=1)]] = (100,)
    """Similar users that TIFU-kNN blends in."""
    item_neighbours: Annotated[int, Field(ge=1)] = 50
    """Nearest items that are kept of each item for sources.item_knn and sources.co_visitation."""
    als_factors: Annotated[int, Field(ge=1)] = 64
    """Length of the vectors of the factor model."""
    max_dense_users: Annotated[int, Field(ge=1)] = 10_000
    """With more users than this no users x users system is built (10,000 take 1.2 GB): the factor model stands in for EASE, and
    similar users are looked for among so many, drawn at random."""
    popularity_days: Annotated[int, Field(ge=1)] = 56
    """Days before the cutoff that popularity counts."""
    ranker_windows: Annotated[int, Field(ge=1)] = 4
    """The ranker learns from the purchases after so many cutoffs, the newest with complete labels."""
    ranker_users: Annotated[int, Field(ge=1)] = 3000
    """Users per cutoff, drawn at random, that the ranker learns from."""
    ranker_trees: Annotated[int, Field(ge=1)] = 150
    """Trees of the ranker."""
    ablation_users: Annotated[int, Field(ge=0)] = 600
    """evaluate learns the two stages again without each source, on so many users, to say what it is worth. 0: it does not."""


Part = Annotated[float, Field(ge=0, le=1)]
"""Part of a whole, 0 to 1."""
Id = int | str
"""Key of a user or an item."""


class ListRules(Section):
    """What may be in a list. A rule never makes a list shorter while enough items are allowed."""

    bought_within_days: Days | None = None
    """Only what the user bought in so many days before. null: no such rule."""
    not_bought_within_days: Days | None = None
    """Nothing that the user bought in so many days before. null: no such rule."""
    in_stock: bool = False
    """Only what features.stock says is there."""
    categories: tuple[str, ...] | None = None
    """Only items of these categories (values of features.category). null: of all."""
    exclude_categories: tuple[str, ...] = ()
    """No item of these categories."""
    exclude_items: tuple[Id, ...] = ()
    """None of these items."""
    max_per_category: Annotated[int, Field(ge=1)] | None = None
    """At most so many items of one category; those without a category are not counted. null: no such rule."""
    promote: tuple[Id, ...] = ()
    """Items to be promoted."""
    promote_share: Part = 0.0
    """Of the first n places of a list at least n times this, rounded down, go to promoted items, the last place rounded up."""
    discover_share: Part = 0.0
    """As promote_share, for items that the user never bought: a floor."""


class Answers(Section):
    """How a list is put together from what the model says; a request may ask for other values."""

    show: Literal["all", "rebuy", "discover", "blend"] = "all"
    """all: in the model's order. rebuy: what the user bought before. discover: what not. blend: both, `blend` of them new."""
    blend: Part = 0.3
    """blend: share of places for what the user never bought, spread over the list."""
    diversity: Part = 0.0
    """0: the model's order. Up to 1: how much an item loses for each one of its category above it."""
    explore: Part = 0.0
    """Share of places for new products, drawn anew for each user and day, from the categories that the user buys."""
    explore_users: Annotated[int, Field(ge=1)] = 20
    """A product that fewer users bought so far is new; those too rare for the catalogue are among them."""
    rules: ListRules = ListRules()
    explain: bool = False
    """Whether batch scoring adds a column `explanation`: why each item is in its list."""


class Range(Section):
    """One dimension of the search: a list of values, or an interval."""

    values: tuple[Any, ...] | None = None
    """The values to try. null: an interval."""
    low: float | None = None
    """Smallest value (inclusive)."""
    high: float | None = None
    """Largest value (inclusive)."""
    log: bool = False
    """Search the interval on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def values_or_interval(self) -> "Range":
        if (self.values is None) == (self.low is None or self.high is None):
            raise ValueError("needs either values, or low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Tune(Section):
    method: Literal["grid", "random", "tpe", "staged"] | None = None
    """How configurations are chosen: all points of a grid, at random, Bayesian (tree-structured Parzen estimator), in stages:
    baseline, linear, trees, boosting, then an ensemble of the best; a stage that does not pay ends early. null: staged for a
    plain table, else tpe."""
    choose: Literal["simplest", "best"] | None = None
    """Which trial wins: the simplest model within one standard error of the best (of the paired differences over the folds), or
    the best. null: simplest for staged, else best."""
    n_trials: Annotated[int, Field(ge=1)] = 20
    """How many configurations are tried; the defaults of each model come first."""
    timeout_seconds: float | None = None
    """No trial starts after that many seconds. null: no limit."""
    budget_seconds: Annotated[float, Field(gt=0)] | None = None
    """Wall time of the search, the refit and the evaluation together (what `evergreen train --seconds` sets), without the two
    or three seconds that each of their processes takes to start; n_trials does not limit then. null: no limit."""
    metric: str | None = None
    """Metric to optimise. null: the kind's primary metric."""
    models: tuple[str, ...] | None = None
    """Models to try. null: all of the kind."""
    space: dict[str, dict[str, Range]] = {}
    """model -> hyper-parameter -> range, in place of the kind's own."""
    warm_starts: tuple[dict[str, Any], ...] = ()
    """Configurations that are tried right after the defaults: a retraining writes the best of the search before it here. What
    the space does not have (any more) is left out."""
    folds: Annotated[int, Field(ge=1)] = 3
    """Validation windows in time, each after its training rows; parts of the cross-validation of a table without time."""
    repeats: Annotated[int, Field(ge=1)] | None = None
    """Tables without time: so many cross-validations, each with other folds. null: 3 for less than 1,000 rows, else 1."""
    grid_points: Annotated[int, Field(ge=2)] = 3
    """grid: points per interval."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """So many configurations are chosen before any of them is known; they can run side by side. null: 4 for a plain table, else
    1."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that run trials; the result does not depend on it. null: every core that no other problem uses."""
    prune: bool | None = None
    """Leave a trial's other folds out once it is clearly behind the best. null: for a plain table."""
    max_rows: Annotated[int, Field(ge=100)] = 200_000
    """Plain tables: the search looks at so many rows at most, drawn at random; what it finds learns from all."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Models that take longer for a single row are not chosen (median, in the fold's process). null: no limit."""
    max_model_mb: Annotated[float, Field(gt=0)] | None = None
    """Models larger than this are not chosen. null: no limit."""
    max_train_seconds: Annotated[float, Field(gt=0)] | None = None
    """Models that take longer to learn from one fold are not chosen. null: no limit."""
    nested: bool = False
    """Also search inside each fold, to say how much of the score is due to choosing by it. It takes as often as long as there
    are folds."""


class Train(Section):
    history_days: int | None = None
    """Learn from rows with a cutoff in that many days before the newest. null: from all."""
    half_life_days: Annotated[float, Field(gt=0)] | None = None
    """Not for recommendation, and not for tables without time: of rows this much older than the newest that are learned from,
    every second one is, of twice as old ones every fourth. null: all are."""
    calibrate: Literal["auto", "none", "sigmoid", "isotonic"] | None = None
    """classification: mend probabilities by what was said of rows in the search that the model had not seen. auto: sigmoid or
    isotonic where it lowers their logarithmic loss clearly. null: auto for a plain table, else none."""
    refit: bool = True
    """Plain tables: once it is judged, the model that serves learns from all rows, those it was judged on too."""


class Costs(Section):
    """What each outcome costs, in any unit; a gain is below 0."""

    false_positive: float = 1.0
    """A row that counts as positive and is not."""
    false_negative: float = 1.0
    """A positive that is missed."""
    true_positive: float = 0.0
    """A positive that is found."""
    true_negative: float = 0.0
    """A row that rightly does not count as positive."""


class Evaluate(Section):
    windows: Annotated[int, Field(ge=1)] = 3
    """Test windows at the end of the data, one horizon each; scores are their mean. Without time there is one."""
    resamples: Annotated[int, Field(ge=50)] = 400
    """Bootstrap resamples of entities."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval."""
    slices: tuple[str, ...] = ()
    """Features by which scores are also shown; numbers are cut at their quartiles."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """classification: probability from which a row counts as positive. null: as threshold_for says, else the base rate of the
    training rows."""
    threshold_for: Literal["f1", "precision_at_recall", "cost"] | None = None
    """classification, two classes: what the threshold is chosen for, on what was said of rows in the search that the model had
    not seen. precision_at_recall: the best precision that finds `recall` of the positives; cost: the least sum of `costs`."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.8
    """precision_at_recall: share of the positives that must be found."""
    costs: Costs = Costs()
    """cost: what each outcome costs."""

    @model_validator(mode="after")
    def one_threshold(self) -> "Evaluate":
        if self.threshold is not None and self.threshold_for is not None:
            raise ValueError("threshold and threshold_for are both given; leave one of them out")
        return self

    diagnose_seconds: Annotated[float, Field(ge=0)] = 10.0
    """CPU seconds that the diagnosis may take (learning curve, validation curves, bias and variance, rivals); what it cannot
    afford it leaves out and says so. 0: none."""
    explain_rows: Annotated[int, Field(ge=50)] = 2000
    """Rows of the last test window that importance, contributions and dependence are computed on; more cost more time."""


class Gate(Section):
    metric: str | None = None
    """Metric that decides. null: the kind's primary metric."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """A challenger is better when the whole interval of its gain is above this (in the metric's unit)."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """It is not worse when the whole interval of its gain is above minus this."""
    promote: Literal["better", "not worse"] = "better"
    """The least verdict that promotes."""
    resamples: Annotated[int, Field(ge=50)] = 1000
    """Paired bootstrap resamples of entities."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the interval."""


FORMS: dict[str, type[Section]] = {"events": Features, "table": Table}
"""What the features of a tabular problem are made of."""


def _form(features: Any) -> str:
    """A plain table names its table; features made from events do not."""
    known = features if isinstance(features, dict) else dict(features) if isinstance(features, Section) else {}
    return "table" if "table" in known else "events"


class Tabular(Section):
    """A problem with one row per entity and cutoff, or per row of a plain table: classification, regression or clustering."""

    predicts: ClassVar[Literal["rows"]] = "rows"
    """A prediction for each row of features."""

    question: str
    """The question in one plain sentence; the page shows it."""
    features: Annotated[Annotated[Features, Tag("events")] | Annotated[Table, Tag("table")], Discriminator(_form)]
    """Made from events (entity, cutoffs, aggregates), or a table as it is (table, target, columns)."""
    pipeline: Pipeline = Pipeline()
    tune: Tune = Tune()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def windows_need_cutoffs(self) -> "Tabular":
        if not self.features.by_cutoff and (self.retrain.window != "expanding" or self.train.half_life_days):
            raise ValueError(
                "rows of a plain table have no cutoffs: retrain.window must be expanding, train.half_life_days null"
            )
        return self


class Recommend(Section):
    """A recommendation problem: one list per user."""

    predicts: ClassVar[Literal["lists"]] = "lists"
    """A ranked list for each user."""

    question: str
    """The question in one plain sentence; the page shows it."""
    features: Interactions
    pipeline: Sources = Sources()
    lists: Answers = Answers()
    tune: Tune = Tune()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    rollout: Rollout = Rollout()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def purchases_have_weights_of_their_own(self) -> "Recommend":
        if self.retrain.window == "weighted" or self.train.half_life_days:
            raise ValueError(
                "purchases are weighed by pipeline.half_life_days: retrain.window must be expanding or sliding, "
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


class Params(Section):
    """All of params.yaml. Each name under `problems` has a section of its own at the top level of the file."""

    project: Project
    ingest: dict[Name, Source]
    """Table -> where it comes from."""
    validate_: Annotated[dict[str, Rules], Field(alias="validate")] = {}
    """Table -> what must hold of it."""
    problems: dict[Name, KindName]
    """Problem -> kind."""
    serve: Serve = Serve()
    """The HTTP service."""
    sections: dict[str, Problem] = {}
    """Problem -> its section."""

    def kind(self, problem: str) -> KindName:
        self.section(problem)
        return self.problems[problem]

    def section(self, problem: str) -> Problem:
        """The section of `problem`. Raises ParamsError, naming the nearest, for one that is not there."""
        if problem not in self.sections:
            raise ParamsError(f"{problem}: no such problem in params.yaml{nearest(problem, self.sections)}")
        return self.sections[problem]


FIXED = ("project", "ingest", "validate", "problems", "serve")
TAKEN = (*FIXED, "validation", "all")
"""Names that no problem can have: keys of the file, the report of validation, the row of the shared steps."""


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises ParamsError: for text that is not YAML, a key given twice, an unknown key, a value that breaks a rule, a problem
    without a section, a section that is no problem, and a table that `ingest` does not name.
    """
    raw = _read(path)
    names = raw.get("problems") or {}
    if not isinstance(names, dict):
        raise ParamsError(
            f"{path.name}: problems = {names!r}: needs a mapping of problem to kind, such as {{spend: regression}}"
        )
    for key in raw:
        if key not in FIXED and key not in names:
            raise ParamsError(
                f"{path.name}: {key}: unknown key{nearest(key, [*FIXED, *names])}; a problem also needs a line under problems"
            )
    try:
        params = Params.model_validate({key: raw[key] for key in FIXED if key in raw})
        sections = {name: _section(path, name, kind, raw) for name, kind in params.problems.items()}
    except ValidationError as error:
        raise ParamsError(_explain(path.name, (), Params, error)) from None
    params = params.model_copy(update={"sections": sections})
    _check_tables(path.name, params)
    return params


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf8"))
    except MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ParamsError(
            f"{path.name}:{where}: {str(error.problem).splitlines()[0]}. Each name may stand once; indent with spaces."
        ) from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{path}: cannot be read: {' '.join(str(error).split())}. It must be UTF-8 text.") from None
    except ValueError as error:
        raise ParamsError(f"{path.name}: a date or number is none: {error}. Dates stand in quotes.") from None
    if not isinstance(raw, dict):
        raise ParamsError(
            f"{path.name}: needs the keys {', '.join(FIXED)} and a section per problem; found {type(raw).__name__}"
        )
    _refuse_bare_dates(path.name, raw)
    return raw


def _refuse_bare_dates(file: str, value: Any, key: str = "") -> None:
    """DVC reads the same file and knows no dates."""
    if isinstance(value, date):
        raise ParamsError(f'{file}: {key} = {value}: dates stand in quotes; write "{value}"')
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_bare_dates(file, inner, f"{key}.{name}".lstrip("."))


def _section(path: Path, name: str, kind: str, raw: dict[str, Any]) -> Problem:
    if name in TAKEN:
        raise ParamsError(f"{path.name}: problems.{name}: {name} is a name of Evergreen's own; give the problem another one")
    if name not in raw:
        raise ParamsError(f"{path.name}: problems.{name}: has no section {name} at the top level of the file; add one")
    try:
        return SECTIONS[kind].model_validate(raw[name])
    except ValidationError as error:
        raise ParamsError(_explain(path.name, (name,), SECTIONS[kind], error)) from None


def _check_tables(file: str, params: Params) -> None:
    for table in params.validate_:
        if table not in params.ingest:
            raise ParamsError(f"{file}: validate.{table}: no such table under ingest{nearest(table, params.ingest)}")
        for column, reference in params.validate_[table].references.items():
            if (known := reference.to.split(".")[0]) not in params.ingest:
                where = f"{file}: validate.{table}.references.{column}.to = {reference.to}"
                raise ParamsError(f"{where}: no table {known} under ingest{nearest(known, params.ingest)}")
    for name, section in params.sections.items():
        for table in section.features.tables:
            if table not in params.ingest:
                raise ParamsError(f"{file}: {name}.features: table {table} is not under ingest{nearest(table, params.ingest)}")


NAMES = "a name starts with a letter, then has letters (a-z), digits, _ and -, 64 at most; give it another one"


def _explain(file: str, prefix: tuple[str, ...], model: type[Section], error: ValidationError) -> str:
    """The first error as one line: file, key, value, rule, nearest right name."""
    first = next((each for each in error.errors() if each["type"] == "extra_forbidden"), error.errors()[0])
    place = [part for part in first["loc"] if not str(part).startswith("function-")]
    if place[-1:] == ["[key]"]:
        return f"{file}: {place[0]}: {str(place[-2])!r}: {NAMES}"
    key = ".".join(str(part) for part in (*prefix, *_without_form(place)))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        return f"{file}: {key} = {_short(first['input'])}: unknown key{nearest(str(place[-1]), known)}{more}"
    if first["type"] == "missing":
        return f"{file}: {key}: is missing; add it{more}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should be", "must be")
    return f"{file}: {key} = {_short(first['input'])}: {rule}{more}"


def _without_form(place: list[int | str]) -> list[int | str]:
    """`place` as people write it: pydantic names the form of `features` too."""
    return [part for at, part in enumerate(place) if not (at and place[at - 1] == "features" and part in FORMS)]


def _fields_at(model: type[BaseModel], place: list[int | str]) -> list[str]:
    """The field names of the section that `place` leads to from `model`."""
    for at, part in enumerate(place):
        if at and place[at - 1] == "features" and part in FORMS:
            model = FORMS[str(part)]
            continue
        field = next((field for name, field in model.model_fields.items() if part in (name, field.alias)), None)
        model = (field and _section_in(field.annotation)) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def require(name: str, known: Iterable[str], where: str) -> None:
    """Raises ParamsError, with the nearest right name, for a `name` that is not among `known`."""
    names = list(known)
    if name not in names:
        raise ParamsError(f"{where} = {name}: no such feature{nearest(name, names)}")


def nearest(name: str, known: Any) -> str:
    """The end of a message about an unknown name: the nearest of the `known` ones, or all of them."""
    found = difflib.get_close_matches(str(name), [str(each) for each in known], n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(map(str, known)) or 'none'}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def schema() -> str:
    """The JSON schema of params.yaml, for editors and for people."""
    whole = Params.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    whole["properties"].pop("sections")
    tabular, recommend = (part.model_json_schema(ref_template="#/$defs/{model}") for part in (Tabular, Recommend))
    definitions = whole.setdefault("$defs", {})
    for name, part in (("Tabular", tabular), ("Recommend", recommend)):
        definitions.update(part.pop("$defs", {}))
        definitions[name] = part
    whole["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/Tabular"}, {"$ref": "#/$defs/Recommend"}]}
    return json.dumps(whole, indent=2)
