"""The validate stage: data/raw -> data/tables and data/quarantine. Later stages read only rows that meet every rule.

Each row is kept, quarantined with the names of the rules that it breaks, or dropped as a duplicate. Row numbers count from 1 in
the file of data/raw.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Rules, Section
from evergreen.tasks.core import received_counts
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout, write_json, writing
from evergreen.tasks.data import received_events, snapshot
from evergreen.tasks.data.great_expectations import check_expectations, render_pages, run_expectations, silence
from evergreen.tasks.data.rules import ROW, Outcome, add_rule_columns, check_builtin_rules, failed_rules

log = logging.getLogger(__name__)

FIX = "Fix the export and read it again (evergreen train --refresh)"
ADVICE = f"{FIX}, or change the rule"


class Counts(Section):
    """Rows of one table: read = kept + quarantined + duplicates."""

    read: int
    kept: int
    quarantined: int
    duplicates: int
    """Dropped copies of an earlier row."""
    received: int = 0
    """Of those read, the rows that servers received."""
    received_quarantined: int = 0
    """Of the quarantined, the rows that servers received. They do not count towards max_bad_share: no export can mend them."""
    warnings: int
    """Failed rules of severity warning."""


class Validated(Section):
    folder: str
    """Folder of the validated tables, relative to the project."""
    results: str
    """Report of all rules, relative to the project."""
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
    """Why the run must stop; empty if it need not."""
    docs: Any = field(default=None, compare=False)
    """The result of Great Expectations; None without expectations."""


def run(params: Params, problem: str | None, layout: Layout) -> Validated:
    """Check every table; write data/tables, data/quarantine and reports/validation.

    Raises ParamsError for an invalid rule, and DataError if a table breaks a rule that stops the run. In the latter case the
    report is written, and the tables of the last successful run stay.
    """
    silence()
    check_expectations(params)
    tables, quarantine = layout.table("any").parent, layout.quarantine("any").parent
    done: dict[str, Checked] = {}
    with writing(tables) as good, writing(quarantine) as bad:
        good.mkdir()
        bad.mkdir()
        for name in _in_order_of_references(params):
            checked = _check_file(name, params, layout, good)
            checked.kept.write_parquet(good / f"{name}.parquet", row_group_size=2**17)
            checked.quarantined.write_parquet(bad / f"{name}.parquet")
            _log_counts(name, checked)
            done[name] = Checked(checked.kept.clear(), checked.quarantined.clear(), *_without_rows(checked))
        received_events.copy(received_events.raw(params, layout), good)
        counts = {name: checked.counts for name, checked in done.items()}
        received_counts.write(good, {name: each.received - each.received_quarantined for name, each in counts.items()})
        _write_report(layout.validation, params, done)
        problems = [each for name in params.ingest for each in done[name].problems]
        if problems:
            more = f" And {len(problems) - 1} more: see reports/validation/results.json." if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
    return Validated(
        folder=str(tables.relative_to(layout.root)),
        results=str((layout.validation / "results.json").relative_to(layout.root)),
        tables={name: done[name].counts for name in params.ingest},
    )


def _without_rows(checked: Checked) -> tuple[Any, ...]:
    return checked.counts, checked.outcomes, checked.problems, checked.docs


def _in_order_of_references(params: Params) -> list[str]:
    """Tables, each after those that it refers to. Raises ParamsError for circular references."""
    found: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ParamsError(f"params.yaml: validate.{name}.references: {' -> '.join((*path, name))} is circular; remove one")
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
        raise ProjectError(f"{raw.relative_to(layout.root)}: not there. Run ingest first: python -P -m evergreen ingest")
    rules = params.validate_.get(name, Rules())
    known = {}
    for reference in rules.references.values():
        table = reference.to.split(".")[0]
        known[table] = pl.read_parquet(checked / f"{table}.parquet", glob=False)
    received = snapshot.received_count(layout, name)
    return check(name, pl.read_parquet(raw, glob=False), rules, params.ingest[name].time, known, received)


def _log_counts(name: str, checked: Checked) -> None:
    counts = checked.counts
    numbers = (f"{n:,}" for n in (counts.kept, counts.read, counts.quarantined))
    log.info("validate: %s: %s of %s rows kept, %s quarantined", name, *numbers)
    if counts.received_quarantined:
        log.warning(
            "validate: %s: %s rows that the server received are set aside, see data/quarantine; withdraw them with evergreen "
            "events, or correct them in an export",
            name, f"{counts.received_quarantined:,}",
        )  # fmt: skip
    if counts.duplicates:
        log.info("validate: %s: %s duplicates dropped", name, f"{counts.duplicates:,}")
    for outcome in checked.outcomes:
        if not outcome.passed and outcome.severity == "warning":
            log.info("validate: %s: warning: %s", name, _finding(outcome))


def check(
    name: str,
    table: pl.DataFrame,
    rules: Rules,
    time: str | None = None,
    known: Mapping[str, pl.DataFrame] | None = None,
    received: int = 0,
) -> Checked:
    """Check `table` against `rules` and the built-in rules: numbers are finite, `time` is present.

    `known`: validated tables that `rules.references` name. `received`: how many rows at the end servers
    received. Always kept + quarantined + duplicates = read.
    Raises ParamsError for an invalid SQL expression.
    """
    rows = table.with_row_index(ROW, 1)
    if rules.drop_duplicates:
        rows = rows.unique(table.columns, keep="first", maintain_order=True)
    view, failures = add_rule_columns(name, rows, rules, known or {})
    builtin = check_builtin_rules(name, view, table, rules, time, known or {})
    expected, docs = run_expectations(name, view, rules)
    results = [*builtin, *failures, *expected]
    broken = failed_rules(rows, results)
    kept = rows.filter(broken.is_null()).drop(ROW)
    quarantined = rows.drop(ROW).with_columns(broken.alias("_rule")).filter(broken.is_not_null())
    outcomes = tuple(result.outcome for result in results)
    counts = Counts(
        read=len(table),
        kept=len(kept),
        quarantined=len(quarantined),
        duplicates=len(table) - len(rows),
        warnings=sum(not outcome.passed and outcome.severity == "warning" for outcome in outcomes),
        received=received,
        received_quarantined=int(rows.select(broken.is_not_null() & (pl.col(ROW) > len(table) - received)).sum().item()),
    )
    if counts.read != counts.kept + counts.quarantined + counts.duplicates:
        raise AssertionError(f"{name}: the counts of rows do not add up: {counts}")
    return Checked(kept, quarantined, counts, outcomes, tuple(_problems(name, rules, counts, outcomes)), docs)


# --- messages and report ------------------------------------------------------------------------------------------------------


def _problems(name: str, rules: Rules, counts: Counts, outcomes: tuple[Outcome, ...]) -> Iterable[str]:
    where = f"data/raw/{name}.parquet"
    for outcome in outcomes:
        if outcome.severity == "error" and outcome.problem:
            yield f'{where}: rule "{outcome.name}": {outcome.problem}. {ADVICE} under validate.{name}.'
        elif outcome.severity == "error" and outcome.level == "table" and not outcome.passed:
            yield f"{where}: {_finding(outcome)}. {ADVICE} under validate.{name}.expectations."
    quarantined, read = counts.quarantined - counts.received_quarantined, counts.read - counts.received
    if quarantined > rules.max_bad_share * read:
        failed = [each for each in outcomes if each.severity == "error" and each.level == "row" and not each.passed]
        worst = max(failed, key=lambda each: each.failed or 0)
        all_rules = f"; {quarantined:,} rows break {len(failed)} rules" if len(failed) > 1 else ""
        share = quarantined / read
        yield (
            f"{where}: {_finding(worst)}{all_rules}. "
            f"{FIX}, or raise validate.{name}.max_bad_share (now {rules.max_bad_share:g}) above {share:.2g}."
        )


def _finding(outcome: Outcome) -> str:
    """One line about a failed rule: columns, rule, rows and values."""
    columns = f"{', '.join(outcome.columns)}: " if outcome.columns else ""
    if outcome.problem:
        return f'{columns}rule "{outcome.name}": {outcome.problem}'
    if outcome.level == "table":
        return f'{columns}rule "{outcome.name}" failed: observed {outcome.observed}'
    rows = ", ".join(f"{each['row']:,}" for each in outcome.examples)
    values = "; ".join(", ".join(str(each["values"][column]) for column in outcome.columns) for each in outcome.examples)
    return f'{columns}{outcome.failed:,} of {outcome.checked:,} rows break "{outcome.name}" (rows {rows}: {values})'


def _write_report(folder: Path, params: Params, done: Mapping[str, Checked]) -> None:
    """Write results.json, and a page per table of Great Expectations under docs."""
    with writing(folder) as new:
        new.mkdir()
        pages = render_pages(new / "docs", {name: checked.docs for name, checked in done.items()})
        write_json(new / "results.json", results(params, done, pages))


def results(params: Params, done: Mapping[str, Checked], pages: Mapping[str, str]) -> dict[str, Any]:
    """The report: passed, problems, and per table its counts, limit, page and the outcome of each rule."""
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
