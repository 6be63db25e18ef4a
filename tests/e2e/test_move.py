"""A project is trained, moved into another folder with a space, given to another user, and used by every command there."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.e2e.shop import BIN, ENVIRONMENT
from tests.e2e.test_dvc import SMALL, customers

pytestmark = pytest.mark.slow
ANOTHER_USER = 65534
"""User and group that the moved project belongs to, where the tests run as root."""
STATE = ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc", "data", "models", "reports", "var")


class Project:
    """A folder and the user who works there."""

    def __init__(self, root: Path, user: int | None = None) -> None:
        self.root = root
        self.before = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        self.environment = {**ENVIRONMENT, "HOME": str(root.parent)}

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*self.before, *words], cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def evergreen(self, *words: str, code: int = 0) -> str:
        return self.run(str(BIN / "evergreen"), *words, code=code)

    def told(self, *words: str) -> dict:
        return json.loads(self.evergreen(*words, "--json"))

    def serve(self) -> subprocess.Popen[str]:
        command = [*self.before, str(BIN / "evergreen"), "serve", "--port", "0", "--json"]
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def texts(path: Path) -> Iterator[str]:
    """The content of a file; of a database every row."""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as link:
            yield from link.iterdump()
    else:
        yield path.read_bytes().decode("latin-1")


def naming(root: Path, folder: Path) -> list[str]:
    """The files of the state of the project in `root` that name `folder`."""
    files = [path for part in STATE for path in ((root / part).rglob("*") if (root / part).is_dir() else [root / part])]
    found = [path for path in files if path.is_file() and any(str(folder) in text for text in texts(path))]
    return sorted(str(path.relative_to(root)) for path in found)


@pytest.fixture(scope="module")
def homes() -> Iterator[tuple[Path, Project]]:
    """The folder in which a project was trained, scored and monitored, and the project where it is now.

    Not below pytest's folder, which other users cannot enter.
    """
    with tempfile.TemporaryDirectory(prefix="move-") as name:
        yield move(Path(name))


def another_user() -> int | None:
    """Another user, where the tests run as root and that user can run this interpreter; None: the project keeps its user."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return None
    asked = [*Project(Path("/"), ANOTHER_USER).before, str(BIN / "python"), "-c", "import os; print(os.__file__)"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return ANOTHER_USER if found.stdout.strip() == os.__file__ else None


def move(base: Path) -> tuple[Path, Project]:
    old = Project(base / "my shop")
    old.root.mkdir()
    customers().write_csv(old.root / "churn.csv")
    old.evergreen("init", "churn", "--data", "churn.csv", "--target", "churned")
    params = old.root / "params.yaml"
    text = params.read_text()
    for before, after in SMALL.items():
        text = text.replace(before, after)
    params.write_text(text)
    old.run("git", "add", "-A")
    old.run("git", "commit", "-qm", "begin")
    old.evergreen("train")
    old.evergreen("score", "churn", "--data", "churn.csv", "--out", "scored.csv")
    old.evergreen("monitor")
    assert naming(old.root, old.root) == []

    new = base / "another place" / "the shop"
    new.parent.mkdir()
    old.root.rename(new)
    user = another_user()
    if user:
        for path in (base, new.parent, *new.rglob("*"), new):
            os.chown(path, user, user, follow_symlinks=False)
    return old.root, Project(new, user)


def test_a_moved_project_answers_as_before(homes: tuple[Path, Project]):
    _, moved = homes
    assert all(each["ok"] for each in moved.told("doctor").values())
    assert moved.told("status")["churn"]["version"] == 1
    moved.evergreen("score", "churn", "--data", "churn.csv", "--out", "again.csv")
    assert (moved.root / "again.csv").read_bytes() == (moved.root / "scored.csv").read_bytes()
    assert moved.told("train")["problems"]["churn"]["status"] == "unchanged"
    assert json.loads(moved.run("dvc", "status", "--json")) == {}
    assert moved.told("reproduce", "churn")["same"]
    moved.evergreen("report")
    moved.evergreen("export", "churn", "--out", str(moved.root / "bundle"))


def test_a_moved_project_serves(homes: tuple[Path, Project]):
    _, moved = homes
    server = moved.serve()
    try:
        assert server.stdout
        url = json.loads(server.stdout.readline())["url"]
        answer = httpx.post(f"{url}/v1/predict/churn", json={"age": 40, "plan": "a"}, timeout=60)
        assert answer.status_code == 200, answer.text
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def test_a_moved_project_learns_from_new_data_and_rolls_back(homes: tuple[Path, Project]):
    before, moved = homes
    with (moved.root / "churn.csv").open("a") as file:
        file.write(customers(500).tail(200).write_csv(include_header=False))
    moved.evergreen("monitor")
    moved.evergreen("retrain", "churn", "--reason", "more customers")
    champion = moved.told("history", "churn")["champion"]
    assert champion in (1, 2)
    moved.evergreen("rollback", "churn", "--to", str(3 - champion), "--reason", "a try")
    assert moved.told("status")["churn"]["version"] == 3 - champion
    moved.evergreen("why", "churn")
    assert naming(moved.root, before) == []
    assert naming(moved.root, moved.root) == []


def test_a_copy_is_a_project_of_its_own_and_so_is_one_behind_a_link(homes: tuple[Path, Project], tmp_path: Path):
    _, moved = homes
    copy = Project(Path(shutil.copytree(moved.root, tmp_path / "copy of it", symlinks=True)))
    (tmp_path / "link").symlink_to(copy.root)
    shutil.rmtree(copy.root / "var" / "artifacts" / "models")
    found = Project(tmp_path / "link").evergreen("doctor", code=1)
    assert "champion churn" in found
    assert "evergreen train churn" in found
    moved.evergreen("score", "churn", "--data", "churn.csv", "--out", "again.csv")
    told = Project(tmp_path / "link").told("train")
    assert told["problems"]["churn"]["done"][-3:] == ["gate", "register", "deploy"]
    assert Project(tmp_path / "link").told("doctor")["champion churn"]["ok"]
