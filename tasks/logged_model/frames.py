"""Frames as pandas reads them, converted by the data contract to the columns that a model takes."""

import numbers
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from pandas.api import types as kinds

from evergreen.tasks.config.data import NOUNS, ColumnType, Source
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.data.conversion import convert_rows
from evergreen.tasks.logged_model.manifest import InputColumn, Manifest
from evergreen.tasks.model_files.onnx_runtime import text

NULLS = {"number": (pl.Float64, np.nan), "date": (pl.Datetime("us"), None), "text": (pl.String, None)}


def read_features(frame: pd.DataFrame, manifest: Manifest, levels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The columns of the manifest, in its order: float64, text and datetime64. An optional column may be absent.

    `levels`: category -> its values in training. Raises DataError for a required column that is absent, and for a value that
    its type does not allow.
    """
    given = {name: as_polars(name, frame[name]) for name in manifest.columns if name in frame}
    if absent := [name for name, column in manifest.columns.items() if column.required and name not in given]:
        raise DataError(f"column {absent[0]}: is missing; it is required. Give null for a value that is not known.")
    rows = pl.DataFrame({name: _moments(series, manifest.columns[name].type) for name, series in given.items()})
    read = convert_rows(_dated(manifest.contract, rows), rows, {name: manifest.columns[name].type for name in given})
    for name, lost in read.lost.items():
        if lost.any():
            row = int(lost.arg_true()[0])
            noun = NOUNS[manifest.columns[name].type]
            raise DataError(f"{name} = {given[name][row]} (row {row}): not {noun}. Mend the value, or give null.")
    columns = {
        name: _as_trained(name, column, given.get(name), read.frame, len(frame), levels.get(name, ()))
        for name, column in manifest.columns.items()
    }
    return pd.DataFrame(columns, index=range(len(frame)))


def _as_trained(
    name: str, column: InputColumn, given: pl.Series | None, read: pl.DataFrame, rows: int, levels: Sequence[str]
) -> pd.Series:
    if given is None:
        values = pl.Series(name, [None] * rows, dtype=NULLS[column.trained][0])
    else:
        values = given if column.trained == "text" and given.dtype == pl.Boolean else read[name]
    if column.trained == "number":
        numbers = values.cast(pl.Float64, strict=False).to_numpy()
        if np.isinf(numbers).any():
            raise DataError(f"{name}: row {int(np.isinf(numbers).argmax())} is infinite; give a finite number, or null.")
        return pd.Series(numbers)
    if column.trained == "date":
        return pd.Series(values.cast(pl.Datetime("us")).to_numpy())
    if values.dtype == pl.Boolean:
        words = [next((each for each in levels if each.lower() == word), word) for word in ("true", "false")]
        values = values.replace_strict([True, False], words, return_dtype=pl.String)
    return pd.Series(values.cast(pl.String).to_list(), dtype="str")


def as_polars(name: str, values: Any) -> pl.Series:
    """A column of any pandas type: numbers, flags, times or text; None where a value is missing."""
    dtype = values.dtype
    if kinds.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        return pl.Series(name, [None if each is pd.NA else bool(each) for each in values], dtype=pl.Boolean)
    if kinds.is_numeric_dtype(dtype):
        if values.isna().any() or dtype.kind == "f":
            return pl.Series(name, values.to_numpy("float64", na_value=np.nan)).fill_nan(None)
        return pl.Series(name, values.to_numpy("int64"))
    if kinds.is_datetime64_any_dtype(dtype):
        zoned = getattr(dtype, "tz", None) is not None
        plain = values.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else values
        found = pl.Series(name, plain.to_numpy("datetime64[us]"))
        return found.dt.replace_time_zone("UTC") if zoned else found
    return _cells(name, [None if _is_missing(each) else each for each in values])


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _cells(name: str, cells: list[Any]) -> pl.Series:
    """Python values of a column of type object."""
    there = [each for each in cells if each is not None]
    if there and all(isinstance(each, bool | np.bool_) for each in there):
        return pl.Series(name, [None if each is None else bool(each) for each in cells], dtype=pl.Boolean)
    if there and all(isinstance(each, numbers.Real) or hasattr(each, "as_tuple") for each in there):
        whole = all(isinstance(each, numbers.Integral) for each in there)
        kind: Any = (int, pl.Int64) if whole else (float, pl.Float64)
        return pl.Series(name, [None if each is None else kind[0](each) for each in cells], dtype=kind[1])
    if there and all(isinstance(each, date) for each in there):
        return as_polars(name, pd.Series(pd.to_datetime(cells)))
    return pl.Series(name, [None if each is None else text(each, "") for each in cells], dtype=pl.String)


def _moments(series: pl.Series, kind: ColumnType) -> pl.Series:
    """Dates as a table has them that was read without their time."""
    return series.cast(pl.Datetime("us")) if series.dtype == pl.Date and kind == "datetime" else series


def _dated(contract: Source, rows: pl.DataFrame) -> Source:
    """`contract`, with numbers read as milliseconds since 1970 in columns of dates: so pandas writes dates as JSON."""
    kind = contract.types
    numeric = [name for name, each in kind.items() if each in ("date", "datetime") and name in rows.columns]
    numeric = [name for name in numeric if rows.schema[name].is_numeric() and name not in contract.date_formats]
    if not numeric:
        return contract
    return contract.model_copy(update={"date_formats": {**contract.date_formats, **dict.fromkeys(numeric, "epoch_ms")}})


def admit(frame: pd.DataFrame, schema: Any) -> pd.DataFrame:
    """`frame` with the types that an MLflow schema declares, where a conversion loses nothing; other columns as they are.

    MLflow alone refuses whole numbers for a double, and categories, flags and dates for a string.
    """
    changed = {}
    for spec in schema.inputs:
        if spec.name in frame and (made := _admitted(frame[spec.name], getattr(spec.type, "name", ""))) is not None:
            changed[spec.name] = made
    return frame.assign(**changed) if changed else frame


def _admitted(values: Any, declared: str) -> Any:
    """`values` as `declared`; None where they fit, or cannot be converted."""
    if declared == "string":
        fits = values.dtype == object or isinstance(values.dtype, pd.StringDtype)
        return None if fits else values.astype(object)
    if declared not in ("double", "long") or str(values.dtype) in ("float64" if declared == "double" else "int64",):
        return None
    try:
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(object)
        numbers: Any = pd.to_numeric(values.where(values.notna(), None) if values.dtype == object else values)
        made: Any = pd.Series(numbers.to_numpy("float64", na_value=np.nan), index=values.index)
    except (TypeError, ValueError):
        return None
    if declared == "long":
        return made.astype("int64") if made.notna().all() and (made % 1 == 0).all() else None
    return made
