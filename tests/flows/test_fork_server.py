"""A forked step behaves as a process of its own: result, exit code, environment, group, and its end with the parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.flows import child_process, fork_server
from evergreen.flows.fork_server import Fork
from tests import hostile_modules
from tests.flows.test_child_process import is_running

PROBE = """
import os, sys, time
print(os.environ["EVERGREEN_PROBE"], os.getcwd(), os.getpgrp() == os.getpid(), *sys.argv[1:], "sklearn" in sys.modules)
import polars
assert polars.DataFrame({"a": range(1000)}).lazy().group_by(polars.col("a") % 7).len().collect(engine="streaming").height == 7
print("a line", file=sys.stderr)
if sys.argv[1] == "sleep":
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""
PARENT = """
import sys, time
from pathlib import Path
from evergreen.flows import fork_server
with fork_server.running(Path.cwd()):
    step = fork_server.start("http.server", "--bind", "127.0.0.1", "0", cwd=Path.cwd(), stdout=open("out", "w"))
    print(step.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the module `probe`, while a fork server runs."""
    folder = tmp_path_factory.mktemp("probes")
    (folder / "probe.py").write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        with fork_server.running(Path.cwd()):
            yield folder


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a forked probe."""
    out = folder / "out"
    with out.open("w") as stdout:
        step = fork_server.start("probe", *arguments, cwd=folder.parent, stdout=stdout)
    assert isinstance(step, Fork)
    errors = step.stderr.read()
    return step.wait(), out.read_text(), errors


@pytest.mark.parametrize("code", ["0", "3"])
def test_a_fork_has_its_own_arguments_environment_folder_and_group(code: str, probes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGREEN_PROBE", f"seen {code}")
    found = run(probes, code, "--root", "a b")
    assert found == (int(code), f"seen {code} {probes.parent} True {code} --root a b True\n", "a line\n")


def test_a_fork_is_ended_with_its_group(probes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGREEN_PROBE", "")
    with (probes / "out").open("w") as stdout:
        step = fork_server.start("probe", "sleep", cwd=probes, stdout=stdout)
    assert step.stderr
    assert step.stderr.readline() == "a line\n"
    assert step.poll() is None
    child_process.end(step, signal.SIGTERM)
    assert step.wait() == -signal.SIGTERM
    assert step.poll() == -signal.SIGTERM
    child_process.end(step)  # ended already: nothing to do


def test_an_inner_block_uses_the_server_of_the_outer_one(probes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGREEN_PROBE", "")
    with fork_server.running(probes):
        assert run(probes, "0")[0] == 0
    assert run(probes, "4")[0] == 4


def test_a_fork_dies_with_its_parent_even_if_the_parent_is_killed(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout
        step = int(parent.stdout.readline())
        assert is_running(step)
        parent.kill()
    end = time.monotonic() + 60
    while is_running(step):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_fork_imports_nothing_from_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    marker = hostile_modules.plant(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with fork_server.running(tmp_path), (tmp_path / "out").open("w") as stdout:
        step = fork_server.start("evergreen.tasks", "ingest", cwd=tmp_path, stdout=stdout)
        assert step.stderr
        assert "no params.yaml here" in step.stderr.read()
        assert step.wait() == 1
    assert hostile_modules.imported(marker) == []


def test_a_step_starts_though_the_server_was_killed(tmp_path: Path):
    with fork_server.running(tmp_path), (tmp_path / "out").open("w") as stdout:
        server = fork_server._current[-1]._process
        server.kill()
        server.wait()
        step = fork_server.start("evergreen.tasks", "--help", cwd=tmp_path, stdout=stdout)
        assert isinstance(step, subprocess.Popen)
        assert step.wait() == 0


def test_importing_the_libraries_of_the_server_starts_no_thread_that_a_fork_needs():
    code = (
        "import importlib, os; from evergreen.flows import fork_server;"
        "[importlib.import_module(each) for each in fork_server.LIBRARIES];"
        "others = [each for each in os.listdir('/proc/self/task') if int(each) != os.getpid()];"
        "names = {open(f'/proc/self/task/{each}/comm').read().strip() for each in others};"
        "print(names - {'jemalloc_bg_thd', 'polars-ooc-clea'})"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
