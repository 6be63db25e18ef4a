"""data/raw -> data/tables and data/quarantine: nothing learns from a row that breaks a rule. Great Expectations lives here.

Every row read is kept, quarantined with the names of the rules it breaks, or dropped as the copy of an earlier row, and counted
as exactly one of them. Row numbers count from 1 in the file of data/raw.
"""

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from evergreen.tasks.config.params import Expectation, Params, Rules, Section
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout, write_json, writing
from evergreen.tasks.core.suggestions import nearest

log = logging.getLogger(__name__)

Severity = Literal["error", "warning"]
ROW = "__row"
EXAMPLES = 3
FIX = "Fix the export and read it again (evergreen train --refresh)"
ADVICE = f"{FIX}, or change the rule"


class Outcome(Section):
    """What became of one rule."""

    name: str
    type: str
    """Expectation type of Great Expectations, or finite, present, unique, reference: the rules of Evergreen's own."""
    columns: tuple[str, ...] = ()
    severity: Severity
    level: Literal["row", "table"]
    """row: about single rows, which may go to quarantine. table: about a column or table as a whole."""
    passed: bool
    checked: int | None = None
    """Rows that the rule was about."""
    failed: int | None = None
    """Those that break it."""
    share: float | None = None
    observed: Any = None
    """What a table rule saw."""
    examples: tuple[dict[str, Any], ...] = ()
    """The first rows that break it: row number and values."""
    problem: str | None = None
    """Why the rule could not be computed."""


class Counts(Section):
    """Rows of one table: read = kept + quarantined + duplicates."""

    read: int
    kept: int
    quarantined: int
    duplicates: int
    """Copies of an earlier row, dropped."""
    warnings: int
    """Rules of severity warning that do not hold."""


class Validated(Section):
    folder: str
    """Where the checked tables are, relative to the project."""
    results: str
    """The report of every rule, relative to the project."""
    tables: dict[str, Counts]


@dataclass(frozen=True)
class Checked:
    """One table after its rules."""

    kept: pl.DataFrame
    quarantined: pl.DataFrame
    """Its columns and `_rule`: the names of the rules that a row breaks, separated by a semicolon."""
    counts: Counts
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    """Why the run must stop; empty where it need not."""
    docs: Any = field(default=None, compare=False)
    """The result in Great Expectations' own form; None without expectations."""


def run(params: Params, problem: str | None, layout: Layout) -> Validated:
    """Check every table, write data/tables, data/quarantine and reports/validation.

    Raises ParamsError for a rule that does not exist or has wrong arguments, DataError where a table breaks a rule that stops
    the run: then the report is written, and the tables of the last good run stay as they are.
    """
    _quieten()
    check_rules(params)
    tables, quarantine = layout.table("any").parent, layout.quarantine("any").parent
    done: dict[str, Checked] = {}
    with writing(tables) as good, writing(quarantine) as bad:
        good.mkdir()
        bad.mkdir()
        for name in _ordered(params):
            checked = _check_file(name, params, layout, good)
            checked.kept.write_parquet(good / f"{name}.parquet", row_group_size=2**17)
            checked.quarantined.write_parquet(bad / f"{name}.parquet")
            _tell(name, checked)
            done[name] = Checked(checked.kept.clear(), checked.quarantined.clear(), *_rest(checked))
        _report(layout.validation, params, done)
        problems = [each for name in params.ingest for each in done[name].problems]
        if problems:
            more = f" And {len(problems) - 1} more: see reports/validation/results.json." if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
    return Validated(
        folder=str(tables.relative_to(layout.root)),
        results=str((layout.validation / "results.json").relative_to(layout.root)),
        tables={name: done[name].counts for name in params.ingest},
    )


def _rest(checked: Checked) -> tuple[Any, ...]:
    return checked.counts, checked.outcomes, checked.problems, checked.docs


