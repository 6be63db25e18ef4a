"""Infer the contract of text columns: type, number or date format, and the strings that mean missing.

It is inferred once: by `evergreen init`, which writes it to params.yaml, or by ingest for columns that params.yaml leaves open.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl

from evergreen.tasks.config.data import ColumnType, Source
from evergreen.tasks.data import date_formats, number_formats
from evergreen.tasks.data.conversion import NULL_VALUES, SPREADSHEET_ERRORS, conversions, unreadable

SAMPLE_ROWS = 20_000
DISTINCT = 2_000
"""Most distinct values of a column from which its format is inferred; all rows are checked afterwards."""
CLEAN = 0.95
"""A column is a number or a date if this share of its values is one ..."""
MAX_TOKENS = 10
"""... and the others are not more distinct strings than this."""
CODES = 50
"""Integers with at most so many distinct values, beside a string such as 2A, are codes."""
ALWAYS_NULL = ("NA", "N/A", "#N/A", "NaN", "NULL", "?", *SPREADSHEET_ERRORS)
"""Strings that mean missing in text columns, too."""
INTEGER, LEADING_ZERO = re.compile(r"[-+]?\d+"), re.compile(r"0\d+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CODE = re.compile(r"\d+[A-Za-z]+|[A-Za-z]+-?\d+")
TIME_NAME = re.compile(
    r"(?i)date|datum|time|day|month|monat|period|created|updated|stamp|epoch|when|opened|closed|(^|[_\W])(ts|at|on|dt|ym)$"
)
COUNTED = (
    ("%Y%m%d", 8, True),
    ("%Y%m", 6, False),
    ("epoch_ms", 13, True),
    ("epoch_us", 16, True),
    ("epoch_s", 10, False),
    ("excel", 5, False),
)
"""Dates written as integers: format, digits, and whether the values alone show it; otherwise the column's name must as well."""
FIRST, LAST = datetime(1950, 1, 1), datetime(2060, 1, 1)
"""Integers outside are no dates."""
LONGEST_DATE = 60
ROUNDS = 4


