"""Tables, columns and recorded decisions get the names of the field: looks are monitoring runs, truths are labels."""

import json
from typing import Any, cast

import sqlalchemy as sa
from alembic import op

from evergreen.flows.migrations.tables import rename_columns, rename_table
from evergreen.tasks.core.schema_revision import columns

revision = "0001"
down_revision = None

TABLES = {"looks": "monitoring_runs", "refused_events": "rejected_events", "truths": "labels"}
COLUMNS = {
    "prediction_blocks": {"answers": "outputs"},
    "predictions": {"place": "position"},
    "retrainings": {"ground": "trigger", "begun": "started"},
    "rollout_counts": {"new": "candidate"},
    "servers": {"trouble": "error"},
}
KEYS = {"what": "aspect", "drifts": "significant", "ground": "trigger"}
"""Of a recorded decision, at any depth."""
POLICY = {
    "max_error_gain": "max_error_increase",
    "quality": "compare_quality",
    "patience_hours": "timeout_hours",
    "otherwise": "on_timeout",
}
"""Of the policy that a rollout began with."""
TRIGGERS = {"loss": "performance"}


def upgrade() -> None:
    link = op.get_bind()
    if columns(link, "truths") and columns(link, "labels"):
        _drop_replaced_rows(link)
    for old, new in TABLES.items():
        rename_table(link, old, new)
    for table, names in COLUMNS.items():
        rename_columns(link, table, names)
    if columns(link, "monitoring_runs"):
        _rename_in_decisions(link)
    if columns(link, "deployments"):
        _rename_in_policies(link)
    if columns(link, "retrainings"):
        for old, new in TRIGGERS.items():
            statement = sa.text('UPDATE retrainings SET "trigger" = :new WHERE "trigger" = :old')
            link.execute(statement, {"old": old, "new": new})


def _drop_replaced_rows(link: sa.Connection) -> None:
    """A later version has made labels beside the truths. Numbers order labels, and rows of truths get new ones: such a row
    is dropped where a label, which is newer, replaces it."""
    same = "labels.problem = truths.problem AND (labels.id = truths.id OR labels.entity = truths.entity AND "
    same += "COALESCE(labels.second, labels.day) = COALESCE(truths.second, truths.day))"
    link.exec_driver_sql(f"DELETE FROM truths WHERE EXISTS (SELECT 1 FROM labels WHERE {same})")


def _rename_in_decisions(link: sa.Connection) -> None:
    runs = sa.table("monitoring_runs", sa.column("problem"), sa.column("until"), sa.column("decision"))
    for row in link.execute(sa.select(runs)).all():
        told = json.dumps(_renamed(json.loads(row.decision)))
        same = (runs.c.problem == row.problem, runs.c.until == row.until)
        link.execute(sa.update(runs).where(*same).values(decision=told))


def _rename_in_policies(link: sa.Connection) -> None:
    rows = sa.table("deployments", sa.column("id"), sa.column("action"), sa.column("evidence", sa.JSON))
    for row in link.execute(sa.select(rows).where(rows.c.action == "begin")).all():
        policy = {POLICY.get(name, name): value for name, value in row.evidence.get("policy", {}).items()}
        changed = {**row.evidence, "policy": policy}
        link.execute(sa.update(rows).where(rows.c.id == row.id).values(evidence=changed))


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(each) for each in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    made = {KEYS.get(name, name): _renamed(each) for name, each in cast(dict[str, Any], value).items()}
    return {**made, "trigger": TRIGGERS.get(made["trigger"], made["trigger"])} if "trigger" in made else made
