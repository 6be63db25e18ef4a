"""Bring the tables of an earlier Evergreen to the present ones, with Alembic's steps in flows/migrations.

All steps are one transaction: after a kill, or without space, the database is as it was. Steps keep every row; see
tests/flows/operations/schemas for the schemas that they start from. Servers of the earlier version would write into tables
that they do not know, so none may run.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from evergreen.flows import migrations
from evergreen.tasks.core import database, schema_revision
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.release.deployments import as_utc
from evergreen.tasks.release.server_reports import SERVER_TIMEOUT

STEPS = Path(migrations.__file__).parent
OF = "deployments, events and predictions"


class Upgrade(NamedTuple):
    address: str
    """Of the database, without its password."""
    before: str | None
    """Its revision; "": a version without revisions wrote it, None: it has no tables of Evergreen."""
    after: str | None


def run(address: str, dry_run: bool = False) -> Upgrade:
    """Upgrade the database at the SQLAlchemy `address`; nothing is done where its tables are the newest, or where it has none.

    `dry_run`: only tell; `after` is then the revision that an upgrade would reach.

    Raises ProjectError where a newer Evergreen wrote it, where a server uses it, or where it cannot be used.
    """
    engine = database.open_engine(address, OF)
    shown = engine.url.render_as_string(hide_password=True)
    try:
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
            return Upgrade(shown, None, None)
        return _upgrade(engine, shown, dry_run)
    except SQLAlchemyError as error:
        raise database.unusable(engine, OF, error) from error
    finally:
        engine.dispose()


def _upgrade(engine: sa.Engine, shown: str, dry_run: bool) -> Upgrade:
    with engine.begin() as link:
        database.lock(link, schema_revision.TABLE.name)
        before = schema_revision.read(link)
        if before is None or before == schema_revision.NEWEST:
            return Upgrade(shown, before, before)
        if schema_revision.is_newer(before):
            schema_revision.require_newest(before, shown)
        if dry_run:
            return Upgrade(shown, before, schema_revision.NEWEST)
        _require_no_server(link, shown)
        _run_steps(link)
        after = schema_revision.read(link)
    if after != schema_revision.NEWEST:
        raise ProjectError(
            f"{shown}: the steps of the upgrade end at {after or 'no revision'}, not at {schema_revision.NEWEST}"
        )
    return Upgrade(shown, before, after)


def _require_no_server(link: sa.Connection, shown: str) -> None:
    """Raise ProjectError where a server has reported lately. Every version's servers report each second, and sign off."""
    if not {"server", "at"} <= schema_revision.columns(link, "servers"):
        return
    servers = sa.table("servers", sa.column("server", sa.String), sa.column("at", sa.DateTime(timezone=True)))
    rows = link.execute(sa.select(servers.c.server, servers.c.at).order_by(servers.c.server)).all()
    now = datetime.now(UTC)
    if alive := sorted({str(row.server) for row in rows if abs(as_utc(row.at) - now) < SERVER_TIMEOUT}):
        raise ProjectError(
            f"{shown}: {len(alive)} servers reported within the last {SERVER_TIMEOUT.seconds} s ({', '.join(alive[:3])}). "
            "Nothing is changed. Stop them, or wait that long after one was killed, and run evergreen upgrade again."
        )


def _run_steps(link: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(STEPS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = link
    command.upgrade(config, "head")
