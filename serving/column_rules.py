"""Rules on single values that params.yaml declares (section validate), checked for every row of a request."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from evergreen.tasks.config.params import Expectation, Params, Tabular


@dataclass(frozen=True)
class Rule:
    """A missing value breaks only `must not be null`."""

    holds: Callable[[Any], bool]
    text: str
    examples: tuple[Any, ...] = ()
    """Values that may keep it."""


def from_params(params: Params, section: Tabular) -> dict[str, tuple[Rule, ...]]:
    """Feature -> its rules, for features that are columns of a table with expectations of severity error."""
    features = section.features
    if features.by_cutoff is True:
        return {}  # features computed from events are not columns of a table
    return {name: rules for name, rules in of_table(params, features.table).items() if name in features.columns}


def of_table(params: Params, table: str) -> dict[str, tuple[Rule, ...]]:
    """Column -> its rules, for columns with expectations of severity error."""
    found: dict[str, tuple[Rule, ...]] = {}
    declared = params.validate_.get(table)
    for expectation in declared.expectations if declared else ():
        name = expectation.kwargs.get("column")
        if isinstance(name, str) and expectation.severity == "error":
            found[name] = (*found.get(name, ()), *_rules(expectation))
    return found


def _rules(expectation: Expectation) -> Iterator[Rule]:
    given = expectation.kwargs
    if given.get("mostly", 1) < 1 or "row_condition" in given:
        return  # does not apply to every value
    if expectation.type == "expect_column_values_to_not_be_null":
        yield Rule(lambda value: value is not None, "must not be null")
    elif expectation.type == "expect_column_values_to_be_in_set":
        allowed = list(given.get("value_set") or [])
        shown = f"must be one of {', '.join(map(str, allowed))}"
        yield Rule(lambda value: value is None or value in allowed, shown, tuple(allowed))
    elif expectation.type == "expect_column_values_to_not_be_in_set":
        banned = list(given.get("value_set") or [])
        yield Rule(lambda value: value is None or value not in banned, f"must not be one of {', '.join(map(str, banned))}")
    elif expectation.type == "expect_column_values_to_be_between":
        yield from _between(given)
    elif expectation.type == "expect_column_values_to_match_regex":
        pattern = re.compile(str(given["regex"]))
        yield Rule(lambda value: value is None or pattern.search(str(value)) is not None, f"must match {pattern.pattern}")


def _between(given: Mapping[str, Any]) -> Iterator[Rule]:
    low, high = given.get("min_value"), given.get("max_value")
    ends = [each for each in (low, high) if isinstance(each, int | float)]
    inside = (sum(ends) / 2, *ends) if len(ends) == 2 else tuple(value for end in ends for value in (end, end + 1, end - 1))
    if isinstance(low, int | float):
        strict = bool(given.get("strict_min"))
        yield Rule(partial(_above, low, strict), f"must be {'above' if strict else 'at least'} {low}", inside)
    if isinstance(high, int | float):
        strict = bool(given.get("strict_max"))
        yield Rule(partial(_below, high, strict), f"must be {'below' if strict else 'at most'} {high}", inside)


def _above(low: float, strict: bool, value: Any) -> bool:
    return not isinstance(value, int | float) or (value > low if strict else value >= low)


def _below(high: float, strict: bool, value: Any) -> bool:
    return not isinstance(value, int | float) or (value < high if strict else value <= high)
