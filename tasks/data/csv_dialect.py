"""Dialect detection: the `Source` of a file or query, with encoding, separator, decimal mark and header line of a CSV file."""

import codecs
import csv
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import polars as pl

from evergreen.tasks.config.data import Source
from evergreen.tasks.core.column_names import unusable_name
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.data import s3_files
from evergreen.tasks.data.csv_files import CHUNK, SEPARATORS, fields, open_bytes, open_text, whole_lines
from evergreen.tasks.data.readers import scan_source

HEAD_LINES = 500
"""Lines from which the dialect is detected."""
TITLE_LINES = 20
"""Most lines before the column names."""
KEYS = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "excel"),
}
"""Ending of a file's name -> key of its source. CSV and JSON lines may end in .gz as well."""
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
COMMA_NUMBER = re.compile(r"\s*[-+]?\d+,\d+\s*")
SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The first line with which Excel names the separator."""
CP1252_UNDEFINED = {0x81, 0x8D, 0x8F, 0x90, 0x9D}
"""Bytes without a character in cp1252."""
MULTIBYTE = re.compile(rb"[\xc3-\xf4][\x80-\xbf]+")


def file_key(path: Path) -> str | None:
    """The key of a source that reads the file at `path`, by its name."""
    stem, ending = (path.stem, path.suffix.lower())
    if ending == ".gz":
        found = KEYS.get(Path(stem).suffix.lower())
        return found if found in ("csv", "jsonl") else None
    return KEYS.get(ending)


def detect_source(data: str, url: str | None, root: Path, here: Path, staging: Path) -> Source:
    """The source of `data`: a file, relative to the folder `here`, or a query of the database `url`.

    Paths within `root` become relative to it. `staging`: a folder for temporary files.
    Raises SourceError for a missing file, and for a CSV file without usable column names or rows.
    """
    if url is not None:
        return Source(sql=data, url=url)
    if s3_files.is_s3(data):
        return _detect_object(data, staging)
    path = (here / data).resolve()
    if not path.is_file():
        if re.match(r"(?is)\s*(select|with)\s", data):
            raise SourceError("--data is a query; name its database: --url dialect+driver://user@host/database")
        raise SourceError(f"{data}: {_missing_file(path)}")
    key = _known_key(data, path)
    named = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return detect_csv(path, named, staging) if key == "csv" else Source.model_validate({key: named})


def _detect_object(address: str, staging: Path) -> Source:
    """The source of an object in S3, by a copy of it."""
    copy = staging / PurePosixPath(address).name
    key = _known_key(address, copy)
    s3_files.copy("--data", address, copy)
    return detect_csv(copy, address, staging) if key == "csv" else Source.model_validate({key: address})


def _known_key(data: str, path: Path) -> str:
    if (key := file_key(path)) is None:
        raise SourceError(
            f"{data}: unknown file type; Evergreen reads {', '.join(KEYS)}, .gz of text files, and queries with --url"
        )
    return key


def _missing_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder; name one file"
    if not path.parent.is_dir():
        return f"no such file; the folder {path.parent} does not exist"
    tables = sorted(each.name for each in path.parent.iterdir() if file_key(each))
    return f"no such file; there are {', '.join(tables[:8]) or 'no tables'} in {path.parent}"


# --- CSV


class Layout(NamedTuple):
    """Where the table begins in a file, and how its lines are split."""

    separator: str
    skip_lines: int
    comment: str | None
    rows: list[list[str]]
    """Column names and the first rows."""


def detect_csv(path: Path, named: str, staging: Path) -> Source:
    """The dialect of the CSV file at `path`, which the source calls `named`. `staging`: a folder for temporary files.

    Raises SourceError for a damaged file and for one without usable column names or rows.
    """
    try:
        return _detect(path, named, staging)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise SourceError(f"{path.name}: cannot be read: {error}. Fix the file or name another one.") from error


def _detect(path: Path, named: str, staging: Path) -> Source:
    coding = encoding(path)
    with open_text(path, coding) as file:
        lines = list(islice(whole_lines(file), HEAD_LINES))
    if not "".join(lines).strip():
        raise SourceError(f"{path.name}: is empty; its first line must contain the column names")
    found = _layout(lines)
    if not found.rows:
        raise SourceError(f"{path.name}: has no line of column names; its first line must contain them")
    names, rows, trailing = found.rows[0], found.rows[1:], False
    if rows and Counter(len(row) for row in rows).most_common(1)[0][0] == len(names) + 1:
        trailing = all(not row[-1].strip() for row in rows if len(row) == len(names) + 1)
    if len(names) > 1 and not names[-1].strip() and all(not row[-1].strip() for row in rows if len(row) == len(names)):
        names = names[:-1]
    _check_names(path, names, rows)
    columns = [[row[place] for row in rows if place < len(row)] for place in range(len(names))]
    source = Source(
        csv=named,
        separator=found.separator,
        encoding=coding,
        decimal="," if found.separator != "," and _decimal_comma(columns) else ".",
        skip_lines=found.skip_lines,
        comment=found.comment,
        trailing_separator=trailing,
    )
    with suppress(pl.exceptions.PolarsError):  # the reader reports the error
        _check_no_repeated_header(
            path, scan_source("data", source.model_copy(update={"csv": str(path)}), path.parent, staging), names
        )
    return source


def encoding(path: Path) -> str:
    """utf8 if the whole file is; otherwise utf-16 by its byte order mark, cp1252 or latin-1 by the bytes that occur.

    Raises SourceError for a file of several encodings.
    """
    with open_bytes(path) as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        file.seek(0)
        if _is_utf8(iter(lambda: file.read(CHUNK), b"")):
            return "utf8"
        file.seek(0)
        high, multibyte, first = set[int](), 0, 0
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf8")
                multibyte += MULTIBYTE.search(line) is not None
            except UnicodeDecodeError:
                first = first or number
                high |= {byte for byte in set(line) if 0x80 <= byte <= 0x9F}
    if multibyte:
        raise SourceError(
            f"{path.name}: line {first:,} is not UTF-8; {multibyte:,} other {'line is' if multibyte == 1 else 'lines are'}. "
            "The file mixes encodings; export it again in one, or convert that line."
        )
    return "cp1252" if high and not high & CP1252_UNDEFINED else "latin-1"


def _is_utf8(chunks: Iterable[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf8")()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _layout(lines: Sequence[str]) -> Layout:
    """Skip what comes before the column names: a title, a line sep=;, comments, blank lines."""
    given = SEPARATOR_LINE.fullmatch(lines[0].strip("\r\n"))
    skipped = 1 if given else 0
    comment = _comment(lines[skipped:])
    kept = [line for line in lines[skipped:] if not (comment and line.startswith(comment))]
    separator = given.group(1) if given else _separator("".join(kept))
    rows = [fields(line, separator) for line in kept]
    if not any(rows):
        return Layout(separator, skipped, comment, [])
    width = Counter(len(row[0]) for row in rows if row).most_common(1)[0][0]
    for place, row in enumerate(rows[:TITLE_LINES]):
        if row and (width == 1 or sum(bool(each.strip()) for each in row[0]) > 1):
            title = sum(line.count("\n") or 1 for line in kept[:place])
            return Layout(separator, skipped + title, comment, [each[0] for each in rows[place:] if each])
    return Layout(separator, skipped, comment, [each[0] for each in rows if each])


def _comment(lines: Sequence[str]) -> str | None:
    """The mark of comment lines, if the first line is one and is not the line of column names."""
    marked = [line for line in lines if line.startswith("#")]
    if not marked or not lines[0].startswith("#"):
        return None
    others = [line for line in lines if line.strip() and not line.startswith("#")]
    separator = _separator("".join(others)) if others else ","
    width = Counter(len(row) for row in fields("".join(others), separator)).most_common(1)[0][0] if others else 0
    is_header = len(marked) == 1 and len(fields(marked[0], separator)[0]) == width > 1
    return None if is_header else "#"


def _separator(head: str) -> str:
    """The separator that splits most lines, and best the first one too, into the same number of fields, at least two; otherwise
    a comma.
    """
    best, found = (False, 0.0, 0), ","
    for separator in SEPARATORS:
        rows = fields(head, separator)
        if not rows:
            continue
        width, count = Counter(len(row) for row in rows).most_common(1)[0]
        agreed = round(count / len(rows), 1)
        fit = (len(rows[0]) == width and agreed >= 0.5, agreed, width)
        if width > 1 and fit > best:
            best, found = fit, separator
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


def _check_no_repeated_header(path: Path, rows: pl.LazyFrame, names: Sequence[str]) -> None:
    """Raise SourceError if a later row repeats the column names."""
    if unusable_name(names):
        return  # the reader refuses it
    same = pl.all_horizontal(pl.col(name).eq_missing(name) for name in names)
    repeated = rows.select(same.arg_true().first()).collect(engine="streaming").item()
    if repeated is not None:
        raise SourceError(
            f"{path.name}: row {repeated + 1:,} repeats the column names; are these two exports in one file? Remove that line."
        )
