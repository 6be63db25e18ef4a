"""Numbers, dates, true and false that a request gives as text, read as the contract of the problem's table reads a file's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Source
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data.conversion import convert_rows
from evergreen.tasks.data.snapshot import contract

READ = ("integer", "number", "date", "datetime", "boolean")


def source(params: Params, problem: str, layout: Layout) -> Source | None:
    """The contract of the table whose columns are the features; None if they come from events."""
    features = params.section(problem).features
    return contract(params, features.table, layout) if features.by_cutoff is False else None


def readers(source: Source | None) -> Mapping[str, Callable[[str], Any]]:
    """Column -> what reads its texts and raises ValueError for one that does not fit."""
    if source is None:
        return {}
    return {name: partial(_read, source, name) for name, kind in source.types.items() if kind in READ}


def _read(source: Source, name: str, value: str) -> float | int | str | None:
    """A number, true or false, a date in ISO 8601, or None for a missing value."""
    read = convert_rows(source, pl.DataFrame({name: [value]}), {name: source.types[name]})
    if name in read.lost and read.lost[name].item():
        raise ValueError(value)
    found = read.frame[name].item()
    return found if found is None or isinstance(found, float | int) else found.isoformat()
