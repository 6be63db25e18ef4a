"""Columns, types and local times of a table as its source configures them."""

from datetime import datetime
from typing import Any

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core.errors import ParamsError, SourceError
from evergreen.tasks.core.suggestions import nearest

TYPES: dict[str, Any] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "text": pl.String,
    "boolean": pl.Boolean,
    "date": pl.Date,
    "datetime": pl.Datetime("us"),
}
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def mark_missing(source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Replace source.null_values in text columns by null. In a CSV they are null already."""
    if not source.null_values or source.csv is not None:
        return table
    text = pl.selectors.string()
    return table.with_columns(pl.when(~text.is_in(list(source.null_values))).then(text).name.keep())


def select_columns(name: str, source: Source, description: str, table: pl.LazyFrame) -> pl.LazyFrame:
    """The columns that `source` keeps. Raises SourceError if it names a column that the table does not have."""
    there = table.collect_schema().names()
    for key, columns in (("columns", source.columns), ("types", source.types), ("time", source.time and [source.time])):
        for column in columns or ():
            if column not in there:
                raise SourceError(f"ingest.{name}.{key}: {description} has no column {column}{nearest(column, there)}")
    if source.columns is None:
        return table
    if source.time and source.time not in source.columns:
        raise SourceError(f"ingest.{name}.columns: the time column {source.time} is missing; add it")
    return table.select(source.columns)


def convert_types(name: str, source: Source, description: str, table: pl.LazyFrame) -> pl.LazyFrame:
    """Convert columns to source.types. Raises SourceError, with examples, if a value does not convert without loss."""
    schema = table.collect_schema()
    converted = {
        column: _convert(pl.col(column), schema[column], kind, source.date_formats.get(column))
        for column, kind in source.types.items()
        if column in schema
    }
    lost = {column: pl.col(column).is_not_null() & made.is_null() for column, made in converted.items()}
    if not lost:
        return table
    counts = table.select(**{column: each.sum() for column, each in lost.items()}).collect().row(0, named=True)
    for column, count in counts.items():
        if count:
            rows = table.with_row_index("__row", 1).filter(lost[column]).select("__row", column).head(3).collect()
            examples = "; ".join(f"row {row}: {value!r}" for row, value in rows.iter_rows())
            raise SourceError(
                f"ingest.{name}.types.{column} = {source.types[column]}: {_values(count)} of {description} "
                f"{'has' if count == 1 else 'have'} another type ({examples}). Fix the export or declare another type."
            )
    return table.with_columns(**converted)


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count:,} values"


def _convert(column: pl.Expr, now: pl.DataType, kind: str, date_format: str | None = None) -> pl.Expr:
    """The column as `kind`; null for a value that does not convert without loss."""
    if kind == "text":
        return column.cast(pl.String)
    if now == pl.String:
        text = column.str.strip_chars()
        if kind == "boolean":
            return text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
        if kind == "date":
            return text.str.to_date(date_format, strict=False)
        if kind == "datetime":
            return text.str.to_datetime(date_format, time_unit="us", strict=False)
        return text.cast(TYPES[kind], strict=False)
    made = column.cast(TYPES[kind], strict=False)
    if kind == "integer" and now.is_float():
        return pl.when(made.cast(pl.Float64) == column).then(made)
    if kind == "date" and isinstance(now, pl.Datetime):
        return pl.when(made.cast(now) == column).then(made)
    if kind == "boolean" and now.is_numeric():
        return pl.when(column.is_in([0, 1])).then(made)
    if kind in ("date", "datetime") and not now.is_temporal():
        return pl.lit(None, TYPES[kind])
    return made


def convert_times(name: str, source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Datetimes in microseconds without a time zone; with source.local_timezone, in local time.

    Raises SourceError for a time column of another type, and for a missing or unsuitable zone; ParamsError for an unknown
    zone.
    """
    schema = table.collect_schema()
    if source.time:
        table = _convert_time_column(name, source, table, schema[source.time])
    zoned = [
        column for column, kind in schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone and column != source.time
    ]
    if zoned and source.local_timezone:
        table = table.with_columns(pl.col(zoned).dt.convert_time_zone(source.local_timezone).dt.replace_time_zone(None))
    return table.with_columns(pl.selectors.datetime(time_zone=None).dt.cast_time_unit("us"))


def _convert_time_column(name: str, source: Source, table: pl.LazyFrame, kind: pl.DataType) -> pl.LazyFrame:
    column, where = str(source.time), f"ingest.{name}.time = {source.time}"
    if not isinstance(kind, pl.Date | pl.Datetime):
        raise SourceError(
            f"{where}: contains {kind}, not times. Declare ingest.{name}.types: {{{column}: datetime}} or name another column."
        )
    if isinstance(kind, pl.Date):
        if source.stored_timezone:
            raise SourceError(
                f"{where}: contains dates, which have no time zone; remove stored_timezone and local_timezone, "
                "or name a column of times"
            )
        return table
    if kind.time_zone and not source.local_timezone:
        raise SourceError(
            f"{where}: contains times of the zone {kind.time_zone}; set ingest.{name}.stored_timezone, "
            "and local_timezone to that of the business"
        )
    if not source.local_timezone:
        return table
    zoned = pl.col(column)
    if not kind.time_zone:
        zoned = _with_zone(zoned, name, source)
        lost = table.filter(pl.col(column).is_not_null() & zoned.is_null()).select(pl.len()).collect().item()
        if lost:
            raise SourceError(
                f"{where}: {_values(lost)} in an hour that {source.stored_timezone} skipped (daylight saving time); "
                "check stored_timezone"
            )
    return table.with_columns(zoned.dt.convert_time_zone(str(source.local_timezone)).dt.replace_time_zone(None).alias(column))


def _with_zone(time: pl.Expr, name: str, source: Source) -> pl.Expr:
    """Times with the zone that they are stored in. An ambiguous time is the earlier one; a skipped time becomes null."""
    for key, zone in (("stored_timezone", source.stored_timezone), ("local_timezone", source.local_timezone)):
        try:
            pl.select(pl.lit(datetime(2000, 1, 1)).dt.replace_time_zone(zone))
        except pl.exceptions.PolarsError:
            raise ParamsError(
                f"params.yaml: ingest.{name}.{key} = {zone}: no such time zone; use a name such as America/New_York"
            ) from None
    return time.dt.replace_time_zone(source.stored_timezone, ambiguous="earliest", non_existent="null")
