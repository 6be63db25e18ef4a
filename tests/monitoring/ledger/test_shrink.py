"""An SQLite file gives its free space back to the disk."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evergreen.monitoring.ledger import upkeep
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.tasks.core.errors import ProjectError


def test_a_file_of_an_earlier_version_gives_space_back_from_now_on(tmp_path: Path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as link:
        link.execute("CREATE TABLE big (content BLOB)")
        link.execute("INSERT INTO big VALUES (zeroblob(1000000))")
        link.commit()
        link.execute("DELETE FROM big")
        link.commit()
        assert link.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    assert Ledger(f"sqlite:///{path}").shrink() > 900_000
    with closing(sqlite3.connect(path)) as link:
        assert link.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    ledger = Ledger(f"sqlite:///{tmp_path / 'new.db'}")
    monkeypatch.setattr(upkeep, "give_space_back", refuse)
    with pytest.raises(
        ProjectError, match=r"new\.db: the database of predictions cannot be used: disk I/O error\. .*free space"
    ):
        ledger.shrink()
