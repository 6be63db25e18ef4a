"""What was set aside: rows of tables, labels, purchases and predictions, each with the rule that it broke."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.responses import Response

from evergreen.flows import settings
from evergreen.flows.console.visits import Visit
from evergreen.monitoring.ledger import refused_rows

SHOWN = 100
"""Most rows of a table that are shown, the first of a table and the newest of a file."""


@dataclass(frozen=True)
class Quarantine:
    table: str
    rows: int
    columns: list[str]
    shown: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Rejected:
    at: datetime
    """UTC."""
    reason: str
    row: str
    """As it was sent, as JSON."""


@dataclass(frozen=True)
class Group:
    """What one problem rejected of one kind."""

    problem: str
    what: str
    """labels or purchases."""
    rows: list[Rejected]
    """The newest first."""


def show(visit: Visit) -> Response:
    groups = [each for name in visit.problems for each in _groups(visit, name) if each.rows]
    if visit.visitor.problems:  # tables are shared by problems, and a bound key sees its own alone
        return visit.render("data.html", tables=[], refused=[], refused_count=0, groups=groups, bound=True)
    folder = settings.spool_folder(visit.layout)
    tables = [each for table in sorted(_tables(visit)) if (each := _quarantine(visit.layout.quarantine(table), table))]
    return visit.render(
        "data.html",
        tables=tables,
        refused=_refused(folder),
        refused_count=refused_rows.count(folder),
        groups=groups,
        bound=False,
    )


def _groups(visit: Visit, problem: str) -> Iterator[Group]:
    labels = settings.ledger(visit.layout).rejected_labels(problem)[-SHOWN:]
    yield Group(problem, "labels", [Rejected(each.at, each.reason, each.label) for each in reversed(labels)])
    if visit.params.kind(problem) == "recommendation":
        events = settings.events(visit.layout).rejected(problem, SHOWN)
        yield Group(problem, "purchases", [Rejected(each.at, each.reason, each.event) for each in reversed(events)])


def _tables(visit: Visit) -> Iterator[str]:
    folder = visit.layout.quarantine("any").parent
    yield from (path.stem for path in folder.glob("*.parquet"))


def _quarantine(path: Path, table: str) -> Quarantine | None:
    import polars as pl

    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    if not rows:
        return None
    head = pl.scan_parquet(path).head(SHOWN).collect()
    first = [name for name in head.columns if name == "_rule"]
    ordered = head.select(*first, *(name for name in head.columns if name not in first))
    return Quarantine(table, rows, ordered.columns, ordered.rows())


def _refused(folder: Path) -> list[Rejected]:
    found: list[Rejected] = []
    with suppress(OSError), (folder / refused_rows.FILE).open("rb") as file:
        for line in file.read()[-2_000_000:].splitlines()[-SHOWN:]:
            with suppress(ValueError, KeyError, TypeError):
                each = json.loads(line)
                found.append(Rejected(datetime.fromtimestamp(each["at"], UTC), each["reason"], str(each["row"])[:500]))
    return found[::-1]
