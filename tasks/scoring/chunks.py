"""Read files of rows in chunks: files larger than memory, by several processes, in any order."""

import codecs
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from evergreen.tasks.config.params import Source
from evergreen.tasks.core.errors import SourceError

MAX_ROWS = 50_000
"""Most rows of a chunk."""
MAX_CELLS = 5_000_000
"""Most cells of a chunk, about: of wide rows it has fewer."""
MAX_BYTES = 32 * 2**20
"""A csv chunk ends at the first row after so many bytes: of long texts it has fewer rows."""
READ_BYTES = 2**20
"""Bytes that are read at once."""
QUOTE, NEWLINE = b'"\n'

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

    def with_types(self, all_rows: bool = False) -> "Parquet":
        """Itself: the file holds the types of its columns."""
        return self


@dataclass(frozen=True)
class Csv:
    path: Path
    spans: tuple[Span, ...]
    header: int
    """Bytes of the first line."""
    options: Mapping[str, Any]
    """Of polars.read_csv."""
    text: Path
    """The rows in UTF-8: `path` itself, or what was made of it."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Of columns whose type is known before the rows are read."""

    def read(self, span: Span) -> pl.DataFrame:
        """The rows of a chunk. Raises SourceError for an invalid row, and for a value that is not of its column's type."""
        with _reading(self.path), self.text.open("rb") as file:
            rows = file.read(self.header)
            file.seek(span[0])
            rows += file.read(span[1] - span[0])
            given = {**self.options, "schema_overrides": {**self.types, **self.options.get("schema_overrides", {})}}
            return pl.read_csv(rows, infer_schema_length=None, **given)

    def with_types(self, all_rows: bool = False) -> "Csv":
        """With the types of all columns, by all rows if `all_rows`, else by the first chunks with a value in each column."""
        found: dict[str, set[Any]] = {}
        for span in self.spans:
            chunk = replace(self, types={}).read(span)
            for column in chunk:
                types = found.setdefault(column.name, set())
                types |= set() if column.null_count() == len(column) else {column.dtype}
            if not all_rows and all(found.values()):
                break
        return replace(self, types={name: _common(types) for name, types in found.items()})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise SourceError, in one line, where the file is invalid."""
    try:
        yield
    except (PolarsError, OSError, UnicodeError) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def open_file(path: Path, written: Source | None, folder: Path, columns: int = 0, rows: int = MAX_ROWS) -> Parquet | Csv:
    """The csv or parquet file at `path`, in chunks of up to `rows` rows.

    `written`: the format of the table that the problem learned from, which this file may share. `folder`: for a copy of its
    text in UTF-8. `columns`: of a complete row, where that has more than the file.
    Raises SourceError where it is neither csv nor parquet, is not there or has no column.
    """
    if path.suffix not in OPEN:
        raise SourceError(f"{path}: unknown kind of file; give a name that ends in {' or '.join(OPEN)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    with _reading(path):
        return OPEN[path.suffix](path, written, folder, columns, rows)


def read_all(path: Path) -> pl.DataFrame:
    """All rows of a csv or parquet file. Raises what `open_file` and `read` raise."""
    file = open_file(path, None, path.parent)
    return file.read((file.spans[0][0], file.spans[-1][1]))


def _parquet(path: Path, _written: Source | None, _folder: Path, columns: int, rows: int) -> Parquet:
    lines = pl.scan_parquet(path)
    count, step = int(lines.select(pl.len()).collect().item()), _rows(len(lines.collect_schema()), columns, rows)
    return Parquet(path, tuple((first, min(first + step, count)) for first in range(0, count, step)) or ((0, 0),))


def _csv(path: Path, written: Source | None, folder: Path, columns: int, rows: int) -> Csv:
    """In the separator, encoding and decimal mark of `written`, where the first line has that separator."""
    with path.open("rb") as file:
        first = file.readline()
    text, options = path, {"null_values": list(written.null_values) if written else None}
    if written is not None and written.separator.encode() in first:
        text = _in_utf8(path, written.encoding, folder)
        names = pl.read_csv(text, separator=written.separator, n_rows=0).columns
        options = {
            "separator": written.separator,
            "decimal_comma": written.decimal == ",",
            "null_values": list(written.null_values) or None,
            "schema_overrides": dict.fromkeys(set(written.date_formats) & set(names), pl.String),
        }
    separator = options.get("separator") or ","
    wide = pl.read_csv(text, separator=str(separator), n_rows=0).width
    ends = _line_ends(text, _rows(wide, columns, rows))
    header = next(ends)
    return Csv(path, tuple(pairwise([header, *ends])) or ((header, header),), header, options, text)


OPEN = {".parquet": _parquet, ".csv": _csv}


def _rows(width: int, columns: int, rows: int) -> int:
    return max(1, min(rows, MAX_CELLS // max(width, columns, 1)))


def _in_utf8(path: Path, encoding: str, folder: Path) -> Path:
    """The file, or a copy of it in UTF-8."""
    if codecs.lookup(encoding).name in ("utf-8", "ascii"):
        return path
    copy = folder / "text.csv"
    with path.open(encoding=encoding, newline="") as file, copy.open("w", encoding="utf-8", newline="") as made:
        while part := file.read(READ_BYTES):
            made.write(part)
    return copy


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


def _ends(chunk: bytes, quoted: bool) -> tuple[np.ndarray, bool]:
    """The places behind line ends that are outside quotes, and whether the chunk ends inside."""
    letters = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(letters == NEWLINE)
    quotes = np.flatnonzero(letters == QUOTE)
    if len(quotes) or quoted:
        before = np.searchsorted(quotes, ends) + quoted
        ends = ends[before % 2 == 0]
    return ends + 1, bool((len(quotes) + quoted) % 2)


def _common(types: set[Any]) -> Any:
    """The type of a column that has these in parts."""
    if len(types) < 2:
        return next(iter(types), pl.String)
    return pl.Float64 if all(each.is_numeric() for each in types) else pl.String
