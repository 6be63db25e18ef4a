"""Labels that broke a rule, with the rule: kept so that somebody can mend and send them again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from evergreen.monitoring.ledger.schema import EPOCH, REJECTED_LABELS, ROWS_PER_STATEMENT, chunk, to_micros

MOST = 1_000
"""The newest labels that are kept of each problem."""
MAX_CHARACTERS = 2_000
"""A longer label is cut."""


@dataclass(frozen=True, slots=True)
class KeptLabel:
    """A label as it was sent, and why it was rejected."""

    at: datetime
    """When it was sent."""
    label: str
    """As JSON; cut after MAX_CHARACTERS."""
    reason: str


def add(connection: sa.Connection, problem: str, rejected: Sequence[tuple[object, str]]) -> None:
    """Keep labels with their reasons, in the transaction of `connection`; the oldest above MOST are removed."""
    now = to_micros(datetime.now(UTC))
    rows = [
        {"problem": problem, "at": now, "label": _as_json(label), "reason": reason[:MAX_CHARACTERS]}
        for label, reason in rejected[-MOST:]
    ]
    for part in chunk(rows, ROWS_PER_STATEMENT):
        connection.execute(sa.insert(REJECTED_LABELS), part)
    number, own = REJECTED_LABELS.c.number, REJECTED_LABELS.c.problem == problem
    last = sa.select(number).where(own).order_by(number.desc()).offset(MOST).limit(1)
    if (oldest := connection.scalar(last)) is not None:
        connection.execute(sa.delete(REJECTED_LABELS).where(own, number <= oldest))


def read(connection: sa.Connection, problem: str) -> list[KeptLabel]:
    """The kept labels of a problem, oldest first."""
    query = sa.select(REJECTED_LABELS).where(REJECTED_LABELS.c.problem == problem).order_by(REJECTED_LABELS.c.number)
    return [KeptLabel(EPOCH + timedelta(microseconds=row.at), row.label, row.reason) for row in connection.execute(query)]


def _as_json(label: object) -> str:
    """Characters beyond ASCII are escaped: no database stores half of one."""
    return json.dumps(label, default=str)[:MAX_CHARACTERS]
