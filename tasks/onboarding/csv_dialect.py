"""How a table that nobody described is written: a file or a query in, a `Source` out.

Only what the text itself shows is decided here: encoding, separator, decimal mark, texts that mean missing. What the columns
are is decided in infer.py.
"""

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
"""Lines from which separator and decimal mark are told."""
MISSING = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "Null", "null", "None", "none", "?", "-", "--", ".")
"""Texts that commonly stand for a missing value."""
ENDS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
COMMA_NUMBER = re.compile(r"\s*[-+]?\d+,\d+\s*")
CP1252_GAPS = {0x81, 0x8D, 0x8F, 0x90, 0x9D}
"""Bytes that mean nothing in cp1252."""
CERTAIN = ("NA", "N/A", "#N/A", "NaN", "NULL", "?")
"""Those of MISSING that mean it in a column of words too."""


def source(data: str, url: str | None, root: Path, here: Path, staging: Path) -> Source:
    """Where `data` (a file, seen from the folder `here`, or a query at the database `url`) is and how it is written.

    Paths in the answer are relative to `root` where they lie in it. `staging`: a folder for copies.
    Raises SourceError for a file that is not there or holds no table with a header.
    """
    if url is not None:
        return Source(sql=data, url=url)
    path = (here / data).resolve()
    if not path.is_file():
        if re.match(r"(?is)\s*(select|with)\s", data):
            raise SourceError("--data is a query; name its database: --url dialect+driver://user@host/database")
        raise SourceError(f"{data}: {_not_there(path)}")
    kind = ENDS.get(path.suffix.lower())
    if kind is None:
        raise SourceError(f"{data}: unknown kind of file; init reads {', '.join(ENDS)}, and queries with --url")
    named = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return Source(parquet=named) if kind == "parquet" else _csv(path, named, staging)


def _not_there(path: Path) -> str:
    if path.is_dir():
        return "is a folder; name one file"
    if not path.parent.is_dir():
        return f"no such file, nor is there a folder {path.parent}"
    alike = sorted(each.name for each in path.parent.iterdir() if each.suffix.lower() in ENDS)
    return f"no such file; there are {', '.join(alike[:8]) or 'no tables'} in {path.parent}"


# CSV


def _csv(path: Path, named: str, staging: Path) -> Source:
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        head = "".join(islice(_whole_lines(file), HEAD_LINES)).lstrip("\ufeff")
    if not head.strip():
        raise SourceError(f"{path.name}: is empty; its first line must name the columns")
    separator = _separator(head)
    rows = _rows(head, separator)
    names = rows[0]
    _check_names(path, names, rows[1:])
    columns = [[row[place] for row in rows[1:] if place < len(row)] for place in range(len(names))]
    decimal = "," if separator != "," and _decimal_comma(columns) else "."
    found = Source(csv=named, separator=separator, encoding=encoding, decimal=decimal)
    try:
        texts = _texts(path, found, staging)
        _check_repeats(path, texts, names)
        missing = _missing(texts, names, decimal)
    except pl.exceptions.PolarsError:
        return found  # reading it says what is wrong
    return found.model_copy(update={"null_values": missing})


def _encoding(path: Path) -> str:
    """utf8 where all of the file is; else, by its marks, utf-16, cp1252 or latin-1."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        file.seek(0)
        if _is_utf8(iter(lambda: file.read(CHUNK), b"")):
            return "utf8"
        file.seek(0)
        high = {mark for piece in iter(lambda: file.read(CHUNK), b"") for mark in set(piece) if 0x80 <= mark <= 0x9F}
    return "cp1252" if high and not high & CP1252_GAPS else "latin-1"


def _is_utf8(pieces: Iterator[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf8")()
    try:
        for piece in pieces:
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _whole_lines(lines: Iterator[str]) -> Iterator[str]:
    """Lines as a table has them: a quoted field may hold a line break, so a line goes on while its quotes are open."""
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
    """The mark that cuts most lines into the same number of fields, more than one; a comma where none does."""
    best, found = (0.0, 0), ","
    for mark in SEPARATORS:
        rows = _rows(head, mark)
        width, count = Counter(len(row) for row in rows).most_common(1)[0]
        agreed = count / len(rows)
        if width > 1 and len(rows[0]) == width and (round(agreed, 1), width) > best:
            best, found = (round(agreed, 1), width), mark
    return found


def _check_names(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    empty = next((place for place, name in enumerate(names, 1) if place > 1 and not name.strip()), None)
    if empty is not None:
        raise SourceError(f"{path.name}: column {empty} of {len(names)} has no name; give it one in the first line")
    if all(NUMBER.fullmatch(name) for name in names):
        raise SourceError(
            f"{path.name}: its first line holds no names but numbers ({', '.join(names[:4])}); add a line of names"
        )
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise SourceError(f"{path.name}: two columns are named {twice}; rename one")
    if not rows:
        raise SourceError(f"{path.name}: has a line of names and no rows; nothing can be learned from it")


def _decimal_comma(columns: Sequence[Sequence[str]]) -> bool:
    """Whether some column's fractions are written with a comma, and none's with a point."""
    comma = point = False
    for column in columns:
        values = [each for each in column if each.strip()]
        if not values or not all(NUMBER.fullmatch(each) or COMMA_NUMBER.fullmatch(each) for each in values):
            continue
        comma = comma or any(COMMA_NUMBER.fullmatch(each) for each in values)
        point = point or any("." in each for each in values)
    return comma and not point


def _texts(path: Path, source: Source, staging: Path) -> pl.LazyFrame:
    """The rows of a CSV file, every field a text."""
    if source.encoding != "utf8":
        path = transcode("data", source, path, staging / "sniffed.csv")
    return pl.scan_csv(path, separator=source.separator, infer_schema=False, glob=False)


def _check_repeats(path: Path, rows: pl.LazyFrame, names: Sequence[str]) -> None:
    """Raises SourceError where a later row says the names of the columns again."""
    same = pl.all_horizontal(pl.col(name).eq_missing(name) for name in names)
    again = rows.select(same.arg_true().first()).collect(engine="streaming").item()
    if again is not None:
        raise SourceError(
            f"{path.name}: row {again + 1:,} says the names of the columns again; are these two exports in one file? "
            "Remove that line."
        )


def _missing(rows: pl.LazyFrame, names: Sequence[str], decimal: str) -> tuple[str, ...]:
    """Which of MISSING stand in a column whose other values are numbers, and those of CERTAIN that stand in any."""
    facts = []
    for place, name in enumerate(names):
        value = pl.col(name).str.strip_chars()
        stands = value.is_in(list(MISSING))
        number = (value.str.replace(",", ".", literal=True) if decimal == "," else value).cast(pl.Float64, strict=False)
        facts += [
            value.filter(stands).unique().implode().alias(f"{place} seen"),
            (number.is_null() & value.str.len_bytes().gt(0) & ~stands).any().alias(f"{place} words"),
        ]
    found = rows.select(facts).collect().row(0, named=True)
    seen = {
        text for place in range(len(names)) for text in found[f"{place} seen"] if text in CERTAIN or not found[f"{place} words"]
    }
    return tuple(each for each in MISSING if each in seen)
