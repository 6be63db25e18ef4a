"""Numbers as people write them: thousands, decimal commas, currencies, units, accounting brackets.

A format is written as an example: `1,234.5`, `1.234,5`, `1 234,5`, `$1,234.5`, `1.5%`, `1.5 kg`. Its marks and affixes are what
a value may contain; a value needs none of them. A percentage keeps its number: 12 % is 12.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

MARKS = ((None, "."), (",", "."), (".", ","), (None, ","), (" ", "."), (" ", ","), ("'", "."), ("'", ","))
"""Thousands and decimal marks, the most common first."""
CURRENCY = re.compile(
    r"(?i)[A-Z]{0,2}\s?[$€£¥₹₩₽₺₴₫₪฿₱₦¢]|USD|EUR|GBP|CHF|JPY|CNY|RMB|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|RON|BRL|MXN|ZAR|TRY"
    r"|KRW|SGD|HKD|Rs\.?|kr\.?|Fr\.?|SFr\.?|zł|Kč|Ft|lei|руб\.?"
)
LONGEST_UNIT = 12
PARTS = re.compile(r"(\D*?)(\d[\d.,' ]*(?<![\s,'])|[.,]\d+)([eE][-+]?\d+)?(\D*)")
"""Prefix, digits with marks, exponent, suffix."""
DIALECT = {"\u00a0": " ", "\u202f": " ", "\u2009": " ", "’": "'", "−": "-", "–": "-"}
"""Typographic variants and the marks that they stand for."""


@dataclass(frozen=True)
class NumberFormat:
    """
    >>> NumberFormat.parse("1.234,5 €")
    NumberFormat(thousands='.', decimal=',', prefix='', suffix='€')
    >>> pl.select(NumberFormat.parse("1.234,5 €").read(pl.lit("(1.234,50 €)"))).item()
    -1234.5
    """

    thousands: str | None = None
    decimal: str = "."
    prefix: str = ""
    suffix: str = ""

    @classmethod
    def parse(cls, example: str) -> "NumberFormat":
        """Raises ValueError unless `example` is a number with at most a prefix, marks and a suffix."""
        found = PARTS.fullmatch(_plain(example).strip())
        if found is None:
            raise ValueError(f"{example}: not a number as an example; write one such as 1,234.5 or $1.234,50 or 1.5 kg")
        prefix, digits, _, suffix = (part or "" for part in found.groups())
        marks = re.findall(r"\D", digits)
        if len(set(marks)) > 2 or (len(set(marks)) == 2 and marks[-1] in marks[:-1]):
            raise ValueError(f"{example}: its marks are ambiguous; write thousands and decimals as in 1,234.5")
        if not marks:
            thousands, decimal = None, "."
        elif len(set(marks)) == 2 or (marks[-1] in ".," and not re.search(r"\D\d{3}$", digits)):
            thousands, decimal = (marks[0] if len(set(marks)) == 2 else None), marks[-1]
        else:
            thousands, decimal = marks[0], "," if marks[0] == "." else "."
        return cls(thousands, decimal, prefix.strip("-+( "), suffix.strip(") "))

    def __str__(self) -> str:
        digits = f"1{self.thousands}234{self.decimal}5" if self.thousands else f"1{self.decimal}5"
        space = " " if self.suffix[:1].isalpha() else ""
        return f"{self.prefix}{digits}{space}{self.suffix}"

    @property
    def pattern(self) -> str:
        """Regular expression of a whole value: sign, sign behind the currency, digits, sign behind the number."""
        mark, point = re.escape(self.thousands or ""), re.escape(self.decimal)
        grouped = rf"\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}|" if self.thousands else ""
        digits = rf"(?:{grouped}\d+)(?:{point}\d*)?(?:[eE][-+]?\d+)?|{point}\d+(?:[eE][-+]?\d+)?"
        prefix, suffix = (rf"(?:{re.escape(each)})?" if each else "" for each in (self.prefix, self.suffix))
        return rf"^\(?\s*([-+]?)\s*{prefix}\s*([-+]?)\s*({digits})\s*{suffix}\s*(-?)\s*\)?$"

    def read(self, text: pl.Expr) -> pl.Expr:
        """Float64; null for a text that is no number in this format."""
        value = text.str.replace_many(DIALECT).str.strip_chars()
        digits = value.str.replace(self.pattern, "${1}${2}${4}${3}")
        if self.thousands:
            digits = digits.str.replace_all(self.thousands, "", literal=True)
        if self.decimal != ".":
            digits = digits.str.replace(self.decimal, ".", literal=True)
        sign = pl.when(value.str.starts_with("(")).then(-1.0).otherwise(1.0)
        return pl.when(value.str.contains(self.pattern)).then(digits.cast(pl.Float64, strict=False) * sign)

    def matches(self, text: str) -> bool:
        return re.fullmatch(self.pattern, _plain(text).strip()) is not None


def _plain(text: str) -> str:
    return "".join(DIALECT.get(mark, mark) for mark in text)


def detect(values: Iterable[str], decimal: str = ".") -> tuple[NumberFormat, bool] | None:
    """The format of most `values`, and whether another reading of their marks fits as well. None: they are no numbers.

    `decimal`: the mark that the rest of the file uses, which decides where both fit. Values share one prefix and one suffix at
    most; a prefix is a currency, so that codes such as A12 stay codes.
    """
    values = [_plain(each).strip() for each in values]
    prefix, suffix = _affixes(values)
    fits: list[tuple[int, int, NumberFormat]] = []
    for place, (thousands, point) in enumerate(MARKS):
        each = NumberFormat(thousands, point, prefix, suffix)
        count = sum(each.matches(value) for value in values)
        fits.append((count, -place - (len(MARKS) if point != decimal else 0), each))
    best = max(fits, key=lambda each: each[:2])
    if not best[0] or not _can_be_written(best[2]):
        return None
    same = [each for count, _, each in fits if count == best[0] and _differs(each, best[2], values)]
    return best[2], bool(same)


def _can_be_written(form: NumberFormat) -> bool:
    """Whether its example reads as the same format: a unit such as a full stop does not."""
    try:
        return NumberFormat.parse(str(form)) == form
    except ValueError:
        return False


def _differs(one: NumberFormat, other: NumberFormat, values: list[str]) -> bool:
    """Whether two formats read some value as different numbers."""
    texts = pl.DataFrame({"value": values})
    return bool(texts.select((one.read(pl.col("value")) != other.read(pl.col("value"))).any()).item())


def _affixes(values: Iterable[str]) -> tuple[str, str]:
    """The currency before and the unit behind most numbers. A capital letter directly behind the digits is part of a code."""
    prefixes, suffixes = Counter[str](), Counter[str]()
    for value in values:
        if found := PARTS.fullmatch(value):
            prefix, suffix = found.group(1).strip("-+( "), found.group(4).rstrip(")- ")
            prefixes[prefix] += bool(CURRENCY.fullmatch(prefix))
            suffixes[suffix.strip()] += 0 < len(suffix.strip()) <= LONGEST_UNIT and not _is_code(suffix)
    return _most_common(prefixes), _most_common(suffixes)


def _is_code(suffix: str) -> bool:
    return re.fullmatch("[A-Z]{1,3}|[.,'].*", suffix) is not None and not CURRENCY.fullmatch(suffix)


def _most_common(found: Counter[str]) -> str:
    affix, count = max(found.items(), key=lambda each: each[1], default=("", 0))
    return affix if count else ""
