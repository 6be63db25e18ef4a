"""Each decision names the one before it, in place of claims and of rows that are not yet in force."""

import sqlalchemy as sa
from alembic import op

from evergreen.flows.migrations.tables import rebuild
from evergreen.tasks.core.schema_revision import columns

revision = "0002"
down_revision = "0001"

DEPLOYMENTS = sa.Table(
    "deployments",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("problem", sa.String(255), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("by", sa.String(255), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("previous", sa.Integer),
    sa.Column("after", sa.Integer),
    sa.UniqueConstraint("problem", "after"),
)
BEFORE = (
    "CASE WHEN action = 'refuse' THEN NULL ELSE COALESCE((SELECT MAX(earlier.id) FROM {old} AS earlier "
    "WHERE earlier.problem = {old}.problem AND earlier.id < {old}.id AND earlier.action <> 'refuse'), 0) END"
)
"""The decision before one on what serves; a refusal changes nothing."""


def upgrade() -> None:
    link = op.get_bind()
    if "in_force" in columns(link, "deployments"):
        # a row that is not in force is a move that a kill ended: the record decides, and the alias follows it
        link.exec_driver_sql("DELETE FROM deployments WHERE NOT in_force")
        if link.dialect.name == "sqlite":
            rebuild(link, DEPLOYMENTS, {"after": BEFORE.format(old="deployments_old")})
        else:
            op.add_column("deployments", sa.Column("after", sa.Integer))
            link.exec_driver_sql(f"UPDATE deployments SET after = {BEFORE.format(old='deployments')}")
            op.create_unique_constraint("deployments_problem_after_key", "deployments", ["problem", "after"])
            op.drop_column("deployments", "in_force")
    for name in ("deployment_turns", "deployment_claims"):
        if columns(link, name):
            op.drop_table(name)
