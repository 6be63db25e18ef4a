"""Open the project's databases, run transactions, and report failures in one line."""

import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError, StatementError

from evergreen.tasks.core import schema_revision
from evergreen.tasks.core.errors import ProjectError, RefusedValueError
from evergreen.tasks.core.paths import make_folder

TIMEOUTS = {
    "connect_timeout": 10,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""PostgreSQL: a connection that dies silently ends with an error after at most 10 s. Seconds; the last one milliseconds."""

SILENT_SECONDS = 10.0
"""A server process of ours takes a connection for dead that says nothing for so long, see expect_answers."""
_impatient = threading.Event()

BUSY_MILLISECONDS = 30_000
"""SQLite: a writer waits so long for another one."""
NO_ROOM = ("database or disk is full", "disk I/O error", "unable to open database file", "attempt to write a readonly database")
"""What SQLite says where it cannot make or write its files."""
IS_STAND_IN = "because it is a view"
"""What it says of a write to a table that it had no space to make."""


def connect(address: str, of: str, tables: sa.MetaData, first: Callable[[sa.Connection], None] | None = None) -> sa.Engine:
    """The database at the SQLAlchemy `address`; creates missing tables, and the folder of an SQLite file.

    `of`: its content, for errors. `first`: a transaction before all others. Raises ProjectError if it cannot be used, or if
    another Evergreen wrote its tables. In a server (see expect_answers) a PostgreSQL that does not answer is no error: the
    tables are made before the first transaction.
    """
    engine = open_engine(address, of)
    try:
        if engine.dialect.name == "sqlite":
            make_file(engine.url.database or "")
        _prepare_tables(engine, tables, first)
    except OperationalError as error:
        if engine.dialect.name != "postgresql" or not _impatient.is_set():
            raise unusable(engine, of, error) from error
        sqlalchemy.event.listen(engine, "engine_connect", _Unprepared(partial(_prepare_tables, engine, tables, first)))
    except (SQLAlchemyError, OSError) as error:
        raise unusable(engine, of, error) from error
    return engine


def _prepare_tables(engine: sa.Engine, tables: sa.MetaData, first: Callable[[sa.Connection], None] | None) -> None:
    _make_or_stand_in(engine, tables)
    if first:
        with engine.begin() as link:
            first(link)


class _Unprepared:
    """Prepares a database on the first connection that succeeds. Other threads wait for that."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare, self._lock, self._begun = prepare, threading.RLock(), False

    def __call__(self, _link: sa.Connection) -> None:
        with self._lock:
            if self._begun:  # done, or these are its own connections
                return
            self._begun = True
            try:
                self._prepare()
            except BaseException:
                self._begun = False
                raise


def open_engine(address: str, of: str) -> sa.Engine:
    """The database at the SQLAlchemy `address`, whatever is in it. Raises ProjectError for a bad address."""
    try:
        url = sa.make_url(address)
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=_timeouts(url))
    except (SQLAlchemyError, ImportError) as error:
        raise ProjectError(f"the address of the database of {of}: {str(error).splitlines()[0]}") from error
    if engine.dialect.name == "sqlite":
        sqlalchemy.event.listen(engine, "do_connect", _open)
        sqlalchemy.event.listen(engine, "checkin", _forget_copy)
    elif engine.dialect.driver == "psycopg" and _impatient.is_set():
        sqlalchemy.event.listen(engine, "do_connect", _open_impatient)
    return engine


def expect_answers() -> None:
    """From now on this process gives up a connection to PostgreSQL that is silent for SILENT_SECONDS within a statement, and
    `connect` lets it start where PostgreSQL is away.

    For servers, whose statements are short: a proxy or a server process that hangs keeps acknowledging packets, so TCP's own
    limits (TIMEOUTS) never end the wait.
    """
    _impatient.set()


