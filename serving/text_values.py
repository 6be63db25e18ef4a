"""Numbers and dates that a request gives as text, read as the contract of the problem's table reads them in a file."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Source
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data.conversion import convert_rows
from evergreen.tasks.data.snapshot import contract

READ = ("integer", "number", "date", "datetime")


def readers(params: Params, problem: str, layout: Layout) -> Mapping[str, Callable[[str], Any]]:
    """Feature -> what reads its texts and raises ValueError for one that does not fit. Empty if features come from events."""
    features = params.section(problem).features
    if features.by_cutoff is not False:
        return {}
    source = contract(params, features.table, layout)
    return {name: partial(_read, source, name) for name, kind in source.types.items() if kind in READ}


def _read(source: Source, name: str, value: str) -> float | int | str | None:
    """A number, a date in ISO 8601, or None for a missing value."""
    read = convert_rows(source, pl.DataFrame({name: [value]}), {name: source.types[name]})
    if name in read.lost and read.lost[name].item():
        raise ValueError(value)
    found = read.frame[name].item()
    return found if found is None or isinstance(found, float | int) else found.isoformat()
