"""Point-in-time tables: one row per entity and cutoff, made of events known by the cutoff and of nothing later.

A day counts as a whole: the cutoff is the last day (inclusive) whose events may be used, a window of n days is that day and
the n - 1 before it, and the label looks at the days 1 to `horizon_days` after it. Events are first summed up per
entity and day and then per window, so that many cutoffs and windows cost little more than one.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TypeVar

import polars as pl

from evergreen.tasks.config.params import Attributes, Features, Ratio, Target
from evergreen.tasks.core.errors import DataError, LeakError, ParamsError
from evergreen.tasks.problems.tabular import entity_partitions
from evergreen.tasks.problems.tabular.known_events import (
    DAY,
    Known,
    Part,
    refuse_mixed_keys,
    refuse_repeats,
    refuse_unknown,
)
from evergreen.tasks.problems.tabular.measures import (
    CUTOFF,
    EVER,
    TARGET,
    Definitions,
    Measure,
    bind,
    calendar,
    target_measure,
)

log = logging.getLogger(__name__)

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
AGE, NEXT = "__age", "__next"
"""Days from an event to the cutoff; the entity's next day with the same value."""
IN_ORDER = "in-memory"
"""The engine that keeps the order of rows in groups, so that the same data give the same bytes; streaming does not. Joins and
groups may change the order of rows, hence the sorting before sums."""


def point_in_time(
    tables: Mapping[str, pl.LazyFrame],
    times: Mapping[str, str | None],
    section: Features,
    as_of: date,
    cutoffs: Sequence[date] = (),
) -> pl.DataFrame:
    """One row per entity and cutoff, sorted by cutoff and entity: the entity's key, `cutoff`, `target`, the features.

    Made in parts of the entities, see entity_partitions: the same to the bit for any number of them.

    `times`: table -> its time column. `cutoffs`: these, ascending; none: those of the section, and `as_of`. Numbers are
    Float64, categories String. A `target` is null where its days are not all known at `as_of`, and where the section names
    none. No event after a row's cutoff has a part in its features.
    Raises ParamsError for a column, feature or condition that cannot be, LeakError for one that looks past its cutoff, and
    DataError for keys of two types, rows without entities, and labels that are incomplete or all the same.
    """
    known = Known(tables, times, section.entity, as_of)
    cutoffs = cutoffs or list_cutoffs(section, as_of)
    refuse_mixed_keys(known.entity, tables)
    parts = entity_partitions.each(rows_of, (known, section, bind(known, section), cutoffs), known, count_events(known))
    rows = pl.concat(parts).sort(CUTOFF, section.entity)
    log.info("%d rows at %d cutoffs from %s to %s", len(rows), len(cutoffs), cutoffs[0], cutoffs[-1])
    refuse_rows(Labels().add(rows.filter(pl.col(CUTOFF) < as_of)), known, section, cutoffs)
    return rows


def count_events(known: Known) -> int:
    """Number of events of all entities, about."""
    tables = [known.tables[name] for name in known.tables if known.is_events(name)]
    return sum(int(each.select(pl.len()).collect().item()) for each in tables)


def rows_of(shared: tuple[Known, Features, "Definitions", Sequence[date]], part: Part | None = None) -> pl.DataFrame:
    """The rows of the entities of `part` (None: of all) at cutoffs, sorted by cutoff and entity."""
    known, section, definitions, cutoffs = shared
    known = known.of(part)
    rows = _entities(known, section, cutoffs)
    if section.target:
        rows = _targets(known, rows, section.target, section.horizon_days, cutoffs)
    return _build(known, section, definitions, rows, cutoffs)


def define(tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Features, as_of: date) -> Definitions:
    """The features that `point_in_time` builds from these tables, for newest_rows. Raises what `point_in_time` raises."""
    known = Known(tables, times, section.entity, as_of)
    refuse_mixed_keys(known.entity, tables)
    list_cutoffs(section, as_of)
    return bind(known, section)


def _build(
    known: Known, section: Features, definitions: Definitions, rows: pl.DataFrame, cutoffs: Sequence[date]
) -> pl.DataFrame:
    """`rows` (the entity's key, `cutoff`, perhaps `target`) with their features."""
    shares = definitions.shares
    rows = _measure(known, rows, [*definitions.measures, *(part for parts in shares.values() for part in parts)], cutoffs)
    rows = divide(rows, section.ratios, shares)
    rows = rows.with_columns(calendar(section.calendar))
    for each in section.attributes:
        rows = join_facts(rows, facts(known, each), section.entity, each)
    return select_features(rows, section, definitions)