def _ordered(params: Params) -> list[str]:
    """Tables after those that they refer to. Raises ParamsError for a circle."""
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ParamsError(f"params.yaml: validate.{name}.references: {' -> '.join((*path, name))} is a circle; remove one")
        rules = params.validate_.get(name, Rules())
        for reference in rules.references.values():
            visit(reference.to.split(".")[0], (*path, name))
        if name not in found:
            found.append(name)

    for name in params.ingest:
        visit(name, ())
    return found


def _check_file(name: str, params: Params, layout: Layout, checked: Path) -> Checked:
    raw = layout.raw(name)
    if not raw.is_file():
        raise ProjectError(f"{raw.relative_to(layout.root)}: not there. Ingest first: python -P -m evergreen ingest")
    rules = params.validate_.get(name, Rules())
    known = {}
    for reference in rules.references.values():
        table = reference.to.split(".")[0]
        known[table] = pl.read_parquet(checked / f"{table}.parquet", glob=False)
    return check(name, pl.read_parquet(raw, glob=False), rules, params.ingest[name].time, known)


def _tell(name: str, checked: Checked) -> None:
    counts = checked.counts
    log.info(
        "validate: %s: %s of %s rows kept, %s quarantined",
        name,
        *(f"{n:,}" for n in (counts.kept, counts.read, counts.quarantined)),
    )
    if counts.duplicates:
        log.info("validate: %s: %s duplicates dropped", name, f"{counts.duplicates:,}")
    for outcome in checked.outcomes:
        if not outcome.passed and outcome.severity == "warning":
            log.info("validate: %s: warning: %s", name, _seen(outcome))


# One table


def check(
    name: str, table: pl.DataFrame, rules: Rules, time: str | None = None, known: Mapping[str, pl.DataFrame] | None = None
) -> Checked:
    """Hold `table` to `rules` and to what always holds: numbers are finite, the time is there.

    `known`: checked tables that `rules.references` name. kept + quarantined + duplicates = read, always.
    Raises ParamsError for an SQL expression that is wrong.
    """
    rows = table.with_row_index(ROW, 1)
    if rules.drop_duplicates:
        rows = rows.unique(table.columns, keep="first", maintain_order=True)
    view, lacking = _view(name, rows, rules, known or {})
    found = [*_own(name, view, table, rules, time, known or {}), *lacking]
    expected, docs = _expected(name, view, rules)
    broken = [*found, *expected]
    bad = _broken_rules(rows, broken)
    mark = bad.is_not_null()
    kept = rows.filter(~mark).drop(ROW)
    quarantined = rows.drop(ROW).with_columns(bad.alias("_rule")).filter(mark)
    counts = Counts(
        read=len(table),
        kept=len(kept),
        quarantined=len(quarantined),
        duplicates=len(table) - len(rows),
        warnings=sum(not rule.outcome.passed and rule.outcome.severity == "warning" for rule in broken),
    )
    if counts.read != counts.kept + counts.quarantined + counts.duplicates:
        raise AssertionError(f"{name}: rows were lost: {counts}")
    outcomes = tuple(rule.outcome for rule in broken)
    return Checked(kept, quarantined, counts, outcomes, tuple(_problems(name, rules, counts, outcomes)), docs)


@dataclass(frozen=True)
class Rule:
    """One rule's outcome, and the positions of the rows it sends to quarantine."""

    outcome: Outcome
    positions: np.ndarray


NOWHERE = np.empty(0, dtype=np.int64)


def _view(name: str, rows: pl.DataFrame, rules: Rules, known: Mapping[str, pl.DataFrame]) -> tuple[pl.DataFrame, list[Rule]]:
    """The rows with the columns that references bring and rules derive, and what is wrong with those."""
    lacking = []
    for column, reference in rules.references.items():
        table, key = reference.to.split(".")
        problem = _unlike(rows, column, known[table], key, reference.to) or _lacks(
            known[table], reference.join_columns, reference.to
        )
        if problem:
            lacking.append(_failed(f"{column} known in {table}", "reference", (column,), "error", problem))
        elif reference.join_columns:
            facts = known[table].select(pl.col(key).alias(column), *reference.join_columns).unique(column, keep="first")
            rows = rows.join(facts, on=column, how="left", maintain_order="left")
    for derived, text in rules.derived.items():
        rows = rows.with_columns(_sql(rows, text, f"validate.{name}.derived.{derived}").alias(derived))
    return rows, lacking


