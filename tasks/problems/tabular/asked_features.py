"""The features of rows that are asked about: given with them, or found by their entity."""

from typing import Any

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
import polars as pl

from evergreen.tasks.core.errors import DataError
from evergreen.tasks.problems.tabular.rows import Rows

types: Any = pd.api.types


def _names(data: Rows) -> list[str]:
    features: Any = data.features
    return list(features.columns)


def find_features(data: Rows, asked: pl.DataFrame, entity: str | None) -> tuple[pd.DataFrame, list[str | None]]:
    """The features of each row of `asked`, given there or found by entity, and the reason where a row has none.

    Raises DataError if `asked` has neither all features nor the entity as columns.
    """
    missing = [name for name in _names(data) if name not in asked.columns]
    if not missing:
        return _given(data, asked)
    if entity in asked.columns and data.cutoff is not None:
        return _select_entities(data, asked[entity])
    either = f"{entity}, or " if data.cutoff is not None else ""
    raise DataError(
        f"columns {', '.join(asked.columns) or '(none)'}: needs {either}every feature; {len(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing "
        f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''})"
    )


def _select_entities(data: Rows, wanted: pl.Series) -> tuple[pd.DataFrame, list[str | None]]:
    """The newest features of each entity."""
    assert data.cutoff is not None
    day = data.cutoff.unique().sort()[-1]
    newest = data.at([day])
    features: Any = newest.features
    places = pl.DataFrame({"entity": newest.entity, "place": np.arange(len(newest))})
    keys = wanted.cast(newest.entity.dtype, strict=False).alias("entity").to_frame()
    place = keys.join(places, on="entity", how="left", maintain_order="left")["place"]
    unknown = place.is_null()
    why = [f"{wanted.name} = {key}: no features at {day}" if lost else None for key, lost in zip(wanted, unknown, strict=True)]
    return features.iloc[place.fill_null(0).to_numpy()], why


def _given(data: Rows, asked: pl.DataFrame) -> tuple[pd.DataFrame, list[str | None]]:
    """The columns of the features, with the types they have in training."""
    why: list[str | None] = [None] * asked.height
    columns = {}
    for name in _names(data):
        if not types.is_numeric_dtype(data.features[name]):
            columns[name] = _as_trained(data.features[name], asked[name], why)
            continue
        numbers = asked[name].cast(pl.Float64, strict=False)
        wrong = (numbers.is_null() & asked[name].is_not_null()) | numbers.is_infinite().fill_null(False)
        for row in wrong.arg_true():
            why[row] = why[row] or f"{name} = {asked[name][row]}: not a finite number"
        columns[name] = numbers.to_numpy()
    return pd.DataFrame(columns), why


def _as_trained(known: Any, asked: pl.Series, why: list[str | None]) -> pd.Series:
    """Dates or text, as in training; where a date is none, `why` says so."""
    if not types.is_datetime64_any_dtype(known):
        return pd.Series(asked.cast(pl.String).to_list(), dtype="str")
    text = asked.dtype == pl.String
    try:
        moments = asked.str.to_datetime(strict=False) if text else asked.cast(pl.Datetime("us"), strict=False)
    except pl.exceptions.PolarsError:  # not one of them is a date
        moments = pl.Series(asked.name, [None] * len(asked), dtype=pl.Datetime("us"))
    for row in (moments.is_null() & asked.is_not_null()).arg_true():
        why[row] = why[row] or f"{asked.name} = {asked[row]}: not a date"
    return moments.to_pandas()
