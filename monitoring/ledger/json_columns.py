"""Columns of rows that are JSON still: a parser that knows their types makes them without a dictionary per row."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union, cast

import msgspec
import orjson
import polars as pl

SAMPLE = 16
"""Rows whose types the parser expects of all."""
UNWRITABLE = re.compile(r'["\\\x00-\x1f]')
"""Characters of a name that JSON escapes."""

Kind = type[float] | type[str] | type[int] | None
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Larger ones are floats to orjson, and not to msgspec."""
TYPES: dict[Kind, Any] = {float: float | None, str: str | None, int: Union[Integer, float, None]}  # noqa: UP007
"""How the values of a column are read; those of any other are read one by one."""


def to_frame(rows: Sequence[bytes], as_series: Callable[[str, Sequence[Any]], pl.Series]) -> pl.DataFrame | None:
    """One row per JSON object, with the columns of the first one; None where the others have other names or types.

    `as_series`: makes the columns whose type the first rows leave open.
    """
    kinds = _kinds([orjson.loads(each) for each in rows[:SAMPLE]])
    if not kinds:
        return None
    fields = [(f"f{place}", TYPES.get(kind, msgspec.Raw)) for place, kind in enumerate(kinds.values())]
    renamed = {f"f{place}": name for place, name in enumerate(kinds)}
    row = msgspec.defstruct("Row", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
    try:
        found = msgspec.json.decode(b"[%s]" % b",".join(rows), type=list[row])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    columns = zip(*map(msgspec.structs.astuple, found), strict=True)
    return pl.DataFrame([_series(*each, as_series) for each in zip(kinds, kinds.values(), columns, strict=True)])


def _series(name: str, kind: Kind, values: Sequence[Any], as_series: Callable[[str, Sequence[Any]], pl.Series]) -> pl.Series:
    if kind in (float, str):
        return pl.Series(name, values, dtype=pl.Float64 if kind is float else pl.String)
    return as_series(name, values if kind is int else [orjson.loads(bytes(each)) for each in values])


def _kinds(sample: Sequence[Any]) -> dict[str, Kind]:
    """Name -> float, text, int, or None for any other type; empty where the rows differ in their names."""
    if any(type(each) is not dict or each.keys() != sample[0].keys() for each in sample):
        return {}
    rows = cast("list[dict[str, object]]", sample)
    if any(UNWRITABLE.search(name) for name in rows[0]):
        return {}
    found = dict[str, Kind]()
    for name in rows[0]:
        types = {type(each[name]) for each in rows} - {type(None)}
        found[name] = (
            float if float in types and types <= {float, int} else str if types == {str} else int if types == {int} else None
        )
    return found
