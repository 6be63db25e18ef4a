"""What predictions made from rows of features share: the rows that were learned from, and where their labels are found."""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Features, Table, Tabular
from evergreen.tasks.problems.prediction_type import Labelled, PredictionType, scan

CASE_ENTITY, CASE_TARGET, CASE_TIME, CASE_TEST = "_entity", "_target", "_time", "_test"
"""Columns of rows.parquet of a plain table, beside the features."""


class RowPredictions(PredictionType):
    """One prediction per row of features."""

    def stored_rows(self, folder: Path, section: Tabular, card: Mapping[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = _read(folder / "rows.parquet", section)
        found = _of_cases(rows, section) if isinstance(section.features, Table) else _of_cutoffs(rows, section.features, card)
        return found, rows.select(name for name in card["features"] if name in rows.columns)


class LabelledRows(RowPredictions, Labelled):
    """One prediction per row of features, and a label for it later."""

    def find_labels(
        self,
        wanted: pl.DataFrame,
        section: Tabular,
        tables: Mapping[str, Path],
        times: Mapping[str, str | None],
        folder: Path,
        as_of: date,
    ) -> Iterable[tuple[str, date, Any]]:
        """From the tables of events, as the targets of training are made; none for a plain table."""
        from evergreen.tasks.problems.tabular.point_in_time import CUTOFF, TARGET, targets

        features = section.features
        if not isinstance(features, Features):
            return ()
        events = {name: scan(path) for name, path in tables.items()}
        rows = targets(events, times, features, as_of, wanted.rename({"entity": features.entity, "day": CUTOFF}))
        return rows.select(pl.col(features.entity).cast(pl.String), CUTOFF, TARGET).drop_nulls().iter_rows()

    def count_labels(self, folder: Path, section: Tabular, after: date, until: date) -> int | None:
        features = section.features
        if not isinstance(features, Features):
            return None
        rows = pl.scan_parquet(folder / "rows.parquet").filter(pl.col("target").is_not_null(), pl.col("cutoff") > after)
        matured = rows.filter(pl.col("cutoff") <= until - timedelta(days=features.horizon_days))
        return matured.select(pl.len()).collect().item()


def case_columns(features: Features | Table) -> tuple[str, str]:
    """Columns of rows.parquet with the entity and with the target."""
    return (CASE_ENTITY, CASE_TARGET) if isinstance(features, Table) else (features.entity, "target")


def _read(path: Path, section: Tabular) -> pl.DataFrame:
    """The rows, or those of a sample of entities where the table is too large for memory."""
    from evergreen.tasks.problems.tabular.stored_table import AT, StoredTable

    stored = StoredTable(path, *case_columns(section.features), by_class=False)
    return pl.read_parquet(path) if stored.fits() else stored.sample().frame().drop(AT)


def _of_cases(rows: pl.DataFrame, section: Tabular) -> pl.DataFrame:
    return rows.select(
        entity=pl.col(CASE_ENTITY).cast(pl.String),
        cutoff=pl.lit(None, pl.Date),
        at=pl.col(CASE_TIME),
        label=pl.col(CASE_TARGET),
        learned=pl.lit(True) if section.train.refit else ~pl.col(CASE_TEST),
    )


def _of_cutoffs(rows: pl.DataFrame, features: Features, card: Mapping[str, Any]) -> pl.DataFrame:
    learned = rows["cutoff"].cast(pl.String).is_in([str(each) for each in card["trained_on"]])
    if not learned.any():
        learned = rows["cutoff"] <= date.fromisoformat(str(card["cutoff"]))
    return rows.select(
        "cutoff",
        entity=pl.col(features.entity).cast(pl.String),
        at=pl.lit(None, pl.Datetime("us")),
        label=pl.col("target") if "target" in rows.columns else pl.lit(None, pl.Float64),
        learned=learned,
    )
