"""One column that a model reads, with all that the contract of its table says about a value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from evergreen.serving.column_rules import Rule

Type = Literal["number", "text", "date"]


@dataclass(frozen=True)
class Feature:
    name: str
    type: Type
    rules: tuple[Rule, ...] = ()
    read: Callable[[str], Any] | None = None
    """Reads a text as the contract of the problem's table does: as a number, or as a date. Raises ValueError."""
    levels: frozenset[str] = frozenset()
    """Of a category: its values in training. Empty: not known."""
    missing: frozenset[Any] = frozenset()
    """Texts, and of a number numbers, that the table it was trained on reads as missing. A level is never missing."""
    required: bool = True
    """False: a row without its key has a missing value, as rows of the training data had."""
