"""`evergreen events`: new purchases for a recommender, new rows of tables for a problem of events."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergreen.flows.cli.common import Name, find, local_file, print_json, print_table, read_params, say
from evergreen.tasks.core.errors import DataError, ParamsError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.serving.event_log import EventCounts

SHOWN = 10
"""Number of rejected events that are printed."""


def events(
    name: Name,
    data: Annotated[
        str | None,
        typer.Option(
            help="csv or parquet, a file or s3://BUCKET/KEY: purchases (one line of a basket per row), or rows of a table."
        ),
    ] = None,
    withdraw: Annotated[list[str] | None, typer.Option(help="Id of an event to withdraw. Repeatable.")] = None,
    table: Annotated[str | None, typer.Option(help="Table of the rows, for a problem with several tables of events.")] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Upload purchases for a recommender, or rows of a table for another problem, or withdraw them by id; every later answer
    and training follows. Rejected ones carry the reason."""
    place = find(root)
    if data is None or withdraw:
        if data or not withdraw:
            raise ParamsError("evergreen events: needs either --data FILE or --withdraw ID")
        _withdraw(place, name, withdraw, as_json)
        return
    with local_file(data) as path:
        found = _record(place, name, path, table)
    rejected = [{"event": dict(each.event), "reason": each.reason} for each in found.rejected]
    if as_json:
        print_json({"problem": name, "accepted": found.accepted, "duplicate": found.duplicate, "rejected": rejected})
        return
    print_table(
        ("problem", "accepted", "duplicate", "rejected"),
        [(name, f"{found.accepted:,}", f"{found.duplicate:,}", f"{len(rejected):,}")],
    )
    for each in found.rejected[:SHOWN]:
        say(f"rejected: {each.reason}")
    if len(rejected) > SHOWN:
        say(f"and {len(rejected) - SHOWN:,} more; --json shows all")


def _record(place: Layout, name: str, data: Path, table: str | None) -> "EventCounts":
    from evergreen.flows.operations import recommend, row_events

    params = read_params(place)
    if params.section(name).predicts == "rows":
        return row_events.record(place, params, name, data, table)
    if table is not None:
        raise ParamsError(f"--table = {table}: {name} is a recommender, which takes purchases; leave it out")
    return recommend.record_events(place, params, name, data)


def _withdraw(place: Layout, name: str, ids: list[str], as_json: bool) -> None:
    from evergreen.flows.operations import recommend, row_events

    params = read_params(place)
    work = row_events.withdraw if params.section(name).predicts == "rows" else recommend.withdraw_events
    found = work(place, params, name, ids)
    if as_json:
        print_json({"problem": name, **asdict(found)})
    else:
        counts = (found.withdrawn, found.duplicate, len(found.unknown))
        print_table(("problem", "withdrawn", "duplicate", "unknown"), [(name, *(f"{each:,}" for each in counts))])
    if found.unknown:
        more = f" and {len(found.unknown) - SHOWN:,} more" if len(found.unknown) > SHOWN else ""
        raise DataError(f"{name}: no event has the id {', '.join(found.unknown[:SHOWN])}{more}; the others are withdrawn")
