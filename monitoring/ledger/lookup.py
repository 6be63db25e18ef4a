"""Single predictions of the ledger: found by id, by entity or by day, in the order of their index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import polars as pl
import sqlalchemy as sa

from evergreen.monitoring.ledger import label_matching
from evergreen.monitoring.ledger.label_matching import FEW
from evergreen.monitoring.ledger.prediction_rows import VARIANTS, Predictions
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.schema import BLOCKS, EPOCH, IDS, LABELS, to_days, to_micros

MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Place:
    """Where a prediction is found."""

    id: str
    entity: str | None
    at: datetime
    """UTC."""


def find_by_id(ledger: Ledger, problem: str, id: str) -> Place | None:
    """The prediction with that id; of several in different periods, the newest."""
    with ledger.connect() as connection:
        found = _find(connection, label_matching.is_of(connection, problem) & (IDS.c.id == id), 1)
    return found[0] if found else None


def find_by_entity(ledger: Ledger, problem: str, entity: str, limit: int) -> list[Place]:
    """The newest predictions for an entity, the newest first."""
    with ledger.connect() as connection:
        return _find(connection, label_matching.is_for(connection, problem, [entity]), limit)


def read_one(ledger: Ledger, problem: str, place: Place) -> Predictions:
    """One prediction with its features and its label; no row if it was deleted in the meantime."""
    return ledger.read(problem, since=place.at - MOMENT, until=place.at, variants=VARIANTS, id=place.id)


def read_day(ledger: Ledger, problem: str, day: date, limit: int) -> tuple[Predictions, int]:
    """The newest predictions of a day, UTC, without their features, and how many the day has."""
    begin = datetime.combine(day, time.min, UTC)
    found = _blocks(ledger, problem, begin, begin)
    newest = next(_parts(found, limit), None)
    if newest is None:
        return Predictions(pl.DataFrame(), pl.DataFrame()), 0
    begin = _moment(newest[-1].first)
    until = datetime.combine(day, time.max, UTC)
    read = ledger.read(problem, since=begin - MOMENT, until=until, variants=VARIANTS, features=False, last=limit)
    return read, sum(each.rows for each in found)


def read_newest(ledger: Ledger, problem: str, days: int, limit: int, *, labelled: bool) -> Predictions:
    """The newest predictions, of `days` days up to the newest; `labelled`: those with a label. Shadow mode is left out.

    Reads from the newest on in parts of about `limit`, until there are enough.
    """
    until = ledger.latest(problem)
    found, height = list[Predictions](), 0
    blocks = _blocks(ledger, problem, until - timedelta(days=days), until) if until else list[Any]()
    known = dict[int, list[int] | None]()
    for part in _parts(blocks, limit):
        begin = _moment(part[-1].first)
        if not labelled or _has_labels(ledger, problem, part, known):
            read = ledger.read(problem, since=begin - MOMENT, until=until, last=None if labelled else limit - height)
            kept = read.rows["label"].is_not_null() if labelled else pl.repeat(True, read.rows.height, eager=True)
            found.insert(0, Predictions(read.rows.filter(kept), read.features.filter(kept)))
            height += found[0].rows.height
        if height >= limit:
            break
        until = begin - MOMENT
    if not found:
        return Predictions(pl.DataFrame(), pl.DataFrame())
    rows = pl.concat([each.rows for each in found], how="diagonal_relaxed")
    features = pl.concat([each.features for each in found], how="diagonal_relaxed")
    return Predictions(rows.tail(limit), features.tail(limit))


def count(ledger: Ledger, problem: str, since: datetime, until: datetime) -> int:
    """Predictions of `since` to `until`, those of both days in blocks that reach beyond included."""
    begin, end = to_micros(since), to_micros(until)
    blocks = _blocks(ledger, problem, since, until)
    return sum(each.rows for each in blocks if each.last >= begin and each.first <= end)


def _find(connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int) -> list[Place]:
    query = sa.select(IDS.c.id, IDS.c.entity, IDS.c.at).where(condition).order_by(IDS.c.at.desc()).limit(limit)
    return [Place(row.id, row.entity, _moment(row.at)) for row in connection.execute(query)]


def _blocks(ledger: Ledger, problem: str, since: datetime, until: datetime) -> Sequence[Any]:
    """The blocks of the days of `since` to `until`, both inclusive, by their first prediction, the newest first."""
    columns = BLOCKS.c.first, BLOCKS.c.last, BLOCKS.c.rows, BLOCKS.c.first_day, BLOCKS.c.last_day
    days = BLOCKS.c.date.between(to_days(since), to_days(until))
    with ledger.connect() as connection:
        query = sa.select(*columns).where(BLOCKS.c.problem == problem, days).order_by(BLOCKS.c.first.desc())
        return connection.execute(query).all()


def _parts(blocks: Sequence[Any], rows: int) -> Iterator[list[Any]]:
    """Neighbouring blocks with at least so many rows together; the last part may have fewer."""
    part, height = list[Any](), 0
    for each in blocks:
        part.append(each)
        height += each.rows
        if height >= rows:
            yield part
            part, height = [], 0
    if part:
        yield part


def _has_labels(ledger: Ledger, problem: str, part: Sequence[Any], known: dict[int, list[int] | None]) -> bool:
    """Whether these blocks may have labels. `known`: day -> what `_labelled_at` found, kept for the next part."""
    for block in part:
        for day in range(block.first_day, block.last_day + 1):
            if day not in known:
                known[day] = _labelled_at(ledger, problem, day)
            moments = known[day]
            if moments is None or any(block.first <= at <= block.last for at in moments):
                return True
    return False


def _labelled_at(ledger: Ledger, problem: str, day: int) -> list[int] | None:
    """When the predictions of a day with a label were made. None: any may have one, for there are many labels, or labels for
    entities."""
    labels = sa.select(LABELS.c.id).where(LABELS.c.problem == problem, LABELS.c.day == day).limit(FEW + 1)
    with ledger.connect() as connection:
        ids = connection.execute(labels).scalars().all()
        if len(ids) > FEW or None in ids:
            return None
        named = label_matching.is_of(connection, problem) & IDS.c.id.in_(ids)
        return list(connection.execute(sa.select(IDS.c.at).where(named)).scalars()) if ids else []


def _moment(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)
