"""CSV files of any dialect as plain ones: UTF-8, line feeds, the column names in the first line, no comments."""

import codecs
import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core.errors import SourceError

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
CHUNK = 2**20
"""Bytes or characters read at a time."""
Frame = TypeVar("Frame", pl.LazyFrame, pl.DataFrame)
UTF8 = ("utf-8", "utf-8-sig")


def plain_csv(name: str, source: Source, path: Path, to: Path) -> Path:
    """`path` itself if it is plain, otherwise a plain copy at `to`, made in chunks.

    Raises SourceError for an unknown encoding, a file in another one, and damaged compression.
    """
    encoding = _known_encoding(name, source)
    if encoding in UTF8 and path.suffix != ".gz" and not source.skip_lines and not source.comment and not _old_line_ends(path):
        return path
    try:
        with open_text(path, encoding) as file, to.open("w", encoding="utf8", newline="") as copy:
            lines = islice(_lines(file), source.skip_lines, None)
            copy.writelines(line for line in lines if not (source.comment and line.startswith(source.comment)))
    except UnicodeError as error:
        raise SourceError(
            f"ingest.{name}: csv {path.name} is not encoded in {source.encoding}: {error}. Set ingest.{name}.encoding."
        ) from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise SourceError(f"ingest.{name}: {path.name}: damaged gzip file: {error}. Fetch the file again.") from None
    return to


def _known_encoding(name: str, source: Source) -> str:
    try:
        return codecs.lookup(source.encoding).name
    except LookupError:
        raise SourceError(
            f"ingest.{name}.encoding = {source.encoding}: no such encoding; common ones are utf8, latin-1, cp1252"
        ) from None


def open_bytes(path: Path) -> Any:
    """The file for reading, decompressed."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """The same as text, without a byte order mark. Line ends stay."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig" if encoding in UTF8 else encoding, newline="")


def _old_line_ends(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(CHUNK)
    return b"\r" in start and b"\n" not in start


def _lines(file: Iterable[str]) -> Iterator[str]:
    """Lines that end in a line feed."""
    for line in file:
        yield line[:-1] + "\n" if line.endswith("\r") else line


def whole_lines(file: Iterable[str]) -> Iterator[str]:
    """The same, joined while a quoted field with a line break is open."""
    held = ""
    for line in _lines(file):
        held += line
        if held.count('"') % 2 == 0 or len(held) > CHUNK:
            yield held
            held = ""
    if held:
        yield held


def fields(text: str, separator: str) -> list[list[str]]:
    """The fields of each row, without blank lines. Raises csv.Error for a field that is too long."""
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]


def long_row(source: Source, path: Path) -> tuple[int, int, int] | None:
    """The first row with more fields than the line of column names: its line in the file, its fields, those of the names."""
    with open_text(path, codecs.lookup(source.encoding).name) as file:
        rows = csv.reader(_without_others(file, source), delimiter=source.separator)
        names, line = 0, 1
        for row in rows:
            if names and len(row) > names:
                return line, len(row), names
            names, line = names or len(row), rows.line_num + 1
    return None


def _without_others(file: Iterable[str], source: Source) -> Iterator[str]:
    """The lines, blank where they are before the column names or comments."""
    for place, line in enumerate(_lines(file)):
        other = place < source.skip_lines or (source.comment and line.startswith(source.comment))
        yield "\n" if other else line


def header_line(path: Path) -> str:
    """The line of column names of a plain file, with its line breaks in quotes."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(whole_lines(file), "").strip("\r\n")


def rename_quoted(rows: Frame, header: str, separator: str) -> Frame:
    """`rows` with the names that the line `header` writes: Polars leaves doubled quotes in them."""
    if '""' not in header:
        return rows
    given, names = rows.collect_schema().names(), fields(header, separator)[0]
    return rows.rename(dict(zip(given, names, strict=True))) if len(given) == len(names) else rows


def read_options(source: Source) -> dict[str, Any]:
    """Options with which polars reads a plain file as text."""
    return {"separator": source.separator, "truncate_ragged_lines": source.trailing_separator, "infer_schema": False}


def drop_blank(rows: Frame) -> Frame:
    """Without blank lines."""
    return rows.filter(~pl.all_horizontal(pl.all().is_null()))
