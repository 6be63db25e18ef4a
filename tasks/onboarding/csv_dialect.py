"""Dialect detection: the `Source` of a file or query, with encoding, separator, decimal mark and null values of a CSV file."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from evergreen.tasks.config.params import Source
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.data.readers import SEPARATORS, transcode

CHUNK = 2**20
"""Bytes or characters read at a time."""
HEAD_LINES = 500
"""Lines from which separator and decimal mark are detected."""
NULL_VALUES = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "Null", "null", "None", "none", "?", "-", "--", ".")
"""Common strings for missing values."""
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
COMMA_NUMBER = re.compile(r"\s*[-+]?\d+,\d+\s*")
CP1252_UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}
"""Bytes without a character in cp1252."""
ALWAYS_NULL = ("NA", "N/A", "#N/A", "NaN", "NULL", "?")
"""Those that mean missing in a text column, too."""


def detect_source(data: str, url: str | None, root: Path, here: Path, staging: Path) -> Source:
    """The source of `data`: a file, relative to the folder `here`, or a query of the database `url`.

    Paths within `root` become relative to it. `staging`: a folder for temporary files.
    Raises SourceError for a missing file, and for a CSV file without usable column names or rows.
    """
    if url is not None:
        return Source(sql=data, url=url)
    path = (here / data).resolve()
    if not path.is_file():
        if re.match(r"(?is)\s*(select|with)\s", data):
            raise SourceError("--data is a query; name its database: --url dialect+driver://user@host/database")
        raise SourceError(f"{data}: {_missing_file(path)}")
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise SourceError(f"{data}: unknown file type; init reads {', '.join(SUFFIXES)}, and queries with --url")
    named = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return Source(parquet=named) if kind == "parquet" else _detect_csv(path, named, staging)


def _missing_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder; name one file"
    if not path.parent.is_dir():
        return f"no such file; the folder {path.parent} does not exist"
    tables = sorted(each.name for each in path.parent.iterdir() if each.suffix.lower() in SUFFIXES)
    return f"no such file; there are {', '.join(tables[:8]) or 'no tables'} in {path.parent}"


# --- CSV


def _detect_csv(path: Path, named: str, staging: Path) -> Source:
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        head = "".join(islice(_whole_lines(file), HEAD_LINES)).lstrip("\ufeff")
    if not head.strip():
        raise SourceError(f"{path.name}: is empty; its first line must contain the column names")
    separator = _separator(head)
    rows = _rows(head, separator)
    names = rows[0]
    _check_names(path, names, rows[1:])
    columns = [[row[place] for row in rows[1:] if place < len(row)] for place in range(len(names))]
    decimal = "," if separator != "," and _decimal_comma(columns) else "."
    found = Source(csv=named, separator=separator, encoding=encoding, decimal=decimal)
    try:
        texts = _scan_as_text(path, found, staging)
        _check_no_repeated_header(path, texts, names)
        null_values = _null_values(texts, names, decimal)
    except pl.exceptions.PolarsError:
        return found  # the reader reports the error
    return found.model_copy(update={"null_values": null_values})


def _encoding(path: Path) -> str:
    """utf8 if the whole file is; otherwise utf-16 by its byte order mark, cp1252 or latin-1 by the bytes that occur."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        file.seek(0)
        if _is_utf8(iter(lambda: file.read(CHUNK), b"")):
            return "utf8"
        file.seek(0)
        high = {byte for chunk in iter(lambda: file.read(CHUNK), b"") for byte in set(chunk) if 0x80 <= byte <= 0x9F}
    return "cp1252" if high and not high & CP1252_UNDEFINED else "latin-1"


def _is_utf8(chunks: Iterator[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _whole_lines(lines: Iterator[str]) -> Iterator[str]:
    """Join lines while a quoted field with a line break is open."""
    held = ""
    for line in lines:
        held += line
        if held.count('"') % 2 == 0 or len(held) > CHUNK:
            yield held
            held = ""
    if held:
        yield held


def _rows(text: str, separator: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]


def _separator(head: str) -> str:
    """The separator that splits most lines into the same number of fields, at least two; otherwise a comma."""
    best, found = (0.0, 0), ","
    for separator in SEPARATORS:
        rows = _rows(head, separator)
        width, count = Counter(len(row) for row in rows).most_common(1)[0]
        agreed = count / len(rows)
        if width > 1 and len(rows[0]) == width and (round(agreed, 1), width) > best:
            best, found = (round(agreed, 1), width), separator
    return found


def _check_names(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    empty = next((place for place, name in enumerate(names, 1) if place > 1 and not name.strip()), None)
    if empty is not None:
        raise SourceError(f"{path.name}: column {empty} of {len(names)} has no name; add one in the first line")
    if all(NUMBER.fullmatch(name) for name in names):
        raise SourceError(
            f"{path.name}: its first line contains numbers ({', '.join(names[:4])}) instead of column names; add a header line"
        )
    duplicate = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if duplicate is not None:
        raise SourceError(f"{path.name}: two columns are named {duplicate}; rename one")
    if not rows:
        raise SourceError(f"{path.name}: has a header line but no rows")


def _decimal_comma(columns: Sequence[Sequence[str]]) -> bool:
    """Whether a numeric column has a decimal comma, and none a decimal point."""
    comma = point = False
    for column in columns:
        values = [each for each in column if each.strip()]
        if not values or not all(NUMBER.fullmatch(each) or COMMA_NUMBER.fullmatch(each) for each in values):
            continue
        comma = comma or any(COMMA_NUMBER.fullmatch(each) for each in values)
        point = point or any("." in each for each in values)
    return comma and not point


def _scan_as_text(path: Path, source: Source, staging: Path) -> pl.LazyFrame:
    """The rows of a CSV file, all columns as text."""
    if source.encoding != "utf8":
        path = transcode("data", source, path, staging / "dialect.csv")
    return pl.scan_csv(path, separator=source.separator, infer_schema=False, glob=False)


def _check_no_repeated_header(path: Path, rows: pl.LazyFrame, names: Sequence[str]) -> None:
    """Raise SourceError if a later row repeats the column names."""
    same = pl.all_horizontal(pl.col(name).eq_missing(name) for name in names)
    repeated = rows.select(same.arg_true().first()).collect(engine="streaming").item()
    if repeated is not None:
        raise SourceError(
            f"{path.name}: row {repeated + 1:,} repeats the column names; are these two exports in one file? Remove that line."
        )


def _null_values(rows: pl.LazyFrame, names: Sequence[str], decimal: str) -> tuple[str, ...]:
    """Those of NULL_VALUES that occur in a column of numbers, and those of ALWAYS_NULL that occur in any column."""
    facts = []
    for place, name in enumerate(names):
        value = pl.col(name).str.strip_chars()
        is_null = value.is_in(list(NULL_VALUES))
        number = (value.str.replace(",", ".", literal=True) if decimal == "," else value).cast(pl.Float64, strict=False)
        facts += [
            value.filter(is_null).unique().implode().alias(f"{place} seen"),
            (number.is_null() & value.str.len_bytes().gt(0) & ~is_null).any().alias(f"{place} words"),
        ]
    found = rows.select(facts).collect().row(0, named=True)
    seen = {
        text
        for place in range(len(names))
        for text in found[f"{place} seen"]
        if text in ALWAYS_NULL or not found[f"{place} words"]
    }
    return tuple(each for each in NULL_VALUES if each in seen)
