"""The ingest stage: sources -> data/raw, one Parquet file per table, in local time, with the rows known at `as_of`; beside them
the purchases that the server received (see data.received_events).

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
from evergreen.tasks.data import received_events
from evergreen.tasks.data.conversion import CONTRACT, type_of
from evergreen.tasks.data.readers import ROW_GROUP, Read, describe, read_table
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
    stats, folder = file_stats(params, layout), raw_folder(layout)
    with writing(folder) as new:
        staging = new.parent / "staging"
        for each in (new, staging):
            each.mkdir()
        tables = {name: read_table(name, source, layout.root, staging) for name, source in params.ingest.items()}
        newest = {name: _newest_day(table.rows, params.ingest[name].time) for name, table in tables.items()}
        as_of = choose_as_of(params.project.as_of, newest)
        facts = {name: _write(name, table, params.ingest[name], as_of, new) for name, table in tables.items()}
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


def _newest_day(table: pl.LazyFrame, time: str | None) -> date | None:
    return table.select(pl.col(time).max().cast(pl.Date)).collect().item() if time else None


def _write(name: str, table: Read, source: Source, as_of: date, to: Path) -> dict[str, Any]:
    """Write the rows known at `as_of`. Rows without a time are kept; validation judges them."""
    rows = table.rows
    read = rows.select(pl.len()).collect().item()
    if source.time:
        day = pl.col(source.time).cast(pl.Date)
        rows = rows.filter(day.is_null() | (day <= as_of))
    path = to / f"{name}.parquet"
    rows.sink_parquet(path, compression="zstd", row_group_size=ROW_GROUP, maintain_order=True)
    kept = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    late = f", {read - kept:,} after {as_of} left out" if read > kept else ""
    log.info("ingest: %s: %s rows%s", name, f"{kept:,}", late)
    types = {column: kind for column, held in rows.collect_schema().items() if (kind := type_of(held))}
    facts = {"source": describe(source), "time": source.time, "rows_read": read, "rows": kept, "left_out": read - kept}
    contract = table.source.model_dump(mode="json", include=set(CONTRACT), exclude_defaults=True)
    return {**facts, "contract": {**contract, "types": types}, "notes": list(table.notes)}


def _check_rows_left(params: Params, facts: dict[str, dict[str, Any]], as_of: date) -> None:
    timed = [name for name, source in params.ingest.items() if source.time]
    if timed and not any(facts[name]["rows"] for name in timed):
        raise DataError(f"project.as_of = {as_of}: all rows of {', '.join(timed)} are later. Set a later day.")
