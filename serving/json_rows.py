"""Reads the JSON of one row straight into the values of a version's features; the parser checks names and types."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

UNWRITABLE = re.compile(r'["\\\x00-\x1f]')
"""Characters of a name that JSON escapes."""
OTHER_KEYS = ("rows", "explain")
"""Keys of a body that is more than a row."""
Values = tuple[float | str | None, ...]


@dataclass(frozen=True)
class Checks:
    """What values must meet beside their types; each is said for a place among them."""

    words: tuple[tuple[int, frozenset[Any]], ...] = ()
    """Texts that mean a missing value."""
    sentinels: tuple[tuple[int, frozenset[Any]], ...] = ()
    """Numbers that mean a missing value."""
    rules: tuple[tuple[int, Callable[[Any], bool]], ...] = ()

    def hold(self, values: Values) -> bool:
        """Whether no value is a missing one in other words, and none breaks a rule."""
        for place, missing in self.words:
            value = values[place]
            if isinstance(value, str) and value.strip() in missing:
                return False
        for place, missing in self.sentinels:
            if values[place] in missing:
                return False
        return not self.rules or all(holds(values[place]) for place, holds in self.rules)


def reader(is_number: Mapping[str, bool]) -> Callable[[bytes], Values | None] | None:
    """Reads a JSON object that has each of these features and no other key; a number as float, any other value as text.

    The reader returns the values in the order of `is_number`, and None for any other body. None: such names cannot be read.
    """
    if not is_number or any(UNWRITABLE.search(name) or name in OTHER_KEYS for name in is_number):
        return None
    fields = {f"f{place}": (name, float if number else str) for place, (name, number) in enumerate(is_number.items())}
    row = msgspec.defstruct(
        "Row",
        [(field, kind | None) for field, (_, kind) in fields.items()],
        rename={field: name for field, (name, _) in fields.items()},
        forbid_unknown_fields=True,
        gc=False,
    )
    decode, as_tuple = msgspec.json.Decoder[Any](row).decode, msgspec.structs.astuple

    def read(body: bytes) -> Values | None:
        try:
            return as_tuple(decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    return read
