"""The values of a column that the contract of its table reads as missing, by the rule of `present` in tasks.data.conversion."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from evergreen.tasks.config.data import Source


def of_column(source: "Source | None", name: str, type_: Literal["number", "text", "date"]) -> frozenset[Any]:
    """Texts, the empty one among them, and for a number those of its missing values that are numbers.

    Without a table, as for features computed from events, an empty text is missing, and no number is.
    """
    if source is None:
        return frozenset() if type_ == "number" else frozenset({""})
    words: set[Any] = {"", *source.null_values, *source.missing.get(name, ())}
    numbers = set[float]()
    if type_ == "number":
        for word in source.missing.get(name, ()):
            with suppress(ValueError):
                numbers.add(float(word))
    return frozenset({*words, *numbers})
