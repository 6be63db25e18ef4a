"""A new database is copied from the user's cache; where that cannot be, the caller is told to make it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evergreen.tasks.core import new_databases


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evergreen"


def kept(tmp_path: Path, cache: Path) -> Path:
    """The copy of a database with one table."""
    made = tmp_path / "first" / "made.db"
    made.parent.mkdir()
    with closing(sqlite3.connect(made)) as database:
        database.execute("CREATE TABLE runs (name TEXT)")
    new_databases.keep("mlflow", made)
    (copy,) = cache.iterdir()
    return copy


def test_a_copy_is_closed_to_others_and_opens(tmp_path: Path, cache: Path) -> None:
    assert not new_databases.exists("mlflow")
    assert kept(tmp_path, cache).stat().st_mode & 0o777 == 0o600
    second = tmp_path / "second" / "made.db"
    assert new_databases.exists("mlflow")
    assert new_databases.copy("mlflow", second)
    with closing(sqlite3.connect(second)) as database:
        assert database.execute("SELECT * FROM runs").fetchall() == []


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to have a header" * 10])
def test_a_damaged_copy_is_not_used(tmp_path: Path, cache: Path, content: bytes) -> None:
    copy = kept(tmp_path, cache)
    whole = copy.read_bytes()
    second = tmp_path / "second" / "made.db"
    for damaged in (content, whole[: len(whole) // 2]):
        copy.write_bytes(damaged)
        assert not new_databases.copy("mlflow", second)
        assert not second.exists()


def test_no_copy_of_a_database_that_is_elsewhere(tmp_path: Path, cache: Path) -> None:
    new_databases.keep("mlflow", tmp_path / "missing.db")
    assert not cache.exists()
    assert not new_databases.copy("mlflow", tmp_path / "made.db")
