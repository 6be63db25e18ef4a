"""Entity and time of a table: which rows belong together, and whether rows are judged in time, with reasons and costs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Evaluate, Role, Table, Tune
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.onboarding.column_inference import ID_NAME, Column
from evergreen.tasks.onboarding.options import InitOptions
from evergreen.tasks.onboarding.row_groups import FEWEST_GROUPS, SAME_SHARE, Group, find_groups

CANDIDATES = 6
"""Columns that are looked at as groups, those with the most values first."""
FEWEST_DAYS = 30
"""Fewest distinct dates that can order the rows."""

ROW_NAME = re.compile(r"(?i)(rownames?|row_?(number|id)?|index|unnamed.*|x|)")
"""Names of row-number columns, which do not identify an entity."""
TIME_NAME = re.compile(
    r"(?i)(date|time|timestamp|datetime|created|opened|start(ed)?|issued?|sold|ordered|when|day|month|period)"
)
NOT_TIME_NAME = re.compile(r"(?i)(birth|dob|expir|due|until|valid_to|end|clos|resolv|return|deliver|last|next|paid|update)")


@dataclass
class Roles:
    """The columns with these roles. Reasons and costs: entity, time -> text."""

    entity: str | None = None
    time: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    costs: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose_roles(
    table: pl.LazyFrame,
    sample: pl.DataFrame,
    asked: InitOptions,
    columns: dict[str, Column],
    rows: int,
    classes: bool,
    today: date,
) -> Roles:
    """Entity and time. `sample`: with the types of training. In `columns`, codes that are no entity become categories.

    Groups that the data shows win over an order in time, unless the rows are sorted by it and the target varies in the groups.
    """
    roles = Roles()
    roles.entity = _given_entity(asked, columns, roles)
    roles.time = _time(sample, asked, columns, roles.entity, today, roles)
    groups = _groups(table, asked, columns, rows, classes) if asked.target and not asked.entity else []
    kept = next((each for each in groups if each.keeps and "entity" not in asked.refused), None)
    if kept and (roles.time is None or (not asked.time and (kept.fixes_target or roles.reasons["time"] == BY_NAME))):
        roles.time, roles.entity = None, kept.column
        roles.reasons["entity"] = kept.evidence
        roles.costs["entity"] = (
            f"Rows of one {kept.column} stay on one side of each split, so scores hold for new ones; it is no feature. "
            "--entity none: rows are split one by one, and it is a feature"
        )
    aliases = _aliases(table, roles.entity, columns) if roles.entity else []
    for name in aliases:
        columns[name] = replace(columns[name], role=None, reason=f"another name of {roles.entity}")
    roles.warnings += [_known_only(each, roles) for each in groups[:2] if each.column not in (roles.entity, *aliases)]
    if roles.entity is None and "entity" not in asked.refused:
        roles.entity = _key(asked, columns, rows, roles)
    _codes_are_categories(asked, columns, roles.entity)
    if roles.entity:
        columns[roles.entity] = replace(columns[roles.entity], inferred_type="identifier")
    if roles.time:
        roles.costs["time"] = _cost_of_time(sample, asked, rows, roles.time)
    else:
        roles.reasons.pop("time", None)
    return roles


def _known_only(group: Group, roles: Roles) -> str:
    name = group.column
    options = f"--entity {name}" + (" --time none" if roles.time else "")
    return (
        f"{name}: {group.evidence}. Its rows are on both sides of a split, so scores hold for known {name}; "
        f"if new ones are to be predicted, use {options}"
    )


# --- entity


def _given_entity(asked: InitOptions, columns: Mapping[str, Column], roles: Roles) -> str | None:
    if not asked.entity:
        return None
    if asked.entity == asked.target:
        raise ParamsError(f"--entity {asked.entity}: is also the target")
    if missing := columns[asked.entity].missing:
        raise DataError(f"--entity {asked.entity}: {missing:,} rows have no value; fix them or remove --entity")
    roles.reasons["entity"] = "given"
    return asked.entity


def _groups(table: pl.LazyFrame, asked: InitOptions, columns: Mapping[str, Column], rows: int, classes: bool) -> list[Group]:
    assert asked.target
    usable = [each for each in _names(columns) if each.name not in (asked.target, asked.time)]
    repeated = [each for each in usable if FEWEST_GROUPS <= each.distinct <= rows / 2]
    first = sorted(repeated, key=lambda each: -each.distinct)[:CANDIDATES]
    features: dict[str, Role] = {each.name: each.role for each in columns.values() if each.role and each.name != asked.target}
    kept = list(dict.fromkeys([*(each.name for each in first), *features, asked.target]))
    return find_groups(table.select(kept), rows, [each.name for each in first], features, asked.target, classes)


def _names(columns: Mapping[str, Column]) -> list[Column]:
    """Columns of whole numbers or words, without missing values."""
    usable = (each for each in columns.values() if each.inferred_type in ("identifier", "number", "category", "text"))
    return [each for each in usable if not each.missing and (each.whole or each.low is None)]


def _aliases(table: pl.LazyFrame, entity: str, columns: Mapping[str, Column]) -> list[str]:
    """Categories and words that name the entities a second time, as a country's code does: they say nothing about new ones."""
    words = [each.name for each in columns.values() if each.role in ("category", "text") and each.name != entity]
    pairs = [
        pl.struct(pl.col(entity), pl.col(name)).filter(pl.col(name).is_not_null()).n_unique().alias(str(place))
        for place, name in enumerate(words)
    ]
    found = table.select(pl.len().alias("rows"), pl.col(entity).n_unique().alias("entities"), *pairs).collect().row(0)
    if found[1] == found[0]:
        return []  # one row each: every word that differs from row to row would be a name
    return [
        name
        for name, count in zip(words, found[2:], strict=True)
        if SAME_SHARE * found[1] <= count <= min(found[1], columns[name].distinct) / SAME_SHARE
    ]


