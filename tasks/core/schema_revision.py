"""The revision of a database's tables. A new database has the newest one; `evergreen upgrade` brings others to it.

Alembic keeps the revision in a table of Evergreen's own, because MLflow may keep its tables, and its revision, in the same
database. Databases of versions without revisions are recognised by their tables.
"""

import sqlalchemy as sa

from evergreen.tasks.core.errors import ProjectError

NEWEST = "0004"
"""The revision of the tables that this code reads and writes; its step stands in flows/migrations/versions."""
TABLE = sa.Table("evergreen_schema", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
"""As Alembic makes it: one row."""
UNREVISED = {
    "api_keys": "digest",
    "deployments": "evidence",
    "events": "basket",
    "labels": "known_at",
    "looks": "decision",
    "monitoring_runs": "decision",
    "prediction_blocks": "features",
    "prediction_cohorts": "matured",
    "prediction_columns": "outputs",
    "prediction_ids": "entity",
    "predictions": "variant",
    "received_rows": "changed",
    "refused_events": "event",
    "rejected_events": "event",
    "rejected_labels": "label",
    "retrainings": "cpu_minutes",
    "rollout_counts": "latency",
    "servers": "candidate",
    "suggestion_answers": "decided",
    "truths": "known_at",
}
"""Tables of versions without revisions -> a column that tells them from another program's table of the same name."""


LAST_UNREVISED = {
    "api_keys": "id name scopes salt digest created revoked problems",
    "deployments": "id problem version action by at reason evidence previous after sha256",
    "events": "number problem id user item basket day quantity place moment recorded changed withdrawn",
    "labels": "number problem id entity day second value known_at",
    "monitoring_runs": "problem until retrain decision recorded withdrawn",
    "prediction_cohorts": "problem week version predictions matured score estimated",
    "prediction_columns": "number problem version date rows first last first_day last_day head outputs features",
    "prediction_ids": "problem period id at day entity block",
    "received_rows": "number problem id table row recorded changed withdrawn",
    "rejected_events": "number problem event reason recorded",
    "rejected_labels": "number problem at label reason",
    "retrainings": "id problem at as_of trigger reason by started ended version promoted cpu_minutes outcome",
    "rollout_counts": "rollout step candidate server requests errors latency",
    "servers": "server problem champion candidate error journal at",
    "suggestion_answers": "id problem decided action until by at reason",
}
"""Tables of the last version without revisions, which are those of revision 0004 -> their columns."""
INDEXES = {
    "api_keys": "one_active_key_per_name",
    "deployments": "ix_deployments_problem",
    "events": "events_by_change",
    "labels": "labels_by_day labels_by_entity labels_by_id",
    "prediction_columns": "prediction_columns_by_date",
    "prediction_ids": "prediction_ids_by_entity",
    "rejected_events": "ix_rejected_events_problem",
}
"""Of those tables -> the indexes that they have besides unique columns."""


def read(link: sa.Connection) -> str | None:
    """The revision of a database: "" where its tables have none, None where Evergreen has no tables there."""
    names = set(sa.inspect(link).get_table_names())
    if TABLE.name in names:
        return link.execute(sa.select(TABLE.c.version_num)).scalar() or ""
    found = (name for name in UNREVISED.keys() & names if UNREVISED[name] in columns(link, name))
    return "" if next(found, None) else None


def columns(link: sa.Connection, table: str) -> set[str]:
    """The names of the columns of a table; none where there is no such table."""
    inspector = sa.inspect(link)
    return {each["name"] for each in inspector.get_columns(table)} if inspector.has_table(table) else set()


def may_be_written(link: sa.Connection, revision: str | None) -> bool:
    """Whether a database whose revision was read as this one needs no steps to have the newest one."""
    return revision is None or (revision == "" and NEWEST == "0004" and _is_last_unrevised(link))


def _is_last_unrevised(link: sa.Connection) -> bool:
    """Whether all of Evergreen's tables have the columns, the indexes and the numbering of the last unrevised version."""
    inspector = sa.inspect(link)
    names = set(inspector.get_table_names())
    if TABLE.name in names:
        return False
    for name in UNREVISED.keys() & names:
        found = columns(link, name)
        if UNREVISED[name] not in found:  # another program's
            continue
        if found != set(LAST_UNREVISED.get(name, "").split()):
            return False
        indexes = {str(each["name"]) for each in inspector.get_indexes(name) if not each.get("duplicates_constraint")}
        if not set(INDEXES.get(name, "").split()) <= indexes:
            return False
    return "labels" not in names or _labels_are_done(link)


def _labels_are_done(link: sa.Connection) -> bool:
    """Whether labels have their day, and numbers that are given once."""
    if UNREVISED["labels"] not in columns(link, "labels"):
        return True
    labels = sa.table("labels", sa.column("day"), sa.column("second"))
    undated = sa.select(sa.literal(1)).where(labels.c.second.is_not(None), labels.c.day.is_(None)).limit(1)
    if link.execute(undated.select_from(labels)).first():
        return False
    if link.dialect.name != "sqlite":
        return True
    made = link.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'labels'").scalar() or ""
    return "AUTOINCREMENT" in str(made).upper()


def statements() -> tuple[sa.schema.CreateTable | sa.Insert, ...]:
    """Those that say that a database without tables has the newest ones from now on."""
    return sa.schema.CreateTable(TABLE), sa.insert(TABLE).values(version_num=NEWEST)


def write(link: sa.Connection) -> str:
    """Say that a database has the newest tables, or none, and gets the newest from now on."""
    for each in statements():
        link.execute(each)
    return NEWEST


def require_newest(revision: str, shown: str) -> None:
    """Raise ProjectError unless `revision` is the newest. `shown`: the database's address, without its password."""
    if revision == NEWEST:
        return
    if is_newer(revision):
        raise ProjectError(
            f"{shown}: the tables have revision {revision}, written by a newer Evergreen; this one knows them up to {NEWEST}. "
            "Install the newer version, or restore a copy of the database from before its upgrade."
        )
    raise ProjectError(
        f"{shown}: the tables are those of an earlier Evergreen ({describe(revision)}; this one needs {NEWEST}). "
        "Stop its servers and schedules, copy the database, and run evergreen upgrade."
    )


def is_newer(revision: str) -> bool:
    """Revisions are numbered; one that is no number of ours was written by code that we do not know."""
    return revision != "" and (not revision.isdecimal() or int(revision) > int(NEWEST))


def describe(revision: str) -> str:
    return f"revision {revision}" if revision else "without a revision"
