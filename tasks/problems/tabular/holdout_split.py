"""Plain tables: one row per case. Which rows are kept to judge by, and the folds of the search.

With time, the newest rows are the test rows. Without it, each row is drawn for itself, by a hash of its entity or of its test
key: it is a test row where the hash lies below `test_share`. No other row takes part, so that rows that are added, removed or
sorted move none, and a column moves none that is not in the key. Rows with the same key share a draw, LOT of them at most:
copies stay together, and a table of few distinct rows still gives its share.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from evergreen.tasks.config.params import Role, Table, Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Fold, Part, Splits
from evergreen.tasks.problems.tabular.row_hashes import hash_rows

log = logging.getLogger(__name__)

ENTITY, TARGET, TIME, TEST = "_entity", "_target", "_time", "_test"
"""Columns of rows.parquet beside the features."""
ALL, REST, ALONE = "all", "rest", "test"
"""Parts of a table without time: every row; those the search sees; those that judge."""
FEWEST = 10
"""Fewer rows than this cannot be learned from and judged."""
SMALL = 1_000
REPEATS = 3
"""Cross-validations of a table with fewer rows than SMALL, where params do not say."""

LOT = 5
"""So many rows with the same key and target share a draw; the next ones have another."""
ENTITIES = 0.75
"""Entities are few, and each counts: at least this part of test_share of them are test entities."""
FEWEST_ENTITIES = 10
"""Of the test entities, where there are twice as many: the gate cannot tell models apart with fewer."""
DISTINCT = 0.99
"""A key is complete when it has this share of the distinct rows that all columns have."""

SPLITTERS = {
    (False, False): KFold,
    (True, False): StratifiedKFold,
    (False, True): GroupKFold,
    (True, True): StratifiedGroupKFold,
}
"""(stratified, grouped) -> how to split."""


def plain(table: pl.LazyFrame, section: Table, stratified: bool) -> pl.DataFrame:
    """The rows of `table` that have a target, in its order: _entity, _target, _time, _test and the features.

    Features are Float64 (number), String (category, text) or Datetime (date). `stratified`: each class gives its share of
    the test rows. Raises ParamsError for a column that is not there or is not what the section says, and DataError where
    fewer than FEWEST rows are left.
    """
    schema = table.collect_schema()
    named = {"target": section.target, "entity": section.entity, "time": section.time}
    listed = [
        *((f"columns.{each}", each) for each in section.columns),
        *(("test_key", each) for each in section.test_key or ()),
    ]
    for key, name in [*named.items(), *listed]:
        if name is not None and name not in schema:
            raise ParamsError(f"features.{key}: {section.table} has no column {name}{nearest(name, schema.names())}")
    rows = table.collect()
    if section.target is not None:
        kept = rows.filter(pl.col(section.target).is_not_null())
        if left := rows.height - kept.height:
            log.info("%s: %d of %d rows have no %s and are left out", section.table, left, rows.height, section.target)
        rows = kept
    if rows.height < FEWEST:
        raise DataError(
            f"{section.table}: {rows.height} rows with a target; at least {FEWEST} are needed to learn and to judge."
        )
    features = [_typed(rows[name], role, section) for name, role in section.columns.items()]
    target = rows[section.target] if section.target else pl.Series([None] * rows.height, dtype=pl.Float64)
    if target.dtype == pl.Boolean:
        target = target.cast(pl.String)
    entity = rows[section.entity] if section.entity else pl.Series(np.arange(rows.height))
    if entity.null_count():
        raise DataError(f"{section.table}: {section.entity}: {entity.null_count():,} rows do not say whom they are about.")
    time = _moment(rows[section.time], section) if section.time else pl.Series([None] * rows.height, dtype=pl.Datetime)
    found = pl.DataFrame([entity.alias(ENTITY), target.alias(TARGET), time.alias(TIME), *features])
    kept = _newest(found[TIME], section.test_share) if section.time else _drawn(rows, found, section, stratified)
    return found.with_columns(pl.Series(TEST, kept)).select(ENTITY, TARGET, TIME, TEST, *section.columns)


def _typed(column: pl.Series, role: Role, section: Table) -> pl.Series:
    if role in ("category", "text"):
        return column.cast(pl.String)
    if role == "date":
        return _moment(column, section)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise ParamsError(
            f"features.columns.{column.name} = number: {section.table}.{column.name} holds {column.dtype}, such as "
            f"{column.drop_nulls().head(1).to_list()}; call it category, or give ingest.{section.table}.types"
        )
    return column.cast(pl.Float64)


def _moment(column: pl.Series, section: Table) -> pl.Series:
    if not column.dtype.is_temporal() or column.dtype in (pl.Time, pl.Duration):
        raise ParamsError(
            f"features.columns.{column.name}: {section.table}.{column.name} holds {column.dtype} and no dates; "
            f"say so in ingest.{section.table}.types: {{{column.name}: date}}"
        )
    return column.cast(pl.Datetime("us"))


def distinguishing(rows: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """The first of the columns `names` that together make the rows as distinct as all of them do, but for 1 - DISTINCT."""
    whole = _distinct(rows, names)
    for count in range(1, len(names)):
        if _distinct(rows, names[:count]) >= DISTINCT * whole:
            return list(names[:count])
    return list(names)


def _distinct(rows: pl.DataFrame, names: Sequence[str]) -> int:
    return rows.select(pl.struct(names).n_unique()).item()


def _newest(time: pl.Series, share: float) -> np.ndarray:
    return (time >= time.quantile(1 - share, "higher")).fill_null(False).to_numpy()


def _drawn(rows: pl.DataFrame, found: pl.DataFrame, section: Table, stratified: bool) -> np.ndarray:
    """Whether each row is a test row, without time. `rows`: as read; `found`: as typed for the model.

    Each class, or the whole without classes, gives one draw at least, and keeps one to learn from; of entities it gives
    ENTITIES of their share at least, and the whole FEWEST_ENTITIES or half of them.
    """
    if section.entity:
        draws = hash_rows(found.select(ENTITY))
    else:
        key = list(section.test_key or distinguishing(found, list(section.columns)))
        content = pl.DataFrame({"key": hash_rows((rows if section.test_key else found).select(key)), "target": found[TARGET]})
        lots = content.select("key", lot=pl.int_range(pl.len()).over("key", "target") // LOT)
        draws = np.where(lots["lot"] == 0, lots["key"], hash_rows(lots.cast(pl.String)))
    whole = np.unique(draws)
    test = whole[whole < section.test_share * 2.0**64]
    if section.entity:
        test = np.union1d(test, whole[: min(FEWEST_ENTITIES, len(whole) // 2)])
    classes = found[TARGET].rank("dense").to_numpy() if stratified else np.zeros(len(draws))
    for each in np.unique(classes):
        mine = np.unique(draws[classes == each])
        least = max(1, int(ENTITIES * section.test_share * len(mine))) if section.entity else 1
        if len(mine) > 1 and np.isin(mine, test).sum() < least:
            test = np.union1d(test, mine[:least])
        elif np.isin(mine, test).all():
            test = np.setdiff1d(test, mine[-1:])
    return np.isin(draws, test)


@dataclass(frozen=True)
class Parts:
    """The splits of a plain table, and which rows each of their parts names."""

    splits: Splits
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    begins: Mapping[str, date] = field(default_factory=dict)
    """With time: part -> the last day before its rows."""
    conditions: Mapping[str, pl.Expr] = field(default_factory=dict)
    """Part -> which rows of the file it names; not for the folds of a cross-validation."""

    def rows(self, names: Sequence[str]) -> np.ndarray:
        return np.logical_or.reduce([self.masks[name] for name in names])


def parts(rows: pl.DataFrame, section: Tabular, stratified: bool) -> Parts:
    """Of rows that `plain` made. Raises DataError where there are too few for the folds."""
    features = section.features
    assert isinstance(features, Table)
    found = _in_time(rows, section, features.gap_days) if features.time else _crossed(rows, section, features, stratified)
    return _with_two_classes(found, rows[TARGET], features.target) if stratified else found


def _with_two_classes(parts: Parts, target: pl.Series, name: str | None) -> Parts:
    """The folds that have two classes to learn from, and two to judge by; no ranking metric is defined on the others."""
    codes, known = target.rank("dense").fill_null(0).to_numpy(), target.is_not_null().to_numpy()

    def two(names: Sequence[Part]) -> bool:
        return len(np.unique(codes[parts.rows([str(each) for each in names]) & known])) > 1

    if len(np.unique(codes[known])) < 2:
        return parts  # the fit refuses it
    folds = tuple(each for each in parts.splits.folds if two(each.train) and two((each.test,)))
    if parts.splits.folds and not folds:
        value, count = target.drop_nulls().value_counts(name="count").sort("count").row(0)
        raise DataError(
            f"features.target = {name}: no fold of the search has two classes both to learn from and to judge by; "
            f"{count:,} of {len(target):,} rows are {value}, test rows included. Collect more, or give fewer tune.folds."
        )
    return replace(parts, splits=replace(parts.splits, folds=folds))


def _crossed(rows: pl.DataFrame, section: Tabular, features: Table, stratified: bool) -> Parts:
    """Cross-validation of the rows that do not judge, stratified by class and grouped by entity."""
    test, count = rows[TEST].to_numpy(), rows.height
    rest = np.flatnonzero(~test)
    groups = rows[ENTITY].rank("dense").to_numpy()[rest] if features.entity else None
    y = rows[TARGET].rank("dense").to_numpy()[rest] if stratified else np.zeros(len(rest))
    number = section.tune.folds
    if len(np.unique(groups) if groups is not None else rest) < number:
        raise DataError(f"{len(rest)} rows to learn from cannot be split into tune.folds = {number} parts; give fewer folds.")
    masks = {ALL: np.ones(count, dtype=bool), REST: ~test, ALONE: test}
    folds = []
    for repeat in range(section.tune.repeats or (REPEATS if count < SMALL else 1)):
        splitter = SPLITTERS[stratified, groups is not None](n_splits=number, shuffle=True, random_state=repeat)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            split = list(splitter.split(rest, y, groups))
        for place, (_, judged) in enumerate(split):
            name = f"{repeat + 1}/{place + 1}"
            masks[name] = np.zeros(count, dtype=bool)
            masks[name][rest[judged]] = True
            masks[f"{REST} but {name}"] = ~test & ~masks[name]
            folds.append(Fold((f"{REST} but {name}",), name))
    refit = (ALL,) if section.train.refit else None
    conditions = {ALL: pl.col(TEST).is_not_null(), REST: ~pl.col(TEST), ALONE: pl.col(TEST)}
    return Parts(Splits(tuple(folds), (Fold((REST,), ALONE),), refit), masks, conditions=conditions)


def _in_time(rows: pl.DataFrame, section: Tabular, gap_days: int) -> Parts:
    """Windows that go forward: each is judged by what was learned from all rows that lie `gap_days` or more before it."""
    time, test = rows[TIME], rows[TEST].to_numpy()
    if missing := time.null_count():
        raise DataError(f"features.time: {missing:,} rows have no time; mend them, or leave them out by a rule under validate.")
    moments = time.to_numpy()
    edges: list[Any] = [
        *_edges(moments[~test], section.tune.folds + 1)[1:],
        *_edges(moments[test], section.evaluate.windows),
    ]
    conditions: dict[str, pl.Expr] = {ALL: pl.col(TEST).is_not_null()}
    begins, found = {}, []
    for place, first in enumerate(edges):
        name = f"window {place + 1:02}"
        until = edges[place + 1] if place + 1 < len(edges) else None
        since = pl.col(TIME) >= first
        conditions[name] = since if until is None else since & (pl.col(TIME) < until)
        conditions[f"before {name}"] = pl.col(TIME) < first - np.timedelta64(gap_days, "D")
        if not all(rows.select(conditions[each].any()).item() for each in (name, f"before {name}")):
            raise DataError(
                f"{rows.height:,} rows from {time.min()} to {time.max()} do not give {len(edges)} windows in time with rows "
                f"{gap_days} days before each; give fewer tune.folds and evaluate.windows, or a shorter features.gap_days."
            )
        begins[name] = pd.Timestamp(first).date() - timedelta(days=1)
        found.append(Fold((f"before {name}",), name))
    refit = (ALL,) if section.train.refit else None
    tests = section.evaluate.windows
    masks = {name: rows.select(each).to_series().to_numpy() for name, each in conditions.items()}
    return Parts(Splits(tuple(found[:-tests]), tuple(found[-tests:]), refit), masks, begins, conditions)


def _edges(moments: np.ndarray, count: int) -> list[np.datetime64]:
    """Where each of `count` windows with about as many rows begins; rows of one moment stay together."""
    ordered = np.sort(moments)
    return [ordered[round(place * len(ordered) / count)] for place in range(count)]
