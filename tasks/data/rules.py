"""Built-in validation rules: finite numbers, times present, unique keys, references to other tables.

Row numbers count from 1 in the file of data/raw.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import polars as pl

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.data import Rules
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.suggestions import nearest

Severity = Literal["error", "warning"]
ROW = "__row"
"""Column with the row number."""
EXAMPLES = 3
"""Failing rows listed per rule."""


class Outcome(Section):
    """Result of one rule."""

    name: str
    type: str
    """Expectation type of Great Expectations; or finite, present, unique, reference: the built-in rules."""
    columns: tuple[str, ...] = ()
    severity: Severity
    level: Literal["row", "table"]
    """row: checks single rows, which may be quarantined. table: checks a column or the table as a whole."""
    passed: bool
    checked: int | None = None
    """Rows checked."""
    failed: int | None = None
    """Rows that failed."""
    share: float | None = None
    """Failed rows per checked row."""
    observed: Any = None
    """Observed value of a table rule."""
    examples: tuple[dict[str, Any], ...] = ()
    """The first failing rows: `row`, its number, and `values`, by column."""
    problem: str | None = None
    """Why the rule could not be computed."""


@dataclass(frozen=True)
class RuleResult:
    """Result of one rule, and the positions of the rows to quarantine."""

    outcome: Outcome
    positions: np.ndarray


NO_ROWS = np.empty(0, dtype=np.int64)


def add_rule_columns(
    name: str, rows: pl.DataFrame, rules: Rules, known: Mapping[str, pl.DataFrame]
) -> tuple[pl.DataFrame, list[RuleResult]]:
    """`rows` with the columns that references join and rules derive, and the references that cannot be joined.

    `known`: table -> its validated rows. Raises ParamsError for an invalid SQL expression.
    """
    failures = []
    for column, reference in rules.references.items():
        table, key = reference.to.split(".")
        problem = _type_mismatch(rows, column, known[table], key, reference.to)
        problem = problem or missing_column(known[table], reference.join_columns, reference.to)
        if problem:
            failures.append(not_computed(f"{column} known in {table}", "reference", (column,), "error", problem))
        elif reference.join_columns:
            facts = known[table].select(pl.col(key).alias(column), *reference.join_columns).unique(column, keep="first")
            rows = rows.join(facts, on=column, how="left", maintain_order="left")
    for derived, text in rules.derived.items():
        rows = rows.with_columns(_sql(rows, text, f"validate.{name}.derived.{derived}").alias(derived))
    return rows, failures


def check_builtin_rules(
    name: str, view: pl.DataFrame, table: pl.DataFrame, rules: Rules, time: str | None, known: Mapping[str, pl.DataFrame]
) -> list[RuleResult]:
    """`view`: the rows with the columns of add_rule_columns; `table`: as read; `time`: its time column."""
    found = [
        _check_rows(view, f"{column} is finite", "finite", (column,), "error", ~pl.col(column).is_finite())
        for column, kind in table.schema.items()
        if kind.is_float()
    ]
    if time:
        found.append(_check_rows(view, f"{time} is present", "present", (time,), "error", pl.col(time).is_null()))
    if rules.unique:
        found.append(_check_unique(view, rules.unique))
    for column, reference in rules.references.items():
        to, key = reference.to.split(".")
        if _type_mismatch(view, column, known[to], key, reference.to):
            continue
        unknown = pl.col(column).is_not_null() & ~pl.col(column).is_in(known[to][key].unique().implode())
        subset = None
        if reference.where:
            subset = _sql(view, reference.where, f"validate.{name}.references.{column}.where")
        found.append(_check_rows(view, f"{column} known in {to}", "reference", (column,), reference.severity, unknown, subset))
    return found


def _type_mismatch(rows: pl.DataFrame, column: str, known: pl.DataFrame, key: str, to: str) -> str | None:
    if problem := missing_column(rows, [column], "the table") or missing_column(known, [key], to):
        return problem
    here, there = rows.schema[column], known.schema[key]
    if here != there and not (here.is_numeric() and there.is_numeric()):
        return f"its type is {here}, that of {to} is {there}; declare the same type under ingest"
    return None


def missing_column(table: pl.DataFrame, columns: Iterable[str], what: str) -> str | None:
    """A message about the first of `columns` that `table` does not have."""
    missing = [column for column in columns if column not in table.columns]
    return f"{what} has no column {missing[0]}{nearest(missing[0], _visible(table))}" if missing else None


def _visible(table: pl.DataFrame) -> list[str]:
    return [column for column in table.columns if column != ROW]


def _sql(rows: pl.DataFrame, text: str, key: str) -> pl.Expr:
    """An SQL expression on the columns of `rows`, checked without data. Raises ParamsError if it is invalid."""
    try:
        expression = pl.sql_expr(text)
        rows.clear().select(expression)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ParamsError(
            f"params.yaml: {key} = {text}: {str(error).splitlines()[0]}. Write SQL on {', '.join(_visible(rows))}."
        ) from None
    return expression


def _check_unique(view: pl.DataFrame, columns: tuple[str, ...]) -> RuleResult:
    name = f"{' + '.join(columns)} unique"
    if problem := missing_column(view, columns, "the table"):
        return not_computed(name, "unique", columns, "error", problem)
    return _check_rows(view, name, "unique", columns, "error", ~pl.struct(columns).is_first_distinct())


def _check_rows(
    view: pl.DataFrame,
    name: str,
    kind: str,
    columns: tuple[str, ...],
    severity: Severity,
    failing: pl.Expr,
    subset: pl.Expr | None = None,
) -> RuleResult:
    """A rule that fails where `failing` is true, checked on the rows of `subset` (None: all)."""
    checked = len(view)
    if subset is not None:
        subset = subset.fill_null(False)
        included = view.select(subset.alias("included")).to_series()
        checked = int(included.sum()) if len(included) == len(view) else len(view)
    failing = failing.fill_null(False) & (pl.lit(True) if subset is None else subset)
    positions = view.select(failing.arg_true()).to_series()
    return row_result(view, name, kind, columns, severity, checked, positions.to_numpy(), passed=len(positions) == 0)


def row_result(
    view: pl.DataFrame,
    name: str,
    kind: str,
    columns: tuple[str, ...],
    severity: Severity,
    checked: int,
    positions: np.ndarray,
    passed: bool,
) -> RuleResult:
    """Result of a row rule. `positions`: the failing rows of `view`."""
    first = view[np.sort(positions)[:EXAMPLES]]
    values = [{key: as_json_value(value) for key, value in row.items()} for row in first.select(columns).iter_rows(named=True)]
    outcome = Outcome(
        name=name,
        type=kind,
        columns=columns,
        severity=severity,
        level="row",
        passed=passed,
        checked=checked,
        failed=len(positions),
        share=round(len(positions) / checked, 6) if checked else 0.0,
        examples=tuple({"row": row, "values": each} for row, each in zip(first[ROW], values, strict=True)),
    )
    return RuleResult(outcome, positions if severity == "error" and not passed else NO_ROWS)


def not_computed(name: str, kind: str, columns: tuple[str, ...], severity: Severity, problem: str) -> RuleResult:
    """Result of a rule that could not be computed."""
    outcome = Outcome(name=name, type=kind, columns=columns, severity=severity, level="table", passed=False, problem=problem)
    return RuleResult(outcome, NO_ROWS)


def as_json_value(value: Any) -> Any:
    """`value` as a JSON type; infinite numbers and times become text."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, date | datetime) else value.item() if isinstance(value, np.generic) else value


def failed_rules(rows: pl.DataFrame, results: list[RuleResult]) -> pl.Series:
    """Per row the names of the rules that quarantine it, separated by a semicolon; null for a valid row."""
    parts = [
        pl.DataFrame({"at": result.positions.astype(np.int64), "rule": [result.outcome.name] * len(result.positions)})
        for result in results
        if len(result.positions)
    ]
    if not parts:
        return pl.Series("_rule", [None] * len(rows), dtype=pl.String)
    named = pl.concat(parts).group_by("at", maintain_order=True).agg(pl.col("rule").str.join("; "))
    every = pl.DataFrame({"at": np.arange(len(rows), dtype=np.int64)})
    return every.join(named, on="at", how="left", maintain_order="left")["rule"]
