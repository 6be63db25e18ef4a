"""The local Prefect server's database: a new project begins with the user's copy of an empty one."""

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from evergreen.flows.prefect_runtime import server
from evergreen.tasks.core import new_databases
from evergreen.tasks.core.errors import StepError, StorageError
from evergreen.tasks.core.paths import Layout


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's copies, and a server that makes its database when it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PREFECT_API_URL", "PREFECT_HOME", *server.ENVIRONMENT):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(server, "healthy", lambda url: True)
    monkeypatch.setattr(server, "_stop", lambda home, process: None)

    def start(*_: object, cwd: Path, **__: object) -> SimpleNamespace:
        with closing(sqlite3.connect(cwd / "prefect.db")) as made:
            made.execute("CREATE TABLE IF NOT EXISTS runs (name TEXT)")
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(server.child_process, "start", start)
    return tmp_path / "cache" / "evergreen"


def started(root: Path, said: list[str]) -> Path:
    with server.running(Layout(root), said.append) as found:
        found.wait()
    return root / "var" / "prefect" / "prefect.db"


def test_the_second_project_begins_with_a_copy_of_the_first_ones_empty_database(cache: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = started(tmp_path / "first", said)
    (copy,) = cache.iterdir()
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(first)) as database:
        database.execute("INSERT INTO runs VALUES ('mine')")
        database.commit()
    second = started(tmp_path / "second", said)
    with closing(sqlite3.connect(second)) as database:
        assert database.execute("SELECT * FROM runs").fetchall() == []
    assert ["makes its database" in line for line in said] == [True, False]
    started(tmp_path / "first", said)
    with closing(sqlite3.connect(first)) as database:
        assert database.execute("SELECT * FROM runs").fetchall() == [("mine",)]


def test_without_a_folder_for_copies_each_project_makes_its_database(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert started(tmp_path / "first", []).exists()
    assert not cache.exists()


def test_a_user_without_a_home_and_a_folder_that_cannot_be_written_hinder_no_start(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("read-only")

    said: list[str] = []
    monkeypatch.setattr(new_databases, "writing", refuse)
    assert started(tmp_path / "first", said).exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", refuse_home)
    assert started(tmp_path / "second", said).exists()
    assert ["makes its database" in line for line in said] == [True, True]


def refuse_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_database_elsewhere_leaves_no_copy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.child_process, "start", lambda *_, **__: SimpleNamespace(pid=1))
    assert not started(tmp_path / "first", []).exists()
    assert not cache.exists()


def test_a_server_that_fails_ends_the_command_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    request = httpx.Request("POST", "http://127.0.0.1:9/api/flow_runs/7/set_state")
    error = PrefectHTTPStatusError("500", request=request, response=httpx.Response(500, request=request))
    with (
        pytest.raises(StepError, match=r"at http://127\.0\.0\.1:9/api failed: 500 for /api/flow_runs/7/set_state\. .*space"),
        server.running(Layout(tmp_path), print),
    ):
        raise error


def test_other_errors_of_the_block_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ZeroDivisionError, match="division"), server.running(Layout(tmp_path), print):
        _ = 1 / 0