def _open_impatient(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    from evergreen.tasks.core.impatient_connection import ImpatientConnection

    return ImpatientConnection.connect(*arguments, **options)


def make_file(name: str) -> None:
    """Make the SQLite file `name`, closed to other users if it is new; SQLite gives its log files the same mode."""
    path = Path(name)
    make_folder(path.parent)
    if name not in ("", ":memory:") and not name.startswith("file:") and not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _timeouts(url: sa.URL) -> dict[str, int]:
    """Limits for a PostgreSQL server that went silent, unless the address sets its own."""
    return (
        {name: value for name, value in TIMEOUTS.items() if name not in url.query}
        if url.get_backend_name() == "postgresql"
        else {}
    )


def _make_or_stand_in(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Create what is missing. Tables for which an SQLite file's disk has no space are read as empty, until there is some."""
    try:
        _require_revision(engine)
        _make(engine, tables)
    except OperationalError as error:
        if engine.dialect.name != "sqlite" or not str(error.orig).startswith(NO_ROOM):
            raise
        with engine.connect() as link:
            first = () if schema_revision.read(link) is not None else schema_revision.statements()
        engine.dispose()
        sqlalchemy.event.listen(engine, "connect", partial(_stand_in, engine.dialect, tables, first))
        _make(engine, tables)


def _require_revision(engine: sa.Engine) -> None:
    """Raise ProjectError for tables of another Evergreen. A database without tables gets the newest revision first, and so
    does one that the last version without revisions left: its tables are the same.
    """
    with engine.connect() as link:
        revision = schema_revision.read(link)
        due = schema_revision.may_be_written(link, revision)
    if due:
        with engine.begin() as link:
            lock(link, schema_revision.TABLE.name)
            revision = schema_revision.read(link)  # another process may have been faster
            if schema_revision.may_be_written(link, revision):
                revision = schema_revision.write(link)
    schema_revision.require_newest(revision or "", engine.url.render_as_string(hide_password=True))


def _stand_in(
    dialect: sa.Dialect,
    tables: sa.MetaData,
    first: tuple[sa.schema.CreateTable | sa.Insert, ...],
    link: sqlite3.Connection,
    record: Any,
) -> None:
    """Create the tables that a new connection does not find, or else views of no rows in their place, in memory.

    `first`: what a database gets before its first table of Evergreen, if no other process has made one meanwhile.
    """
    known = {name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    missing = [each for each in tables.sorted_tables if each.name not in known]
    if schema_revision.TABLE.name in known:
        first = ()
    made = [part for each in missing for part in (sa.schema.CreateTable(each), *map(sa.schema.CreateIndex, each.indexes))]
    try:
        if made:
            link.execute("BEGIN IMMEDIATE")
        for part in (*first, *made):
            link.execute(str(part.compile(dialect=dialect, compile_kwargs={"literal_binds": True})))
        link.commit()
    except sqlite3.OperationalError as error:
        link.rollback()
        if not str(error).startswith(NO_ROOM):
            raise
        record.info["at_rest"] = True
        link.execute("PRAGMA temp_store = MEMORY")
        quote = dialect.identifier_preparer.quote
        for each in missing:
            columns = ", ".join(f"NULL AS {quote(column.name)}" for column in each.columns)
            link.execute(f"CREATE TEMP VIEW {quote(each.name)} AS SELECT {columns} WHERE 0")


def _make(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Create missing tables; retry, because other processes may create some of them at the same time."""
    for left in reversed(range(1 + sum(1 + len(each.indexes) for each in tables.tables.values()))):
        try:
            tables.create_all(engine)
            return
        except SQLAlchemyError:
            if not left:
                raise


def _open(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
    """Open an SQLite file. On a full or read-only disk, where SQLite can make no files beside it, it is only read."""
    link = dialect.connect(*arguments, **options)
    try:
        _prepare(link)
        return link
    except sqlite3.OperationalError as error:
        link.close()
        path = Path(arguments[0]).absolute()
        if not str(error).startswith(NO_ROOM) or not is_at_rest(path):
            raise
        record.info["at_rest"] = True
        return dialect.connect(f"{path.as_uri()}?immutable=1", **{**options, "uri": True})


def _prepare(link: Any) -> None:
    """SQLite: concurrent readers, a wait for other writers, durability after power loss; a new file can give space back.

    A file with tables is not written: a reader must neither wait for a writer nor fail on a full disk.
    """
    link.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    if not link.execute("PRAGMA page_count").fetchone()[0]:
        link.execute("PRAGMA auto_vacuum = INCREMENTAL")
    link.execute("PRAGMA journal_mode = WAL")
    link.execute("PRAGMA synchronous = FULL")


def is_at_rest(path: Path) -> bool:
    """Whether all of an SQLite database is in its file."""
    log = path.with_name(f"{path.name}-wal")
    return path.is_file() and path.stat().st_size > 0 and not (log.exists() and log.stat().st_size)


def _forget_copy(_link: Any, record: Any) -> None:
    """A file that was opened at rest is opened again for the next transaction, which may find it changed."""
    if record.info.pop("at_rest", False):
        record.invalidate()


def lock(link: sa.Connection, name: str) -> None:
    """Wait, at the beginning of a transaction, until no other one holds the lock of that name; SQLite has one for all names."""
    if link.dialect.name == "sqlite":
        link.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        link.execute(sa.select(sa.func.pg_advisory_xact_lock(zlib.crc32(name.encode()))))


@contextmanager
def transaction(engine: sa.Engine, of: str, through: tuple[type[SQLAlchemyError], ...] = ()) -> Iterator[sa.Connection]:
    """A transaction. `of`: content of the database, for errors; `through`: errors that pass unchanged.

    Raises ProjectError, in one line, for other errors of the database; RefusedValueError where a value is the cause.
    """
    try:
        with engine.begin() as link:
            yield link
    except through:
        raise
    except SQLAlchemyError as error:
        if _concerns_a_value(error):
            shown = engine.url.render_as_string(hide_password=True)
            raise RefusedValueError(f"{shown}: the database of {of} refuses a value: {str(error).splitlines()[0]}") from error
        raise unusable(engine, of, error) from error


def _concerns_a_value(error: SQLAlchemyError) -> bool:
    """Whether a row is the cause: it has a value that the database or its driver cannot store."""
    before_sending = isinstance(error, StatementError) and not isinstance(error, DBAPIError)
    return before_sending or isinstance(error, DataError | IntegrityError)


def unusable(engine: sa.Engine, of: str, error: Exception) -> ProjectError:
    """A one-line error without the password of the address."""
    shown, reason = engine.url.render_as_string(hide_password=True), str(error).splitlines()[0]
    if IS_STAND_IN in reason:
        reason = "its tables are not made yet, as the disk is full or may not be written"
    return ProjectError(
        f"{shown}: the database of {of} cannot be used: {reason}. Check the address, free space and write permission."
    )
