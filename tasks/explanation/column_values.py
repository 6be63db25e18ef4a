"""Values of columns as text and as numbers, for the tables of an explanation."""

import math
from typing import Any

import numpy as np
import pandas as pd

MAX_COLUMNS = 15
"""Columns that are shown in detail: those that matter most."""


def as_text(value: Any) -> str:
    """A value as people read it: six digits of a number, the date of a midnight, `missing` for a gap."""
    if isinstance(value, pd.Timestamp):
        return str(value.date()) if value == value.normalize() else str(value)
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    return f"{value:.6g}" if isinstance(value, int | float | np.number) else str(value)


def as_number(value: Any) -> float | None:
    """A number, or seconds since 1970 for a date; None for a category."""
    if isinstance(value, pd.Timestamp):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def is_date(values: Any) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values)
