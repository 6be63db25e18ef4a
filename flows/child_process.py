"""`python -P -m evergreen.flows.child_process MODULE [ARGUMENT ...]`: run a module that never outlives the process that
started it.

The starter keeps the other end of this process's stdin. However the starter ends, by kill -9 too, that end closes, and the
whole process group goes with it: no step is left behind to write files that somebody else now writes.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


def start(module: str, *arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Run `python -m module arguments` in a process group of its own that ends with this process."""
    command = [sys.executable, "-P", "-m", __name__, module, *arguments]
    return subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, process_group=0, text=True, **options)


def end(process: subprocess.Popen[str], signal_: int = signal.SIGKILL) -> None:
    """Send a signal to the whole group of `process`, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal_)


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
