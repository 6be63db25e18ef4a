"""The features step: validated tables to the features of a problem, without events after the cutoff.

What models learn from goes to data/features, the rows of the last day, whose labels are to come, to data/newest: so a day
without a new label leaves every later step fresh.
"""

import logging
from datetime import date

import polars as pl

from evergreen.tasks.config.params import Params, Section
from evergreen.tasks.core import received_counts, table_parts
from evergreen.tasks.core.errors import DataError, ParamsError, SourceError
from evergreen.tasks.core.paths import Layout, writing
from evergreen.tasks.data import received_events
from evergreen.tasks.data.snapshot import resolve_as_of
from evergreen.tasks.problems import kind
from evergreen.tasks.problems.base import FeatureFolders

log = logging.getLogger(__name__)


class Result(Section):
    folder: str
    """Folder of the frames, one parquet file each, named as in `rows`."""
    rows: dict[str, int]
    """Frame -> number of rows; "newest": those of the last day."""
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
    with writing(layout.features(problem)) as learned, writing(layout.newest(problem)) as newest:
        for folder in (learned, newest):
            folder.mkdir()
        try:
            record = layout.var / "features" / f"{problem}.json"
            folders = FeatureFolders(learned, newest, layout.features(problem), record)
            kind(params.kind(problem)).write(tables, times, section, as_of, folders)
        except ParamsError as error:
            place = f"{problem}." if str(error).startswith("features") else ""
            raise ParamsError(f"{layout.params.name}: {place}{error}") from error
        except DataError as error:
            raise type(error)(f"{problem}: {error}") from error
        counts = received_counts.read(layout.table("any").parent)
        received_counts.write(learned, {name: counts.get(name, 0) for name in section.features.tables})
    return _result(layout, problem, as_of)


def _result(layout: Layout, problem: str, as_of: date) -> Result:
    folder = layout.features(problem)
    files = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    files |= {"newest": path for path in layout.newest(problem).glob("*.parquet")}  # noqa: B035  # one file or none
    frames = {name: pl.scan_parquet(path, glob=False) for name, path in files.items()}
    rows = {name: int(frame.select(pl.len()).collect().item()) for name, frame in frames.items()}
    columns = {name: len(frame.collect_schema()) for name, frame in frames.items()}
    for name in frames:
        log.info("%s: %s: %d rows, %d columns", problem, name, rows[name], columns[name])
    return Result(folder=str(folder), rows=rows, columns=columns, as_of=as_of)


def _scan(layout: Layout, table: str) -> pl.LazyFrame:
    path = layout.table(table)
    if not table_parts.is_there(path):
        raise SourceError(f"data/tables/{table}.parquet: is missing. Run the steps before this one: dvc repro validate")
    return table_parts.scan(path)
