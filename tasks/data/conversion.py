"""The contract of a table's columns: select them, and convert their values to the types and formats that `Source` declares.

Training reports a value that does not fit and counts it as missing, within ingest.NAME.max_unreadable; batch scoring and
serving do not predict its row. Everything else is the same code.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from evergreen.tasks.config.data import ColumnType, Source
from evergreen.tasks.core.column_names import unusable_name
from evergreen.tasks.core.errors import ParamsError, SourceError
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data import date_formats
from evergreen.tasks.data.number_formats import NumberFormat

log = logging.getLogger(__name__)

TYPES: dict[str, Any] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "text": pl.String,
    "boolean": pl.Boolean,
    "date": pl.Date,
    "datetime": pl.Datetime("us"),
}
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
NULL_VALUES = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "Null", "null", "None", "none", "?", "-", "--", ".")
"""Common strings for missing values; of numbers and dates these too mean missing where the contract does not list them."""
SPREADSHEET_ERRORS = ("#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!")
EXAMPLES = 3
CONTRACT = ("types", "number_formats", "date_formats", "null_values", "missing", "decimal")
"""Keys of a source by which values are converted."""


def check_formats(name: str, source: Source) -> None:
    """Raises ParamsError for a number or date format that nothing can be read by."""
    for column, example in source.number_formats.items():
        try:
            NumberFormat.parse(example)
        except ValueError as error:
            raise ParamsError(f"params.yaml: ingest.{name}.number_formats.{column} = {error}") from None
    for column in source.date_formats:
        for form in _date_formats(source, column):
            if not date_formats.is_valid(form):
                raise ParamsError(
                    f"params.yaml: ingest.{name}.date_formats.{column} = {form}: no date format; write one of strptime such as "
                    f"%d.%m.%Y, or one of {', '.join(date_formats.NAMED)}"
                )


def changed_columns(name: str, source: Source, description: str, there: Sequence[str]) -> list[str]:
    """How the columns of a table differ from those of its contract, one line each. Steps that need a missing column name it."""
    absent = [column for column in source.types if column not in there]
    notes = [f"ingest.{name}.types: {description} has no column {column}, which the contract lists" for column in absent]
    new = [column for column in there if column not in source.types]
    if new and len(new) < len(there) / 2:
        shown = ", ".join(new[:EXAMPLES]) + (", ..." if len(new) > EXAMPLES else "")
        notes.append(f"ingest.{name}.types: {description} has new columns ({shown}), which no feature uses")
    for note in notes:
        log.warning("%s", note)
    return notes


def select_columns(name: str, source: Source, description: str, table: pl.LazyFrame) -> pl.LazyFrame:
    """The columns that `source` keeps. Raises SourceError if it names a column that the table does not have.

    A column of the contract that is absent without a column of a similar name is left to the steps that need it.
    """
    there = table.collect_schema().names()
    if problem := unusable_name(source.columns or there):
        raise SourceError(
            f"ingest.{name}: {description}: {problem}. Rename it in the file or by a query, or leave it out: list the others "
            f"under ingest.{name}.columns"
        )
    for key, columns in (("columns", source.columns), ("types", source.types), ("time", source.time and [source.time])):
        for column in columns or ():
            if column not in there and (key != "types" or "did you mean" in nearest(column, there)):
                raise SourceError(f"ingest.{name}.{key}: {description} has no column {column}{nearest(column, there)}")
    if source.columns is None:
        return table
    if source.time and source.time not in source.columns:
        raise SourceError(f"ingest.{name}.columns: the time column {source.time} is missing; add it")
    return table.select(source.columns)


# --- values


@dataclass(frozen=True)
class Unreadable:
    """Values of a column that its type does not allow."""

    column: str
    type: ColumnType
    values: tuple[str, ...]
    """Some of them, as written, the most frequent first."""
    count: int
    """Cells."""
    row: int
    """Number of the first row, from 1."""
    share: float
    """Of the values that are not missing."""
    common: bool
    """Whether all are common strings for missing values."""

    def __str__(self) -> str:
        shown = ", ".join(repr(each) for each in self.values[:EXAMPLES]) + (", ..." if len(self.values) > EXAMPLES else "")
        values = "1 value does" if self.count == 1 else f"{self.count:,} values do"
        return f"{self.column}: {values} not fit ({shown}; the first in row {self.row:,})"


def type_of(kind: pl.DataType) -> ColumnType | None:
    """The type that stands for a polars type in a contract; None for lists, times of day and the like."""
    if kind == pl.Boolean:
        return "boolean"
    if kind.is_integer():
        return "integer"
    if kind.is_numeric():
        return "number"
    if kind == pl.Date:
        return "date"
    if isinstance(kind, pl.Datetime):
        return "datetime"
    return "text" if kind in (pl.String, pl.Categorical, pl.Enum) else None


def value(source: Source, column: str, now: pl.DataType, kind: ColumnType) -> pl.Expr:
    """The column as `kind`; null for a missing value, and for one that does not convert without loss."""
    given = present(source, column, now)
    if kind == "text":
        return names(given, now)
    if now == pl.String:
        return _from_text(source, column, given.str.strip_chars(), kind)
    if now == pl.Categorical or now == pl.Enum:
        return value(source, column, pl.String(), kind)
    made = given.cast(TYPES[kind], strict=False)
    if kind == "integer" and now.is_float():
        return pl.when(made.cast(pl.Float64) == given).then(made)
    if kind == "date" and isinstance(now, pl.Datetime):
        return pl.when(made.cast(now) == given).then(made)
    if kind == "boolean" and now.is_numeric():
        return pl.when(given.cast(pl.Float64).is_in([0.0, 1.0])).then(made)
    if kind in ("date", "datetime") and not now.is_temporal():
        forms = _date_formats(source, column)
        moment = (
            date_formats.read(given.cast(pl.Int64, strict=False).cast(pl.String), forms) if forms and now.is_numeric() else None
        )
        return pl.lit(None, TYPES[kind]) if moment is None else _moment(moment, kind)
    return made


def present(source: Source, column: str, now: pl.DataType) -> pl.Expr:
    """The column without the strings that the contract calls missing; NaN is missing too."""
    given = pl.col(column)
    if now == pl.Categorical or now == pl.Enum:
        given, now = given.cast(pl.String), pl.String()
    if now == pl.String:
        tokens = [*source.null_values, *source.missing.get(column, ()), ""]
        return pl.when(~given.str.strip_chars().is_in(tokens)).then(given)
    if now.is_float():
        given = given.fill_nan(None)
    if now.is_numeric() and (sentinels := [float(each) for each in source.missing.get(column, ()) if _is_number(each)]):
        given = pl.when(~given.cast(pl.Float64).is_in(sentinels)).then(given)
    return given


def names(given: pl.Expr, now: pl.DataType) -> pl.Expr:
    """Text as it is; other values as names of categories: a whole number without decimals, truth values in lower case."""
    if now.is_float():
        whole = given.cast(pl.Int64, strict=False)
        return pl.when(whole.cast(pl.Float64) == given).then(whole.cast(pl.String)).otherwise(given.cast(pl.String))
    return given.cast(pl.String)


def _from_text(source: Source, column: str, text: pl.Expr, kind: ColumnType) -> pl.Expr:
    if kind == "boolean":
        return text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
    if kind in ("date", "datetime"):
        return _moment(date_formats.read(text, _date_formats(source, column)), kind)
    if kind == "integer":
        return pl.coalesce(text.cast(pl.Int64, strict=False), _whole(_number(source, column, text)))
    return _number(source, column, text)


def _moment(moment: pl.Expr, kind: ColumnType) -> pl.Expr:
    if kind == "datetime":
        return moment
    day = moment.cast(pl.Date)
    return pl.when(day.cast(pl.Datetime("us")) == moment).then(day)


def _date_formats(source: Source, column: str) -> Sequence[str]:
    found = source.date_formats.get(column)
    return DEFAULT_DATES if found is None else (found,) if isinstance(found, str) else found


DEFAULT_DATES = ("%d/%m/%Y", "%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S")
"""Read beside ISO 8601 where the contract has no format."""


def _number(source: Source, column: str, text: pl.Expr) -> pl.Expr:
    plain = _finite(text.cast(pl.Float64, strict=False))
    example = source.number_formats.get(column)
    form = NumberFormat.parse(example) if example else NumberFormat(decimal=source.decimal) if source.decimal != "." else None
    if form is None:
        return plain
    if form.decimal != "." or form.thousands == ".":
        return _finite(form.read(text))  # 1.234 is not 1.234 here
    return pl.coalesce(plain, _finite(form.read(text)))


def _finite(number: pl.Expr) -> pl.Expr:
    return pl.when(number.is_finite()).then(number)


def _whole(number: pl.Expr) -> pl.Expr:
    made = number.cast(pl.Int64, strict=False)
    return pl.when(made.cast(pl.Float64) == number).then(made)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- a table


def convert_types(name: str, source: Source, description: str, table: pl.LazyFrame) -> tuple[pl.LazyFrame, list[str]]:
    """Convert columns to source.types, and what did not fit, one line each. Raises SourceError above source.max_unreadable."""
    schema = table.collect_schema()
    made, doubtful = conversions(source, table)
    notes = []
    for found in unreadable(source, table, doubtful):
        where = f"ingest.{name}.types.{found.column} = {found.type}: {description}: {found}"
        if not found.common and found.share > source.max_unreadable:
            raise SourceError(f"{where}. Fix the export, declare another type, or raise ingest.{name}.max_unreadable.")
        notes.append(f"{where}. They count as missing; list them under ingest.{name}.missing.{found.column}.")
        log.warning("%s", notes[-1])
    others = [column for column in schema if column not in made]
    kept = {column: present(source, column, schema[column]) for column in others}
    return table.with_columns(each.alias(column) for column, each in {**kept, **made}.items()), notes


def conversions(source: Source, table: pl.LazyFrame) -> tuple[dict[str, pl.Expr], dict[str, pl.Expr]]:
    """Column -> its converted values, for each column with a type, and the part of it that may lose values.

    Text that is plain in every row, such as 1.5 or 2024-01-31, is read by a fraction of the work.
    """
    schema = table.collect_schema()
    made = {column: value(source, column, schema[column], kind) for column, kind in source.types.items() if column in schema}
    texts = (column for column in made if schema[column] == pl.String)
    plain = {column: each for column in texts if (each := _plain(source, column, source.types[column])) is not None}
    lost = [(each.null_count() - pl.col(column).null_count()).alias(column) for column, each in plain.items()]
    counts = table.select(lost).collect(engine="streaming").row(0, named=True) if lost else {}
    made |= {column: plain[column] for column, count in counts.items() if not count}
    certain = {column for column in made if counts.get(column) == 0 or source.types[column] == "text"}
    certain |= {column for column in made if schema[column] == TYPES[source.types[column]]}
    return made, {column: each for column, each in made.items() if column not in certain}


def _plain(source: Source, column: str, kind: ColumnType) -> pl.Expr | None:
    """The column read without regard for blanks, formats and missing strings; None if its type needs them."""
    if column in source.number_formats or column in source.date_formats or column in source.missing:
        return None
    if any(mark.isdigit() for token in source.null_values for mark in token):
        return None
    given = pl.col(column)
    if kind == "integer":
        return given.cast(pl.Int64, strict=False)
    if kind == "number" and source.decimal == ".":
        return _finite(given.cast(pl.Float64, strict=False))
    return given.str.to_date("%Y-%m-%d", strict=False) if kind == "date" else None


def unreadable(source: Source, table: pl.LazyFrame, made: Mapping[str, pl.Expr]) -> Iterator[Unreadable]:
    """The columns with a value that `made` loses. `made`: column -> its converted values."""
    if not made:
        return
    schema = table.collect_schema()
    there = {column: present(source, column, schema[column]).is_not_null() for column in made}
    lost = {column: there[column] & each.is_null() for column, each in made.items()}
    sums = [each.sum().alias(f"lost {column}") for column, each in lost.items()]
    sums += [each.sum().alias(f"there {column}") for column, each in there.items()]
    counts = table.select(sums).collect(engine="streaming").row(0, named=True)
    for column in made:
        if count := counts[f"lost {column}"]:
            rows = (
                table.with_row_index("__row", 1)
                .filter(lost[column])
                .select("__row", pl.col(column).cast(pl.String).str.strip_chars())
            )
            found = rows.collect(engine="streaming").sort("__row")
            values = found[column].alias("value").value_counts(sort=True)["value"].to_list()
            share = count / counts[f"there {column}"]
            common = all(each in NULL_VALUES or each in SPREADSHEET_ERRORS for each in values)
            yield Unreadable(column, source.types[column], tuple(values[:10]), count, int(found["__row"][0]), share, common)


# --- rows to predict


@dataclass(frozen=True)
class ConvertedRows:
    """Rows with the values of a contract."""

    frame: pl.DataFrame
    lost: Mapping[str, pl.Series]
    """Column -> whether each value is one that its type does not allow. Such a value is null in `frame`. Without columns whose
    values all fit at first sight."""
    replaced: Mapping[str, int]
    """Column -> values that are common strings for missing values, count as missing, and are not in the contract."""


def convert_rows(source: Source, rows: pl.DataFrame, types: Mapping[str, ColumnType]) -> ConvertedRows:
    """Convert the columns named by `types`; others stay. Nothing is inferred from `rows`."""
    made, lost, replaced = {}, {}, {}
    for name, kind in types.items():
        if name not in rows.columns:
            continue
        now = rows.schema[name]
        if (quick := _quick(source, rows, name, kind)) is not None:
            made[name] = quick
            continue
        found = rows.select(
            made=local_times(source, name, value(source, name, now, kind), now), given=present(source, name, now)
        )
        wrong = found["given"].is_not_null() & found["made"].is_null()
        if now == pl.String and wrong.any():
            common = wrong & found["given"].str.strip_chars().is_in([*NULL_VALUES, *SPREADSHEET_ERRORS])
            replaced[name], wrong = int(common.sum()), wrong & ~common
        made[name], lost[name] = found["made"].alias(name), wrong
    return ConvertedRows(rows.with_columns(made.values()), lost, {name: count for name, count in replaced.items() if count})


def _quick(source: Source, rows: pl.DataFrame, column: str, kind: ColumnType) -> pl.Series | None:
    """The values of a text column that is plain in every row; None if it is not."""
    if rows.schema[column] != pl.String or column == source.time or (plain := _plain(source, column, kind)) is None:
        return None
    found = rows.select(plain).to_series()
    return found if found.null_count() == rows[column].null_count() else None


def local_times(source: Source, column: str, made: pl.Expr, now: pl.DataType) -> pl.Expr:
    """Times as convert_times makes them for a whole table."""
    if isinstance(now, pl.Datetime) and now.time_zone:
        return made.dt.replace_time_zone("UTC").dt.convert_time_zone(source.local_timezone or "UTC").dt.replace_time_zone(None)
    if column == source.time and source.local_timezone:
        stored = made.dt.replace_time_zone(source.stored_timezone, ambiguous="earliest", non_existent="null")
        return stored.dt.convert_time_zone(source.local_timezone).dt.replace_time_zone(None)
    return made


def convert_times(name: str, source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Datetimes in microseconds without a time zone: with source.local_timezone in local time, otherwise in UTC if zoned.

    Raises SourceError for a time column of another type, and for an unsuitable zone; ParamsError for an unknown zone.
    """
    schema = table.collect_schema()
    if source.time:
        table = _convert_time_column(name, source, table, schema[source.time])
    zoned = [
        column for column, kind in schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone and column != source.time
    ]
    if zoned:
        local = pl.col(zoned).dt.convert_time_zone(source.local_timezone or "UTC")
        table = table.with_columns(local.dt.replace_time_zone(None))
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
    if not source.local_timezone and not kind.time_zone:
        return table
    zoned = pl.col(column)
    if not kind.time_zone:
        zoned = _with_zone(zoned, name, source)
        lost = table.filter(pl.col(column).is_not_null() & zoned.is_null()).select(pl.len()).collect().item()
        if lost:
            raise SourceError(
                f"{where}: {lost:,} {'value' if lost == 1 else 'values'} in an hour that {source.stored_timezone} skipped "
                "(daylight saving time); check stored_timezone"
            )
    return table.with_columns(
        zoned.dt.convert_time_zone(source.local_timezone or "UTC").dt.replace_time_zone(None).alias(column)
    )


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
