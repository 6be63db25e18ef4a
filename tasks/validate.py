"""The validate stage: data/raw -> data/tables and data/quarantine. Later stages read only rows that meet every rule.

Each row is kept, quarantined with the names of the rules that it breaks, or dropped as a duplicate. Row numbers count from 1 in
the table of data/raw.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Rules, Section
from evergreen.tasks.core import received_counts, table_parts
from evergreen.tasks.core.errors import DataError, ParamsError, ProjectError
from evergreen.tasks.core.paths import Layout, sha256, write_json, writing
from evergreen.tasks.data import received_events, snapshot
from evergreen.tasks.data.earlier_results import EarlierResults, as_json, code, digest
from evergreen.tasks.data.great_expectations import Expectations, check_expectations, checked_columns, render_page, silence
from evergreen.tasks.data.judged_blocks import Judge, context_of, read_now
from evergreen.tasks.data.repeated_rows import EarlierRows, later_copies
from evergreen.tasks.data.row_blocks import RowBlocks, packed, rows_per_block
from evergreen.tasks.data.rules import Outcome, RowRule, Tally, builtin_rules, chosen, split, view_of

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


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the rules found in one table."""

    counts: Counts
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    """Why the run must stop; empty if it need not."""
    docs: Any = field(default=None, compare=False)
    """The result of Great Expectations; None without expectations, or with a page."""
    page: str | None = None
    """The page of an earlier run."""
    parts: tuple[str, ...] = ()
    """Keys of the results of its blocks, for the next run."""


@dataclass(frozen=True, kw_only=True)
class Checked(Judgement):
    """One table after its rules, in memory."""

    kept: pl.DataFrame
    quarantined: pl.DataFrame
    """Its columns and `_rule`: the names of the rules that a row breaks, separated by a semicolon."""


def run(params: Params, problem: str | None, layout: Layout) -> Validated:
    """Check every table; write data/tables, data/quarantine and reports/validation.

    Raises ParamsError for an invalid rule, and DataError if a table breaks a rule that stops the run. In the latter case the
    report is written, and the tables of the last successful run stay.
    """
    silence()
    results = EarlierResults(layout.var / "validation")
    _check_expectations(params, results)
    tables, quarantine = layout.table("any").parent, layout.quarantine("any").parent
    done: dict[str, Judgement] = {}
    with writing(tables) as good, writing(quarantine) as bad:
        good.mkdir()
        bad.mkdir()
        keys: dict[str, str] = {}
        for name in _in_order_of_references(params):
            keys[name] = _key(name, params, layout, good)
            done[name] = _as_before(name, layout, good, bad, results, keys[name]) or _check_file(
                name, params, layout, good, bad, results
            )
            _log_counts(name, done[name])
        received_events.copy(received_events.raw(params, layout), good)
        counts = {name: checked.counts for name, checked in done.items()}
        received_counts.write(good, {name: each.received - each.received_quarantined for name, each in counts.items()})
        pages = _write_report(layout.validation, params, done)
        for name, judgement in done.items():
            results.put(keys[name], _kept(name, judgement, pages.get(name), good, bad))
        results.prune()
        problems = [each for name in params.ingest for each in done[name].problems]
        if problems:
            more = f" And {len(problems) - 1} more: see reports/validation/results.json." if len(problems) > 1 else ""
            raise DataError(problems[0] + more)
    return Validated(
        folder=str(tables.relative_to(layout.root)),
        results=str((layout.validation / "results.json").relative_to(layout.root)),
        tables={name: done[name].counts for name in params.ingest},
    )


def _check_expectations(params: Params, results: EarlierResults) -> None:
    """Check the arguments of every expectation, unless they were checked before: the library takes seconds to import."""
    given = {name: [each.model_dump(mode="json") for each in rules.expectations] for name, rules in params.validate_.items()}
    key = digest("expectations", code(), given)
    if not results.get(key):
        check_expectations(params)
        results.put(key, True)


def _key(name: str, params: Params, layout: Layout, good: Path) -> str:
    """Of all that the results of a table follow from: its file, its rules, and the tables that it refers to."""
    raw = layout.raw(name)
    if not table_parts.is_there(raw):
        raise ProjectError(f"{raw.relative_to(layout.root)}: not there. Run ingest first: python -P -m evergreen ingest")
    rules = params.validate_.get(name, Rules())
    to = [reference.to.split(".")[0] for reference in rules.references.values()]
    others = [table_parts.digests(good / f"{other}.parquet") for other in to]
    given = [rules.model_dump(mode="json"), read_now(rules), params.ingest[name].time, snapshot.received_count(layout, name)]
    return digest("table", code(), name, table_parts.digests(raw), others, given)


