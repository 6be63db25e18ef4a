"""Built-in validation rules: finite numbers, times present, unique keys, references to other tables.

Row numbers count from 1 in the file of data/raw.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import polars as pl

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.data import Rules
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.sql_expressions import reads_other_rows
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data.row_blocks import AT, ROW, RowBlocks

Severity = Literal["error", "warning"]
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


@dataclass
class Tally:
    """One row rule while the blocks of a table pass."""

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: Severity
    checked: int = 0
    """Rows checked."""
    failed: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    marks: list[pl.Series | None] = field(default_factory=list["pl.Series | None"])
    """Per block and row of the file whether it fails; None: no row does. Kept where they may be quarantined."""

    def add(self, block: pl.DataFrame, rows: range, checked: int, positions: np.ndarray) -> None:
        """Add a block: `rows` of the file (from 0), `positions`: the failing rows of `block`."""
        self.checked += checked
        self.failed += len(positions)
        if len(self.examples) < EXAMPLES:
            first = block[np.sort(positions)[: EXAMPLES - len(self.examples)]]
            for row, values in zip(first[ROW], first.select(self.columns).iter_rows(named=True), strict=True):
                self.examples.append({"row": row, "values": {key: as_json_value(each) for key, each in values.items()}})
        if self.severity == "error":
            self.marks.append(self._marked(block, rows, positions) if len(positions) else None)

    def _marked(self, block: pl.DataFrame, rows: range, positions: np.ndarray) -> pl.Series:
        mask = np.zeros(len(rows), dtype=bool)
        mask[block[ROW].to_numpy()[positions].astype(np.int64) - rows.start - 1] = True
        return pl.Series(mask)

    def outcome(self, passed: bool) -> Outcome:
        return Outcome(
            name=self.name,
            type=self.kind,
            columns=self.columns,
            severity=self.severity,
            level="row",
            passed=passed,
            checked=self.checked,
            failed=self.failed,
            share=round(self.failed / self.checked, 6) if self.checked else 0.0,
            examples=tuple(self.examples),
        )


@dataclass(frozen=True)
class RowRule:
    """A built-in rule that looks at one row at a time; a unique key at the rows of `failing_rows`, which were found before."""

    tally: Tally
    failing: pl.Expr | None = None
    subset: pl.Expr | None = None
    """Checked rows; None: all."""
    failing_at: np.ndarray | None = None
    """The values of AT that fail, ascending."""

    def check(self, block: pl.DataFrame, rows: range) -> None:
        checked, failing = len(block), self.failing
        if failing is None:
            self.tally.add(block, rows, checked, positions_of(block, self.failing_at))
            return
        failing = failing.fill_null(False)
        if self.subset is not None:
            included = block.select(pl.col(ROW), self.subset.fill_null(False).alias("included"))["included"]
            checked, failing = int(included.sum()), failing & included
        self.tally.add(block, rows, checked, block.select(failing.arg_true()).to_series().to_numpy())


def positions_of(block: pl.DataFrame, at: np.ndarray | None) -> np.ndarray:
    """The rows of `block` among those with the values `at` (ascending) of AT."""
    if at is None or not len(at) or not len(block):
        return np.empty(0, dtype=np.int64)
    first, last = int(block[AT][0]), int(block[AT][-1])
    return at[np.searchsorted(at, first) : np.searchsorted(at, last, side="right")] - first


def view_of(
    name: str, view: RowBlocks, rules: Rules, known: Mapping[str, pl.LazyFrame]
) -> tuple[RowBlocks, list[Outcome], str | None]:
    """`view` with the columns that references join and rules derive, the references that cannot be joined, and the place of
    an expression that looks at other rows, so that the table is one block.

    `known`: table -> its validated rows. Raises ParamsError for an invalid SQL expression.
    """
    failures: list[Outcome] = []
    for column, reference in rules.references.items():
        table, key = reference.to.split(".")
        problem = _type_mismatch(view.schema, column, known[table], key, reference.to)
        problem = problem or missing_column(known[table], reference.join_columns, reference.to)
        if problem:
            failures.append(not_computed(f"{column} known in {table}", "reference", (column,), "error", problem))
        elif reference.join_columns:
            facts = known[table].select(pl.col(key).alias(column), *reference.join_columns).unique(column, keep="first")
            view = replace(view, facts=(*view.facts, (column, facts.collect())))
    whole: str | None = None
    for derived, text in rules.derived.items():
        expression = _sql(view.schema, text, place := f"validate.{name}.derived.{derived}")
        whole = whole or (place if reads_other_rows(expression) else None)
        view = replace(view, derived=(*view.derived, (derived, expression)))
    for column, reference in rules.references.items():
        place = f"validate.{name}.references.{column}.where"
        if reference.where and reads_other_rows(_sql(view.schema, reference.where, place)):
            whole = whole or place
    return view, failures, whole


def builtin_rules(
    name: str, view: RowBlocks, rules: Rules, time: str | None, known: Mapping[str, pl.LazyFrame]
) -> list[RowRule | Outcome]:
    """The built-in rules of the table in their order; an Outcome for one that cannot be computed. `time`: its time column."""
    schema, table = view.schema, view.table.collect_schema()
    found: list[RowRule | Outcome] = [
        RowRule(Tally(f"{column} is finite", "finite", (column,), "error"), ~pl.col(column).is_finite())
        for column, kind in table.items()
        if kind.is_float()
    ]
    if time:
        found.append(RowRule(Tally(f"{time} is present", "present", (time,), "error"), pl.col(time).is_null()))
    if rules.unique:
        found.append(_unique(view, rules.unique))
    for column, reference in rules.references.items():
        to, key = reference.to.split(".")
        if _type_mismatch(schema, column, known[to], key, reference.to):
            continue
        keys = known[to].select(pl.col(key).unique()).collect().to_series()
        unknown = pl.col(column).is_not_null() & ~pl.col(column).is_in(keys.implode())
        where = f"validate.{name}.references.{column}.where"
        subset = _sql(schema, reference.where, where) if reference.where else None
        tally = Tally(f"{column} known in {to}", "reference", (column,), reference.severity)
        found.append(RowRule(tally, unknown, subset))
    return found


def _type_mismatch(rows: pl.DataFrame, column: str, known: pl.LazyFrame, key: str, to: str) -> str | None:
    if problem := missing_column(rows, [column], "the table") or missing_column(known, [key], to):
        return problem
    here, there = rows.schema[column], known.collect_schema()[key]
    if here != there and not (here.is_numeric() and there.is_numeric()):
        return f"its type is {here}, that of {to} is {there}; declare the same type under ingest"
    return None


def missing_column(table: pl.DataFrame | pl.LazyFrame, columns: Iterable[str], what: str) -> str | None:
    """A message about the first of `columns` that `table` does not have."""
    names = table.collect_schema().names()
    missing = [column for column in columns if column not in names]
    return f"{what} has no column {missing[0]}{nearest(missing[0], _visible(names))}" if missing else None


def _visible(names: Iterable[str]) -> list[str]:
    return [column for column in names if column not in (ROW, AT)]


def _sql(rows: pl.DataFrame, text: str, key: str) -> pl.Expr:
    """An SQL expression on the columns of `rows`, checked without data. Raises ParamsError if it is invalid."""
    try:
        expression = pl.sql_expr(text)
        rows.clear().select(expression)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ParamsError(
            f"params.yaml: {key} = {text}: {str(error).splitlines()[0]}. Write SQL on {', '.join(_visible(rows.columns))}."
        ) from None
    return expression


def _unique(view: RowBlocks, columns: tuple[str, ...]) -> RowRule | Outcome:
    name = f"{' + '.join(columns)} unique"
    if problem := missing_column(view.schema, columns, "the table"):
        return not_computed(name, "unique", columns, "error", problem)
    repeated = [part.filter(~pl.struct(columns).is_first_distinct())[AT].to_numpy() for part in view.equals(columns)]
    return RowRule(Tally(name, "unique", columns, "error"), failing_at=np.sort(np.concatenate(repeated)).astype(np.int64))


def not_computed(name: str, kind: str, columns: tuple[str, ...], severity: Severity, problem: str) -> Outcome:
    """Outcome of a rule that could not be computed."""
    return Outcome(name=name, type=kind, columns=columns, severity=severity, level="table", passed=False, problem=problem)


def as_json_value(value: Any) -> Any:
    """`value` as a JSON type; infinite numbers and times become text."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, date | datetime) else value.item() if isinstance(value, np.generic) else value


