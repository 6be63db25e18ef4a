"""The definitions of features in params.yaml, bound to the columns of tables."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from evergreen.tasks.config.params import Aggregate, Features, Share, Target
from evergreen.tasks.core.errors import DataError, LeakError, ParamsError
from evergreen.tasks.core.sql_expressions import reads_other_rows
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.tabular.known_events import DAY, Known, refuse_unknown

CUTOFF, TARGET = "cutoff", "target"
EVER = range(100_000)
"""Ages of all history."""
YEAR = {"week_of_year": 52.1775, "day_of_year": 365.2425}
"""Mean length of a year, in the unit of each calendar fact that comes round."""


@dataclass(frozen=True)
class Definitions:
    """The features of a section, bound to the columns of its tables."""

    measures: Sequence["Measure"]
    shares: Mapping[str, Sequence["Measure"]]
    """Share -> its total and its categories, which the events up to the first cutoff decide."""
    names: Sequence[str]


def bind(known: Known, section: Features) -> Definitions:
    """Raises ParamsError for a column, feature or condition that cannot be, and for a name given twice; LeakError for a
    condition on other events; DataError for shares without a category."""
    first = section.cutoffs.first
    measures = [_of_aggregate(known, each, section.windows_days) for each in section.aggregates]
    shares = {each.name: _of_share(known, each, first) for each in section.shares}
    return Definitions(measures, shares, _names(section, measures, shares))


@dataclass(frozen=True, eq=False)
class Measure:
    """One number per entity and cutoff for each of `ages`: a function over the events that are that many days old."""

    table: str
    join: tuple[str, str] | None
    function: str
    column: str | None
    where: pl.Expr
    ages: tuple[range, ...]
    names: tuple[str, ...]

    @property
    def late(self) -> bool:
        """Whether the condition depends on the cutoff, so that days cannot be summed up once for all cutoffs."""
        return CUTOFF in self.where.meta.root_names()

    @property
    def columns(self) -> set[str]:
        """Of the events, that it reads."""
        return {*self.where.meta.root_names(), *([self.column] if self.column else [])} - {CUTOFF}

    @property
    def value(self) -> pl.Expr:
        assert self.column is not None
        return pl.col(self.column).cast(pl.Float64).fill_nan(None)


def _of_aggregate(known: Known, each: Aggregate, windows: tuple[int, ...]) -> Measure:
    place = f"features.aggregates.{each.name}"
    events = known.events(each.table, each.join)
    _refuse_column(f"{place}.column", each.column, each.table, events, numeric=each.function != "n_unique")
    where = _condition(f"{place}.where", each.where, each.table, events, known.as_of)
    if each.function.startswith("days_since"):
        return Measure(each.table, each.join, each.function, None, where, (EVER,), (each.name,))
    chosen = each.windows_days or windows
    names = tuple(f"{each.name}_{days}d" for days in chosen)
    return Measure(each.table, each.join, each.function, each.column, where, tuple(map(range, chosen)), names)


def _of_share(known: Known, share: Share, first: date) -> list[Measure]:
    """The total and one measure per category. Which categories are largest is decided by events up to the first cutoff."""
    events = known.events(share.table, share.join)
    _refuse_column(f"features.shares.{share.name}.value", share.value, share.table, events, numeric=True)
    _refuse_column(f"features.shares.{share.name}.category", share.category, share.table, events, numeric=False)
    sizes = events.filter(pl.col(DAY) <= first, pl.col(share.category).is_not_null()).group_by(share.category)
    largest = sizes.agg(pl.col(share.value).sum().cast(pl.Float64)).sort(share.value, share.category, descending=[True, False])
    found = largest.head(share.top).collect()[share.category].to_list()
    if not found:
        raise DataError(
            f"shares.{share.name}: {share.table} has no {share.category} up to cutoff {first}; set cutoffs.first later"
        )
    return [
        Measure(share.table, share.join, "sum", share.value, where, (range(share.window_days),), (name,))
        for name, where in [
            (f"__{share.name}", pl.lit(True)),
            *((f"{share.name}_{_slug(each)}", pl.col(share.category) == each) for each in found),
        ]
    ]


def _slug(value: Any) -> str:
    return re.sub(r"\W+", "_", str(value).lower()).strip("_")


def _refuse_column(place: str, column: str | None, table: str, events: pl.LazyFrame, numeric: bool) -> None:
    if column is None:
        return
    kind = events.collect_schema()[refuse_unknown(place, column, table, events)]
    if numeric and not kind.is_numeric() and kind != pl.Boolean:
        raise ParamsError(f"{place} = {column}: is {kind} in {table}; numbers are needed. Name another column, or use n_unique")


def _condition(place: str, text: str | None, table: str, events: pl.LazyFrame, as_of: date) -> pl.Expr:
    """`text` as an expression on one event and the cutoff; null counts as false."""
    if text is None:
        return pl.lit(True)
    try:
        where = pl.sql_expr(text)
    except PolarsError as error:
        raise ParamsError(f"{place} = {text}: is no SQL condition: {_first_line(error)}") from None
    for column in where.meta.root_names():
        if column != CUTOFF:
            refuse_unknown(place, column, table, events)
    if reads_other_rows(where):
        raise LeakError(f"{place} = {text}: looks at other events, also those after the cutoff; a condition is on one event")
    _refuse_other_than_yes_or_no(place, text, events.limit(0).with_columns(pl.lit(as_of).alias(CUTOFF)).select(where))
    return where.fill_null(False)


def _refuse_other_than_yes_or_no(place: str, text: str, answer: pl.LazyFrame) -> None:
    try:
        (kind,) = answer.collect().dtypes
    except PolarsError as error:
        raise ParamsError(f"{place} = {text}: does not fit the columns: {_first_line(error)}") from None
    if kind != pl.Boolean:
        raise ParamsError(f"{place} = {text}: gives {kind}; a condition gives true or false, for example {text} > 0")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def target_measure(known: Known, target: Target, horizon_days: int) -> Measure:
    """What a target counts or adds up, before its question is answered."""
    events = known.events(target.table)
    _refuse_column("features.target.column", target.column, target.table, events, numeric=True)
    where = _condition("features.target.where", target.where, target.table, events, known.as_of)
    function = "sum" if target.function == "sum" else "count"
    return Measure(target.table, None, function, target.column, where, (range(-horizon_days, 0),), (TARGET,))


def _names(section: Features, measures: Sequence[Measure], shares: Mapping[str, Sequence[Measure]]) -> list[str]:
    """The features in their order. Raises ParamsError for a name given twice and for a name used that is not there."""
    names = [name for each in measures for name in each.names]
    for ratio in section.ratios:
        for role, used in (("numerator", ratio.numerator), ("denominator", ratio.denominator)):
            if isinstance(used, str) and used not in names:
                raise ParamsError(
                    f"features.ratios.{ratio.name}.{role} = {used}: no such feature before it{nearest(used, names)}"
                )
        names.append(ratio.name)
    names += [name for _, *parts in shares.values() for part in parts for name in part.names]
    names += [each.meta.output_name() for each in calendar(section.calendar)]
    names += [column for each in section.attributes for column in each.columns]
    for name, times in Counter([section.entity, CUTOFF, TARGET, *names]).items():
        if times > 1:
            raise ParamsError(
                f"features: {name}: {times} features have this name (or it is the key's, {CUTOFF} or {TARGET}); rename one"
            )
    for name in section.keep or ():
        if name not in names:
            raise ParamsError(f"features.keep = {name}: no such feature{nearest(name, names)}")
    return names


def calendar(chosen: Sequence[str], cutoff: pl.Expr = pl.col(CUTOFF)) -> list[pl.Expr]:  # noqa: B008  # it never changes
    """Facts about the cutoff; what comes round each year as sine and cosine."""
    found: list[pl.Expr] = []
    for name in chosen:
        if name == "month":
            found.append(cutoff.dt.month().alias(name))
        else:
            day = cutoff.dt
            angle = (day.week() if name == "week_of_year" else day.ordinal_day()) * (2 * math.pi / YEAR[name])
            found += [angle.sin().alias(f"{name}_sin"), angle.cos().alias(f"{name}_cos")]
    return found
