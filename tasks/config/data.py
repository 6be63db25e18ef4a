"""The sections `ingest` and `validate`: sources of tables and the rules that their rows must meet."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evergreen.tasks.config.base import Section

ColumnType = Literal["integer", "number", "text", "boolean", "date", "datetime"]
NOUNS: dict[ColumnType, str] = {
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "date": "a date",
    "datetime": "a date or time",
    "text": "a text",
}
"""What a value of each type is, for messages."""
FILES = ("csv", "parquet", "jsonl", "excel")
SUFFIXES: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".csv.gz"),
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "excel": (".xlsx", ".xlsb", ".xls", ".ods"),
}
"""Of the files that a folder stands for."""
SOURCES = ("store", *FILES, "sql")
"""Keys of a source, one of which it has."""
DateFormat = Annotated[str, Field(min_length=2)]
NumberExample = Annotated[str, Field(pattern=r"\d")]


class Source(Section):
    """Source of one table (exactly one of store, csv, parquet, jsonl, excel and sql) and the contract of its columns: types,
    formats and missing values. Training, batch scoring and serving read with the same contract."""

    store: str | None = None
    """Table of the worked example's package."""
    csv: str | None = None
    """Path, folder or glob of CSV files, relative to params.yaml; compressed if they end in .gz. Several files are one
    table, in the order of their names. Files may lie in S3: s3://BUCKET/KEY."""
    parquet: str | None = None
    """The same, of Parquet files."""
    jsonl: str | None = None
    """The same, of files with one JSON object per line."""
    excel: str | None = None
    """The same, of workbooks (.xlsx, .xlsb, .xls or .ods). Needs the extra excel."""
    sheet: str | None = None
    """Excel: name of the sheet. null: the first one."""
    sql: str | None = None
    """SQL query; needs `url`."""
    url: str | None = None
    """SQLAlchemy URL of the database, or env:NAME to read the URL from an environment variable (use this for passwords)."""
    separator: str = ","
    """CSV: field separator."""
    encoding: str = "utf8"
    """CSV: character encoding, for example latin-1."""
    decimal: Literal[".", ","] = "."
    """CSV: decimal mark. A decimal comma needs another separator."""
    skip_lines: Annotated[int, Field(ge=0)] = 0
    """CSV: lines before the one with the column names, such as a title or sep=;."""
    comment: str | None = None
    """CSV: lines that start with this text are comments."""
    trailing_separator: bool = False
    """CSV: rows end with a separator that the line of column names lacks."""
    null_values: tuple[str, ...] = ()
    """Strings read as missing values, for example ["NA", "?"]. An empty field is always missing."""
    missing: dict[str, tuple[str, ...]] = {}
    """Column -> further strings that mean missing in this column alone, for example {age: ["-999", "unknown"]}."""
    columns: tuple[str, ...] | None = None
    """Columns to keep, in this order. null: all."""
    types: dict[str, ColumnType] = {}
    """Column -> type. Text keeps each value as written: 01 stays 01. A column without a type gets the one that its values
    suggest at training."""
    number_formats: dict[str, NumberExample] = {}
    """Column of type integer or number -> an example of its format, for example {price: "$1,234.5", weight: "1,5 kg"}.
    Default: 1234.5, with the decimal mark of the file."""
    date_formats: dict[str, DateFormat | tuple[DateFormat, ...]] = {}
    """Column of type date or datetime -> strptime formats, or iso, excel, epoch_s, epoch_ms, epoch_us, for example
    {paid: "%m/%d/%Y"}. ISO 8601 is always read."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest share (0 to 1) of a column's values that may not fit its type; they are reported and count as missing. Above it
    the run stops. Common strings for missing values, such as n/a, do not count."""
    time: str | None = None
    """Column with the time at which a row became known. Rows after project.as_of are left out. null: all rows are known from
    the start."""
    stored_timezone: str | None = None
    """Time zone of the stored times, for example UTC. null: local time."""
    local_timezone: str | None = None
    """Time zone of the business, for example America/New_York. Times are converted to it on reading."""

    @model_validator(mode="after")
    def one_source(self) -> "Source":
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of {', '.join(SOURCES)}; has {', '.join(named) or 'none'}")
        if (self.sql is None) != (self.url is None):
            raise ValueError("sql and url go together")
        if (self.stored_timezone is None) != (self.local_timezone is None):
            raise ValueError("stored_timezone and local_timezone go together")
        if self.decimal == self.separator:
            raise ValueError(f"decimal and separator are both {self.decimal}; change one of them")
        undated = next((name for name in self.date_formats if self.types.get(name) not in ("date", "datetime")), None)
        if undated is not None:
            raise ValueError(f"date_formats names {undated}, whose type is not date or datetime under types")
        unnumbered = next((name for name in self.number_formats if self.types.get(name) not in ("integer", "number")), None)
        if unnumbered is not None:
            raise ValueError(f"number_formats names {unnumbered}, whose type is not integer or number under types")
        return self

    @property
    def files(self) -> tuple[str, str] | None:
        """Its key and path, if it is read from files."""
        return next(((key, path) for key in FILES if (path := getattr(self, key)) is not None), None)


class Expectation(Section):
    """One expectation of Great Expectations."""

    type: str
    """Expectation type, for example expect_column_values_to_be_between."""
    kwargs: dict[str, Any] = {}
    """Arguments of the expectation, for example {column: quantity, min_value: 0}."""
    severity: Literal["error", "warning"] = "error"
    """error: failing rows are quarantined (row rule) or the run stops (table rule). warning: only reported."""
    name: str | None = None
    """Short name in reports and in the quarantine. null: type and column."""


class Reference(Section):
    """Foreign key: the values of a column must exist in another table."""

    to: Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
    """Referenced table and column, for example products.product_id."""
    where: str | None = None
    """SQL condition: check only the rows that meet it. null: all rows. Missing values are never checked."""
    severity: Literal["error", "warning"] = "error"
    """error: rows with an unknown value are quarantined. warning: only reported."""
    join_columns: tuple[str, ...] = ()
    """Columns of the referenced table to join for the other rules. They are not stored."""


class Rules(Section):
    """Validation rules of one table."""

    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest share of rows (0 to 1) that may be quarantined; above it the run stops."""
    unique: tuple[str, ...] = ()
    """Unique key: later duplicates are quarantined. Empty: no such rule."""
    drop_duplicates: bool = False
    """Drop rows that are equal to an earlier row in every column before the rules run. Their number is reported."""
    references: dict[str, Reference] = {}
    """Column -> the column of another table that must contain its values."""
    derived: dict[str, str] = {}
    """Name -> SQL expression: derived columns for the rules. They are not stored."""
    expectations: tuple[Expectation, ...] = ()
    """Expectations, checked in one pass."""
