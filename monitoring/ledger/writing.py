"""Write predictions into the ledger, each of them once."""

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from evergreen.monitoring.ledger import blocks
from evergreen.monitoring.ledger.schema import (
    BLOCKS,
    DAY_MICROS,
    IDS,
    INSERT_ARRAYS,
    PERIOD_DAYS,
    ROWS_PER_STATEMENT,
    chunk,
)

Head = dict[str, list[Any]]
"""Columns of blocks.HEAD: id, variant, at, cutoff and entity."""
NAMES = ("period", "id", "at", "day", "entity")
INSERT_ROWS = f"INSERT INTO {IDS.name} (problem, block, {', '.join(NAMES)}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
"""SQLite: plain rows, without SQLAlchemy's work on each."""
Pack = Callable[[Sequence[int]], tuple[bytes, bytes]]
"""Places of predictions -> their outputs and features, packed."""


def write_block(connection: sa.Connection, problem: str, version: int, head: Head, pack: Pack) -> int:
    """Write the predictions of `head`, all made on one day, as a block. Those with a known id are left out.

    Returns the number of new predictions.
    """
    places: Sequence[int] = range(len(head["id"]))
    inserted = connection.execute(sa.insert(BLOCKS).values(problem=problem, version=version, **_columns(head, pack, places)))
    assert inserted.inserted_primary_key is not None
    number = inserted.inserted_primary_key[0]
    new = _insert_ids(connection, problem, head, number)
    same = BLOCKS.c.number == number
    if not new:
        connection.execute(sa.delete(BLOCKS).where(same))
    elif new < len(places):
        places = _find_new(connection, problem, head, number)
        connection.execute(sa.update(BLOCKS).where(same).values(**_columns(head, pack, places)))
    return new


def _columns(head: Head, pack: Pack, places: Sequence[int]) -> dict[str, Any]:
    kept = head if len(places) == len(head["id"]) else {name: [all_[place] for place in places] for name, all_ in head.items()}
    outputs, features = pack(places)
    return {**describe(kept), "head": blocks.pack_columns(kept, len(places)), "outputs": outputs, "features": features}


def describe(head: Head) -> dict[str, int]:
    """What a block records of the rows in it."""
    at, days = head["at"], days_of(head)
    return {
        "rows": len(at), "date": at[0] // DAY_MICROS, "first": min(at), "last": max(at),
        "first_day": min(days), "last_day": max(days),
    }  # fmt: skip


def days_of(head: Head) -> list[int]:
    """The day of each prediction that labels refer to: the cutoff, else the day on which it was made."""
    return [at // DAY_MICROS if cutoff is None else cutoff for at, cutoff in zip(head["at"], head["cutoff"], strict=True)]


def _insert_ids(connection: sa.Connection, problem: str, head: Head, block: int) -> int:
    """Write the new ids; returns how many."""
    days = days_of(head)
    periods = [day // PERIOD_DAYS for day in days]
    # the same order for all writers: no deadlock
    rows = sorted(zip(periods, head["id"], head["at"], days, head["entity"], strict=True), key=lambda row: row[:2])
    if connection.dialect.name == "sqlite":
        return connection.exec_driver_sql(INSERT_ROWS, [(problem, block, *row) for row in rows]).rowcount
    arrays = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))
    return connection.execute(
        INSERT_ARRAYS, {"problem": [problem] * len(rows), "block": [block] * len(rows), **arrays}
    ).rowcount


def _find_new(connection: sa.Connection, problem: str, head: Head, block: int) -> list[int]:
    """The places of the ids that this block has brought; of an id that it has twice, the first."""
    ids, periods = head["id"], [day // PERIOD_DAYS for day in days_of(head)]
    first = {key: place for place, key in reversed(list(enumerate(zip(periods, ids, strict=True))))}
    new = set[tuple[int, str]]()
    for part in chunk(list(dict.fromkeys(ids)), ROWS_PER_STATEMENT):
        query = sa.select(IDS.c.period, IDS.c.id).where(IDS.c.problem == problem, IDS.c.period.in_(set(periods)))
        found = connection.execute(query.where(IDS.c.id.in_(part), IDS.c.block == block))
        new.update((period, id_) for period, id_ in found)
    return sorted(first[key] for key in new)
