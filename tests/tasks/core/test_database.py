"""Connections to databases that do not answer, are locked, or lie on a full disk."""

import os
import shutil
import signal
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from evergreen.tasks.core import database, schema_revision
from evergreen.tasks.core.errors import ProjectError


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_silent_server_is_an_error_and_no_wait_without_end(silent_port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(database.TIMEOUTS, "connect_timeout", 2)
    monkeypatch.setattr(database, "_impatient", threading.Event())
    with pytest.raises(ProjectError, match=r"the database of events cannot be used: .*timeout"):
        database.connect(f"postgresql+psycopg://me@127.0.0.1:{silent_port}/x", "events", sa.MetaData())


def test_a_server_gives_up_a_connection_whose_other_end_hangs(postgres: str, monkeypatch: pytest.MonkeyPatch):
    """The process of the connection is stopped: the kernel acknowledges for it, and it answers nothing."""
    monkeypatch.setattr(database, "_impatient", threading.Event())
    monkeypatch.setattr(database, "SILENT_SECONDS", 0.5)
    database.expect_answers()
    engine = database.open_engine(postgres, "events")
    stopped: list[int] = []

    def ask(stop_while_asked: bool) -> None:
        with database.transaction(engine, "events") as link:
            stopped.append(link.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
            link.execute(sa.text("SELECT pg_sleep(0.3)"))
            if stop_while_asked:
                os.kill(stopped[-1], signal.SIGSTOP)
                link.execute(sa.text("SELECT 1"))

    try:
        ask(stop_while_asked=False)
        os.kill(stopped[0], signal.SIGSTOP)
        with pytest.raises(ProjectError, match=r"the server has not answered for 0.5 s"):
            ask(stop_while_asked=True)
        assert stopped[0] != stopped[1]  # the pool gave up the first one by itself
    finally:
        for each in stopped:
            os.kill(each, signal.SIGCONT)
        engine.dispose()


def test_a_server_opens_a_database_that_is_away_and_makes_its_tables_before_the_first_transaction(
    postgres: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database, "_impatient", threading.Event())
    database.expect_answers()
    tables, calls, url = sa.MetaData(), list[str](), sa.make_url(postgres)
    some = sa.Table("some", tables, sa.Column("number", sa.Integer))
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place) / "pg"
        away = url.update_query_dict({"host": str(folder)})
        engine = database.connect(away.render_as_string(), "numbers", tables, lambda link: calls.append("first"))
        _make_late(engine, some, calls, lambda: folder.symlink_to(url.query["host"]))  # type: ignore[arg-type]
    assert calls == ["first", "0", "0", "0", "0"]


def _make_late(engine: sa.Engine, some: sa.Table, calls: list[str], start: Callable[[], None]) -> None:
    """Fails twice; then the server is there, and four threads count the rows of a table at once."""
    for _ in range(2):
        with (
            pytest.raises(ProjectError, match=r"the database of numbers cannot be used: .*Check the address"),
            database.transaction(engine, "numbers"),
        ):
            pass
    start()

    def count() -> None:
        with database.transaction(engine, "numbers") as link:
            calls.append(str(link.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    engine.dispose()


def test_limits_of_the_address_win(silent_port: int):
    url = sa.make_url("postgresql+psycopg://me@host/x?connect_timeout=90&keepalives_idle=7")
    assert set(database.TIMEOUTS) - set(database._timeouts(url)) == {"connect_timeout", "keepalives_idle"}
    assert database._timeouts(sa.make_url("sqlite:///x.db")) == {}


def test_a_file_is_opened_while_another_process_writes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 100)
    address, tables = f"sqlite:///{tmp_path / 'a.db'}", sa.MetaData()
    sa.Table("some", tables, sa.Column("number", sa.Integer))
    database.connect(address, "numbers", tables).dispose()
    writer = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with database.transaction(database.connect(address, "numbers", tables), "numbers") as link:
        assert link.execute(sa.text("SELECT number FROM some")).all() == []
        assert link.execute(sa.text("PRAGMA auto_vacuum")).scalar() == 2  # incremental: set when it was new
    writer.close()


TABLES = sa.MetaData()
NOTES = sa.Table("notes", TABLES, sa.Column("text", sa.Text))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with one row, which nobody has open."""
    path = tmp_path / "disk" / "notes.db"
    engine = database.connect(f"sqlite:///{path}", "notes", TABLES)
    with engine.begin() as link:
        link.execute(sa.insert(NOTES).values(text="first"))
    engine.dispose()
    return path


def texts(engine: sa.Engine) -> list[str]:
    with database.transaction(engine, "notes") as link:
        return list(link.execute(sa.select(NOTES.c.text)).scalars())


def fill(disk: Path) -> Path:
    """A file that takes all space."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))
    return ballast


def test_a_full_disk_can_be_read_and_is_named_to_writers(small_disk: Path, file: Path):
    moved = small_disk / "notes.db"
    shutil.copy(file, moved)
    ballast = fill(small_disk)
    engine = database.connect(f"sqlite:///{moved}", "notes", TABLES)
    assert texts(engine) == ["first"]
    with (
        pytest.raises(ProjectError, match=r"notes cannot be used: .*readonly.* free space"),
        database.transaction(engine, "notes") as link,
    ):
        link.execute(sa.insert(NOTES).values(text="second"))
    ballast.unlink()
    with database.transaction(engine, "notes") as link:
        link.execute(sa.insert(NOTES).values(text="second"))
    assert texts(engine) == ["first", "second"]
    engine.dispose()


@pytest.mark.parametrize("revised", [True, False])
def test_tables_that_a_full_disk_did_not_take_are_empty_and_made_once_there_is_space(
    small_disk: Path, file: Path, revised: bool
):
    """`evergreen status` and a server's start read tables that nothing has written yet."""
    if not revised:  # as where another program made the file
        with closing(sqlite3.connect(file)) as plain:
            plain.execute(f"DROP TABLE {schema_revision.TABLE.name}")
    more = sa.MetaData()
    table = sa.Table("later", more, sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text, index=True))
    moved = Path(shutil.copy(file, small_disk / "notes.db"))
    ballast = fill(small_disk)
    engine = database.connect(f"sqlite:///{moved}", "later", more)
    with database.transaction(engine, "later") as link:
        assert link.execute(sa.select(table)).all() == []
    with (
        pytest.raises(ProjectError, match=r"later cannot be used: its tables are not made yet, as the disk is full"),
        database.transaction(engine, "later") as link,
    ):
        link.execute(sa.insert(table).values(id=1))
    ballast.unlink()
    with database.transaction(engine, "later") as link:
        link.execute(sa.insert(table).values(id=1, note="a"))
    with closing(sqlite3.connect(moved)) as plain:
        assert plain.execute("SELECT id, note FROM later").fetchall() == [(1, "a")]
        kept = plain.execute(f"SELECT version_num FROM {schema_revision.TABLE.name}").fetchall()
    assert kept == [(schema_revision.NEWEST,)]
    engine.dispose()


def test_a_log_beside_the_file_is_not_passed_over(file: Path):
    assert database.is_at_rest(file)
    file.with_name(f"{file.name}-wal").write_bytes(b"x")
    assert not database.is_at_rest(file)
    assert not database.is_at_rest(file.with_name("other.db"))
