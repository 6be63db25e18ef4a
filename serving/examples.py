"""Example requests, made from the contract alone: no row, user or value of an entity of the training data is in them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evergreen.serving.feature import Feature

NUMBERS = (1, 0, 10, 0.5, 100, -1)
DATES = ("2024-01-31", "2024-01-31T17:00:00")
TEXTS = ("text", "A", "a", "1")


def make_row(features: "Iterable[Feature]") -> dict[str, Any] | None:
    """A value for each feature that keeps its rules; None if there is a feature for which none was found."""
    found: dict[str, Any] = {}
    for feature in features:
        for value in _values(feature):
            if all(rule.holds(value) for rule in feature.rules):
                found[feature.name] = value
                break
        else:
            return None
    return found


def _values(feature: "Feature") -> Iterator[Any]:
    """Values to try, the best first; None, a missing value, is the last."""
    yield from (value for rule in feature.rules for value in rule.examples)
    if feature.type == "number":
        yield from NUMBERS
    elif feature.type == "date":
        yield from DATES
    else:
        yield from sorted(feature.levels)
        yield from TEXTS
    yield None


def make_id(known: Sequence[Any]) -> Any:
    """An id of the type of `known` that is not among them."""
    taken = {*known}
    if any(isinstance(each, str) for each in taken):
        return next(name for name in (f"user-{number}" for number in count(1)) if name not in taken)
    return next(number for number in count(1) if number not in taken)


def without_missing(row: Mapping[str, Any], dates: Iterable[str]) -> dict[str, Any]:
    """A stored row with None for NaN, and for NaT in the columns `dates`."""
    none = {name for name in dates if row.get(name) == "NaT"}
    return {name: None if name in none or value != value else value for name, value in row.items()}
