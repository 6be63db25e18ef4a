"""A full disk or a kill at any write of a verb: one line, and the same command again leaves what one run leaves.

`python -m bench.write_faults` tries more verbs and more places.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evergreen.tasks.core.paths import Layout, truncated_parquet
from tests import projects
from tests.projects import Deployed
from tests.write_faults import Fault, WriteFaults, has_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_compiler(), reason="needs Linux and a C compiler"),
]
COMMANDS = {
    "labels": ("labels", "dear", "--data", "labels.csv"),
    "rollback": ("rollback", "dear", "--to", "1", "--reason", "a fault"),
    "keys": ("keys", "add", "ann", "--scope", "predict"),
}
PARTS = (0.4, 0.9)
"""Of the writes of an undisturbed run; their number varies a little."""


@pytest.fixture(scope="module")
def project(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """`dear` with two versions; copies of it live in the folder beside it."""
    layout = deployed(tmp_path_factory.mktemp("faults") / "begin", ("dear",))
    projects.deploy(layout, "dear", "logistic", C=0.1)
    (layout.root / "labels.csv").write_text("id,label\na1,1\na2,0\n")
    return layout


@pytest.fixture(scope="module")
def faults(project: Layout) -> Iterator[Any]:
    """`run` a command with a fault, in a project at `root` that is a `copy` of the one that is given."""
    folder = project.root.parent
    tools, work = folder / "tools", folder / "work"
    tools.mkdir()
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN")}
    libraries = (
        "evergreen.tasks.release.mlflow_store",
        "evergreen.monitoring.ledger.predictions",
        "evergreen.monitoring.report.page",
    )
    made = WriteFaults(tools, work, {**environment, "TMPDIR": str(tools)}, libraries)
    root = work / "shop"

    def copy() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(project.root, root, symlinks=True)

    yield SimpleNamespace(run=made.run, copy=copy, root=root)
    made.close()


def left(root: Path) -> dict[str, Any]:
    """Rows of each table of the database, and the moves of the champion."""
    with closing(sqlite3.connect(root / "var" / "evergreen.db")) as link:
        names = [name for (name,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        found: dict[str, Any] = {name: link.execute(f'SELECT count(*) FROM "{name}"').fetchone() for name in names}
        found["deployments"] = link.execute("SELECT version, action FROM deployments ORDER BY id").fetchall()
    return found


@pytest.mark.parametrize("fault", ["full", "killed"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_with_a_fault_at_a_write_is_one_line_and_succeeds_again(faults: Any, name: str, fault: Fault):
    faults.copy()
    whole = faults.run(COMMANDS[name], cwd=faults.root)
    assert whole.code == 0, whole.stderr
    expected = left(faults.root)
    for number in (1 + int(part * whole.calls) for part in PARTS):
        faults.copy()
        ended = faults.run(COMMANDS[name], number, fault, cwd=faults.root)
        assert ended.place, "the fault happened"
        assert fault == "killed" or ended.is_clear, ended.stderr
        assert truncated_parquet(Layout(faults.root)) is None
        for path in (faults.root / "models").rglob("*.json"):
            json.loads(path.read_text())
        again = faults.run(COMMANDS[name], cwd=faults.root)
        assert again.is_clear, again.stderr
        assert left(faults.root) == expected, ended.place