def split(view: RowBlocks, broken: Sequence[Tally]) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.Series]:
    """The rows that no rule of `broken` quarantines; the others with `_rule`, the names of the rules that a row breaks,
    separated by a semicolon; and per row of the file whether it is one of those. Both as they were read, without dropped
    duplicates.
    """
    broken = [each for each in broken if each.failed]
    marks = {f"__rule{place}": _marks(each, view) for place, each in enumerate(broken)}
    out = pl.zeros(view.read, dtype=pl.Boolean, eager=True)
    for each in marks.values():
        out = out | each
    dropped = view.dropped if view.dropped is not None else pl.zeros(view.read, dtype=pl.Boolean, eager=True)
    named = (pl.when(pl.col(mark)).then(pl.lit(each.name)) for mark, each in zip(marks, broken, strict=True))
    rule = pl.concat_str(*named, separator="; ", ignore_nulls=True) if marks else pl.lit(None, pl.String)
    bad = _chosen(view.table, out, marks).with_columns(rule.alias("_rule")).drop(*marks)
    out_or_dropped = out | dropped
    kept = _chosen(view.table, ~out_or_dropped, {}) if out_or_dropped.any() else view.table
    return kept, bad, out


def _marks(tally: Tally, view: RowBlocks) -> pl.Series:
    lengths = (min(view.rows, view.read - start) for start in view.starts(view.rows))
    found = zip(lengths, tally.marks, strict=True)
    return pl.concat(
        pl.zeros(length, dtype=pl.Boolean, eager=True) if marks is None else marks.rename("zeros") for length, marks in found
    )


def _chosen(table: pl.LazyFrame, mask: pl.Series, marks: Mapping[str, pl.Series]) -> pl.LazyFrame:
    chosen = pl.DataFrame({"__chosen": mask, **marks}).lazy()
    return pl.concat([table, chosen], how="horizontal").filter(pl.col("__chosen")).drop("__chosen")