@dataclass(frozen=True)
class Guess:
    type: ColumnType
    number_format: str | None = None
    date_formats: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Strings beside the others that are no value of the type."""
    notes: tuple[str, ...] = ()


TEXT = Guess("text")


@dataclass(frozen=True)
class Contract:
    source: Source
    """With the type and format of every column."""
    notes: tuple[str, ...] = field(default=())
    """What a person should check, one line each."""


def infer_contract(source: Source, table: pl.LazyFrame) -> Contract:
    """Complete `source` for the text columns of `table` without a type. `table`: the rows as the file writes them."""
    open_columns = [name for name, kind in table.collect_schema().items() if kind == pl.String and name not in source.types]
    if not open_columns:
        return Contract(source)
    rows = table.select(open_columns)
    values = {name: _values(column, source) for name, column in _sample(rows).items()}
    guesses = {name: guess(name, found, source.decimal) for name, found in values.items()}
    lost = dict(_lost(source, rows, guesses))
    for _ in range(ROUNDS):
        for name, found in lost.items():
            values[name] = {**found, **values[name]}
            guesses[name] = guess(name, values[name], source.decimal)
        lost = dict(_lost(source, rows, guesses)) if lost else {}
    guesses |= dict.fromkeys(lost, TEXT)
    return _complete(source, values, guesses)


def _sample(rows: pl.LazyFrame) -> Mapping[str, pl.Series]:
    """Rows from the whole table, so that a table sorted by date shows more than its first days."""
    count = rows.select(pl.len()).collect(engine="streaming").item()
    return rows.gather_every(max(1, count // SAMPLE_ROWS)).collect(engine="streaming").to_dict()


def _values(column: pl.Series, source: Source) -> dict[str, int]:
    """Value -> cells, the most frequent first, without missing ones."""
    counts = column.alias("value").drop_nulls().str.strip_chars().value_counts(sort=True).head(DISTINCT)
    tokens = {"", *source.null_values, *source.missing.get(column.name, ())}
    return {each: count for each, count in counts.iter_rows() if each not in tokens}


def _lost(source: Source, rows: pl.LazyFrame, guesses: Mapping[str, Guess]) -> Iterator[tuple[str, dict[str, int]]]:
    """Columns with values, in any row, that their guess cannot read, and those values."""
    current = _with(source, guesses)
    for found in unreadable(current, rows, conversions(current, rows)[1]):
        yield found.column, dict.fromkeys(found.values, max(1, found.count // len(found.values)))
    codes = {name: _first_code(name).alias(name) for name, each in guesses.items() if each.type == "integer"}
    first = rows.select(codes.values()).collect(engine="streaming").row(0, named=True) if codes else {}
    yield from ((name, {text: 1}) for name, text in first.items() if text is not None)


def _first_code(name: str) -> pl.Expr:
    """The first value that begins with a zero but is no zero."""
    text = pl.col(name).str.strip_chars()
    return text.filter(text.str.contains(f"^{LEADING_ZERO.pattern}$")).first()


def _with(source: Source, guesses: Mapping[str, Guess]) -> Source:
    return source.model_copy(
        update={
            "types": {**source.types, **{name: each.type for name, each in guesses.items()}},
            "number_formats": {
                **source.number_formats,
                **{name: each.number_format for name, each in guesses.items() if each.number_format},
            },
            "date_formats": {
                **source.date_formats,
                **{name: _one_or_more(each.date_formats) for name, each in guesses.items() if each.date_formats},
            },
            "missing": {**source.missing, **{name: each.missing for name, each in guesses.items() if each.missing}},
        }
    )


def _one_or_more(formats: tuple[str, ...]) -> str | tuple[str, ...]:
    return formats[0] if len(formats) == 1 else formats


def _complete(source: Source, values: Mapping[str, Mapping[str, int]], guesses: Mapping[str, Guess]) -> Contract:
    """Common strings for missing values are listed once for the table, the others per column and with a note."""
    seen = {token for found in values.values() for token in found if token in ALWAYS_NULL} - set(source.null_values)
    nulls = (
        *source.null_values,
        *(each for each in (*NULL_VALUES, *SPREADSHEET_ERRORS) if each in seen),
    )
    notes = []
    for name, each in guesses.items():
        odd = [token for token in each.missing if token not in NULL_VALUES and token not in SPREADSHEET_ERRORS]
        if odd:
            rows = sum(values[name].get(token, 1) for token in odd)
            notes.append(
                f"{name}: has type {each.type} but for {', '.join(map(repr, odd))} (rows: about {rows:,}), which count as "
                "missing; to keep them, set its type to text"
            )
        notes += [f"{name}: {note}" for note in each.notes]
    kept = {
        name: replace(each, missing=tuple(token for token in each.missing if token not in nulls))
        for name, each in guesses.items()
    }
    return Contract(_with(source, kept).model_copy(update={"null_values": nulls}), tuple(notes))


def guess(name: str, values: Mapping[str, int], decimal: str = ".") -> Guess:
    """The type of a column from its values (value -> cells).

    >>> guess("code", {"01": 5, "02": 3, "2A": 1})
    Guess(type='text', number_format=None, date_formats=(), missing=(), notes=())
    >>> guess("paid", {"1.234,50 €": 1, "12 €": 1})
    Guess(type='number', number_format='1.234,5€', date_formats=(), missing=(), notes=())
    """
    if not values:
        return TEXT
    real = {each: count for each, count in values.items() if each not in NULL_VALUES and each not in SPREADSHEET_ERRORS}
    if not real or any(LEADING_ZERO.fullmatch(each) for each in real):
        return TEXT
    if {each.lower() for each in real} <= {"true", "false"}:
        return _judged(Guess("boolean"), values, lambda each: each.lower() in ("true", "false")) or TEXT
    return _counted(name, real, values) or _number(real, values, decimal) or _date(real, values) or TEXT


def _judged(found: Guess, values: Mapping[str, int], reads: Callable[[str], bool]) -> Guess | None:
    """`found` with the strings that it cannot read as missing; None if they are too many to be exceptions."""
    odd = [each for each in values if not reads(each)]
    strange = [each for each in odd if each not in NULL_VALUES and each not in SPREADSHEET_ERRORS]
    total = sum(count for each, count in values.items() if each not in odd or each in strange)
    if len(strange) > MAX_TOKENS or sum(values[each] for each in strange) > (1 - CLEAN) * total or len(odd) == len(values):
        return None
    return replace(found, missing=tuple(odd))


def _counted(name: str, real: Mapping[str, int], values: Mapping[str, int]) -> Guess | None:
    """Dates written as integers."""
    whole = [each for each in real if INTEGER.fullmatch(each)]
    if len(whole) < 3 or len(whole) < 0.5 * len(real):
        return None
    for form, digits, certain in COUNTED:
        if sum(len(each) == digits for each in whole) < CLEAN * len(whole) or not (certain or TIME_NAME.search(name)):
            continue
        texts = pl.DataFrame({"value": whole}).select(date_formats.read(pl.col("value"), [form])).to_series()
        if ((texts >= FIRST) & (texts < LAST)).fill_null(False).mean() < (1.0 if form != "%Y%m%d" else CLEAN):  # type: ignore[operator]
            continue
        known = set(pl.Series(whole).filter(texts.is_not_null()))
        kind: ColumnType = "datetime" if date_formats.has_time(texts.drop_nulls()) else "date"
        return _judged(
            Guess(kind, date_formats=(form,), notes=(f"its integers are read as dates ({form})",)), values, known.__contains__
        )
    return None


def _number(real: Mapping[str, int], values: Mapping[str, int], decimal: str) -> Guess | None:
    plain = [each for each in real if NUMBER.fullmatch(each)]
    clean = len(plain) >= CLEAN * len(real) or sum(real[each] for each in plain) >= CLEAN * sum(real.values())
    if clean and (decimal == "." or not any("." in each for each in plain)):
        return _plain_number(plain, real, values)
    found = number_formats.detect(real, decimal)
    if found is None:
        return None
    form, ambiguous = found
    read = [each for each in real if form.matches(each)]
    whole = all(each.lstrip("(+-").split(form.decimal)[0] == each.lstrip("(+-") for each in read)
    notes = (f"{read[0]} is read as {_shown(form, read[0])}; if that is wrong, set its number_formats",) if ambiguous else ()
    return _judged(Guess("integer" if whole and not form.suffix else "number", str(form), notes=notes), values, form.matches)


def _shown(form: number_formats.NumberFormat, text: str) -> str:
    return f"{pl.select(form.read(pl.lit(text))).item():g}"


def _plain_number(plain: Sequence[str], real: Mapping[str, int], values: Mapping[str, int]) -> Guess | None:
    """Numbers without thousands and affixes. Whole ones are integers, also where a missing value has made them 3067.0."""
    numbers = [float(each) for each in plain]
    whole = all(each.is_integer() for each in numbers) and not any(mark in each for each in plain for mark in "eE")
    if whole and any(CODE.fullmatch(each) for each in real) and len(plain) <= CODES:
        return TEXT  # codes such as 1, 2, 2A
    if whole and any(abs(each) >= 2**63 for each in numbers):
        if len(real) > 0.9 * sum(real.values()):
            return replace(TEXT, notes=("whole numbers beyond 64 bits are kept as text",))
        return _judged(Guess("number", notes=("whole numbers beyond 64 bits are rounded to 15 digits",)), values, _is_plain)
    return _judged(Guess("integer" if whole else "number"), values, _is_whole if whole else _is_plain)


def _is_plain(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def _is_whole(text: str) -> bool:
    return _is_plain(text) and float(text).is_integer()


def _date(real: Mapping[str, int], values: Mapping[str, int]) -> Guess | None:
    dated = [each for each in real if re.search(r"\d", each) and len(each) <= LONGEST_DATE]
    found = date_formats.detect(dated, 0.5) if dated else None
    if found is None:
        return None
    forms, rivals = found
    if any(_swapped(form) != form and _swapped(form) in forms for form in forms):
        return replace(
            TEXT, notes=(f"has dates of the formats {' and '.join(forms)}, which contradict each other; kept as text",)
        )
    texts = pl.DataFrame({"value": list(values)})
    moments = texts.select(date_formats.read(pl.col("value"), forms)).to_series()
    known = set(texts["value"].filter(moments.is_not_null()))
    kind: ColumnType = "datetime" if date_formats.has_time(moments.drop_nulls()) else "date"
    notes = []
    if _swapped(forms[0]) in rivals:
        notes.append(f"{next(iter(real))} is read by {forms[0]}; {_swapped(forms[0])} fits as well, so check date_formats")
    if len(forms) > 1:
        notes.append(f"has dates of several formats ({', '.join(forms)})")
    return _judged(
        Guess(kind, date_formats=() if forms == [date_formats.ISO] else tuple(forms), notes=tuple(notes)),
        values,
        known.__contains__,
    )


def _swapped(form: str) -> str:
    """The format with day and month exchanged."""
    return form.translate(str.maketrans("dm", "md"))
