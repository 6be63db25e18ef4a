"""Values that may stand for a missing one: -999 in a column of ages, 9999-12-31 in a column of dates; and a footer."""

from collections.abc import Iterator
from datetime import date
from math import isclose

import polars as pl
import polars.selectors as cs

SENTINELS = {sign * value for value in (9, 99, 999, 9999, 99999, 999999) for sign in (-1, 1)} | {-1}
FEWEST = 3
"""A value that occurs in fewer rows is no sentinel."""
FIRST_YEAR, LAST_YEAR = 1800, 2200
SAMPLE_ROWS = 50_000


def find_odd_values(name: str, table: pl.LazyFrame) -> Iterator[str]:
    """One line per column of `table`, called `name` under ingest, with such a value and the line that makes it missing.

    And one about the last row, where it holds sums.
    """
    yield from _footer(table)
    rows = table.head(SAMPLE_ROWS).collect(engine="streaming")
    for column in rows:
        if column.dtype.is_numeric():
            yield from _sentinels(name, column.drop_nulls())
        elif column.dtype in (pl.Date, pl.Datetime):
            yield from _far_dates(name, column.drop_nulls().cast(pl.Date))


def _footer(table: pl.LazyFrame) -> Iterator[str]:
    """The last row, if each of its numbers is the sum of the rows before it."""
    numbers = table.select(cs.numeric().cast(pl.Float64).fill_nan(None))
    if not (names := numbers.collect_schema().names()):
        return
    count, sums, last = pl.collect_all([table.select(pl.len()), numbers.sum(), numbers.last()], engine="streaming")
    given = [name for name in names if last[name][0] is not None]
    if count.item() > FEWEST and given and all(_is_sum(last[name][0], sums[name][0]) for name in given):
        columns = ", ".join(given[:3])
        yield f"the last row holds the sum of the rows before it in {columns}; if it is a footer, remove that line"


def _is_sum(last: float, whole: float) -> bool:
    return last != 0 and isclose(whole - last, last, rel_tol=1e-9)


def _sentinels(name: str, column: pl.Series) -> Iterator[str]:
    """The lowest or highest value, if it is a sentinel farther from the rest than the rest is wide."""
    for end, value in (("lowest", column.min()), ("highest", column.max())):
        if value not in SENTINELS or not isinstance(value, int | float):
            continue
        rest, count = column.filter(column != value), int((column == value).sum())
        if count < FEWEST or rest.n_unique() < FEWEST:
            continue
        low, high = float(rest.min()), float(rest.max())  # type: ignore[arg-type]
        if min(abs(value - low), abs(value - high)) > high - low:
            yield (
                f"{column.name}: {count:,} rows hold {value:g}, the {end} value, far outside {low:g} to {high:g}; if it means "
                f'missing, set ingest.{name}.missing: {{{column.name}: ["{value:g}"]}}'
            )


def _far_dates(name: str, column: pl.Series) -> Iterator[str]:
    for value in (column.min(), column.max()):
        if isinstance(value, date) and not FIRST_YEAR <= value.year <= LAST_YEAR:
            count = int((column == value).sum())
            yield (
                f"{column.name}: {count:,} {'row holds' if count == 1 else 'rows hold'} {value}; if it means missing, set "
                f'ingest.{name}.missing: {{{column.name}: ["{value}"]}}'
            )
