"""Labels in the ledger: how they are written, and how they find their predictions.

A label refers to its prediction by id, or by entity and time. A moment matches the predictions for that entity in that second.
A day matches the predictions with that cutoff or, for rows without a cutoff, those made on that day (UTC). Labels and
predictions are joined when they are read, so either may arrive first, and one label may match predictions of several versions.
Of several labels the one with the latest `known_at` counts; the others stay on record.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger.blocks import as_series
from evergreen.monitoring.ledger.schema import (
    LABELS,
    MAX_KEY_LENGTH,
    PREDICTIONS,
    ROWS_PER_STATEMENT,
    as_timestamp,
    chunk,
    fetch,
    to_days,
    to_micros,
)

MATCHES = (
    LABELS.c.id == PREDICTIONS.c.id,
    sa.and_(LABELS.c.entity == PREDICTIONS.c.entity, LABELS.c.day == PREDICTIONS.c.day),
    sa.and_(LABELS.c.entity == PREDICTIONS.c.entity, LABELS.c.second == PREDICTIONS.c.at // 1_000_000),
)
"""The three ways in which a label matches a prediction."""

Key = tuple[str | None, str | None, int | None, int | None]
"""What a label refers to: id, entity, day, second."""


@dataclass(frozen=True, slots=True)
class Label:
    """The observed outcome of a prediction, named by id, or by entity and time."""

    value: Any
    """A number, a class, or (recommendation) the items that were bought."""
    id: str | None = None
    entity: str | None = None
    at: datetime | date | None = None
    """When the prediction was made, or its cutoff. A naive moment is UTC."""
    known_at: datetime | None = None
    """None: now."""


@dataclass(frozen=True, slots=True)
class RejectedLabel:
    index: int
    """Of the label in its batch, from 0."""
    reason: str


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Outcome of a batch of labels; each label is counted once."""

    matched: int
    """New, with a prediction in the ledger."""
    pending: int
    """New, without a prediction so far."""
    duplicate: int
    """The same value was recorded before."""
    changed: int
    """Another value was recorded before."""
    rejected: tuple[RejectedLabel, ...] = ()
    """Not recorded."""


def add_labels(connection: sa.Connection, problem: str, labels: Sequence[Label]) -> LabelCounts:
    """Write the labels in the transaction of `connection`; invalid ones are rejected one by one."""
    rejected, rows = list[RejectedLabel](), list[dict[str, Any]]()
    now = datetime.now(UTC)
    for index, label in enumerate(labels):
        try:
            rows.append({"problem": problem, **_to_row(label, now), "dated": label.known_at is not None})
        except ValueError as error:
            rejected.append(RejectedLabel(index, str(error)))
    counts: dict[str, int] = dict.fromkeys(("matched", "pending", "duplicate", "changed"), 0)
    lock_labels(connection, problem)
    for part in chunk(rows, ROWS_PER_STATEMENT):
        _insert(connection, problem, part, counts)
    return LabelCounts(**counts, rejected=tuple(rejected))


