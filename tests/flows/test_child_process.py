"""A child process dies with its parent, and cannot import modules from its working directory."""

import os
import subprocess
import sys
import time
from pathlib import Path

from evergreen.flows import child_process
from tests import hostile_modules

PARENT = """
import subprocess, sys, time
from pathlib import Path
from evergreen.flows import child_process
child = child_process.start("http.server", "--bind", "127.0.0.1", "0", cwd=Path.cwd(), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_child_dies_with_its_parent_even_if_the_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    end = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_child_imports_nothing_from_its_working_directory(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    marker = hostile_modules.plant(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    child = child_process.start(
        "evergreen.tasks", "ingest", cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr
    errors = child.stderr.read()  # not communicate: it closes stdin, which kills the child
    assert child.wait(120) == 1
    assert "no params.yaml here" in errors
    assert hostile_modules.imported(marker) == []


def test_only_the_folder_leaves_pythonpath(tmp_path: Path) -> None:
    kept = child_process.without_folder({"A": "b", "PYTHONPATH": f"{tmp_path}{os.pathsep}/lib/x{os.pathsep}"}, tmp_path)
    assert kept == {"A": "b", "PYTHONPATH": "/lib/x"}
    assert child_process.without_folder({"PYTHONPATH": str(tmp_path)}, tmp_path) == {}
