"""A project's own modules are never imported, whatever their names: by steps, flows, the server, its workers, the drainer.

tests/e2e hold the same for a training and for a Prefect worker.
"""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from evergreen.flows.prefect_runtime import deployments
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout
from tests import hostile_modules
from tests.projects import Deployed
from tests.serving.server import Server

pytestmark = pytest.mark.slow

EVERGREEN = str(Path(sys.executable).with_name("evergreen"))
HOUSE = {"size": 100.0, "colour": "red", "built": "1990-05-01"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("EVERGREEN", "PREFECT", "PYTHONPATH"))}


@pytest.fixture(scope="module")
def shop(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return deployed(tmp_path_factory.mktemp("isolation") / "shop", ("dear",), "serve: {default_problem: dear}\n")


@pytest.fixture
def marker(shop: Layout) -> Path:
    found = hostile_modules.plant(shop.root)
    found.unlink(missing_ok=True)
    return found


def run(shop: Layout, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder."""
    return subprocess.run(command, cwd=shop.root, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def test_the_hostile_modules_work(shop: Layout, marker: Path, tmp_path: Path) -> None:
    other = tmp_path / "shop"
    other.mkdir()
    planted = hostile_modules.plant(other)
    done = subprocess.run([sys.executable, "-c", "import tasks, queue"], cwd=other, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert hostile_modules.imported(planted) == ["queue", "tasks"]
    assert hostile_modules.imported(marker) == []


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-P", "-m", "evergreen", "ingest"),
        (sys.executable, "-m", "evergreen", "ingest"),
        (EVERGREEN, "status", "--json"),
        (EVERGREEN, "doctor", "--json"),
    ],
    ids=["step", "step without -P", "status", "doctor"],
)
def test_a_command_imports_nothing_of_the_project(shop: Layout, marker: Path, command: Sequence[str]) -> None:
    done = run(shop, *command)
    assert done.stdout.startswith("{"), done.stderr
    assert hostile_modules.imported(marker) == []


def test_the_server_its_worker_and_the_drainer_import_nothing_of_the_project(shop: Layout, marker: Path) -> None:
    server = Server(shop, command=[EVERGREEN], cwd=shop.root, env=ENVIRONMENT)
    id_ = server.client.post("/v1/predict", json=HOUSE).json()["id"]
    assert server.client.get("/docs").status_code == 200
    with sqlite3.connect(shop.var / "evergreen.db") as link:
        end = time.monotonic() + 60
        while not link.execute("select 1 from prediction_ids where id = ?", (id_,)).fetchone():
            assert time.monotonic() < end, server.lines
            time.sleep(0.1)
    assert server.stop() == 0
    assert hostile_modules.imported(marker) == []


def test_a_deployment_runs_outside_the_project_folder_with_a_safe_path(shop: Layout, marker: Path) -> None:
    """Prefect puts the working directory of a run on its path, before the standard library."""
    params = load(shop.params)
    for planned in deployments.plan(params):
        variables = deployments.deployment(planned, params, "pool").job_variables
        assert "working_dir" not in variables
        assert variables["env"]["PYTHONSAFEPATH"] == "1"
        assert str(shop.root) not in str(variables) + str(planned.parameters)
    assert hostile_modules.imported(marker) == []
