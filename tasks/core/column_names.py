"""Names that no column of a table may have: steps write columns of these names themselves, or read them as patterns."""

import re
from collections.abc import Iterable

OWN = ("_entity", "_target", "_time", "_test", "_cutoff", "_rule", "_week", "_items", "__row", "__height")
"""Columns that Evergreen writes beside those of a table."""
PATTERN = re.compile(r"\*|\^.*\$", re.DOTALL)
"""What Polars reads as a pattern of names."""


def unusable_name(names: Iterable[str]) -> str | None:
    """The first name that no column may have, and why.

    >>> unusable_name(["price", "_target"])
    "column '_target': Evergreen writes a column of that name itself"
    >>> unusable_name(["row", "entity", "count", "a*"]) is None
    True
    """
    for name in names:
        if PATTERN.fullmatch(name):
            return f"column {name!r}: such a name means a pattern of names"
        if "\0" in name:
            return f"column {name!r}: a name cannot contain a NUL character"
        if name in OWN:
            return f"column {name!r}: Evergreen writes a column of that name itself"
    return None
