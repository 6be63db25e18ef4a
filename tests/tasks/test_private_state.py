"""State is closed to other users from the moment when it is made, whatever the umask."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.monitoring.ledger.spool import Spool
from evergreen.serving.keys import Keys
from evergreen.tasks.core.paths import Layout, locking, make_folder, write_json
from evergreen.tasks.release.model_registry import Registry


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def make_spool(layout: Layout) -> None:
    Spool(layout.var / "spool", durable=False).close()


def make_lock(layout: Layout) -> None:
    with locking(layout.var / "train.lock", "train"):
        pass


def make_database(layout: Layout) -> None:
    Keys(f"sqlite:///{layout.var / 'evergreen.db'}")


def make_registry(layout: Layout) -> None:
    Registry(f"sqlite:///{layout.var / 'mlflow.db'}", str(layout.var / "artifacts"), layout.root)
    assert mode(layout.var / "mlflow.db") == 0o600


def make_log_folder(layout: Layout) -> None:
    make_folder(layout.var / "logs" / "deep")


def make_costs(layout: Layout) -> None:
    write_json(layout.cost("train", "redeem"), {})


@pytest.mark.parametrize("make", [make_spool, make_lock, make_database, make_registry, make_log_folder, make_costs])
def test_whoever_makes_the_state_folder_first_closes_it(tmp_path, make):
    layout = Layout(tmp_path)
    make(layout)
    assert mode(layout.var) == 0o700
    make(layout)
    assert mode(layout.var) == 0o700


def test_a_database_outside_the_project_is_closed_with_its_logs(tmp_path):
    address = tmp_path / "elsewhere" / "keys.db"
    keys = Keys(f"sqlite:///{address}")
    keys.add("till", ["predict"])
    modes = {path.name: mode(path) for path in address.parent.iterdir()}
    assert modes == dict.fromkeys(("keys.db", "keys.db-wal", "keys.db-shm"), 0o600)


def test_a_folder_of_the_user_and_an_existing_database_keep_their_modes(tmp_path):
    make_folder(tmp_path / "data" / "raw")
    assert mode(tmp_path / "data") == 0o777
    path = tmp_path / "old.db"
    sqlite3.connect(path).close()
    path.touch()
    path.chmod(0o640)
    Keys(f"sqlite:///{path}").add("till", ["predict"])
    assert mode(path) == 0o640