def select_features(rows: Frame, section: Features, definitions: Definitions) -> Frame:
    """The entity's key, `cutoff`, `target` and the features, with their types, sorted by cutoff and entity."""
    names = definitions.names
    rows = rows.with_columns(pl.col(names).exclude(pl.String).cast(pl.Float64))
    target = pl.col(TARGET) if section.target else pl.lit(None, pl.Float64).alias(TARGET)
    return rows.select(section.entity, CUTOFF, target, *(section.keep or names)).sort(CUTOFF, section.entity)


def list_cutoffs(section: Features, as_of: date) -> list[date]:
    """Ascending: every `every_days` from `first` to the last day whose label is complete, and then `as_of` itself.

    They stay where they are from one day to the next, so that the rows of a day are made once, and trainings of two days are
    judged on the same windows. Raises DataError where not even one label is complete.

    >>> from evergreen.tasks.config.params import Cutoffs
    >>> section = Features(entity="id", horizon_days=7, cutoffs=Cutoffs(first=date(2024, 1, 1), every_days=10))
    >>> [str(each) for each in list_cutoffs(section, date(2024, 1, 31))]
    ['2024-01-01', '2024-01-11', '2024-01-21', '2024-01-31']
    """
    newest, first, step = as_of - timedelta(days=section.horizon_days), section.cutoffs.first, section.cutoffs.every_days
    if newest < first:
        raise DataError(
            f"no cutoff from {first} on has a complete label: the {section.horizon_days} days after it must end by {as_of}, "
            f"the last known day. Set cutoffs.first to {newest} or earlier, or give newer data."
        )
    return [first + timedelta(days=number * step) for number in range((newest - first).days // step + 1)] + [as_of]


# From events to rows

Pick = Callable[[pl.Expr], pl.Expr]
"""Of the rows of a group, those that count."""


def _all(rows: pl.Expr) -> pl.Expr:
    return rows


def _measure(known: Known, rows: pl.DataFrame, measures: Sequence[Measure], cutoffs: Sequence[date]) -> pl.DataFrame:
    """`rows` with the columns of `measures`. Over no event, counts and sums are 0, everything else is missing."""
    for source in dict.fromkeys((each.table, each.join) for each in measures):
        mine = [each for each in measures if (each.table, each.join) == source]
        if len(cutoffs) > 1:  # not for each answer of a server
            number = sum(len(each.names) for each in mine)
            log.info("%s: %d numbers from %s", known.entity, number, " with ".join(_named(source)))
        for found in _of_events(known.events(*source), known.entity, mine, cutoffs):
            rows = rows.join(found, on=[known.entity, CUTOFF], how="left", maintain_order="left")
    return fill_counts(rows, measures)


def fill_counts(rows: Frame, measures: Sequence[Measure]) -> Frame:
    """Counts and sums over no event are 0."""
    zero = [name for each in measures if each.function in ("count", "sum", "n_unique") for name in each.names]
    return rows.with_columns(pl.col(zero).fill_null(0))


def _named(source: tuple[str, tuple[str, str] | None]) -> list[str]:
    return [source[0], source[1][0]] if source[1] else [source[0]]


def _of_events(
    events: pl.LazyFrame, entity: str, measures: Sequence[Measure], cutoffs: Sequence[date]
) -> Iterator[pl.DataFrame]:
    """Frames of one row per entity and cutoff that has events."""
    daily = [each for each in measures if not each.late and each.function != "n_unique"]
    for ever in (False, True):
        chosen = [each for each in daily if (EVER in each.ages) is ever]
        if chosen and ever and len(cutoffs) == 1:
            yield _since(events, entity, chosen, cutoffs[0])
        elif chosen:
            yield from _by_day(_counted(events, chosen, cutoffs), entity, chosen, cutoffs)
    for each in measures:
        if each.late:
            yield from _by_event(_counted(events, [each], cutoffs), entity, each, cutoffs)
        elif each.function == "n_unique":
            yield from _distinct(_counted(events, [each], cutoffs), entity, each, cutoffs)


def _counted(events: pl.LazyFrame, measures: Sequence[Measure], cutoffs: Sequence[date]) -> pl.LazyFrame:
    """Without the events that are too old for the ages of all measures at all cutoffs."""
    return events.filter(pl.col(DAY) >= _first_day(cutoffs, max(ages.stop for each in measures for ages in each.ages)))


def _first_day(cutoffs: Sequence[date], days: int) -> date:
    """Of the `days` up to the first cutoff."""
    return min(cutoffs) - timedelta(days=days - 1) if days < EVER.stop else date.min


def _by_day(events: pl.LazyFrame, entity: str, measures: Sequence[Measure], cutoffs: Sequence[date]) -> Iterator[pl.DataFrame]:
    kept = [part for number, each in enumerate(measures) for part in parts(str(number), each)]
    days = events.group_by(entity, DAY, maintain_order=True).agg(kept).collect(engine=IN_ORDER).sort(entity, DAY)
    for ages in dict.fromkeys(ages for each in measures for ages in each.ages):
        totals = [
            total(str(number), each.function).alias(name)
            for number, each in enumerate(measures)
            for window, name in zip(each.ages, each.names, strict=True)
            if window == ages
        ]
        yield (
            _spread(days, cutoffs, ages)
            .sort(entity, CUTOFF, DAY)
            .group_by(entity, CUTOFF, maintain_order=True)
            .agg(totals)
            .collect(engine=IN_ORDER)
        )


def _since(events: pl.LazyFrame, entity: str, measures: Sequence[Measure], cutoff: date) -> pl.DataFrame:
    """Of one cutoff: no day need be kept for another one."""
    age = (pl.lit(cutoff) - pl.col(DAY)).dt.total_days()
    known = events.filter(pl.col(DAY) <= cutoff).select(
        entity, *(pl.when(each.where).then(age).alias(each.names[0]) for each in measures)
    )
    found = [getattr(pl.col(each.names[0]), "min" if each.function == "days_since_last" else "max")() for each in measures]
    return known.group_by(entity).agg(found).with_columns(pl.lit(cutoff).alias(CUTOFF)).collect(engine="streaming")


def parts(name: str, measure: Measure) -> list[pl.Expr]:
    """What a day must remember of its events for `total`: n(umber), s(um), m(ean or extreme), q: squared deviations."""
    if measure.column is None:
        return [pl.when(measure.where).then(pl.col(DAY)).count().alias(f"n{name}")]
    value = pl.when(measure.where).then(measure.value)
    kept = {
        "sum": {"s": _sum(value)},
        "mean": {"s": _sum(value), "n": value.count()},
        "min": {"m": value.min()},
        "max": {"m": value.max()},
        "std": {"n": value.count(), "m": value.mean(), "q": value.var(ddof=0) * value.count()},
    }
    return [part.alias(f"{letter}{name}") for letter, part in kept[measure.function].items()]


def total(name: str, function: str, pick: Pick = _all) -> pl.Expr:
    """The number for many days (those that `pick` leaves) from the parts of each; deviations add up as in Chan, Golub and
    LeVeque (1979)."""
    n, s, m, q = (pick(pl.col(f"{letter}{name}")) for letter in "nsmq")
    age = pick(pl.col(AGE))
    number, mean = n.sum(), _sum(n * m) / n.sum()
    totals = {
        "count": number,
        "sum": _sum(s),
        "mean": pl.when(number > 0).then(_sum(s) / number),
        "min": m.min(),
        "max": m.max(),
        "std": pl.when(number > 1).then((_sum(q + n * (m - mean) ** 2) / (number - 1)).sqrt()),
        "days_since_last": age.filter(n > 0).min(),
        "days_since_first": age.filter(n > 0).max(),
    }
    return totals[function]


def _by_event(events: pl.LazyFrame, entity: str, measure: Measure, cutoffs: Sequence[date]) -> Iterator[pl.DataFrame]:
    """For conditions on the cutoff: every event is looked at for every cutoff that it counts for."""
    found = events.select(sorted({entity, DAY, *measure.columns})).collect()
    for ages, name in zip(measure.ages, measure.names, strict=True):
        valid = _spread(found, cutoffs, ages).filter(measure.where).sort(entity, CUTOFF, DAY, maintain_order=True)
        yield valid.group_by(entity, CUTOFF, maintain_order=True).agg(direct(measure).alias(name)).collect(engine=IN_ORDER)


def direct(measure: Measure, pick: Pick = _all) -> pl.Expr:
    """The number of the events (those that `pick` leaves), in the order of their days."""
    if measure.column is None:
        age = pick(pl.col(AGE))
        ages = {"days_since_last": age.min(), "days_since_first": age.max()}
        return ages.get(measure.function, age.len())
    if measure.function == "n_unique":
        return pick(pl.col(measure.column)).drop_nulls().n_unique()
    value = pick(measure.value)
    return {"sum": _sum, "mean": _mean}.get(measure.function, lambda value: getattr(value, measure.function)())(value)


def _sum(value: pl.Expr) -> pl.Expr:
    """Of the values of a group as a list: Expr.sum adds in another order in a frame of another size."""
    known = value.drop_nulls()
    return pl.when(known.len() > 0).then(known.implode().list.sum()).otherwise(0.0)  # that of an empty list is -0.0


def _mean(value: pl.Expr) -> pl.Expr:
    return value.drop_nulls().implode().list.mean()


def _distinct(events: pl.LazyFrame, entity: str, measure: Measure, cutoffs: Sequence[date]) -> Iterator[pl.DataFrame]:
    """A value counts on its last day up to the cutoff alone, so that counting values is counting rows."""
    assert measure.column is not None
    value = pl.col(measure.column).alias("value")
    days = events.filter(measure.where, value.is_not_null()).select(entity, value, DAY)
    if len(cutoffs) == 1:
        known = days.filter(pl.col(DAY) <= cutoffs[0]).group_by(entity, "value").agg(pl.col(DAY).max())
        last = known.select(entity, DAY, pl.lit(None, pl.Date).alias(NEXT)).collect(engine="streaming")
    else:
        days = days.unique().sort(entity, "value", DAY)
        same = (pl.col(entity) == pl.col(entity).shift(-1)) & (pl.col("value") == pl.col("value").shift(-1))
        last = days.select(entity, DAY, pl.when(same).then(pl.col(DAY).shift(-1)).alias(NEXT)).collect()
    for ages, name in zip(measure.ages, measure.names, strict=True):
        counted = _spread(last, cutoffs, ages).filter(pl.col(NEXT).is_null() | (pl.col(NEXT) > pl.col(CUTOFF)))
        yield counted.group_by(entity, CUTOFF).agg(pl.len().alias(name)).collect()


def _spread(events: pl.DataFrame, cutoffs: Sequence[date], ages: range) -> pl.LazyFrame:
    """Each event once for every cutoff at which its age is one of `ages`; negative ages lie after the cutoff."""
    days = events.lazy().select(pl.col(DAY).unique()).join(pl.LazyFrame({CUTOFF: list(cutoffs)}), how="cross")
    pairs = days.with_columns((pl.col(CUTOFF) - pl.col(DAY)).dt.total_days().alias(AGE))
    return events.lazy().join(pairs.filter(pl.col(AGE).is_between(ages.start, ages.stop - 1)), on=DAY, maintain_order="left")


def _entities(known: Known, section: Features, cutoffs: Sequence[date]) -> pl.DataFrame:
    """Which entities have a row at which cutoff, sorted by cutoff and entity."""
    ages = range(section.population.within_days) if section.population else EVER
    tables = population_tables(known, section)
    recent = pl.col(DAY) >= _first_day(cutoffs, ages.stop)
    seen = pl.concat([known.events(each).filter(recent).select(known.entity, DAY).unique() for each in tables]).collect()
    return _spread(seen, cutoffs, ages).select(known.entity, CUTOFF).unique().sort(CUTOFF, known.entity).collect()


def population_tables(known: Known, section: Features) -> list[str]:
    return [section.population.table] if section.population else [each for each in known.tables if known.is_events(each)]


@dataclass
class Labels:
    """What is known of the rows before the last day."""

    rows: int = 0
    labelled: int = 0
    least: float = math.inf
    most: float = -math.inf

    def add(self, rows: pl.DataFrame) -> "Labels":
        self.rows += len(rows)
        self.labelled += len(rows) - rows[TARGET].null_count()
        for each in (rows[TARGET].min(), rows[TARGET].max()):
            if isinstance(each, float):
                self.least, self.most = min(self.least, each), max(self.most, each)
        return self


def refuse_rows(found: Labels, known: Known, section: Features, cutoffs: Sequence[date]) -> None:
    """Refuse rows without one before the last day, and labels that are all the same."""
    chosen, tables = section.population, population_tables(known, section)
    if not found.rows:
        when = f"in the {chosen.within_days} days up to" if chosen else "before"
        raise DataError(
            f"population: no {known.entity} has an event in {', '.join(tables)} {when} any of {len(cutoffs) - 1} cutoffs "
            f"({cutoffs[0]} to {cutoffs[-2]}). Move cutoffs.first, or look further back with population.within_days."
        )
    if (target := section.target) and found.labelled and found.least == found.most:
        raise DataError(
            f"target: {target.function} of {target.table} is {found.least:g} on all {found.labelled:,} labelled rows, so there "
            "is nothing to learn. Check target.where and horizon_days, or give more history."
        )


def targets(
    tables: Mapping[str, pl.LazyFrame], times: Mapping[str, str | None], section: Features, as_of: date, rows: pl.DataFrame
) -> pl.DataFrame:
    """`rows`, the entity's key and `cutoff` (any days), with their `target`, null where its days are not all known at `as_of`.

    Keys are as in the tables; one that no event knows has a target too, of no events. Raises what `point_in_time` raises.
    """
    assert section.target
    known = Known(tables, times, section.entity, as_of)
    rows = rows.cast({section.entity: known.events(section.target.table).collect_schema()[section.entity]}, strict=False)
    rows = rows.filter(pl.col(section.entity).is_not_null())
    return _targets(known, rows, section.target, section.horizon_days, rows[CUTOFF].unique().sort().to_list())


def _targets(known: Known, rows: pl.DataFrame, target: Target, horizon_days: int, cutoffs: Sequence[date]) -> pl.DataFrame:
    measure = target_measure(known, target, horizon_days)
    number = pl.col(TARGET)
    answer = {"any": number > 0, "none": number == 0}.get(target.function, number).cast(pl.Float64)
    complete = pl.col(CUTOFF) <= known.as_of - timedelta(days=horizon_days)
    return _measure(known, rows, [measure], cutoffs).with_columns(pl.when(complete).then(answer).alias(TARGET))


def divide(rows: Frame, ratios: Sequence[Ratio], shares: Mapping[str, Sequence[Measure]]) -> Frame:
    for each in ratios:
        below = pl.col(each.denominator) if isinstance(each.denominator, str) else pl.lit(each.denominator)
        rows = rows.with_columns(pl.when(below != 0).then(pl.col(each.numerator) / below).alias(each.name))
    for whole, *parts in shares.values():
        total = pl.col(*whole.names)
        rows = rows.with_columns(pl.when(total != 0).then(pl.col(*part.names) / total).alias(*part.names) for part in parts)
    return rows


def facts(known: Known, attributes: Attributes) -> pl.DataFrame:
    """One row per entity with facts about it: those columns of `attributes`, and the day of the facts where they have one."""
    table = attributes.table
    found = known.dated(table)
    for column in (known.entity, *attributes.columns):
        refuse_unknown(f"features.attributes.{table}", column, table, found)
    refuse_repeats(table, known.entity, found)
    schema = found.collect_schema()
    chosen = [_fact(table, column, schema[column]) for column in attributes.columns]
    dated = [pl.col(DAY)] if DAY in schema else []
    return known.own(found).select(known.entity, *chosen, *dated).collect()


def join_facts(rows: pl.DataFrame, facts: pl.DataFrame, entity: str, attributes: Attributes) -> pl.DataFrame:
    """`rows` with facts about the entity; an entity without any gets nulls.

    Raises LeakError where the facts have a time and one of them is younger than the cutoff it would be used at.
    """
    rows = rows.join(facts, on=entity, how="left")
    if DAY in facts.columns:
        refuse_leak(rows, attributes)
    return rows.drop(DAY, strict=False)


def _fact(table: str, column: str, kind: pl.DataType) -> pl.Expr:
    if kind.is_numeric() or kind == pl.Boolean:
        return pl.col(column).cast(pl.Float64).fill_nan(None)
    if kind.is_temporal() or kind.is_nested():
        raise ParamsError(
            f"features.attributes.{table} = {column}: is {kind}; a fact is a number, true or false, or text. Leave it out"
        )
    return pl.col(column).cast(pl.String)


def refuse_leak(rows: pl.DataFrame, attributes: Attributes) -> None:
    later = rows.filter(pl.col(DAY) > pl.col(CUTOFF))
    if len(later):
        raise LeakError(
            f"feature {attributes.columns[0]} uses rows of {attributes.table} from after cutoff {later[CUTOFF][0]} "
            f"(latest {later[DAY].max()}); facts must be older than what uses them. Make it an aggregate or leave it out"
        )
