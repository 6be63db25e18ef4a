"""Rows of tables for the command line: sent to a problem of events, or withdrawn."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from evergreen.flows import settings
from evergreen.serving.event_log import EventCounts, Withdrawal
from evergreen.serving.fresh_features import business_zone
from evergreen.serving.row_validation import RowValidator
from evergreen.tasks.config.params import Params, Problem
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import ModelError, ParamsError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data import received_rows
from evergreen.tasks.scoring import chunks

ID = "event_id"
"""Column of a file with the ids of its rows, where the table has no such column."""


def record(layout: Layout, params: Params, problem: str, data: Path, table: str | None) -> EventCounts:
    """Write the rows of `data` to the log, for servers with fresh features and for the next training; see RowValidator.

    `table`: may be None where the problem has one table of events. Raises ParamsError for a table that takes no rows,
    SourceError if the file cannot be read, ModelError if the table was never read.
    """
    features = _section(params, problem).features
    name = _table(params, problem, features.event_tables, table)
    path = layout.table(name)
    if not table_parts.is_there(path):
        raise ModelError(
            f"{problem}: data/tables/{name}.parquet is missing, by which rows are read; run evergreen train {problem}"
        )
    schema = table_parts.scan(path).collect_schema()
    validator = RowValidator(
        params, features.event_entity, {name: pl.Schema(schema)}, business_zone(params, features.event_tables)
    )
    rows, rejected = validator.validate(_events(data, name, schema, params.ingest[name].null_values), datetime.now(UTC))
    new = len(settings.row_log(layout).append(problem, rows, rejected))
    return EventCounts(new, len(rows) - new, tuple(rejected))


def withdraw(layout: Layout, params: Params, problem: str, ids: Sequence[str]) -> Withdrawal:
    """Withdraw rows by the ids of their events; servers follow within a second or two, trainings from the next one on."""
    _section(params, problem)
    return settings.row_log(layout).withdraw(problem, ids)


def _section(params: Params, problem: str) -> Problem:
    found = params.section(problem)
    if not found.features.event_tables:
        table = found.features.source_name
        raise ParamsError(
            f"{problem}: learns from a plain table, which takes no events; add rows to the export of ingest.{table}"
        )
    return found


def _table(params: Params, problem: str, names: list[str], table: str | None) -> str:
    if table is None and len(names) == 1:
        (table,) = names
    if table not in names:
        given = "is missing" if table is None else f"= {table}"
        near = nearest(table, names) if table else ""
        raise ParamsError(f"--table {given}: must be one of {', '.join(names)}, the tables of events of {problem}{near}")
    if table not in received_rows.entities(params):
        raise ParamsError(
            f"params.yaml: validate.{table}.unique: is missing; received rows need it, so that a row that is both received "
            "and in the table counts once. Name the columns that identify a row."
        )
    return table


def _events(data: Path, table: str, schema: Mapping[str, pl.DataType], null_values: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file as they would be sent over HTTP."""
    missing = {"", *null_values}
    for given in chunks.read_all(data).iter_rows(named=True):
        row = {name: _as_json(value, schema.get(name), missing) for name, value in given.items() if name != ID or ID in schema}
        event: dict[str, Any] = {"table": table, "row": row}
        yield event if ID in schema or given.get(ID) is None else {**event, "id": str(given[ID])}


def _as_json(value: Any, kind: pl.DataType | None, missing: set[str]) -> Any:
    """The value as JSON of the column's type; a text that does not fit stays a text, which is rejected with its reason."""
    if isinstance(value, date):  # a datetime too
        return value.isoformat()
    if not isinstance(value, str) or kind is None or kind == pl.String:
        return None if value in missing else value
    if value in missing:
        return None
    try:
        if kind.is_integer():
            return int(value)
        if kind.is_float():
            return float(value)
    except ValueError:
        return value
    if kind == pl.Boolean:
        return {"true": True, "false": False}.get(value.lower(), value)
    return value
