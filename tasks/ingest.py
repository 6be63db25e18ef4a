"""The ingest stage: sources -> data/raw, one Parquet file per table, in local time, with the rows known at `as_of`; in them the
rows that the server received (see data.received_rows), beside them its purchases (see data.received_events).

The folder is replaced as a whole or not at all. The same input gives the same bytes (for a query: the same rows in the same
order).
"""

import logging
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.tasks.config.params import Params, Section, Source
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import Layout, locking, write_json, writing
from evergreen.tasks.data import kept_rows, received_events, received_rows, source_lock
from evergreen.tasks.data.conversion import CONTRACT, type_of
from evergreen.tasks.data.earlier_results import EarlierResults
from evergreen.tasks.data.kept_rows import Table
from evergreen.tasks.data.readers import describe, naming
from evergreen.tasks.data.snapshot import choose_as_of, facts_file, file_stats, file_stats_file, raw_folder

log = logging.getLogger(__name__)


class Ingested(Section):
    folder: str
    """Folder of the tables, relative to the project."""
    as_of: date
    """Last known day (inclusive, local time)."""
    rows: dict[str, int]
    """Table -> rows known at `as_of`."""
    left_out: dict[str, int]
    """Table -> rows after `as_of`."""
    notes: dict[str, tuple[str, ...]]
    """Table -> what did not fit its contract, one line each."""


def run(params: Params, problem: str | None, layout: Layout) -> Ingested:
    """Read every source, drop rows after `as_of`, write data/raw and its sources.json.

    Raises SourceError if a table cannot be read as configured, and DataError if no row is known at `as_of`, or `as_of` is
    after today.
    """
    with locking(layout.var / "ingest.lock", "ingest", wait=True):
        return _run(params, layout)


def _run(params: Params, layout: Layout) -> Ingested:
    source_lock.report_missing(layout)
    stats, folder, results = file_stats(params, layout), raw_folder(layout), EarlierResults(layout.var / "ingest")
    with writing(folder) as new:
        staging = new.parent / "staging"
        for each in (new, staging):
            each.mkdir()
        tables = {name: kept_rows.read(name, source, layout, staging, results) for name, source in params.ingest.items()}
        newest = {name: _newest_day(name, table, params.ingest[name], staging) for name, table in tables.items()}
        as_of = choose_as_of(params.project.as_of, newest)
        exports = {name: table.read.rows for name, table in tables.items()}
        received = received_rows.read(params, layout, exports)
        if not params.project.as_of:
            as_of = received_rows.last_day(params, as_of, received, exports)
        facts = {
            name: _write(name, table, params.ingest[name], as_of, new, staging, layout.raw(name), received.get(name))
            for name, table in tables.items()
        }
        _check_rows_left(params, facts, as_of)
        events = received_events.copy(received_events.snapshots(params, layout), new, params.project.as_of)
        for name, count in events.items():
            log.info("ingest: %s: %s purchases that the server received", name, f"{count:,}")
        write_json(new / facts_file(layout).name, {"as_of": as_of.isoformat(), "tables": facts, "events": events})
    write_json(file_stats_file(layout), stats)
    for name, table in tables.items():
        if not facts[name]["left_out"]:
            kept_rows.put(name, params.ingest[name], table, layout, results)
    results.prune()
    return Ingested(
        folder=str(folder.relative_to(layout.root)),
        as_of=as_of,
        rows={name: fact["rows"] for name, fact in facts.items()},
        left_out={name: fact["left_out"] for name, fact in facts.items()},
        notes={name: table.read.notes for name, table in tables.items() if table.read.notes},
    )


def _newest_day(name: str, table: Table, source: Source, staging: Path) -> date | None:
    if source.time is None:
        return None
    with naming(name, source, staging):
        return table.read.rows.select(pl.col(source.time).max().cast(pl.Date)).collect().item()


def _write(
    name: str,
    table: Table,
    source: Source,
    as_of: date,
    to: Path,
    staging: Path,
    before: Path,
    received: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Write the rows known at `as_of`, then those of `received`. Rows without a time are kept; validation judges them."""
    day = pl.col(source.time).cast(pl.Date) if source.time else pl.lit(None, pl.Date)
    known = day.is_null() | (day <= as_of)
    told = None if received is None else received.filter(known)
    with naming(name, source, staging):  # a damaged file shows here
        left_out = table.read.rows.select((~known).sum()).collect().item() if source.time else 0
        _write_rows(table, known if left_out else None, told, before, to / f"{name}.parquet")
    read, kept = table.count, table.count - left_out
    late = f", {left_out:,} after {as_of} left out" if left_out else ""
    log.info("ingest: %s: %s rows%s", name, f"{kept:,}", late)
    types = {column: kind for column, held in table.read.rows.collect_schema().items() if (kind := type_of(held))}
    counts = {"rows_read": read, "rows": kept, "left_out": left_out}
    if received is not None and told is not None:
        counts |= {"rows": kept + len(told), "received": len(told), "waiting": len(received) - len(told)}
        _report_received(name, counts, as_of)
    facts = {"source": describe(source), "time": source.time, **counts}
    contract = table.read.source.model_dump(mode="json", include=set(CONTRACT), exclude_defaults=True)
    return {**facts, "contract": {**contract, "types": types}, "notes": list(table.read.notes)}


def _write_rows(table: Table, known: pl.Expr | None, told: pl.DataFrame | None, before: Path, to: Path) -> None:
    """Write the rows of `table` (`known`: those that meet it), then those of `told`. Parts of `before` that stay are kept."""
    parts = table.unmoved() // table_parts.PART_ROWS if known is None else 0
    for number in range(parts):
        to.mkdir(exist_ok=True)
        table_parts.keep(before / table_parts.name(number), to / table_parts.name(number))
    place = parts * table_parts.PART_ROWS
    rest = table.after(place) if known is None else table.read.rows.filter(known)
    more = 0 if told is None else len(told)
    if not parts or table.count + more > place:
        table_parts.write(pl.concat([rest, told.lazy()]) if told is not None else rest, to, parts)


def _report_received(name: str, counts: dict[str, int], as_of: date) -> None:
    log.info("ingest: %s: %s more rows that the server received", name, f"{counts['received']:,}")
    if counts["waiting"]:
        log.warning(
            "ingest: %s: %s rows that the server received after %s wait until an export or project.as_of reaches their days: "
            "they are of fewer than half of the usual number of entities, or project.as_of is earlier",
            name, f"{counts['waiting']:,}", as_of,
        )  # fmt: skip


def _check_rows_left(params: Params, facts: dict[str, dict[str, Any]], as_of: date) -> None:
    timed = [name for name, source in params.ingest.items() if source.time]
    if timed and not any(facts[name]["rows"] for name in timed):
        raise DataError(f"project.as_of = {as_of}: all rows of {', '.join(timed)} are later. Set a later day.")
