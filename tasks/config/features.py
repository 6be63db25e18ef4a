"""The section `features`: point-in-time features from events, a plain table, or interactions of users with items."""

from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from evergreen.tasks.config.base import Days, Section


class Aggregate(Section):
    """One number per entity and window, aggregated from events."""

    name: str
    """Feature name; the window is appended, as in spend_28d."""
    table: str
    """Table of events. It needs the column `entity` and a time column, its source's or that of `join`."""
    column: str | None = None
    """Column to aggregate. null with count."""
    function: Literal["count", "sum", "mean", "min", "max", "std", "n_unique", "days_since_last", "days_since_first"] = "count"
    """Aggregate function. days_since_last and days_since_first use the whole history and have no window."""
    where: str | None = None
    """SQL condition on an event, for example coupon_disc > 0 or end_date > cutoff (the row's cutoff). null: all events."""
    join: tuple[str, str] | None = None
    """Table and key column to join to the events, for example [products, product_id]. An event counts from the day on which
    both rows are known."""
    windows_days: tuple[Days, ...] | None = None
    """Windows of this aggregate, in days. null: those of the section."""

    @model_validator(mode="after")
    def column_where_needed(self) -> "Aggregate":
        counts = self.function in ("count", "days_since_last", "days_since_first")
        if counts == (self.column is not None):
            raise ValueError(f"{self.function} {'takes no column; use where' if counts else 'needs column'}")
        return self


class Ratio(Section):
    """Quotient of two features."""

    name: str
    """Feature name."""
    numerator: str
    """Feature."""
    denominator: str | float
    """Feature or number. Where it is zero, the ratio is missing."""


class Share(Section):
    """Share of each of the largest categories in an entity's total."""

    name: str
    """Prefix of the feature names, one per category."""
    table: str
    """Table of events."""
    category: str
    """Category column, of the table or of `join`."""
    value: str
    """Column to sum."""
    join: tuple[str, str] | None = None
    """Table and key column to join, for example [products, product_id]."""
    top: Annotated[int, Field(ge=1)] = 10
    """Number of categories: the largest by value up to the first cutoff."""
    window_days: Days = 56
    """Days up to the cutoff, inclusive."""


class Attributes(Section):
    """Static attributes of the entity."""

    table: str
    """Table with one row per entity, known from the start."""
    columns: tuple[str, ...]
    """Columns to join by the entity."""


class Population(Section):
    """Entities that get a row at a cutoff."""

    table: str
    """Table of events."""
    within_days: Days
    """Only entities with an event in the last days up to the cutoff, inclusive."""


class Cutoffs(Section):
    """Days for which rows are built."""

    first: date
    """Earliest cutoff: last day (inclusive) that its features use."""
    every_days: Days = 14
    """Days between cutoffs, counted from `first`, so that a row is made once and not anew each day. Models learn of new days at
    the next cutoff whose label is complete: with 7, within a week."""


class Target(Section):
    """Target, computed from the events after the cutoff."""

    table: str
    """Table of events."""
    function: Literal["any", "none", "sum", "count"]
    """any: 1 if there is an event, none: 1 if there is none; sum needs `column`."""
    column: str | None = None
    """Column to sum."""
    where: str | None = None
    """SQL condition on an event."""

    @model_validator(mode="after")
    def column_where_needed(self) -> "Target":
        if (self.function == "sum") == (self.column is None):
            raise ValueError("sum needs column" if self.column is None else f"{self.function} takes no column; use where")
        return self


Role = Literal["number", "category", "text", "date"]
"""How a column of a plain table is used: as a number, a category (numeric codes too), free text, or a date or time."""


