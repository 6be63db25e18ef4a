"""Rows of features as models take them: in memory, or a sample in memory of a table that is stored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
import polars as pl

from evergreen.tasks.config.params import Role
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.base import Part
from evergreen.tasks.problems.tabular.holdout_split import Parts
from evergreen.tasks.problems.tabular.stored_table import AT, Selection, StoredTable


@dataclass(frozen=True)
class Rows:
    """One row per entity and cutoff, or per row of a plain table; all columns in the same order."""

    entity: pl.Series
    cutoff: pl.Series | None
    """None for a plain table."""
    target: pl.Series
    """Missing where the label is not complete, and everywhere for clustering."""
    features: pd.DataFrame
    """float64 numbers, text, and dates (datetime64)."""
    horizon_days: int = 0
    parts: Parts | None = None
    """Of a plain table."""
    roles: Mapping[str, Role] = field(default_factory=dict[str, Role])
    """Of the features of a plain table."""
    time: pl.Series | None = None
    """Of each row of a plain table; None where no column holds it."""
    stored: StoredTable | None = None
    """All rows, where these are a sample of them and models may learn from all."""
    sampled_from: int | None = None
    """Number of all rows, where these are a sample of them."""

    def at(self, parts: Iterable[Part], labelled: bool = False) -> "Rows":
        """The rows at cutoffs, or of the parts of a plain table; only those with a target if `labelled`."""
        mask = self._mask(list(parts))
        mask = mask & self.target.is_not_null() if labelled else mask
        return replace(self.take(np.flatnonzero(mask.to_numpy())), parts=None)

    def take(self, places: np.ndarray) -> "Rows":
        """The rows at `places`, in that order; a place may come more than once. `parts` stay those of all rows."""
        return replace(
            self,
            entity=self.entity[places],
            cutoff=None if self.cutoff is None else self.cutoff[places],
            target=self.target[places],
            features=self.features.iloc[places],
            time=None if self.time is None else self.time[places],
            stored=None,
        )

    def in_memory(self) -> "Rows":
        """These rows alone, where they are a sample."""
        return self if self.stored is None else replace(self, stored=None, features=self.features.reset_index(drop=True))

    def all_stored(self, parts: Iterable[Part], labelled: bool = False) -> Selection:
        """As `at`, of all rows that are stored."""
        assert self.stored is not None
        condition = self._condition(list(parts))
        found = self.stored.where(condition & pl.col(self.stored.target).is_not_null() if labelled else condition)
        return replace(found, read=self._read)

    def blocks(self, parts: Iterable[Part], what: str | None = None) -> Iterator["Rows"]:
        """As `at`, of all rows that are stored, block by block; at least one block, which may be empty."""
        if self.stored is None or not (found := self.all_stored(parts)).height:
            return iter([self.at(parts)])
        return found.blocks(what)

    def count(self, parts: Iterable[Part], labelled: bool = False) -> int:
        """How many rows `blocks` has."""
        return len(self.at(parts, labelled)) if self.stored is None else self.all_stored(parts, labelled).height

    def _read(self, frame: pl.DataFrame) -> "Rows":
        """Rows of the file, with AT, as rows like these."""
        assert self.stored is not None
        features = to_features(frame.select(list(self.features)), self.stored.path)
        features.index = pd.Index(frame[AT].to_numpy())
        cutoff = None if self.cutoff is None else frame["cutoff"]
        entity, target = frame[self.stored.entity], frame[self.stored.target]
        return replace(self, entity=entity, cutoff=cutoff, target=target, features=features, time=None, parts=None, stored=None)

    def _condition(self, parts: Sequence[Part]) -> pl.Expr:
        if self.parts is not None:
            return pl.any_horizontal(self.parts.conditions[str(each)] for each in parts)
        return pl.col("cutoff").is_in([each for each in parts if isinstance(each, date)])

    def _mask(self, parts: Sequence[Part]) -> pl.Series:
        if self.parts is not None:
            return pl.Series(self.parts.rows([str(each) for each in parts]))
        assert self.cutoff is not None
        return self.cutoff.is_in([each for each in parts if isinstance(each, date)])

    def __len__(self) -> int:
        return len(self.features)


def aged(rows: Rows, half_life_days: float | None, seed: int) -> Rows:
    """`rows` with a part of the older ones: of those `half_life_days` before the newest cutoff a half, drawn at random.

    So they weigh less in whatever learns, a model that takes no weights too. All of them for None, and without cutoffs.
    """
    if half_life_days is None or rows.cutoff is None or not len(rows):
        return rows
    return rows.take(np.flatnonzero(kept_of_older(rows.cutoff, half_life_days, seed)))


def kept_of_older(cutoff: pl.Series, half_life_days: float, seed: int) -> np.ndarray:
    """Which rows `aged` keeps."""
    age = pl.DataFrame({"cutoff": cutoff}).select((pl.lit(cutoff.max()) - pl.col("cutoff")).dt.total_days()).to_series()
    return np.random.default_rng(seed).random(len(cutoff)) < 0.5 ** (age.to_numpy() / half_life_days)


def to_features(frame: pl.DataFrame, path: Path) -> pd.DataFrame:
    """Numbers as float64, the rest as text. Raises DataError for an infinite number."""
    columns = {}
    for series in frame:
        if series.dtype.is_numeric() or series.dtype == pl.Boolean:
            values = series.cast(pl.Float64)
            if rows := (values.is_infinite().fill_null(False)).sum():
                raise DataError(
                    f"{path}: {series.name}: {rows} of {frame.height:,} rows are infinite. Mend the feature's definition."
                )
            columns[series.name] = values.to_numpy()
        elif series.dtype.is_temporal():
            columns[series.name] = series.to_pandas()
        else:
            columns[series.name] = pd.Series(series.cast(pl.String).to_list(), dtype="str")
    return pd.DataFrame(columns)