def _unlike(rows: pl.DataFrame, column: str, known: pl.DataFrame, key: str, to: str) -> str | None:
    if problem := _lacks(rows, [column], "the table") or _lacks(known, [key], to):
        return problem
    here, there = rows.schema[column], known.schema[key]
    if here != there and not (here.is_numeric() and there.is_numeric()):
        return f"it holds {here}, and {to} holds {there}; make the types agree under ingest"
    return None


def _lacks(table: pl.DataFrame, columns: Iterable[str], what: str) -> str | None:
    missing = [column for column in columns if column not in table.columns]
    return f"{what} has no column {missing[0]}{nearest(missing[0], _visible(table))}" if missing else None


def _visible(table: pl.DataFrame) -> list[str]:
    return [column for column in table.columns if column != ROW]


def _sql(rows: pl.DataFrame, text: str, key: str) -> pl.Expr:
    """An SQL expression on the columns of `rows`, tried on no row."""
    try:
        expression = pl.sql_expr(text)
        rows.clear().select(expression)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ParamsError(
            f"params.yaml: {key} = {text}: {str(error).splitlines()[0]}. Write SQL on {', '.join(_visible(rows))}."
        ) from None
    return expression


# Rules of Evergreen's own


def _own(
    name: str, view: pl.DataFrame, table: pl.DataFrame, rules: Rules, time: str | None, known: Mapping[str, pl.DataFrame]
) -> list[Rule]:
    found = [
        _row_rule(view, f"{column} is finite", "finite", (column,), "error", ~pl.col(column).is_finite())
        for column, kind in table.schema.items()
        if kind.is_float()
    ]
    if time:
        found.append(_row_rule(view, f"{time} is there", "present", (time,), "error", pl.col(time).is_null()))
    if rules.unique:
        found.append(_unique(view, rules.unique))
    for column, reference in rules.references.items():
        to, key = reference.to.split(".")
        if _unlike(view, column, known[to], key, reference.to):
            continue
        unknown = pl.col(column).is_not_null() & ~pl.col(column).is_in(known[to][key].unique().implode())
        about = pl.lit(True)
        if reference.where:
            about = _sql(view, reference.where, f"validate.{name}.references.{column}.where")
        found.append(_row_rule(view, f"{column} known in {to}", "reference", (column,), reference.severity, unknown, about))
    return found


def _unique(view: pl.DataFrame, columns: tuple[str, ...]) -> Rule:
    name = f"{' + '.join(columns)} unique"
    if problem := _lacks(view, columns, "the table"):
        return _failed(name, "unique", columns, "error", problem)
    return _row_rule(view, name, "unique", columns, "error", ~pl.struct(columns).is_first_distinct())


def _row_rule(
    view: pl.DataFrame,
    name: str,
    kind: str,
    columns: tuple[str, ...],
    severity: Severity,
    bad: pl.Expr,
    about: pl.Expr | None = None,
) -> Rule:
    """A rule that holds where `bad` is not true, asked of the rows that it is `about` (None: all)."""
    asked = view.select(about.fill_null(False).alias("asked")).to_series() if about is not None else pl.Series([True])
    checked = int(asked.sum()) if len(asked) == len(view) else len(view)
    positions = view.select(
        (bad.fill_null(False) & (pl.lit(True) if about is None else about.fill_null(False))).arg_true()
    ).to_series()
    return _judged(view, name, kind, columns, severity, checked, positions.to_numpy(), passed=len(positions) == 0)


