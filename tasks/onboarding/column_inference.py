"""What each column of a table contains: numbers, categories, text, dates or identifiers.

Missing and distinct values, minimum and maximum are of all rows; the rest is inferred from a sample.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from evergreen.tasks.config.params import Role

ColumnType = Literal["number", "category", "text", "date", "identifier", "constant", "empty", "unusable"]

LEVELS = 20
"""A column with more distinct categories has high cardinality."""

ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uuid|guid|key)$)|[a-z]I[Dd]$")
CODE_NAME = re.compile(r"(?i)(^|[\W_])(zip|zip_?code|post_?code|postal_?code|plz|fips|code|cd|area_?code)$")
ROW_NUMBER = "is a row number"
FORMATS = {
    "date": (
        *("%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y/%m/%d", "%m/%d/%y"),
        *("%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y"),
    ),
    "datetime": (
        *("%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%y %H:%M", "%m/%d/%Y %I:%M:%S %p"),
        *("%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M"),
    ),
}
"""Common date formats that ingest does not read by itself, tried in this order."""


@dataclass(frozen=True)
class Column:
    name: str
    inferred_type: ColumnType
    summary: str
    """Content in a few words."""
    role: Role | None = None
    """Role as a feature. None: not a feature."""
    reason: str = ""
    """Why it is not a feature, or why it has this role."""
    type: Literal["number", "date", "datetime"] | None = None
    """Type that ingest must convert the text to."""
    date_format: str | None = None
    """Date format, if ingest does not recognise it."""
    missing: int = 0
    distinct: int = 0
    low: Any = None
    high: Any = None
    levels: tuple[str, ...] = ()
    """Values of a category of low cardinality."""
    whole: bool = False
    """Whether all numbers of the sample are integers, written as 3 or as 3.0."""


def summarise(table: pl.LazyFrame, schema: pl.Schema) -> dict[str, tuple[int, int, Any, Any]]:
    """Column -> missing and distinct values, minimum, maximum, in one pass over all rows; without unusable columns.

    The number of distinct floats is approximate.
    """
    asked = []
    for place, (name, kind) in enumerate(schema.items()):
        if unusable_reason(kind):
            continue
        column = pl.col(name).cast(pl.String) if _is_text(kind) else pl.col(name)
        distinct = column.drop_nulls().approx_n_unique() if kind.is_float() else column.drop_nulls().n_unique()
        facts = {"missing": column.null_count(), "distinct": distinct, "low": column.min(), "high": column.max()}
        asked += [fact.alias(f"{place} {what}") for what, fact in facts.items()]
    row = table.select(asked).collect(engine="streaming").row(0, named=True) if asked else {}
    return {
        name: tuple(row[f"{place} {what}"] for what in ("missing", "distinct", "low", "high"))
        for place, name in enumerate(schema)
        if f"{place} missing" in row
    }


def unusable_reason(kind: pl.DataType) -> str:
    """Why no model can use a column of that type; empty if one can."""
    if isinstance(kind, pl.List | pl.Array | pl.Struct | pl.Object):
        return "contains lists, which no model can use"
    return f"contains {kind}, which no model can use" if kind in (pl.Binary, pl.Time, pl.Duration) else ""


def _is_text(kind: pl.DataType) -> bool:
    return not (kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean)


def infer_column(
    table: pl.LazyFrame, sample: pl.DataFrame, name: str, kind: pl.DataType, rows: int, facts: tuple[int, int, Any, Any] | None
) -> Column:
    if facts is None:
        return Column(name, "unusable", str(kind), reason=unusable_reason(kind))
    missing, distinct, low, high = facts
    if missing == rows:
        return Column(name, "empty", "no values", reason="all values are missing", missing=missing)
    if low == high and not missing:
        return Column(name, "constant", f"always {low}", reason="has a single value", distinct=1, low=low, high=high)
    found = Column(name, "number", "", missing=missing, distinct=1 if low == high else distinct, low=low, high=high)
    if kind.is_temporal():
        return replace(found, inferred_type="date", role="date", summary=f"{low} to {high}")
    return _text(table, sample, found, rows) if _is_text(kind) else _number(sample, found, rows, kind)


def _number(sample: pl.DataFrame, found: Column, rows: int, kind: pl.DataType) -> Column:
    """A number, an identifier, or a numeric code."""
    if kind == pl.Boolean:
        return replace(found, role="number", summary="true or false", whole=True)
    whole = kind.is_integer() or _all_whole(sample[found.name].drop_nulls())
    seen = f"{_short(found.low)} to {_short(found.high)}"
    found = replace(found, role="number", summary=seen, whole=whole)
    if not whole or found.missing:
        return found
    unique = found.distinct == rows
    counted = unique and found.high - found.low + 1 == rows and sample[found.name].is_sorted()
    if (counted and rows > LEVELS) or (unique and ID_NAME.search(found.name)):
        why = ROW_NUMBER if counted else "is unique in every row"
        return replace(found, inferred_type="identifier", role=None, summary=seen, reason=why)
    if CODE_NAME.search(found.name) and found.distinct > 2:
        return replace(
            found,
            inferred_type="category",
            role="category",
            summary=f"{found.distinct:,} codes",
            reason="numeric codes",
        )
    return found


def _text(table: pl.LazyFrame, sample: pl.DataFrame, found: Column, rows: int) -> Column:
    """A number or date stored as text, a category, free text, or an identifier."""
    name, present = found.name, rows - found.missing
    values = sample[name].cast(pl.String).drop_nulls()
    if converted := _stored_as_text(table, values, name):
        kind, form, low, high = converted
        role: Role = "number" if kind == "number" else "date"
        found = replace(found, inferred_type=role, role=role, type=kind, date_format=form, low=low, high=high)
        whole = kind == "number" and _all_whole(values.str.strip_chars().cast(pl.Float64))
        return replace(found, summary=f"{_short(low)} to {_short(high)}", reason="stored as text", whole=whole)
    words = values.str.count_matches(r"\S+").mean() or 0
    length = values.str.len_chars().mean() or 0
    found = replace(found, low=None, high=None)
    many = found.distinct > LEVELS
    if many and found.distinct > 0.5 * present and (_float(words) >= 2.5 or _float(length) > 40):
        return replace(found, inferred_type="text", role="text", summary=f"{_float(words):.0f} words on average")
    if many and _float(words) >= 5 and found.distinct > 0.05 * present:
        return replace(found, inferred_type="text", role="text", summary=f"{_float(words):.0f} words on average")
    if many and found.distinct > 0.95 * present:
        return replace(
            found, inferred_type="identifier", summary=f"{found.distinct:,} distinct", reason="is unique in nearly every row"
        )
    seen = f"{found.distinct:,} categories" + (", high cardinality" if many else "")
    text = pl.col(name).cast(pl.String)
    levels = () if many else tuple(table.select(text.drop_nulls().unique().sort()).collect()[name].to_list())
    return replace(found, inferred_type="category", role="category", summary=seen, levels=levels)


def _stored_as_text(table: pl.LazyFrame, values: pl.Series, name: str) -> tuple[Any, str | None, Any, Any] | None:
    """Type, date format, minimum and maximum, if all values of a text column are numbers or dates; otherwise None."""
    stripped = values.str.strip_chars()
    tries: list[tuple[Any, str | None, pl.Expr]] = []
    text = pl.col(name).cast(pl.String).str.strip_chars()
    if stripped.cast(pl.Float64, strict=False).null_count() == 0:
        tries.append(("number", None, text.cast(pl.Float64, strict=False)))
    elif stripped.str.contains(r"\d").all() and (stripped.str.len_chars().max() or 0) <= 30:  # type: ignore[operator]
        tries += [("date", form, text.str.to_date(form, strict=False)) for form in FORMATS["date"]]
        tries += [("datetime", form, text.str.to_datetime(form, time_unit="us", strict=False)) for form in FORMATS["datetime"]]
    for kind, form, made in tries:
        if values.to_frame(name).select(made.null_count()).item():
            continue
        facts = table.select(
            lost=(pl.col(name).is_not_null() & made.is_null()).sum(), low=made.min(), high=made.max()
        ).collect()
        lost, low, high = facts.row(0)
        if not lost:
            return kind, form, low, high
    return None


def convert_sample(sample: pl.DataFrame, columns: Mapping[str, Column]) -> pl.DataFrame:
    """The sample with the types that ingest will give the table."""
    made = []
    for each in columns.values():
        text = pl.col(each.name).cast(pl.String).str.strip_chars()
        if each.type == "number":
            made.append(text.cast(pl.Float64).alias(each.name))
        elif each.type == "date":
            made.append(text.str.to_date(each.date_format).alias(each.name))
        elif each.type == "datetime":
            made.append(text.str.to_datetime(each.date_format, time_unit="us").alias(each.name))
    return sample.select(list(columns)).with_columns(made)


def _all_whole(values: pl.Series) -> bool:
    return len(values) > 0 and bool((values % 1 == 0).all())


def _float(value: Any) -> float:
    return float(value)


def _short(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