def _kept(name: str, judgement: Judgement, page: str | None, good: Path, bad: Path) -> dict[str, Any]:
    """What is kept of a table for the next run."""
    return {
        "counts": judgement.counts.model_dump(mode="json"),
        "outcomes": [as_json(each.model_dump()) for each in judgement.outcomes],
        "problems": judgement.problems,
        "page": page,
        "parts": judgement.parts,
        "files": [table_parts.digests(folder / f"{name}.parquet") for folder in (good, bad)],
    }


def _as_before(name: str, layout: Layout, good: Path, bad: Path, results: EarlierResults, key: str) -> Judgement | None:
    """The judgement of an earlier run, with the files that it wrote; None if there is none, or they are not there any more."""
    kept = results.get(key)
    if kept is None:
        return None
    tables = {layout.table(name): good / f"{name}.parquet", layout.quarantine(name): bad / f"{name}.parquet"}
    if [table_parts.digests(old) for old in tables] != kept["files"]:
        return None
    for old, new in tables.items():
        table_parts.keep_all(old, new)
    log.info("validate: %s: as before", name)
    results.keep(kept["parts"])
    return Judgement(
        counts=Counts.model_validate(kept["counts"]),
        outcomes=tuple(Outcome.model_validate(each) for each in kept["outcomes"]),
        problems=tuple(kept["problems"]),
        page=kept["page"],
        parts=tuple(kept["parts"]),
    )


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


def _check_file(name: str, params: Params, layout: Layout, good: Path, bad: Path, results: EarlierResults) -> Judgement:
    """Check one table, and write its rows to these folders."""
    raw, rules = layout.raw(name), params.validate_.get(name, Rules())
    parts = table_parts.digests(raw)
    earlier = EarlierRows(results, parts, table_parts.PART_ROWS) if raw.is_dir() else None
    known: dict[str, pl.LazyFrame] = {}
    for reference in rules.references.values():
        table = reference.to.split(".")[0]
        known[table] = table_parts.scan(good / f"{table}.parquet")
    table, time, received = table_parts.scan(raw), params.ingest[name].time, snapshot.received_count(layout, name)
    others = len(results.used)
    files = tuple(table_parts.files(raw)) if raw.is_dir() else ()
    kept, quarantined, found = judge(name, table, rules, time, known, received, earlier, good.parent, files)
    _write_kept(raw, kept, parts, layout.table(name), good / f"{name}.parquet", results)
    quarantined.sink_parquet(bad / f"{name}.parquet", maintain_order=True)
    return replace(found, parts=tuple(results.used)[others:])


def _write_kept(raw: Path, kept: pl.Series, parts: Sequence[str], earlier: Path, to: Path, results: EarlierResults) -> None:
    """Write the rows of each part of `raw` that are kept (one value per row) as a part of the same number. Those of the run
    before stay the same files.
    """
    to.mkdir()
    for number, (part, mask) in enumerate(table_parts.masked(raw, kept)):
        old, new = earlier / table_parts.name(number), to / table_parts.name(number)
        key = digest("kept", parts[number], packed(mask.to_numpy()))
        if old.is_file() and results.get(key) == sha256(old):
            table_parts.keep(old, new)
            continue
        if mask.all():
            shutil.copyfile(part, new)
        else:
            chosen(table_parts.scan(part), mask).sink_parquet(new, compression="zstd", maintain_order=True)
        results.put(key, sha256(new))


def _log_counts(name: str, checked: Judgement) -> None:
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
    """Check a table in memory; see `judge`."""
    others = {other: frame.lazy() for other, frame in (known or {}).items()}
    kept, quarantined, found = judge(name, table.lazy(), rules, time, others, received)
    return Checked(
        kept=table.filter(kept),
        quarantined=quarantined.collect(),
        counts=found.counts,
        outcomes=found.outcomes,
        problems=found.problems,
        docs=found.docs,
    )