def _judged(
    view: pl.DataFrame,
    name: str,
    kind: str,
    columns: tuple[str, ...],
    severity: Severity,
    checked: int,
    positions: np.ndarray,
    passed: bool,
) -> Rule:
    first = view[np.sort(positions)[:EXAMPLES]].select(pl.col(ROW).alias("row"), *columns)
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
        examples=tuple({key: _plain(value) for key, value in row.items()} for row in first.iter_rows(named=True)),
    )
    return Rule(outcome, positions if severity == "error" and not passed else NOWHERE)


def _failed(name: str, kind: str, columns: tuple[str, ...], severity: Severity, problem: str) -> Rule:
    """A rule that could not be computed."""
    outcome = Outcome(name=name, type=kind, columns=columns, severity=severity, level="table", passed=False, problem=problem)
    return Rule(outcome, NOWHERE)


def _plain(value: Any) -> Any:
    """A value that JSON holds; infinite numbers and times become text."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, date | datetime) else value.item() if isinstance(value, np.generic) else value


def _broken_rules(rows: pl.DataFrame, broken: list[Rule]) -> pl.Series:
    """The names of the rules that each row breaks, separated by a semicolon; null for a row that breaks none."""
    parts = [
        pl.DataFrame({"at": rule.positions.astype(np.int64), "rule": [rule.outcome.name] * len(rule.positions)})
        for rule in broken
        if len(rule.positions)
    ]
    if not parts:
        return pl.Series("_rule", [None] * len(rows), dtype=pl.String)
    named = pl.concat(parts).group_by("at", maintain_order=True).agg(pl.col("rule").str.join("; "))
    every = pl.DataFrame({"at": np.arange(len(rows), dtype=np.int64)})
    return every.join(named, on="at", how="left", maintain_order="left")["rule"]


# Rules in the vocabulary of Great Expectations


def check_rules(params: Params) -> None:
    """Every expectation exists and takes its arguments. Raises ParamsError otherwise."""
    for table, rules in params.validate_.items():
        for number, expectation in enumerate(rules.expectations):
            _implementation(f"params.yaml: validate.{table}.expectations.{number}", expectation)


def _implementation(where: str, expectation: Expectation) -> Any:
    """The expectation's class. Great Expectations itself would drop one that it does not know without a word."""
    import great_expectations  # noqa: F401  (fills the registry)
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl, list_registered_expectation_implementations
    from pydantic.v1 import ValidationError

    try:
        found = get_expectation_impl(expectation.type)
    except ExpectationNotFoundError:
        known = list_registered_expectation_implementations()
        near = difflib.get_close_matches(expectation.type, known, n=1, cutoff=0.5)
        advice = f"; did you mean {near[0]}?" if near else "; see the gallery of Great Expectations"
        raise ParamsError(f"{where}.type = {expectation.type}: no such expectation{advice}") from None
    try:
        found(**expectation.kwargs)
    except (ValidationError, TypeError) as error:
        raise ParamsError(f"{where}.kwargs: {_wrong(found, error)} ({expectation.type})") from None
    return found


def _wrong(found: Any, error: Exception) -> str:
    first = getattr(error, "errors", list)()[:1]
    if not first:
        return str(error)
    key = str(first[0]["loc"][0])
    if first[0]["type"] == "value_error.extra":
        own = [
            name for name in found.__fields__ if name not in ("id", "meta", "notes", "rendered_content", "severity", "windows")
        ]
        return f"{key}: unknown argument{nearest(key, own)}"
    return first[0]["msg"] if key == "__root__" else f"{key}: {first[0]['msg']}"


def _expected(name: str, view: pl.DataFrame, rules: Rules) -> tuple[list[Rule], Any]:
    """Outcomes in the order of `rules.expectations`, and the whole result for Great Expectations' own pages."""
    if not rules.expectations:
        return [], None
    found: dict[int, Rule] = {}
    for number, expectation in enumerate(rules.expectations):
        columns = _columns(expectation)
        if problem := _lacks(view, columns, "the table"):
            found[number] = _failed(_name(expectation), expectation.type, columns, expectation.severity, problem)
    able = {number: each for number, each in enumerate(rules.expectations) if number not in found}
    results = _results(name, view, able) if able else None
    for result in results.results if results else ():
        number = result.expectation_config.meta["rule"]
        found[number] = _outcome(view, able[number], result)
    if len(found) != len(rules.expectations):
        lost = next(each for number, each in enumerate(rules.expectations) if number not in found)
        raise ParamsError(f"params.yaml: validate.{name}.expectations: {lost.type} was not checked; does it stand twice?")
    return [found[number] for number in sorted(found)], results


