"""Features as columns that can be compared, of the ledger's rows and of training rows."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from evergreen.monitoring.drift.histograms import Form
from evergreen.tasks.config.params import Role
from evergreen.tasks.core.columns import is_number, numbers, texts

ITEMS = "_items"
"""Column with the items of a list: coverage counts its entries; drift does not compare it."""


def features(frame: pl.DataFrame, roles: Mapping[str, Role], at: pl.Series | None) -> pl.DataFrame:
    """`frame` with words by their number and dates by their age in days at `at`.

    `at` None: without the dates, whose age is not known; the days themselves move on with each week.
    """
    moments = numbers(at)[0] if at is not None else None
    made = []
    for name in frame.columns:
        if roles.get(name) == "text":
            made.append(texts(frame[name]).str.split(" ").list.len().alias(name))
        elif roles.get(name) == "date":
            if moments is not None:
                made.append(pl.Series(name, moments - numbers(_moments(frame[name]))[0], nan_to_null=True))
        else:
            made.append(frame[name])
    return pl.DataFrame(made)


def _moments(values: pl.Series) -> pl.Series:
    """Dates; those that came as text are read."""
    if values.dtype == pl.String:
        return values.str.slice(0, 19).str.replace(" ", "T").str.to_datetime(strict=False, format=None, time_unit="us")
    return values


def form(values: pl.Series) -> Form:
    """How a column is compared, by its type."""
    return "number" if is_number(values.dtype) else "category"


def coverage(lists: pl.Series, chosen: np.ndarray) -> float:
    """How many items there are in the `chosen` of `lists`."""
    return float(lists.gather(chosen).explode().drop_nulls().n_unique())
