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
from evergreen.tasks.core.errors import DataError
from evergreen.tasks.core.paths import Layout, write_json, writing
from evergreen.tasks.data import received_events, received_rows, source_lock
from evergreen.tasks.data.conversion import CONTRACT, type_of
from evergreen.tasks.data.readers import ROW_GROUP, Read, describe, naming, read_table
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
    source_lock.report_missing(layout)
    stats, folder = file_stats(params, layout), raw_folder(layout)
    with writing(folder) as new:
        staging = new.parent / "staging"
        for each in (new, staging):
            each.mkdir()
        tables = {name: read_table(name, source, layout.root, staging) for name, source in params.ingest.items()}
        newest = {name: _newest_day(name, table, params.ingest[name], staging) for name, table in tables.items()}
        as_of = choose_as_of(params.project.as_of, newest)
        exports = {name: table.rows for name, table in tables.items()}
        received = received_rows.read(params, layout, exports)
        if not params.project.as_of:
            as_of = received_rows.last_day(params, as_of, received, exports)
        facts = {
            name: _write(name, table, params.ingest[name], as_of, new, staging, received.get(name))
            for name, table in tables.items()
        }
        _check_rows_left(params, facts, as_of)
        events = received_events.copy(received_events.snapshots(params, layout), new, params.project.as_of)
        for name, count in events.items():
            log.info("ingest: %s: %s purchases that the server received", name, f"{count:,}")
        write_json(new / facts_file(layout).name, {"as_of": as_of.isoformat(), "tables": facts, "events": events})
    write_json(file_stats_file(layout), stats)
    return Ingested(
        folder=str(folder.relative_to(layout.root)),
        as_of=as_of,
        rows={name: fact["rows"] for name, fact in facts.items()},
        left_out={name: fact["left_out"] for name, fact in facts.items()},
        notes={name: table.notes for name, table in tables.items() if table.notes},
    )


def _newest_day(name: str, table: Read, source: Source, staging: Path) -> date | None:
    if source.time is None:
        return None
    with naming(name, source, staging):
        return table.rows.select(pl.col(source.time).max().cast(pl.Date)).collect().item()


def _write(
    name: str, table: Read, source: Source, as_of: date, to: Path, staging: Path, received: pl.DataFrame | None = None
) -> dict[str, Any]:
    """Write the rows known at `as_of`, then those of `received`. Rows without a time are kept; validation judges them."""
    rows = table.rows
    read = rows.select(pl.len()).collect().item()
    day = pl.col(source.time).cast(pl.Date) if source.time else pl.lit(None, pl.Date)
    known = day.is_null() | (day <= as_of)
    told = None if received is None else received.filter(known)
    if source.time:
        rows = rows.filter(known)
    if told is not None:
        rows = pl.concat([rows, told.lazy()])
    path = to / f"{name}.parquet"
    with naming(name, source, staging):  # a damaged file shows here
        rows.sink_parquet(path, compression="zstd", row_group_size=ROW_GROUP, maintain_order=True)
    kept = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item() - (0 if told is None else len(told))
    late = f", {read - kept:,} after {as_of} left out" if read > kept else ""
    log.info("ingest: %s: %s rows%s", name, f"{kept:,}", late)
    types = {column: kind for column, held in rows.collect_schema().items() if (kind := type_of(held))}
    counts = {"rows_read": read, "rows": kept, "left_out": read - kept}
    if received is not None and told is not None:
        counts |= {"rows": kept + len(told), "received": len(told), "waiting": len(received) - len(told)}
        _report_received(name, counts, as_of)
    facts = {"source": describe(source), "time": source.time, **counts}
    contract = table.source.model_dump(mode="json", include=set(CONTRACT), exclude_defaults=True)
    return {**facts, "contract": {**contract, "types": types}, "notes": list(table.notes)}


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