def judge(
    name: str,
    table: pl.LazyFrame,
    rules: Rules,
    time: str | None,
    known: Mapping[str, pl.LazyFrame],
    received: int,
    earlier: EarlierRows | None = None,
    scratch: Path | None = None,
    files: tuple[Path, ...] = (),
) -> tuple[pl.Series, pl.LazyFrame, Judgement]:
    """Check `table` against `rules` and the built-in rules: numbers are finite, `time` is present. Per row whether it is kept,
    the rows to quarantine with `_rule` (see Checked), and what was found; the same for blocks of any number of rows, and with
    `earlier` results.

    `known`: validated tables that `rules.references` name. `received`: how many rows at the end servers received. `scratch`:
    folder of temporary files, None: the system's. `files`: the parts of the table, if it has any.
    Always kept + quarantined + duplicates = read.
    Raises ParamsError for an invalid SQL expression.
    """
    view, failures, by_block = _blocks(name, table, rules, known, earlier, scratch, files)
    builtin = builtin_rules(name, view, rules, time, known, earlier)
    expectations = Expectations(name, view, rules, earlier)
    row_rules = [each for each in builtin if isinstance(each, RowRule)]
    judged_by = rules.model_dump(mode="json", exclude={"max_bad_share"})
    context = context_of(name, view, [judged_by, read_now(rules), time, [each.tally.name for each in row_rules]])
    parts, reused = Judge(name, view, row_rules, expectations, context, earlier if by_block else None).parts()
    if expectations.failed and reused:  # a rule that cannot be computed says so of the first block, which may be another one
        return judge(name, table, rules, time, known, received, scratch=scratch, files=files)
    for rows, part in parts:
        for each, found in zip(row_rules, part["rules"], strict=True):
            each.tally.add(rows, found)
        expectations.add(rows, part["expected"])
    expected, broken, docs = expectations.finish()
    tallied = [each.tally if isinstance(each, RowRule) else each for each in builtin]
    builtins = (each.outcome(not each.failed) if isinstance(each, Tally) else each for each in tallied)
    outcomes = tuple(Outcome.model_validate(as_json(each.model_dump())) for each in (*builtins, *failures, *expected))
    errors = (each for each in tallied if isinstance(each, Tally) and each.severity == "error")
    kept, bad, out = split(view, [*errors, *broken])
    quarantined = int(out.sum())
    counts = Counts(
        read=view.read,
        kept=view.height - quarantined,
        quarantined=quarantined,
        duplicates=view.read - view.height,
        warnings=sum(not outcome.passed and outcome.severity == "warning" for outcome in outcomes),
        received=received,
        received_quarantined=int(out.slice(view.read - received).sum()),
    )
    problems = tuple(_problems(name, rules, counts, outcomes))
    return kept, bad, Judgement(counts=counts, outcomes=outcomes, problems=problems, docs=docs)


def _blocks(
    name: str,
    table: pl.LazyFrame,
    rules: Rules,
    known: Mapping[str, pl.LazyFrame],
    earlier: EarlierRows | None,
    scratch: Path | None,
    files: tuple[Path, ...],
) -> tuple[RowBlocks, list[Outcome], bool]:
    """The table in blocks, with the columns that rules add; the references that cannot be joined; whether the rules judge the
    rows of a block by themselves.
    """
    read = int(table.select(pl.len()).collect().item())
    added = len(rules.derived) + sum(len(each.join_columns) for each in rules.references.values())
    size = rows_per_block(len(table.collect_schema()) + added + len(checked_columns(rules)))
    view = RowBlocks(table, read, size, grain=table_parts.PART_ROWS, scratch=scratch, parts=files)
    if rules.drop_duplicates:
        view = view.without(later_copies(view, table.collect_schema().names(), earlier))
    view, failures, reader = view_of(name, view, rules, known)
    if reader and read > view.rows:
        log.info("validate: %s: %s looks at other rows, so all %s rows are in memory at once", name, reader, f"{read:,}")
    return view.whole() if reader else view, failures, reader is None


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


def _write_report(folder: Path, params: Params, done: Mapping[str, Judgement]) -> dict[str, str]:
    """Write results.json, and a page per table of Great Expectations under docs. Returns table -> its page in HTML."""
    pages = {name: checked.page for name, checked in done.items() if checked.page}
    rendered = {name: render_page(name, checked.docs) for name, checked in done.items() if checked.docs}
    pages |= {name: page for name, page in rendered.items() if page}
    with writing(folder) as new:
        (new / "docs").mkdir(parents=True)
        for name, page in pages.items():
            (new / "docs" / f"{name}.html").write_text(page, encoding="utf8")
        write_json(new / "results.json", results(params, done, {name: f"docs/{name}.html" for name in pages}))
    return pages


def results(params: Params, done: Mapping[str, Judgement], pages: Mapping[str, str]) -> dict[str, Any]:
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