def _key(asked: InitOptions, columns: Mapping[str, Column], rows: int, roles: Roles) -> str | None:
    """A column named like an identifier that is unique in every row."""
    for each in _names(columns):
        free = each.name not in (asked.target, asked.time) and not ROW_NAME.fullmatch(each.name)
        if free and ID_NAME.search(each.name) and each.distinct == rows:
            roles.reasons["entity"] = "its name, and it is unique in every row"
            return each.name
    return None


def _codes_are_categories(asked: InitOptions, columns: dict[str, Column], entity: str | None) -> None:
    for each in _names(columns):
        named = ID_NAME.search(each.name) and not ROW_NAME.fullmatch(each.name)
        if named and each.role == "number" and each.name not in (entity, asked.target):
            columns[each.name] = replace(each, inferred_type="category", role="category", reason="numeric codes")


# --- time

SORTED, BY_NAME = "the rows are sorted by it", "its name"


def _time(
    sample: pl.DataFrame, asked: InitOptions, columns: Mapping[str, Column], entity: str | None, today: date, roles: Roles
) -> str | None:
    """The date column that orders the rows: the rows are sorted by it, or it has a typical name."""
    if asked.time:
        if columns[asked.time].inferred_type != "date":
            raise ParamsError(
                f"--time {asked.time}: contains no dates or times ({columns[asked.time].summary}); name another column"
            )
        if missing := columns[asked.time].missing:
            raise DataError(f"--time {asked.time}: {missing:,} rows have no value; fix them or remove --time")
        roles.reasons["time"] = "given"
        return asked.time
    if "time" in asked.refused:
        return None
    dates = [each for each in columns.values() if each.inferred_type == "date" and each.name not in (asked.target, entity)]
    known = [each for each in dates if not each.missing and _day(each.high) <= today]
    candidates = [each for each in known if each.distinct >= FEWEST_DAYS and not NOT_TIME_NAME.search(each.name)]
    ordered = [each for each in candidates if sample[each.name].is_sorted() or sample[each.name].is_sorted(descending=True)]
    named = [each for each in candidates if TIME_NAME.search(each.name)]
    for found, reason in ((ordered, SORTED), (named, BY_NAME)):
        if len(found) == 1:
            roles.reasons["time"] = reason
            return found[0].name
    if candidates:
        names = ", ".join(each.name for each in candidates)
        roles.warnings.append(
            f"{names}: none of these dates is clearly the time of the row; each is a feature. If one is, use --time COL: "
            "the newest rows then become the test set"
        )
    return None


def _day(value: Any) -> date:
    return value.date() if hasattr(value, "date") else value


def _cost_of_time(sample: pl.DataFrame, asked: InitOptions, rows: int, time: str) -> str:
    """The rows that judge the model, as the drafted section splits them."""
    share, windows, folds = (
        section.model_fields[name].default for section, name in ((Table, "test_share"), (Evaluate, "windows"), (Tune, "folds"))
    )
    column = sample[time].drop_nulls()
    first = column.sort()[min(round((1 - share) * len(column)), len(column) - 1)]
    labelled = rows - (sample[asked.target].null_count() * rows // sample.height if asked.target else 0)
    test = round(share * labelled)
    return (
        f"The newest {share:.0%} of the rows, {test:,} from {_day(first)} on, judge the model in {windows} windows of about "
        f"{test // windows:,} rows, validation in {folds} windows of about {(labelled - test) // (folds + 1):,}; each learns "
        f"from the rows before it. --time none: rows are drawn at random, and {time} is a feature alone"
    )
