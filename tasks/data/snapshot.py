"""The snapshot in data/raw: its last known day (`as_of`), and whether the source files have changed since."""

import logging
from datetime import date, datetime
from pathlib import Path
from typing import Any

from evergreen.tasks.config.params import Params, Source
from evergreen.tasks.core.errors import DataError, ProjectError, SourceError, UnavailableError
from evergreen.tasks.core.paths import Layout, read_json
from evergreen.tasks.data import received_events, received_rows, s3_files
from evergreen.tasks.data.source_files import source_files

log = logging.getLogger(__name__)

FileStats = dict[str, list[list[str | int]]]
"""Table -> path (relative to the project where it can be), size in bytes and modification time (ns) of each local file;
address, size and ETag of each object in S3."""


def raw_folder(layout: Layout) -> Path:
    """The folder of the snapshot: one Parquet file per table, and sources.json."""
    return layout.raw("any").parent


def facts_file(layout: Layout) -> Path:
    """The JSON file with `as_of` and the facts of each table."""
    return raw_folder(layout) / "sources.json"


def file_stats_file(layout: Layout) -> Path:
    """Not in the snapshot: a file that was touched but is unchanged must not make later stages stale."""
    return layout.var / "sources.json"


def file_stats(params: Params, layout: Layout) -> FileStats:
    """The state of all source files, snapshots of received events included.

    Raises SourceError for a missing file, UnavailableError where an S3-compatible store does not answer.
    """
    named = {name: source.files for name, source in params.ingest.items() if source.files is not None}
    remote = {name: each for name, each in named.items() if s3_files.is_s3(each[1])}
    files = {name: source_files(name, *each, layout.root) for name, each in named.items() if name not in remote}
    files |= {name: [path] for name, path in received_events.snapshots(params, layout).items()}
    files |= {f"rows@{name}": [path] for name, path in received_rows.snapshots(params, layout).items()}
    stats = {name: [(path, path.stat()) for path in paths] for name, paths in files.items()}
    found: FileStats = {name: s3_files.states(name, *each) for name, each in remote.items()}
    return found | {
        name: [[layout.relative(path), stat.st_size, stat.st_mtime_ns] for path, stat in each] for name, each in stats.items()
    }


def sources_changed(params: Params, layout: Layout) -> bool:
    """Whether a source file has changed since the last run of ingest. Databases are not checked."""
    path = file_stats_file(layout)
    try:
        return path.is_file() and read_json(path) != file_stats(params, layout)
    except SourceError as error:  # a file that cannot be read now cannot be read again; the snapshot stays valid
        if isinstance(error, UnavailableError):
            log.warning("%s The tables that were read before are used.", error)
        return False


def resolve_as_of(params: Params, layout: Layout) -> date:
    """The last known day (inclusive): project.as_of, otherwise the newest day that ingest found.

    Raises ProjectError if project.as_of is null and ingest has not run.
    """
    if params.project.as_of:
        return params.project.as_of
    facts = facts_file(layout)
    if not facts.is_file():
        raise ProjectError(f"{facts}: not there, and project.as_of is null. Run ingest first: python -P -m evergreen ingest")
    return date.fromisoformat(read_json(facts)["as_of"])


def contract(params: Params, table: str, layout: Layout) -> Source:
    """The source of `table` with the types and formats that ingest inferred for columns that params.yaml leaves open."""
    source, facts = params.ingest[table], facts_file(layout)
    if not facts.is_file():
        return source
    found = read_json(facts)["tables"].get(table, {}).get("contract", {})
    by_column = ("types", "number_formats", "date_formats", "missing")
    merged: dict[str, Any] = {key: {**found.get(key, {}), **getattr(source, key)} for key in by_column}
    merged["null_values"] = list(dict.fromkeys([*source.null_values, *found.get("null_values", ())]))
    given = source.model_dump(exclude_unset=True)
    return Source.model_validate(given | {key: value for key, value in merged.items() if value})


def contract_notes(params: Params, problem: str, layout: Layout) -> list[str]:
    """What did not fit the contract in the tables of `problem` when they were last read, one line each."""
    facts = facts_file(layout)
    tables: dict[str, dict[str, list[str]]] = read_json(facts)["tables"] if facts.is_file() else {}
    return [note for name in params.section(problem).features.tables for note in tables.get(name, {}).get("notes", [])]


def received_count(layout: Layout, table: str) -> int:
    """How many rows at the end of a table in data/raw servers received."""
    facts = facts_file(layout)
    return read_json(facts)["tables"].get(table, {}).get("received", 0) if facts.is_file() else 0


def choose_as_of(wanted: date | None, newest: dict[str, date | None]) -> date:
    """`wanted`, otherwise the newest day of all time columns, otherwise today. `newest`: table -> its newest day.

    Raises DataError for a day after today.
    """
    today = datetime.now().astimezone().date()
    known = {name: day for name, day in newest.items() if day}
    if wanted is None and not known:
        return today
    table = max(known, key=lambda name: known[name], default=None)
    as_of = wanted or known[str(table)]
    if as_of > today:
        where = "params.yaml: project.as_of" if wanted else f"ingest.{table}: the newest day"
        raise DataError(f"{where} = {as_of} is after today, {today}. Correct it, or set project.as_of to an earlier day.")
    log.info("ingest: as of %s", as_of)
    return as_of
