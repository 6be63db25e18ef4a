"""The ledger keeps predictions by day and column, ids by periods of a month, and numbers of labels that are unique."""

import sqlalchemy as sa
from alembic import op

from evergreen.flows.migrations.tables import rebuild
from evergreen.monitoring.ledger import migration
from evergreen.monitoring.ledger.schema import IDS, LABELS, PERIOD_DAYS
from evergreen.tasks.core.schema_revision import columns

revision = "0003"
down_revision = "0002"

# Blocks are written by the present code. A later step that changes the tables of the ledger keeps what this one needs.


def upgrade() -> None:
    link = op.get_bind()
    if columns(link, "labels"):
        if link.dialect.name == "sqlite" and not _numbers_once(link):
            rebuild(link, LABELS, {})
        migration.date_labels(link)
    if columns(link, "prediction_ids") and "period" not in columns(link, "prediction_ids"):
        rebuild(link, IDS, {"period": _period()})
    if columns(link, "predictions") and columns(link, "prediction_blocks"):
        migration.move(link)


def _numbers_once(link: sa.Connection) -> bool:
    made = link.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'labels'").scalar() or ""
    return "AUTOINCREMENT" in made.upper()


def _period() -> str:
    """Of a day, rounded down: days before 1970 are negative."""
    return f"(day - (((day % {PERIOD_DAYS}) + {PERIOD_DAYS}) % {PERIOD_DAYS})) / {PERIOD_DAYS}"
