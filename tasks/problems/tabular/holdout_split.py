"""Plain tables: one row per case. The folds of the search, and of the rows that are kept to judge by (see `plain_rows`)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from evergreen.tasks.config.params import Table, Tabular
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.base import Fold, Part, Splits

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
