"""Read files of rows in chunks: files larger than memory, by several processes, in any order."""

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from evergreen.tasks.config.params import Source
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.data import csv_dialect
from evergreen.tasks.data.csv_files import fields, open_text, plain_csv, read_options, rename_quoted, whole_lines
from evergreen.tasks.data.readers import scan_source

MAX_ROWS = 50_000
"""Most rows of a chunk."""
MAX_CELLS = 5_000_000
"""Most cells of a chunk, about: of wide rows it has fewer."""
MAX_BYTES = 32 * 2**20
"""A csv chunk ends at the first row after so many bytes: of long texts it has fewer rows."""
READ_BYTES = 2**20
"""Bytes that are read at once."""
QUOTE, NEWLINE = b'"\n'
BLANK = re.compile(rb"\n\r?\n")

Span = tuple[int, int]
"""Start and end (exclusive) of a chunk: rows of parquet, bytes of csv."""


@dataclass(frozen=True)
class Parquet:
    path: Path
    spans: tuple[Span, ...]

    def read(self, span: Span) -> pl.DataFrame:
        """The rows of a chunk. Raises SourceError for a damaged file."""
        with _reading(self.path):
            return pl.scan_parquet(self.path).slice(span[0], span[1] - span[0]).collect()


@dataclass(frozen=True)
class Csv:
    path: Path
    spans: tuple[Span, ...]
    header: int
    """Bytes of the first line."""
    width: int
    """Columns."""
    options: Mapping[str, Any]
    """Of polars.read_csv."""
    text: Path
    """The rows in plain form: `path` itself, or a copy."""

    def read(self, span: Span) -> pl.DataFrame:
        """The rows of a chunk as the file writes them, all columns as text. Raises SourceError for an invalid row."""
        with _reading(self.path), self.text.open("rb") as file:
            rows = file.read(self.header)
            file.seek(span[0])
            rows += file.read(span[1] - span[0])
            found = pl.read_csv(rows if self.width == 1 else _without_blank_lines(rows), **self.options)
            header = rows[: self.header].decode(errors="replace").lstrip("\ufeff").strip("\r\n")
            found = rename_quoted(found, header, self.options["separator"])
            return found.drop("") if found.width > 1 and found.columns[-1] == "" else found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise SourceError, in one line, where the file is invalid."""
    try:
        yield
    except (PolarsError, OSError, UnicodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def open_file(
    path: Path, folder: Path, known: Source | None = None, columns: Collection[str] = (), rows: int = MAX_ROWS
) -> Parquet | Csv:
    """The file at `path`, of any format that `evergreen init` reads, in chunks of up to `rows` rows.

    `folder`: for a plain copy, where one is needed. `known`: the source of the table that the problem learned from, whose
    dialect a CSV file may share. `columns`: of a complete row; the file may have fewer.
    Raises SourceError where the file is of another format, is not there or has no column.
    """
    key = csv_dialect.file_key(path)
    if key is None:
        raise SourceError(f"{path}: unknown kind of file; Evergreen reads {', '.join(csv_dialect.KEYS)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    path = path.resolve()
    with _reading(path):
        if key == "csv":
            return _csv(path, dialect(path, known, columns, folder), folder, columns, rows)
        if key != "parquet":
            sheet = known.sheet if known and key == "excel" else None
            source = Source.model_validate({key: str(path), "sheet": sheet})
            copy = folder / "rows.parquet"
            scan_source(path.name, source, path.parent, folder).sink_parquet(copy)
            path = copy
        return _parquet(path, columns, rows)


def read_all(path: Path) -> pl.DataFrame:
    """All rows of a file, those of a CSV file as text. Raises what `open_file` and `read` raise."""
    with TemporaryDirectory() as folder:
        file = open_file(path, Path(folder))
        return file.read((file.spans[0][0], file.spans[-1][1]))


def dialect(path: Path, known: Source | None, columns: Collection[str], folder: Path) -> Source:
    """That of `known` if it finds one of `columns` in the file's first line, otherwise the one that the file shows."""
    if known is not None and known.csv is not None:
        with suppress(UnicodeError, SourceError), open_text(path, known.encoding) as file:
            lines = (line for line in islice(whole_lines(file), known.skip_lines, None) if not _is_comment(line, known))
            if set(columns) & set(fields(next(lines, ""), known.separator)[0]):
                return known.model_copy(update={"csv": str(path)})
    with open_text(path, csv_dialect.encoding(path)) as file:
        lines = list(islice(whole_lines(file), 2))
    if len(lines) < 2:  # an empty file shows nothing but its names
        return Source(csv=str(path), separator=known.separator if known and known.csv else ",")
    return csv_dialect.detect_csv(path, str(path), folder)


def _is_comment(line: str, known: Source) -> bool:
    return known.comment is not None and line.startswith(known.comment)


def _parquet(path: Path, columns: Collection[str], rows: int) -> Parquet:
    lines = pl.scan_parquet(path)
    count, step = int(lines.select(pl.len()).collect().item()), _rows(len(lines.collect_schema()), columns, rows)
    return Parquet(path, tuple((first, min(first + step, count)) for first in range(0, count, step)) or ((0, 0),))


def _csv(path: Path, source: Source, folder: Path, columns: Collection[str], rows: int) -> Csv:
    text, options = plain_csv(path.name, source, path, folder / "plain.csv"), read_options(source)
    width = pl.read_csv(text, n_rows=0, **options).width
    ends = _line_ends(text, _rows(width, columns, rows))
    header = next(ends)
    return Csv(path, tuple(pairwise([header, *ends])) or ((header, header),), header, width, options, text)


def _rows(width: int, columns: Collection[str], rows: int) -> int:
    return max(1, min(rows, MAX_CELLS // max(width, len(columns), 1)))


def _line_ends(path: Path, rows: int) -> Iterator[int]:
    """Where the first line ends, and then every chunk of up to `rows` lines or about MAX_BYTES; the last one is the file's end.

    A line end between quotes is part of a value.
    """
    begun, lines, most, place, quoted = 0, 0, 1, 0, False
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            ends, quoted = _ends(chunk, quoted)
            ends += place
            while len(ends):
                by_size = int(np.searchsorted(ends, begun + MAX_BYTES))
                last = min(most - lines - 1, by_size)
                if last >= len(ends):
                    break
                begun, lines, most = int(ends[last]), 0, rows
                yield begun
                ends = ends[last + 1 :]
            lines += len(ends)
            place += len(chunk)
    if begun < place:
        yield place


def _without_blank_lines(rows: bytes) -> bytes:
    """A line between quotes is part of a value. In a file of one column, a blank line is a missing value."""
    if not BLANK.search(rows):
        return rows
    ends, _ = _ends(rows, False)
    lines = (rows[start:end] for start, end in pairwise([0, *ends.tolist(), len(rows)]))
    return b"".join(line for line in lines if line.strip(b"\r\n"))


def _ends(chunk: bytes, quoted: bool) -> tuple[np.ndarray, bool]:
    """The places behind line ends that are outside quotes, and whether the chunk ends inside."""
    letters = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(letters == NEWLINE)
    quotes = np.flatnonzero(letters == QUOTE)
    if len(quotes) or quoted:
        before = np.searchsorted(quotes, ends) + quoted
        ends = ends[before % 2 == 0]
    return ends + 1, bool((len(quotes) + quoted) % 2)
