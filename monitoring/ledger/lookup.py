"""Single predictions of the ledger: found by id, by entity or by day, in the order of their index."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import sqlalchemy as sa

from evergreen.monitoring.ledger import label_matching
from evergreen.monitoring.ledger.prediction_rows import VARIANTS, Predictions
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.schema import EPOCH, IDS

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
    found = _find(ledger, problem, IDS.c.id == id, 1)
    return found[0] if found else None


def find_by_entity(ledger: Ledger, problem: str, entity: str, limit: int) -> list[Place]:
    """The newest predictions for an entity, the newest first."""
    return _find(ledger, problem, IDS.c.entity == entity, limit)


def read_day(ledger: Ledger, problem: str, day: date) -> Predictions:
    """All predictions of a day, UTC, without their features."""
    begin = datetime.combine(day, time.min, UTC)
    until = begin + timedelta(days=1) - MOMENT
    return ledger.read(problem, since=begin - MOMENT, until=until, variants=VARIANTS, features=False)


def read_one(ledger: Ledger, problem: str, place: Place) -> Predictions:
    """One prediction with its features and its label; no row if it was deleted in the meantime."""
    found = ledger.read(problem, since=place.at - MOMENT, until=place.at, variants=VARIANTS)
    is_it = found.rows["id"] == place.id
    return Predictions(found.rows.filter(is_it), found.features.filter(is_it) if found.features.width else found.features)


def _find(ledger: Ledger, problem: str, condition: sa.ColumnElement[bool], limit: int) -> list[Place]:
    with ledger.connect() as connection:
        query = sa.select(IDS.c.id, IDS.c.entity, IDS.c.at).where(label_matching.is_of(connection, problem), condition)
        rows = connection.execute(query.order_by(IDS.c.at.desc()).limit(limit)).all()
    return [Place(row.id, row.entity, EPOCH + timedelta(microseconds=row.at)) for row in rows]
