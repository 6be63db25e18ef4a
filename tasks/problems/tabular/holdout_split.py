"""Plain tables: one row per case. Which rows are kept to judge by, and the folds of the search.

Without time, the rows to judge by are drawn by a hash of their entity, or of what is in them: rows that are added leave the
others where they are, and equal rows stay together (unless so many are alike that there would be too few or too many to
judge by: then it counts how often such a row was there before). With time they are the newest.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import pandas as pd
import polars as pl
from pandas.util import hash_pandas_object
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from evergreen.tasks.config.params import Role, Table, Tabular
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.problems.base import Fold, Splits

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
    for key, name in [*named.items(), *((f"columns.{each}", each) for each in section.columns)]:
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
    return found.with_columns(pl.Series(TEST, _kept_to_judge(found, section, stratified))).select(
        ENTITY, TARGET, TIME, TEST, *section.columns
    )


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


def _kept_to_judge(rows: pl.DataFrame, section: Table, stratified: bool) -> np.ndarray:
    """Whether each row is one to judge by."""
    if section.time:
        first = rows[TIME].quantile(1 - section.test_share, "higher")
        return (rows[TIME] >= first).fill_null(False).to_numpy()
    about = rows.select(ENTITY) if section.entity else rows.drop(ENTITY, TIME)
    mixed = _hash(about)
    groups = rows[TARGET].rank("dense").to_numpy() if stratified and not section.entity else np.zeros(rows.height)
    kept = np.zeros(rows.height, dtype=bool)
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        kept[mine] = _lowest(mixed[mine], section.test_share)
        if not section.entity and abs(kept[mine].mean() - section.test_share) > section.test_share / 2:
            times = pl.DataFrame({"row": mixed[mine]}).select("row", time=pl.int_range(pl.len()).over("row"))
            kept[mine] = _lowest(_hash(times), section.test_share)
    return kept


def _hash(about: pl.DataFrame) -> np.ndarray:
    """One number per row, the same for the same content."""
    return hash_pandas_object(about.to_pandas(), index=False).to_numpy()  # pyright: ignore


def _lowest(mixed: np.ndarray, share: float) -> np.ndarray:
    """Whether a number is among that share of them, the lowest; of two or more at least one is, unless all are alike."""
    count = round(share * len(mixed)) or int(len(mixed) > 1)
    return mixed < np.sort(mixed)[min(count, len(mixed) - 1)]


@dataclass(frozen=True)
class Parts:
    """The splits of a plain table, and which rows each of their parts names."""

    splits: Splits
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    begins: Mapping[str, date] = field(default_factory=dict)
    """With time: part -> the last day before its rows."""

    def rows(self, names: Sequence[str]) -> np.ndarray:
        return np.logical_or.reduce([self.masks[name] for name in names])


def parts(rows: pl.DataFrame, section: Tabular, stratified: bool) -> Parts:
    """Of rows that `plain` made. Raises DataError where there are too few for the folds."""
    features = section.features
    assert isinstance(features, Table)
    return _in_time(rows, section, features.gap_days) if features.time else _crossed(rows, section, features, stratified)


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
    return Parts(Splits(tuple(folds), (Fold((REST,), ALONE),), refit), masks)


def _in_time(rows: pl.DataFrame, section: Tabular, gap_days: int) -> Parts:
    """Windows that go forward: each is judged by what was learned from all rows that lie `gap_days` or more before it."""
    time, test = rows[TIME], rows[TEST].to_numpy()
    if missing := time.null_count():
        raise DataError(f"features.time: {missing:,} rows have no time; mend them, or leave them out by a rule under validate.")
    moments = time.to_numpy()
    edges = [
        *_edges(moments[~test], section.tune.folds + 1)[1:],
        *_edges(moments[test], section.evaluate.windows),
    ]
    masks, begins, found = {ALL: np.ones(rows.height, dtype=bool)}, {}, []
    for place, first in enumerate(edges):
        name = f"window {place + 1:02}"
        until = edges[place + 1] if place + 1 < len(edges) else None
        masks[name] = (moments >= first) & (moments < until if until is not None else True)
        masks[f"before {name}"] = moments < first - np.timedelta64(gap_days, "D")
        if not masks[name].any() or not masks[f"before {name}"].any():
            raise DataError(
                f"{rows.height:,} rows from {time.min()} to {time.max()} do not give {len(edges)} windows in time with rows "
                f"{gap_days} days before each; give fewer tune.folds and evaluate.windows, or a shorter features.gap_days."
            )
        begins[name] = pd.Timestamp(first).date() - timedelta(days=1)
        found.append(Fold((f"before {name}",), name))
    refit = (ALL,) if section.train.refit else None
    tests = section.evaluate.windows
    return Parts(Splits(tuple(found[:-tests]), tuple(found[-tests:]), refit), masks, begins)


def _edges(moments: np.ndarray, count: int) -> list[np.datetime64]:
    """Where each of `count` windows with about as many rows begins; rows of one moment stay together."""
    ordered = np.sort(moments)
    return [ordered[round(place * len(ordered) / count)] for place in range(count)]