def _columns(expectation: Expectation) -> tuple[str, ...]:
    """The columns that a rule is about."""
    if expectation.type == "expect_column_to_exist":
        return ()
    single = [expectation.kwargs[key] for key in ("column", "column_A", "column_B") if key in expectation.kwargs]
    return tuple(dict.fromkeys([*single, *expectation.kwargs.get("column_list", ())]))


def _name(expectation: Expectation) -> str:
    about = ", ".join(_columns(expectation))
    return expectation.name or f"{expectation.type.removeprefix('expect_')} {about}".strip()


def _results(name: str, view: pl.DataFrame, rules: Mapping[int, Expectation]) -> Any:
    """One pass over the table. Rows are found by their position: asking for key columns costs a hundred times as much."""
    import great_expectations as gx

    suite = gx.ExpectationSuite(
        name=name,
        expectations=[
            {"type": each.type, "kwargs": _arguments(name, number, view, each), "meta": {"rule": number}}
            for number, each in rules.items()
        ],
    )
    asset = _context().data_sources.add_or_update_pandas("tables").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": view.drop(ROW).to_pandas()})
    return batch.validate(suite, result_format={"result_format": "COMPLETE"})


def _quieten() -> None:
    """Great Expectations without telemetry and chatter. Some of its modules set a level of their own on import."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for name in ("great_expectations", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "great_expectations":
            logging.getLogger(name).setLevel(logging.ERROR)


@cache
def _context() -> Any:
    """Great Expectations without files and progress bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    _quieten()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _arguments(name: str, number: int, view: pl.DataFrame, expectation: Expectation) -> dict[str, Any]:
    """The arguments; bounds of a column of times, which YAML holds as text, become times."""
    kwargs = dict(expectation.kwargs)
    if not any(view.schema[column].is_temporal() for column in _columns(expectation)):
        return kwargs
    for key in ("min_value", "max_value"):
        if isinstance(kwargs.get(key), str):
            try:
                kwargs[key] = datetime.fromisoformat(kwargs[key])
            except ValueError:
                where = f"params.yaml: validate.{name}.expectations.{number}.kwargs.{key} = {kwargs[key]}"
                raise ParamsError(f"{where}: must be a date or time such as 2017-12-31") from None
    return kwargs


def _outcome(view: pl.DataFrame, expectation: Expectation, result: Any) -> Rule:
    columns, name = _columns(expectation), _name(expectation)
    if raised := _raised(result.exception_info):
        kinds = ", ".join(f"{column} holds {view.schema[column]}" for column in columns)
        return _failed(
            name, expectation.type, columns, expectation.severity, f"cannot be computed, {kinds or 'no column'}: {raised}"
        )
    positions = result.result.get("unexpected_index_list")
    if positions is not None:
        at = np.asarray(positions, dtype=np.int64)
        checked = int(result.result["element_count"])
        return _judged(view, name, expectation.type, columns, expectation.severity, checked, at, bool(result.success))
    outcome = Outcome(
        name=name,
        type=expectation.type,
        columns=columns,
        severity=expectation.severity,
        level="table",
        passed=bool(result.success),
        observed=_plain(result.result.get("observed_value")),
    )
    return Rule(outcome, NOWHERE)


def _raised(info: Any) -> str | None:
    """The first exception of a result: of the rule, or of one of the metrics it needs."""
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = [str(part["exception_message"]) for part in parts if part.get("raised_exception")]
    return messages[0].strip().splitlines()[0].rstrip(".") if messages else None


