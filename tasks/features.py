"""The features step: validated tables to the features of a problem, without events after the cutoff."""

import logging
from datetime import date

import polars as pl

from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core import received_counts
from evergreen.tasks.core.errors import DataError, ParamsError, SourceError
from evergreen.tasks.core.paths import Layout, writing
from evergreen.tasks.data import received_events
from evergreen.tasks.data.snapshot import resolve_as_of
from evergreen.tasks.problems import kind

log = logging.getLogger(__name__)


class Result(Section):
    folder: str
    """Folder of the frames, one parquet file each, named as in `rows`."""
    rows: dict[str, int]
    """Frame -> number of rows."""
    columns: dict[str, int]
    """Frame -> number of columns."""
    as_of: date
    """Last day of data, inclusive."""


def run(params: Params, problem: str, layout: Layout) -> Result:
    """Build the features of `problem` from data/tables and write them to its folder atomically.

    Raises SourceError for a missing table, and the errors of the kind's `build`, prefixed with the problem's name.
    """
    section, as_of = params.section(problem), resolve_as_of(params, layout)
    tables = {name: _scan(layout, name) for name in section.features.tables}
    log.info("%s: features as of %s from %s", problem, as_of, ", ".join(tables))
    times = {name: params.ingest[name].time for name in tables}
    if (received := layout.table(received_events.table_name(problem))).is_file():
        tables[received_events.RECEIVED] = pl.scan_parquet(received)
    try:
        frames = kind(params.kind(problem)).build(tables, times, section, as_of)
    except ParamsError as error:
        place = f"{problem}." if str(error).startswith("features") else ""
        raise ParamsError(f"{layout.params.name}: {place}{error}") from error
    except DataError as error:
        raise type(error)(f"{problem}: {error}") from error
    folder = layout.features(problem)
    counts = received_counts.read(layout.table("any").parent)
    _write(layout, problem, frames, {name: counts.get(name, 0) for name in section.features.tables})
    for name, frame in frames.items():
        log.info("%s: %s: %d rows, %d columns", problem, name, frame.height, frame.width)
    return Result(
        folder=str(folder),
        rows={name: frame.height for name, frame in frames.items()},
        columns={name: frame.width for name, frame in frames.items()},
        as_of=as_of,
    )


def _scan(layout: Layout, table: str) -> pl.LazyFrame:
    path = layout.table(table)
    if not path.is_file():
        raise SourceError(f"data/tables/{table}.parquet: is missing. Run the steps before this one: dvc repro validate")
    return pl.scan_parquet(path)


def _write(layout: Layout, problem: str, frames: dict[str, pl.DataFrame], received: dict[str, int]) -> None:
    """`received`: table -> how many of its rows servers received."""
    with writing(layout.features(problem)) as scratch:
        scratch.mkdir()
        for name, frame in frames.items():
            frame.write_parquet((scratch / name).with_suffix(".parquet"))
        received_counts.write(scratch, received)