class FeatureSource(Section):
    """What the features are built from. The forms differ in the properties below and in `by_cutoff`: whether features are as of
    a cutoff, so that newer ones can be computed.
    """

    @property
    def roles(self) -> dict[str, Role]:
        """Feature -> role, as far as params.yaml gives them."""
        return {}

    @property
    def source_name(self) -> str:
        """What the features are built from, as one word."""
        return "events"

    @property
    def target_column(self) -> str | None:
        """Column of the rows with the target. None: the target is computed from events, or there is none."""
        return None

    @property
    def time_column(self) -> str | None:
        """Column that orders the rows. None: the cutoff orders them, or nothing does."""
        return None

    @property
    def event_tables(self) -> list[str]:
        """The tables whose rows are events of an entity, without duplicates. Empty: none takes rows from a server."""
        return []

    @property
    def event_entity(self) -> str:
        """Column of `event_tables` with the entity; "" without such tables."""
        return ""

    @property
    def label_horizon_days(self) -> int | None:
        """Days after the cutoff whose events give the label. None: labels are not computed from the project's tables."""
        return None

    @property
    def tables(self) -> list[str]:
        """The tables read, without duplicates, in the order of the section."""
        return list(dict.fromkeys(name for name in self._tables() if name))

    def _tables(self) -> list[str | None]:
        raise NotImplementedError


class Features(FeatureSource):
    """Point-in-time features: one row per entity and cutoff, from data up to the cutoff."""

    by_cutoff: ClassVar[Literal[True]] = True

    entity: str
    """Key column of the entity, present in every table of events."""
    horizon_days: Days
    """Label horizon: days 1 to this after the cutoff."""
    cutoffs: Cutoffs
    """Days for which rows are built."""
    population: Population | None = None
    """Entities that get a row. null: all seen so far."""
    target: Target | None = None
    """Target. null: none (clustering)."""
    windows_days: tuple[Days, ...] = (7, 28)
    """Default windows of the aggregates: days up to the cutoff, inclusive."""
    aggregates: tuple[Aggregate, ...] = ()
    """Aggregates per entity and window."""
    ratios: tuple[Ratio, ...] = ()
    """Quotients of features."""
    shares: tuple[Share, ...] = ()
    """Shares by category."""
    calendar: tuple[Literal["month", "week_of_year", "day_of_year"], ...] = ()
    """Calendar features of the cutoff; week_of_year and day_of_year are encoded as sine and cosine."""
    attributes: tuple[Attributes, ...] = ()
    """Static attributes of the entity."""
    keep: tuple[str, ...] | None = None
    """Features that the model uses, in this order. null: all."""

    @property
    def label_horizon_days(self) -> int | None:
        return self.horizon_days if self.target else None

    @property
    def event_entity(self) -> str:
        return self.entity

    @property
    def event_tables(self) -> list[str]:
        used = [each.table for each in (*self.aggregates, *self.shares)]
        return list(dict.fromkeys([*([self.population.table] if self.population else []), *used]))

    def _tables(self) -> list[str | None]:
        return [
            self.population and self.population.table,
            self.target and self.target.table,
            *(part.table for part in (*self.aggregates, *self.shares, *self.attributes)),
            *(part.join[0] for part in (*self.aggregates, *self.shares) if part.join),
        ]