# Messages and reports


def _problems(name: str, rules: Rules, counts: Counts, outcomes: tuple[Outcome, ...]) -> Iterable[str]:
    where = f"data/raw/{name}.parquet"
    for outcome in outcomes:
        if outcome.severity == "error" and outcome.problem:
            yield f'{where}: rule "{outcome.name}": {outcome.problem}. {ADVICE} under validate.{name}.'
        elif outcome.severity == "error" and outcome.level == "table" and not outcome.passed:
            yield f"{where}: {_seen(outcome)}. {ADVICE} under validate.{name}.expectations."
    if counts.quarantined > rules.max_bad_share * counts.read:
        broken = [each for each in outcomes if each.severity == "error" and each.level == "row" and not each.passed]
        worst = max(broken, key=lambda each: each.failed or 0)
        all_rules = f"; {counts.quarantined:,} rows break {len(broken)} rules" if len(broken) > 1 else ""
        share = counts.quarantined / counts.read
        yield (
            f"{where}: {_seen(worst)}{all_rules}. "
            f"{FIX}, or raise validate.{name}.max_bad_share (now {rules.max_bad_share:g}) above {share:.2g}."
        )


def _seen(outcome: Outcome) -> str:
    """What a rule that does not hold saw, on one line."""
    about = f"{', '.join(outcome.columns)}: " if outcome.columns else ""
    if outcome.problem:
        return f'{about}rule "{outcome.name}": {outcome.problem}'
    if outcome.level == "table":
        return f'{about}rule "{outcome.name}" does not hold: observed {outcome.observed}'
    rows = ", ".join(f"{each['row']:,}" for each in outcome.examples)
    values = "; ".join(", ".join(str(each[column]) for column in outcome.columns) for each in outcome.examples)
    return f'{about}{outcome.failed:,} of {outcome.checked:,} rows break "{outcome.name}" (rows {rows}: {values})'


def _report(folder: Path, params: Params, done: Mapping[str, Checked]) -> None:
    """results.json, and one page per table in Great Expectations' own form under docs."""
    with writing(folder) as new:
        new.mkdir()
        write_json(new / "results.json", results(params, done, _pages(new / "docs", done)))


def results(params: Params, done: Mapping[str, Checked], pages: Mapping[str, str]) -> dict[str, Any]:
    """The report: whether all holds, why not, and per table its counts, its bound, its page and each rule's outcome."""
    tables = {
        name: {
            **done[name].counts.model_dump(),
            "max_bad_share": params.validate_.get(name, Rules()).max_bad_share,
            "passed": not done[name].problems,
            "page": pages.get(name),
            "rules": [outcome.model_dump() for outcome in done[name].outcomes],
        }
        for name in params.ingest
    }
    problems = [each for name in params.ingest for each in done[name].problems]
    return {"passed": not problems, "problems": problems, "tables": tables}


def _pages(folder: Path, done: Mapping[str, Checked]) -> dict[str, str]:
    """Great Expectations' Data Docs, one page per table that has expectations. Their styles come from the network.

    Nothing depends on them: where one cannot be made, the log says so.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    found: dict[str, str] = {}
    folder.mkdir()
    for name, checked in done.items():
        if checked.docs is None:
            continue
        try:
            page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(_brief(checked.docs)))
        except Exception as error:  # noqa: BLE001  (a picture of the result, not the result)
            log.warning("validate: %s: Great Expectations could not draw its page: %s", name, error)
            continue
        (folder / f"{name}.html").write_text(page, encoding="utf8")
        found[name] = f"docs/{name}.html"
    return found


def _brief(results: Any) -> Any:
    """The result without its lists of every row, which would be drawn one by one, and with plain numbers."""
    for result in results.results:
        result.result.update({key: _plain(value) for key, value in result.result.items()})
        for key in ("unexpected_list", "unexpected_index_list", "unexpected_index_query", "partial_unexpected_counts"):
            result.result.pop(key, None)
    return results
