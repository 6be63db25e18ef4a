"""Dates as people write them: strptime formats, months and quarters, days counted by Excel, seconds since 1970.

A format is that of strptime, or one of NAMED. ISO 8601 is read beside any of them, since it means one day only; `%y` and `%Y`
stand for each other, since a file may change from one to the other.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from itertools import product

import polars as pl

ISO = "iso"
NAMED = (ISO, "excel", "epoch_s", "epoch_ms", "epoch_us")
"""ISO 8601; days since 1899-12-30 as Excel counts them; seconds, milliseconds and microseconds since 1970-01-01, UTC."""
DAYS = (
    *("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%Y.%m.%d", "%d-%m-%Y", "%m-%d-%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y"),
    *("%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%d-%b-%y", "%d %B %Y", "%d. %B %Y", "%B %d, %Y", "%b %d %Y"),
    *("%a %b %d %Y", "%a, %d %b %Y", "%A, %B %d, %Y", "%A, %d %B %Y"),
)
TIMES = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%H:%M:%S%.f")
PERIODS = ("%Y-%m", "%m/%Y", "%m.%Y", "%b %Y", "%b-%Y", "%b-%y", "%B %Y", "%Y-Q%q", "%YQ%q", "%Y Q%q", "Q%q %Y", "Q%q/%Y")
"""Months and quarters: their first day."""
FORMATS = (ISO, *DAYS, *(f"{day}{gap}{time}" for day, gap, time in product(DAYS, (" ", ", ", "T"), TIMES)), *PERIODS)
"""The formats that are tried on a text column, in this order."""
PARTS = (*"YyCqmbBhdeaAwujUWHkIlpPMSfzZTRDFcxX+sn%", ".f")
"""Letters of strptime's parts, and q for the quarter."""
SHAPES = 200
"""Values that choose the formats to try."""
SHAPE = {
    **dict.fromkeys(("%d", "%m", "%H", "%I"), r"\d{1,2}"),
    **dict.fromkeys(("%M", "%S", "%y"), r"\d{2}"),
    **dict.fromkeys(("%b", "%B", "%a", "%A", "%p"), "[A-Za-z]+"),
    "%Y": r"\d{4}",
    "%q": "[1-4]",
    "%.f": r"\.\d+",
}
"""Part of a format -> regular expression."""
ISO_VARIANTS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%.f")
ZONED = r"\d(Z|[+-]\d{2}:?\d{2})$"
"""The end of a time with a zone."""


def read(text: pl.Expr, formats: Iterable[str]) -> pl.Expr:
    """Datetime (us, naive; UTC for a text with a zone), by the first format that reads the text; null if none does."""
    value = text.str.strip_chars()
    formats = [each for each in formats if each != ISO]
    return pl.coalesce([*_iso(value), *(made for each in formats for made in _by(value, each))])


def is_valid(form: str) -> bool:
    """Whether `form` is a named format, or one of strptime with known parts only.

    >>> is_valid("%d.%m.%y"), is_valid("dd.mm.yy"), is_valid("%Q")
    (True, False, False)
    """
    parts = re.findall(r"%(?:\.f|.|$)", form)
    return form in NAMED or (bool(parts) and all(part[1:] in PARTS for part in parts))


def _iso(value: pl.Expr) -> list[pl.Expr]:
    plain = value.str.replace("T", " ", literal=True)
    naive = [plain.str.to_datetime(form, time_unit="us", strict=False) for form in ISO_VARIANTS]
    with_zone = pl.when(value.str.contains(ZONED)).then(value.str.replace(r"^(.{10} \d{2}:\d{2})(Z|[+-])", "${1}:00${2}"))
    zoned = with_zone.str.replace(r"([+-]\d{2})(\d{2})$", "${1}:${2}")
    return [*naive, zoned.str.to_datetime("%+", time_unit="us", strict=False, time_zone="UTC").dt.replace_time_zone(None)]


def _by(value: pl.Expr, form: str) -> list[pl.Expr]:
    if form in NAMED:
        return [_counted(value.cast(pl.Float64, strict=False), form)]
    if "%q" in form:
        month = value.str.extract(r"[Qq]([1-4])", 1).cast(pl.Int32, strict=False) * 3 - 2
        year = value.str.extract(r"(\d{4})", 1).cast(pl.Int32, strict=False)
        return [pl.when(value.str.contains(_quarter(form))).then(pl.datetime(year, month, 1))]
    if not any(part in form for part in ("%d", "%e", "%j", "%D", "%F", "%x", "%+", "%s")):
        value, form = value + " 01", f"{form} %d"
    return [_checked(value, each) for each in dict.fromkeys((form, form.replace("%y", "%Y"), form.replace("%Y", "%y")))]


def _checked(value: pl.Expr, form: str) -> pl.Expr:
    """Read by `form`; %Y reads four digits, not the year 24."""
    moment = value.str.to_datetime(form, time_unit="us", strict=False)
    return pl.when(moment.dt.year() >= 100).then(moment) if "%Y" in form else moment


def _quarter(form: str) -> str:
    return "^" + form.replace("%Y", r"\d{4}").replace("%q", "[1-4]").replace("Q", "[Qq]") + "$"


def _counted(number: pl.Expr, form: str) -> pl.Expr:
    if form == "excel":
        return pl.lit(datetime(1899, 12, 30)) + pl.duration(
            microseconds=(number * 86_400_000_000).round().cast(pl.Int64, strict=False)
        )
    scale = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}[form]
    return (number * scale).round().cast(pl.Int64, strict=False).cast(pl.Datetime("us"))


def detect(values: Sequence[str], share: float = 1.0) -> tuple[list[str], list[str]] | None:
    """The formats, three at most, that read `share` of the distinct `values`, the most frequent first, and other formats that
    read all of them as other days. None: they are no dates.
    """
    tried = [form for form in FORMATS if form == ISO or any(_shape(form).fullmatch(each.strip()) for each in values[:SHAPES])]
    texts = pl.DataFrame({"value": values}, schema={"value": pl.String})
    made = texts.select(read(pl.col("value"), [form]).alias(form) for form in tried)
    there = made.select(pl.all().is_not_null())
    counts = {form: int(there[form].sum()) for form in tried}
    best = max(tried, key=lambda form: counts[form])
    chosen, read_by = [best], there[best]
    while int(read_by.sum()) < len(values) and len(chosen) < 3:
        gains = {form: int((there[form] & ~read_by).sum()) for form in tried}
        following = max(tried, key=lambda form: gains[form])
        if not gains[following]:
            break
        chosen.append(following)
        read_by = read_by | there[following]
    if int(read_by.sum()) < share * len(values):
        return None
    rivals = [form for form in tried if counts[form] == counts[best] and (made[form] != made[best]).any()]
    return chosen, rivals


@cache
def _shape(form: str) -> re.Pattern[str]:
    """A regular expression of the texts that `form` may read, without a check of their meaning."""
    return re.compile("".join(SHAPE.get(part, re.escape(part)) for part in re.split(r"(%\.f|%.)", form)))


def has_time(values: pl.Series) -> bool:
    """Whether a moment is not the start of a day."""
    return bool((values.dt.truncate("1d") != values).any())
