"""Built-in validation rules: finite numbers, times present, unique keys, references to other tables.

Row numbers count from 1 in the file of data/raw.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Literal, TypedDict

import numpy as np
import polars as pl

from evergreen.tasks.config.base import Section
from evergreen.tasks.config.data import Rules
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.sql_expressions import reads_other_rows
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data.repeated_rows import EarlierRows, later_copies
from evergreen.tasks.data.row_blocks import AT, ROW, RowBlocks, packed, unpacked

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


class Found(TypedDict):
    """What a rule found in some rows, as JSON holds it."""

    checked: int
    """Rows checked."""
    failed: int
    examples: list[dict[str, Any]]
    """Its first failing rows; see Outcome."""
    mask: str | None
    """Packed: of each row of the file whether it fails. None where none does, or for a warning."""


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
    masks: list[tuple[range, str]] = field(default_factory=list[tuple[range, str]])
    """Rows of the file (from 0), and packed whether they fail, where one does. Kept where they may be quarantined."""

    def find(self, block: pl.DataFrame, rows: range, checked: int, failing: np.ndarray) -> Found:
        """`rows`: those of the file (from 0) of which `block` has the ones that were not dropped; `failing`: its failing rows,
        ascending.
        """
        numbers = block[ROW].to_numpy()[failing].astype(np.int64)
        return self.found(block[failing[:EXAMPLES]], rows, checked, numbers - rows.start - 1)

    def found(self, first: pl.DataFrame, rows: range, checked: int, failing: np.ndarray) -> Found:
        """`first`: the first failing rows; `failing`: the places of all of them among `rows`."""
        values = first.select(self.columns).iter_rows(named=True)
        examples = [
            {"row": row, "values": {key: as_json_value(each) for key, each in found.items()}}
            for row, found in zip(first[ROW], values, strict=True)
        ]
        mask = np.zeros(len(rows), dtype=bool)
        mask[failing] = True
        marks = packed(mask) if self.severity == "error" and len(failing) else None
        return {"checked": checked, "failed": len(failing), "examples": examples, "mask": marks}

    def add(self, rows: range, found: Found) -> None:
        """Blocks are added in their order."""
        self.checked += found["checked"]
        self.failed += found["failed"]
        self.examples += found["examples"][: EXAMPLES - len(self.examples)]
        if found["mask"] is not None:
            self.masks.append((rows, found["mask"]))

    def failing(self, read: int) -> pl.Series:
        """Per row of the file whether it fails."""
        mask = np.zeros(read, dtype=bool)
        for rows, each in self.masks:
            mask[rows.start : rows.stop] = unpacked(each, len(rows))
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
    """A built-in rule that looks at one row at a time."""

    tally: Tally
    failing: pl.Expr
    subset: pl.Expr | None = None
    """Checked rows; None: all."""
    known: pl.Series | None = None
    """Of a reference: the keys of the other table."""

    def find(self, block: pl.DataFrame, rows: range) -> Found:
        checked, failing = len(block), self.failing.fill_null(False)
        if self.subset is not None:
            included = block.select(pl.col(ROW), self.subset.fill_null(False).alias("included"))["included"]
            checked, failing = int(included.sum()), failing & included
        return self.tally.find(block, rows, checked, block.select(failing.arg_true()).to_series().to_numpy())


def positions_of(block: pl.DataFrame, at: np.ndarray) -> np.ndarray:
    """The rows of `block` among those with the values `at` (ascending) of AT."""
    return at - int(block[AT][0]) if len(at) else at


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
    name: str,
    view: RowBlocks,
    rules: Rules,
    time: str | None,
    known: Mapping[str, pl.LazyFrame],
    earlier: EarlierRows | None = None,
) -> list[RowRule | Tally | Outcome]:
    """The built-in rules of the table in their order: those that look at one row at a time; a Tally for a unique key, which
    is searched here; an Outcome for one that cannot be computed. `time`: its time column.
    """
    schema, table = view.schema, view.table.collect_schema()
    found: list[RowRule | Tally | Outcome] = [
        RowRule(Tally(f"{column} is finite", "finite", (column,), "error"), ~pl.col(column).is_finite())
        for column, kind in table.items()
        if kind.is_float()
    ]
    if time:
        found.append(RowRule(Tally(f"{time} is present", "present", (time,), "error"), pl.col(time).is_null()))
    if rules.unique:
        found.append(_unique(view, rules.unique, earlier))
    for column, reference in rules.references.items():
        to, key = reference.to.split(".")
        if _type_mismatch(schema, column, known[to], key, reference.to):
            continue
        keys = known[to].select(pl.col(key).unique()).collect().to_series()
        unknown = pl.col(column).is_not_null() & ~pl.col(column).is_in(keys.implode())
        where = f"validate.{name}.references.{column}.where"
        subset = _sql(schema, reference.where, where) if reference.where else None
        tally = Tally(f"{column} known in {to}", "reference", (column,), reference.severity)
        found.append(RowRule(tally, unknown, subset, keys))
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


def _unique(view: RowBlocks, columns: tuple[str, ...], earlier: EarlierRows | None) -> Tally | Outcome:
    name = f"{' + '.join(columns)} unique"
    if problem := missing_column(view.schema, columns, "the table"):
        return not_computed(name, "unique", columns, "error", problem)
    tally = Tally(name, "unique", columns, "error")
    add_rows(tally, view, later_copies(view, columns, earlier))
    return tally


def add_rows(tally: Tally, view: RowBlocks, rows: np.ndarray) -> None:
    """Add what was found in all rows at once: the values of ROW of the failing ones, ascending."""
    first = pl.concat([view.schema, *(view.part(range(row - 1, row)).collect() for row in rows[:EXAMPLES].tolist())])
    tally.add(range(view.read), tally.found(first, range(view.read), view.height, rows - 1))


def not_computed(name: str, kind: str, columns: tuple[str, ...], severity: Severity, problem: str) -> Outcome:
    """Outcome of a rule that could not be computed."""
    return Outcome(name=name, type=kind, columns=columns, severity=severity, level="table", passed=False, problem=problem)


def as_json_value(value: Any) -> Any:
    """`value` as a JSON type; infinite numbers and times become text."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, date | datetime) else value.item() if isinstance(value, np.generic) else value


