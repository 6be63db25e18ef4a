"""Columns and indexes that versions added without a revision."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from evergreen.tasks.core.schema_revision import columns

revision = "0004"
down_revision = "0003"

ADDED: dict[str, tuple[sa.Column[Any], ...]] = {
    "api_keys": (sa.Column("problems", sa.Text),),
    "deployments": (sa.Column("sha256", sa.String(64)),),
    "events": (
        sa.Column("moment", sa.DateTime(timezone=True)),
        sa.Column("changed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("withdrawn", sa.DateTime(timezone=True)),
    ),
    "monitoring_runs": (sa.Column("withdrawn", sa.Text),),
    "servers": (sa.Column("journal", sa.Text),),
}
INDEXES = {
    "api_keys": {"one_active_key_per_name": ("name",)},
    "deployments": {"ix_deployments_problem": ("problem",)},
    "events": {"events_by_change": ("problem", "changed")},
    "labels": {
        "labels_by_day": ("problem", "day", "number"),
        "labels_by_entity": ("problem", "entity"),
        "labels_by_id": ("problem", "id"),
    },
    "prediction_ids": {"prediction_ids_by_entity": ("problem", "period", "entity")},
    "rejected_events": {"ix_rejected_events_problem": ("problem",)},
}
"""Table -> name of an index -> its columns. Others of these tables are dropped."""


def upgrade() -> None:
    link = op.get_bind()
    for table, added in ADDED.items():
        there = columns(link, table)
        for column in added if there else ():
            if column.name not in there:
                op.add_column(table, _copy(column))
    for table, wanted in INDEXES.items():
        if columns(link, table):
            _index(link, table, wanted)


def _copy(column: sa.Column[Any]) -> sa.Column[Any]:
    """A column belongs to one table of one run."""
    return sa.Column(column.name, column.type, nullable=column.nullable, server_default=column.server_default)


def _index(link: sa.Connection, table: str, wanted: dict[str, tuple[str, ...]]) -> None:
    there = [each for each in sa.inspect(link).get_indexes(table) if not each.get("duplicates_constraint")]
    names = {str(each["name"]) for each in there}
    for name in names - set(wanted):
        op.drop_index(name, table)
    for name in set(wanted) - names:
        active = sa.text("revoked IS NULL") if table == "api_keys" else None
        op.create_index(
            name, table, list(wanted[name]), unique=active is not None, sqlite_where=active, postgresql_where=active
        )