def lock_labels(connection: sa.Connection, problem: str) -> None:
    """Wait until no other transaction writes labels: each label is compared with those before it."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(zlib.crc32(f"labels {problem}".encode()))))


def _insert(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]], counts: dict[str, int]) -> None:
    known, matches = _newest_labels(connection, problem, part), _match(connection, problem, part)
    new = []
    for row in part:
        before = known.get(_key(row))
        if before is not None and before[1] == row["value"]:
            counts["duplicate"] += 1
            continue
        if before is not None and not row.pop("dated"):  # a correction counts even where the clock went back
            row["known_at"] = max(row["known_at"], before[0])
        counts["changed" if before else "matched" if matches(row) else "pending"] += 1
        if before is None or row["known_at"] >= before[0]:
            known[_key(row)] = (row["known_at"], row["value"])
        new.append({name: row[name] for name in LABELS.c.keys() if name != "number"})  # noqa: SIM118  # not a dict
    if new:
        connection.execute(sa.insert(LABELS), new)


def _to_row(label: Label, now: datetime) -> dict[str, Any]:
    """Raises ValueError with the reason for an invalid label."""
    if label.id is None and (label.entity is None or label.at is None):
        raise ValueError("names no prediction: it needs an id, or an entity and a time")
    value = label.value.item() if isinstance(label.value, np.generic) else label.value
    if value is None or value != value:
        raise ValueError("has no value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1 and 1.0 are the same label
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        raise ValueError(f"value = {value!s:.40}: is neither a number, a text, true or false, nor a list of such") from None
    for name in ("id", "entity"):
        if len(getattr(label, name) or "") > MAX_KEY_LENGTH:
            raise ValueError(f"{name} = {getattr(label, name)[:20]}…: is longer than {MAX_KEY_LENGTH} characters")
    by_id, is_moment = label.id is not None, isinstance(label.at, datetime)
    return {
        "id": label.id,
        "entity": None if by_id else label.entity,
        "day": None if by_id or is_moment else to_days(label.at),
        "second": to_micros(label.at) // 1_000_000 if not by_id and isinstance(label.at, datetime) else None,
        "value": text,
        "known_at": to_micros(label.known_at or now),
    }


def _key(row: Any) -> Key:
    return row["id"], row["entity"], row["day"], row["second"]


def _newest_labels(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> dict[Key, tuple[int, str]]:
    """known_at and value of the newest recorded label of each key in `part`."""
    newest = dict[Key, tuple[int, str]]()
    for name in ("id", "entity"):
        query = sa.select(LABELS).where(LABELS.c.problem == problem, LABELS.c[name].in_({row[name] for row in part} - {None}))
        for row in connection.execute(query.order_by(LABELS.c.known_at, LABELS.c.number)).mappings():
            newest[_key(row)] = (row["known_at"], row["value"])
    return newest


def _match(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], bool]:
    """Whether a row of `part` has a prediction in the ledger."""
    keys = set[Key]()
    for name in ("id", "entity"):
        query = sa.select(PREDICTIONS.c.id, PREDICTIONS.c.entity, PREDICTIONS.c.day, PREDICTIONS.c.at).where(
            PREDICTIONS.c.problem == problem, PREDICTIONS.c[name].in_({row[name] for row in part} - {None})
        )
        for id_, entity, day, at in connection.execute(query):
            keys |= {(id_, None, None, None), (None, entity, day, None), (None, entity, None, at // 1_000_000)}
    return lambda row: _key(row) in keys


def read_labels(
    connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]], known_at: datetime | None, rows_per_part: int
) -> pl.DataFrame:
    """block, position, label and label_at of the predictions `where` that have a label; the one known last.

    `known_at`: only labels that were known by then.
    """
    schema = {"block": pl.Int64, "position": pl.Int64, "value": pl.String, "known_at": pl.Int64, "number": pl.Int64}
    frames = []
    for match in MATCHES:
        query = sa.select(PREDICTIONS.c.block, PREDICTIONS.c.position, LABELS.c.value, LABELS.c.known_at, LABELS.c.number)
        query = query.where(*where, LABELS.c.problem == PREDICTIONS.c.problem, match)
        query = query.where(LABELS.c.known_at <= to_micros(known_at)) if known_at else query
        frames.append(fetch(connection, query, schema, rows_per_part))
    frame = pl.concat(frames).sort("known_at", "number").unique(["block", "position"], keep="last", maintain_order=True)
    label = as_series("label", orjson.loads(f"[{','.join(frame['value'])}]"))
    return frame.select("block", "position", label, as_timestamp("known_at").alias("label_at"))


def select_unlabelled(problem: str, until: date, recheck_after: date) -> sa.Select[Any]:
    """entity and day of predictions up to `until`: those without a label for that day, and all those after `recheck_after`."""
    labelled = sa.and_(LABELS.c.problem == PREDICTIONS.c.problem, MATCHES[1])
    query = sa.select(PREDICTIONS.c.entity, PREDICTIONS.c.day).distinct()
    query = query.where(PREDICTIONS.c.problem == problem, PREDICTIONS.c.entity.is_not(None))
    query = query.where(PREDICTIONS.c.day <= to_days(until))
    query = query.where(sa.or_(PREDICTIONS.c.day > to_days(recheck_after), ~sa.exists().where(labelled)))
    return query.order_by(PREDICTIONS.c.day, PREDICTIONS.c.entity)


def delete_unmatched(connection: sa.Connection, problem: str, before: int) -> None:
    """Delete the labels of `problem` known before `before` (microseconds) that match no prediction any more."""
    same_problem = PREDICTIONS.c.problem == problem
    matched = sa.or_(*(sa.exists().where(same_problem, match) for match in MATCHES))
    connection.execute(sa.delete(LABELS).where(LABELS.c.problem == problem, LABELS.c.known_at < before, ~matched))