def split(view: RowBlocks, broken: Sequence[Tally]) -> tuple[pl.Series, pl.LazyFrame, pl.Series]:
    """Per row of the table whether it is kept: no rule of `broken` quarantines it, and it is no dropped duplicate; the
    quarantined rows as they were read, with `_rule`, the names of the rules that a row breaks, separated by a semicolon; and
    per row whether it is one of those.
    """
    broken = [each for each in broken if each.failed]
    marks = {f"__rule{place}": each.failing(view.read) for place, each in enumerate(broken)}
    out = pl.zeros(view.read, dtype=pl.Boolean, eager=True)
    for each in marks.values():
        out = out | each
    dropped = view.dropped if view.dropped is not None else pl.zeros(view.read, dtype=pl.Boolean, eager=True)
    named = (pl.when(pl.col(mark)).then(pl.lit(each.name)) for mark, each in zip(marks, broken, strict=True))
    rule = pl.concat_str(*named, separator="; ", ignore_nulls=True) if marks else pl.lit(None, pl.String)
    bad = chosen(view.table, out, marks).with_columns(rule.alias("_rule")).drop(*marks)
    return ~(out | dropped), bad, out


def chosen(table: pl.LazyFrame, mask: pl.Series, marks: Mapping[str, pl.Series] | None = None) -> pl.LazyFrame:
    """The rows of `table` where `mask` is true, with `marks`, further columns."""
    added = pl.DataFrame({"__chosen": mask, **(marks or {})}).lazy()
    return pl.concat([table, added], how="horizontal").filter(pl.col("__chosen")).drop("__chosen")
