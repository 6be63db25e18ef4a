"""The server of a project, for tests over HTTP."""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from evergreen.tasks.core.paths import Layout
from tests import ROOT


def evergreen(layout: Layout, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project."""
    command = [sys.executable, "-m", "evergreen.flows.cli.main", *words, "--root", str(layout.root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


class Server:
    """`evergreen serve` on a free loopback port. Its output is in `lines`."""

    def __init__(
        self,
        layout: Layout,
        *options: str,
        seconds: float = 120,
        command: Sequence[str] = (sys.executable, "-m", "evergreen.flows.cli.main"),
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`seconds`: how long it may take to start. `env`: None: this process's, without Evergreen's addresses."""
        environment = env or {name: value for name, value in os.environ.items() if not name.startswith("EVERGREEN")}
        self.process = subprocess.Popen(
            [*command, "serve", "--port", "0", "--root", str(layout.root), *options],
            cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._status = layout.var / "serving" / str(self.process.pid)
        atexit.register(self.process.kill)  # if a test fails before `stop`; workers end with it
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Serving at (http://[^\s,]+)", seconds)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """The first group of the first line that matches."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            assert self.process.poll() is None, "\n".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("\n".join(self.lines))

    def workers(self) -> list[int]:
        """The process ids of those that serve."""
        listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in listed.splitlines()]
        return [
            int(pid)
            for pid, parent, args in lines
            if int(parent) == self.process.pid and "evergreen.flows.operations.http_server" in args and self._serves(pid)
        ]

    def _serves(self, pid: str) -> bool:
        return (self._status / f"{pid}.ready").exists()

    def stop(self, signal_: int = signal.SIGTERM) -> int:
        """Stop it. Returns its exit status."""
        self.process.send_signal(signal_)
        code = self.process.wait(60)
        self._reader.join(10)
        self.client.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
