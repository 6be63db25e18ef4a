"""Databases of the project's own: how one is opened, a transaction on it, and what to say where it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import SQLAlchemyError

from evergreen.tasks.core.errors import ProjectError


def connect(address: str, of: str, tables: sa.MetaData) -> sa.Engine:
    """The database at the SQLAlchemy `address`; missing tables, or the folder of an SQLite file, are made.

    `of`: what it holds. Raises ProjectError where it cannot be used.
    """
    try:
        engine = sa.create_engine(address, pool_pre_ping=True)
    except (SQLAlchemyError, ImportError) as error:
        raise ProjectError(f"the address of the database of {of}: {str(error).splitlines()[0]}") from error
    try:
        if engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(engine, "connect", _prepare)
            Path(engine.url.database or "").parent.mkdir(parents=True, exist_ok=True)
        _make(engine, tables)
    except (SQLAlchemyError, OSError) as error:
        raise unusable(engine, of, error) from error
    return engine


def _make(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Make what is missing; as often as others may make a part of it at the same moment."""
    for left in reversed(range(1 + sum(1 + len(each.indexes) for each in tables.tables.values()))):
        try:
            tables.create_all(engine)
            return
        except SQLAlchemyError:
            if not left:
                raise


def _prepare(link: Any, _record: Any) -> None:
    """SQLite: readers and a writer at once, patience with another writer, and nothing lost when the power goes."""
    for setting in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = FULL"):
        link.execute(f"PRAGMA {setting}")


@contextmanager
def transaction(engine: sa.Engine, of: str, through: tuple[type[SQLAlchemyError], ...] = ()) -> Iterator[sa.Connection]:
    """All or nothing. `of`: what the database holds; `through`: errors that are raised as they are.

    Raises ProjectError, in one line, where the database refuses.
    """
    try:
        with engine.begin() as link:
            yield link
    except through:
        raise
    except SQLAlchemyError as error:
        raise unusable(engine, of, error) from error


def unusable(engine: sa.Engine, of: str, error: Exception) -> ProjectError:
    """The one line, without the address's password."""
    shown = engine.url.render_as_string(hide_password=True)
    return ProjectError(
        f"{shown}: the database of {of} cannot be used: {str(error).splitlines()[0]}. "
        "Check the address, and that the place is not full and can be written."
    )
