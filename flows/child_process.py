"""`python -P -m evergreen.flows.child_process MODULE [ARGUMENT ...]`: run a child process that dies with its parent.

The parent holds the other end of the child's stdin. However the parent ends, kill -9 included, that end closes, and the child's
whole process group is killed. So no orphaned step keeps writing files.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.tasks.core import garbage

if TYPE_CHECKING:
    from evergreen.flows.fork_server import Fork


def start(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Run `python -P -m module arguments` in its own process group. `options`: of subprocess.Popen.

    Modules in `cwd` are not importable: -P keeps it off sys.path, and PYTHONPATH loses it (a Prefect worker adds it there).
    """
    command = [sys.executable, "-P", "-m", __name__, module, *arguments]
    environment = without_folder(os.environ if env is None else env, cwd)
    return subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.PIPE, process_group=0, text=True, **options)


def end(process: "subprocess.Popen[str] | Fork", signal_: int = signal.SIGKILL) -> None:
    """Send a signal to the whole group of `process`, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal_)


def without_folder(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`environment` without `folder` in PYTHONPATH."""
    found = dict(environment)
    if paths := found.pop("PYTHONPATH", ""):
        kept = [each for each in paths.split(os.pathsep) if each and Path(each).resolve() != folder.resolve()]
        found |= {"PYTHONPATH": os.pathsep.join(kept)} if kept else {}
    return found


def die_with_parent() -> None:
    """Kill the process group of this process when the other end of its stdin closes."""
    threading.Thread(target=_wait_and_die, daemon=True).start()


def _wait_and_die() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    garbage.collect_seldom()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
