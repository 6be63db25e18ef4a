"""Labels in the ledger: how they are written, and how they find their predictions.

A label refers to its prediction by id, or by entity and time. A moment matches the predictions for that entity in that second.
A day matches the predictions with that cutoff or, for rows without a cutoff, those made on that day (UTC). Labels and
predictions are joined when they are read, so either may arrive first, and one label may match predictions of several versions.
Of several labels the one with the latest `known_at` counts; the others stay on record. The labels of old blocks are packed
beside them; rows of `labels` that are newer are joined as they are.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import orjson
import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger.blocks import Blocks, as_series, pack_frame, unpack
from evergreen.monitoring.ledger.schema import (
    IDS,
    LABELS,
    MAX_KEY_LENGTH,
    ROWS_PER_STATEMENT,
    as_timestamp,
    chunk,
    fetch,
    to_days,
    to_micros,
)
from evergreen.tasks.core import database

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
    database.lock(connection, f"labels {problem}")


def _insert(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]], counts: dict[str, int]) -> None:
    known, matched = _newest_labels(connection, problem, part), _match(connection, problem, part)
    new = []
    for row in part:
        key = _key(row)
        before = known.get(key)
        if before is not None and before[1] == row["value"]:
            counts["duplicate"] += 1
            continue
        if before is not None and not row.pop("dated"):  # a correction counts even where the clock went back
            row["known_at"] = max(row["known_at"], before[0])
        counts["changed" if before else "matched" if key in matched else "pending"] += 1
        if before is None or row["known_at"] >= before[0]:
            known[key] = (row["known_at"], row["value"])
        if row["id"] is not None:
            row["day"] = matched.get(key)
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
    by_id = label.id is not None
    second = to_micros(label.at) // 1_000_000 if not by_id and isinstance(label.at, datetime) else None
    return {
        "id": label.id,
        "entity": None if by_id else label.entity,
        "day": None if by_id else to_days(label.at) if second is None else second // 86_400,
        "second": second,
        "value": text,
        "known_at": to_micros(label.known_at or now),
    }


def _key(row: Any) -> Key:
    if row["id"] is not None:
        return row["id"], None, None, None
    return None, row["entity"], row["day"] if row["second"] is None else None, row["second"]


def _newest_labels(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> dict[Key, tuple[int, str]]:
    """known_at and value of the newest recorded label of each key in `part`."""
    newest = dict[Key, tuple[int, str]]()
    for name, values in _named(part):
        query = sa.select(LABELS).where(LABELS.c.problem == problem, LABELS.c[name].in_(values))
        for row in connection.execute(query.order_by(LABELS.c.known_at, LABELS.c.number)).mappings():
            newest[_key(row)] = (row["known_at"], row["value"])
    return newest


def _named(part: Sequence[dict[str, Any]]) -> Iterator[tuple[str, set[str]]]:
    """The ids and the entities in `part`, if there are any: SQLite reads a whole index for an empty list of values."""
    for name in ("id", "entity"):
        if values := {row[name] for row in part} - {None}:
            yield name, values


def _match(connection: sa.Connection, problem: str, part: Sequence[dict[str, Any]]) -> dict[Key, int]:
    """The keys of predictions in the ledger for the ids and entities of `part`, and their days."""
    keys = dict[Key, int]()
    for name, values in _named(part):
        named = is_of(connection, problem) & IDS.c.id.in_(values) if name == "id" else is_for(connection, problem, values)
        query = sa.select(IDS.c.id, IDS.c.entity, IDS.c.day, IDS.c.at).where(named)
        for id_, entity, day, at in connection.execute(query):
            keys |= {(id_, None, None, None): day, (None, entity, day, None): day, (None, entity, None, at // 1_000_000): day}
    return keys


def is_of(connection: sa.Connection, problem: str, table: sa.FromClause = IDS) -> sa.ColumnElement[bool]:
    """The rows of IDS (`table`: or of its alias) of a problem, so that an id or an entity is looked up in each period."""
    ends = [
        sa.select(end(IDS.c.period)).where(IDS.c.problem == problem).scalar_subquery() for end in (sa.func.min, sa.func.max)
    ]
    first, last = connection.execute(sa.select(*ends)).one()
    return sa.and_(table.c.problem == problem, table.c.period.in_([] if first is None else range(first, last + 1)))


def is_for(connection: sa.Connection, problem: str, entities: Collection[str]) -> sa.ColumnElement[bool]:
    """The rows of IDS of a problem for these entities.

    Their keys are looked up first, in the index of entities alone: SQLite would read all rows of each period.
    """
    keys = IDS.alias("keys")
    own, key = ([table.c[name] for name in ("problem", "period", "id")] for table in (IDS, keys))
    return sa.tuple_(*own).in_(sa.select(*key).where(is_of(connection, problem, keys), keys.c.entity.in_(entities)))


# Read

SCHEMA = {
    "id": pl.String, "entity": pl.String, "day": pl.Int32, "second": pl.Int64, "value": pl.String, "known_at": pl.Int64,
    "number": pl.Int64,
}  # fmt: skip
PACKED = {"position": pl.Int64, "value": pl.String, "known_at": pl.Int64, "number": pl.Int64}
"""Columns of the packed labels of a block."""
MATCHED = {"block": pl.Int64, **PACKED}
FEW = ROWS_PER_STATEMENT
"""Labels of so many predictions are looked up one by one; those of more are read day by day."""
NO_LABELS = pl.DataFrame(schema=MATCHED)


def find_labels(connection: sa.Connection, problem: str, found: Blocks) -> pl.DataFrame:
    """The labels of `found`, as MATCHED: one row per prediction and label, all that are on record."""
    upto = {block: number for block, (number, _) in found.labels.items()}
    packed = [(block, labels) for block, (_, labels) in found.labels.items() if labels]
    columns, sizes = unpack([labels for _, labels in packed])
    kept = columns.select(pl.col(name).cast(dtype) for name, dtype in PACKED.items()) if sizes else pl.DataFrame(schema=PACKED)
    owner = pl.Series("block", np.repeat([block for block, _ in packed], sizes), dtype=pl.Int64)
    kept = kept.with_columns(owner).select(list(MATCHED))
    kept = kept.join(found.head, on=["block", "position"], how="semi")  # of a block, `found` may hold some rows only
    if found.head.is_empty():
        return kept
    head = found.head.select(
        "block", "position", "id", "entity", "day", second=pl.col("at") // 1_000_000,
        upto=pl.col("block").replace_strict(upto, return_dtype=pl.Int64),
    )  # fmt: skip
    newer = _newer_labels(connection, problem, head)
    by_day, by_second = pl.col("second").is_null(), pl.col("second").is_not_null()
    columns = [*MATCHED, "upto"]
    joined = [
        head.join(newer.filter(pl.col("id").is_not_null()), on="id").select(columns),
        head.join(newer.filter(pl.col("id").is_null(), by_day), on=["entity", "day"]).select(columns),
        head.join(newer.filter(pl.col("id").is_null(), by_second), on=["entity", "second"]).select(columns),
    ]
    return pl.concat([kept, *(each.filter(pl.col("number") > pl.col("upto")).drop("upto") for each in joined)])


def _newer_labels(connection: sa.Connection, problem: str, head: pl.DataFrame) -> pl.DataFrame:
    """The labels of the days of `head`, and those by id without a prediction so far, beyond what is packed."""
    if head.height <= FEW:
        return _labels_of(connection, problem, head)
    days = pl.concat(
        [head.select("day", "upto"), head.select((pl.col("second") // 86_400).cast(pl.Int32).alias("day"), "upto")]
    )
    beyond = days.group_by("day").agg(pl.col("upto").min()).group_by("upto").agg("day")
    query = sa.select(*(LABELS.c[name] for name in SCHEMA)).where(LABELS.c.problem == problem)
    frames = [fetch(connection, query.where(LABELS.c.day.is_(None), LABELS.c.number > head["upto"].min()), SCHEMA)]
    for upto, some in beyond.iter_rows():
        for part in chunk(some, ROWS_PER_STATEMENT):
            frames.append(fetch(connection, query.where(LABELS.c.day.in_(part), LABELS.c.number > upto), SCHEMA))
    return pl.concat(frames)


def _labels_of(connection: sa.Connection, problem: str, head: pl.DataFrame) -> pl.DataFrame:
    """The labels that name the ids or the entities of a few rows."""
    query = sa.select(*(LABELS.c[name] for name in SCHEMA)).where(LABELS.c.problem == problem)
    names = ((name, head[name].drop_nulls().unique().to_list()) for name in ("id", "entity"))
    frames = [fetch(connection, query.where(LABELS.c[name].in_(values)), SCHEMA) for name, values in names if values]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *frames])


def choose_labels(labels: pl.DataFrame, known_at: datetime | None) -> pl.DataFrame:
    """block, position, label and label_at of `find_labels`: of each prediction the one known last.

    `known_at`: only labels that were known by then.
    """
    frame = labels.filter(pl.col("known_at") <= to_micros(known_at)) if known_at else labels
    frame = frame.sort("known_at", "number").unique(["block", "position"], keep="last", maintain_order=True)
    label = as_series("label", orjson.loads(f"[{','.join(frame['value'])}]"))
    return frame.select("block", "position", label, as_timestamp("known_at").alias("label_at"))


def pack_labels(labels: pl.DataFrame) -> bytes:
    """The labels of one block, of `find_labels`."""
    return pack_frame(labels.sort("number"), list(PACKED))


def newest_numbers(connection: sa.Connection, problem: str, days: Iterable[int]) -> dict[int, int]:
    """The number of the newest label of each day; 0: it has none."""
    query = sa.select(sa.func.max(LABELS.c.number)).where(LABELS.c.problem == problem, LABELS.c.day == sa.bindparam("d"))
    return {day: connection.execute(query, {"d": day}).scalar() or 0 for day in set(days)}


# Keep


def find_days(connection: sa.Connection, problem: str, limit: int) -> list[dict[str, int]]:
    """Up to `limit` labels by id whose prediction arrived after them: `label` (its number) and `found` (the day)."""
    query = sa.select(LABELS.c.number, IDS.c.day).join(IDS, IDS.c.id == LABELS.c.id).where(is_of(connection, problem))
    query = query.where(LABELS.c.problem == problem, LABELS.c.day.is_(None), LABELS.c.id.is_not(None))
    return [{"label": number, "found": day} for number, day in connection.execute(query.limit(limit))]


def set_days(connection: sa.Connection, found: Sequence[dict[str, int]]) -> None:
    """Write the days of `find_days`."""
    query = sa.update(LABELS).where(LABELS.c.number == sa.bindparam("label")).values(day=sa.bindparam("found"))
    connection.execute(query, list(found))


def find_unmatched(connection: sa.Connection, problem: str, before: int, first_day: int | None, limit: int) -> Sequence[int]:
    """Numbers of up to `limit` labels that were known before `before` (microseconds) and refer to a day before `first_day`
    (None: to any), or to no prediction."""
    gone = sa.true() if first_day is None else sa.or_(LABELS.c.day.is_(None), LABELS.c.day < first_day)
    old = sa.select(LABELS.c.number).where(LABELS.c.problem == problem, gone, LABELS.c.known_at < before)
    return connection.execute(old.limit(limit)).scalars().all()
