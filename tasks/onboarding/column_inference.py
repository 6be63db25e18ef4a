"""What each column of a table contains: numbers, categories, text, dates or identifiers.

Missing and distinct values, minimum and maximum are of all rows; the rest is inferred from a sample.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Role

ColumnType = Literal["number", "category", "text", "date", "identifier", "constant", "empty", "unusable"]

LEVELS = 20
"""A column with more distinct categories has high cardinality."""

ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uuid|guid|key)$)|[a-z]I[Dd]$")
CODE_NAME = re.compile(r"(?i)(^|[\W_])(zip|zip_?code|post_?code|postal_?code|plz|fips|code|cd|area_?code)$")
ROW_NUMBER = "is a row number"


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
    """A category, free text, or an identifier."""
    name, present = found.name, rows - found.missing
    values = sample[name].cast(pl.String).drop_nulls()
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


def as_numbers(column: pl.Series, coded: bool) -> np.ndarray:
    """float64 with NaN for missing values; categories and text become codes, with a code for missing values."""
    if coded:
        return (column.cast(pl.String).fill_null("").rank("dense") - 1).to_numpy().astype(float)
    if column.dtype.is_temporal():
        column = column.cast(pl.Datetime("us")).cast(pl.Int64)
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _all_whole(values: pl.Series) -> bool:
    return len(values) > 0 and bool((values % 1 == 0).all())


def _float(value: Any) -> float:
    return float(value)


def _short(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