class Table(FeatureSource):
    """A plain table with one row per case; its columns are the features, and the target if there is one."""

    by_cutoff: ClassVar[Literal[False]] = False

    table: str
    """Table name under `ingest`."""
    target: str | None = None
    """Target column. Rows without a target are not used for training. null: no target (clustering)."""
    positive_class: str | None = None
    """classification, two classes: class of the predicted probability, precision and recall. null: the last in sort order."""
    columns: Annotated[dict[str, Role], Field(min_length=1)]
    """Feature -> role: number, category, text or date."""
    entity: str | None = None
    """Column that identifies the entity of a row; never a feature. Without `time`, rows of one entity are on the same side of
    each split, so that scores hold for new entities. Intervals resample entities. null: each row is an entity."""
    time: str | None = None
    """Column (date or time) that orders the rows: validation and test rows are later than training rows. null: no order."""
    gap_days: Annotated[int, Field(ge=0)] = 0
    """With `time`: days between training rows and the rows that follow, if labels arrive that much later."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of rows in the test set, unseen by the search: the newest rows with `time`, otherwise drawn by a hash of the entity
    or of `test_key`."""
    test_key: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Columns whose values draw the test rows where there is neither `time` nor `entity`; features or not. Another column that
    is added, changed or removed moves no row. null: the first of `columns` that make the rows distinct, found anew in each
    training."""

    @model_validator(mode="after")
    def roles_apart(self) -> "Table":
        for name in ("target", "entity"):
            if getattr(self, name) in self.columns:
                raise ValueError(f"{name} = {getattr(self, name)} is also a feature; remove it from columns")
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
    """Interactions that a recommender learns from: one row per user, basket and item."""

    by_cutoff: ClassVar[Literal[True]] = True

    table: str
    """Table of purchases. It needs a time column in its source, or `order`."""
    order: str | None = None
    """Column with order numbers, for data without dates. The newest orders of all users count as made on the last known day.
    null: the table has times."""
    order_scope: Literal["user", "shop"] = "user"
    """user: orders are numbered per user (1, 2, 3, …). shop: one sequence for all orders, by time."""
    days_per_order: Days = 7
    """With `order`: days that one order represents in all settings given in days."""
    horizon_orders: Days = 1
    """With `order`: label horizon in orders after the cutoff."""
    user: str
    """Key column of the user."""
    item: str
    """Key column of the item."""
    basket: str
    """Key column of the basket."""
    items: str | None = None
    """Table of item attributes, one row per item. null: none."""
    category: str | None = None
    """Category column of `items`, for features and list rules."""
    groups: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    """Up to two further columns of `items` that group items, such as type and brand, for the ranker."""
    name: str | None = None
    """Column of `items` with a display name, for explanations. null: the category."""
    text: str | None = None
    """Column of `items` with a text; its words place new items, see sources.content."""
    price: str | None = None
    """Numeric column of `items` with the price, for the same."""
    stock: str | None = None
    """Stock column: true or a number above 0 means in stock; a missing value means out of stock. null: unknown."""
    stock_table: str | None = None
    """Table with the item's key and `stock`, if stock changes more often than `items`. null: `items`."""
    place: str | None = None
    """Column of `table` with the place of a purchase, such as a store, for popularity by place. null: none."""
    exclude: dict[str, tuple[str, ...]] = {}
    """Column of `items` -> values of items to exclude, with their events."""
    where: str | None = None
    """SQL condition on an event, for example quantity > 0."""
    weight: str | None = None
    """Numeric column of `table` that weighs a purchase. null: each weighs 1. A missing value weighs 1."""
    weight_as: Literal["quantity", "rating"] = "quantity"
    """quantity: square root of the value over the item's median, 1/4 to 4. rating: the value above the lowest one, over
    the median of these, up to 2; an item with the lowest rating counts as seen, and never as a success."""
    attributes: tuple[Attributes, ...] = ()
    """User attributes that scores can be sliced by, see evaluate.slices."""
    min_users: int = 5
    """Items with fewer buyers are not learned about; who bought one may find it in his list. Labels may contain them."""
    horizon_days: int = 28
    """Label horizon: purchases on days 1 to this after the cutoff. With `order`: horizon_orders times days_per_order."""
    judge_by: Literal["calendar", "last_orders", "last_lines"] = "calendar"
    """What models are judged by in training. calendar: the purchases of the days after a cutoff. last_orders, last_lines: the
    last `held_out` orders or lines of each user, for a shop whose users come seldom or once; nothing of the future is learned.
    """
    held_out: Annotated[int, Field(ge=1)] = 1
    """last_orders, last_lines: number of orders or lines per user."""

    @model_validator(mode="after")
    def orders_have_their_own_windows(self) -> "Interactions":
        if self.order and self.judge_by != "calendar":
            raise ValueError("with order, every user's last orders are the windows; leave judge_by out")
        return self

    @model_validator(mode="before")
    @classmethod
    def horizon_of_orders(cls, given: Any) -> Any:
        if not (isinstance(given, dict) and given.get("order")):
            return given
        unit, count = (given.get(name, cls.model_fields[name].default) for name in ("days_per_order", "horizon_orders"))
        days = unit * count if isinstance(unit, int) and isinstance(count, int) else given.get("horizon_days", 1)
        if given.get("horizon_days", days) != days:
            raise ValueError("with order, the horizon is counted in orders; give horizon_orders instead of horizon_days")
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
