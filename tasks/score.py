"""Batch scoring: the rows of a file in, an answer for each of them out. No row is dropped, and their order stays."""

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from tasks import problems
from tasks.errors import ModelError, ParamsError, SourceError
from tasks.layout import Layout, writing
from tasks.params import Params, Section, Source, Table
from tasks.problems.base import NOT_SCORED, Data, Model

log = logging.getLogger(__name__)


class Result(Section):
    problem: str
    version: int
    rows: int
    """Rows read."""
    not_scored: int
    """Rows without an answer; the column `not_scored` says why."""
    out: str


def run(
    params: Params,
    problem: str,
    layout: Layout,
    model: Model,
    version: int,
    data: Path,
    out: Path,
    moved: Callable[[Data], Data] = lambda known: known,
) -> Result:
    """Answer each row of `data` (csv or parquet) by `model`, registered as `version`, into `out` (either, whole or not at all).

    A row holds the features of the problem, or only the key of its entity, whose newest features are then looked up.
    `moved`: what happened to the features since they were built, such as purchases that came in.
    Raises SourceError where the file cannot be read, DataError for columns that are missing or taken, ModelError where the
    model wants other features than the project makes now.
    """
    kind, section = problems.kind(params.kind(problem)), params.section(problem)
    if out.suffix not in WRITE:
        raise ParamsError(f"{out}: unknown kind of file; give a name that ends in {' or '.join(WRITE)}")
    asked = _rows_of(section.features, params, data) if isinstance(section.features, Table) else read(data)
    if not layout.features(problem).exists():
        raise ModelError(f"{problem}: has no features yet; run evergreen train {problem}")
    try:
        with problems.naming(problem):
            answers = kind.answer(model, moved(kind.load(layout.features(problem), section)), asked, section)
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{problem}: version {version} cannot score {data.name}: {error}. Train again, or name a --version."
        ) from error
    with writing(out) as scratch:
        WRITE[out.suffix](answers, scratch)
    refused = answers[NOT_SCORED].drop_nulls() if NOT_SCORED in answers.columns else pl.Series(dtype=pl.String)
    if len(refused):
        log.warning(
            "%s: %s of %s rows are not scored; the first: %s", problem, f"{len(refused):,}", f"{asked.height:,}", refused[0]
        )
    return Result(problem=problem, version=version, rows=asked.height, not_scored=len(refused), out=str(out))


def read(path: Path, written: Source | None = None) -> pl.DataFrame:
    """A csv or parquet file. `written`: how the table is written that the problem learned from; this one may be too.

    Raises SourceError where it is neither csv nor parquet, is not there or has no column.
    """
    if path.suffix not in READ:
        raise SourceError(f"{path}: unknown kind of file; give a name that ends in {' or '.join(READ)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        rows = READ[path.suffix](path, written)
    except (PolarsError, OSError, UnicodeError) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    return rows


def _rows_of(table: Table, params: Params, path: Path) -> pl.DataFrame:
    """A file with rows of a plain table, its numbers and dates read as the table's own; one that is none stays as it is."""
    written = params.ingest[table.table]
    rows, made = read(path, written), []
    for name, role in table.columns.items():
        if rows.schema.get(name) != pl.String:
            continue
        text, form = pl.col(name).str.strip_chars(), written.formats.get(name)
        if role == "number" and written.decimal == ",":
            made.append(text.str.replace(",", ".", literal=True).alias(name))
        elif role == "date" and form:
            days = written.types[name] == "date"
            moment = text.str.to_date(form, strict=False) if days else text.str.to_datetime(form, strict=False)
            said = moment.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S")
            made.append(pl.coalesce(said, text).alias(name))
    return rows.with_columns(made)


def _read_csv(path: Path, written: Source | None) -> pl.DataFrame:
    """In the separator, encoding and decimal mark of `written`, where the first line has that separator."""
    with path.open("rb") as file:
        first = file.readline()
    if written is None or written.separator.encode() not in first:
        return pl.read_csv(path, infer_schema_length=None, null_values=list(written.missing) if written else None)
    text = path.read_bytes().decode(written.encoding).encode()
    return pl.read_csv(
        text,
        separator=written.separator,
        decimal_comma=written.decimal == ",",
        null_values=list(written.missing) or None,
        schema_overrides=dict.fromkeys(set(written.formats) & set(_names(text, written)), pl.String),
        infer_schema_length=None,
    )


def _names(text: bytes, written: Source) -> list[str]:
    return pl.read_csv(text, separator=written.separator, n_rows=0).columns


READ = {".parquet": lambda path, written: pl.read_parquet(path), ".csv": _read_csv}
WRITE = {".parquet": pl.DataFrame.write_parquet, ".csv": pl.DataFrame.write_csv}
