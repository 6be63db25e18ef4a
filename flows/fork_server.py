"""A fork server for steps: it imports their libraries once, and each step is a fork of it.

`python -P -m evergreen.flows.fork_server FD` serves the socket FD. A step keeps what it has as a process of its own: its
environment, exit code, memory, process group, and its end when the parent ends.
"""

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO

from evergreen.flows import child_process
from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.core import garbage

LIBRARIES = (
    "scipy.stats",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.cluster",
    "sklearn.mixture",
    "lightgbm",
    "optuna",
    "skops.io",
    "great_expectations",
    "evergreen.tasks.problems.classification.kind",
    "evergreen.tasks.problems.regression.kind",
    *(f"evergreen.tasks.{step}" for step in STEPS if step != "explain"),
)
"""What most steps import, and the steps. No library that starts threads when it is imported, such as onnxruntime, which explain
needs: a fork would lack them. Polars starts its pool with the first query, thus in the fork, and at once only a thread that
removes remains of spilled queries."""
LONGEST = 1 << 17
"""Bytes of a request, at most."""


class Fork:
    """A step that the server forked; `pid`, `stdin`, `stderr`, `returncode`, `poll` and `wait` as of subprocess.Popen."""

    def __init__(self, pid: int, stdin: IO[bytes], stderr: IO[str], status: int) -> None:
        self.pid, self.stdin, self.stderr = pid, stdin, stderr
        self.returncode: int | None = None
        self._status, self._lock = status, threading.Lock()

    def poll(self) -> int | None:
        """The exit code; None while the step runs."""
        return self.returncode if self.returncode is not None or not self._ended(0) else self.wait()

    def wait(self) -> int:
        """Return the exit code once the step has ended; minus the signal that ended it."""
        self._ended(None)
        with self._lock:
            if self.returncode is None:
                self.returncode = int(os.read(self._status, 16) or -signal.SIGKILL)
                os.close(self._status)
        return self.returncode

    def _ended(self, seconds: float | None) -> bool:
        return self.returncode is not None or bool(select.select([self._status], [], [], seconds)[0])


class ForkServer:
    """The server as its client sees it. Threads may share it."""

    def __init__(self, cwd: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=child_process.without_folder(os.environ, cwd),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    def start(self, module: str, *arguments: str, cwd: Path, stdout: IO[str]) -> Fork:
        """As child_process.start, with pipes for stdin and stderr. Raises OSError where the server has ended."""
        request = {"argv": [module, *arguments], "cwd": str(cwd), "env": child_process.without_folder(os.environ, cwd)}
        (stdin, ours), (errors, stderr), (status, ended) = os.pipe(), os.pipe(), os.pipe()
        pid = b""
        try:
            with self._lock:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [stdin, stdout.fileno(), stderr, ended])
                pid = self._socket.recv(16)
            if not pid:
                raise ConnectionError("the fork server has ended")
        finally:
            for each in (stdin, stderr, ended, *(() if pid else (ours, errors, status))):
                os.close(each)
        return Fork(int(pid), os.fdopen(ours, "wb"), os.fdopen(errors, encoding="utf8", errors="replace"), status)

    def close(self) -> None:
        """End the server; steps that run go on."""
        self._socket.close()
        self._process.wait()


_current: list[ForkServer] = []


@contextmanager
def running(cwd: Path) -> Iterator[None]:
    """Fork the steps of the block from one server, unless an outer block has one."""
    if _current:
        yield
        return
    _current.append(ForkServer(cwd))
    try:
        yield
    finally:
        _current.pop().close()


def start(module: str, *arguments: str, cwd: Path, stdout: IO[str]) -> "Fork | subprocess.Popen[str]":
    """Start a step: a fork of the running server, or else a new Python process."""
    with suppress(OSError):  # the server was killed
        if _current:
            return _current[-1].start(module, *arguments, cwd=cwd, stdout=stdout)
    return child_process.start(module, *arguments, cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, bufsize=1)


# --- the server's side


def _serve(requests: socket.socket) -> str | None:
    """Fork a process for each request. Returns None when the client is gone, and in each fork the module to run."""
    ended: dict[int, int] = {}
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([requests, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 512)
            _report(ended)
        if requests not in ready:
            continue
        text, fds, *_ = socket.recv_fds(requests, LONGEST, 4)
        if not text:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of the allocator's threads
            pid = os.fork()
        if not pid:
            for each in (requests.fileno(), wake, alarm, *ended.values(), fds[3]):
                os.close(each)
            return _become(json.loads(text), fds[:3])
        with suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        ended[pid] = fds[3]
        for each in fds[:3]:
            os.close(each)
        requests.send(str(pid).encode())


def _report(ended: dict[int, int]) -> None:
    """Tell the client of each process that has ended."""
    while ended:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with suppress(BrokenPipeError):
            os.write(ended[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ended.pop(pid))


def _become(request: "dict[str, Sequence[str] | dict[str, str] | str]", fds: Sequence[int]) -> str:
    """Take the group, streams, folder, environment and arguments of a request. Returns its module."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for target, each in enumerate(fds):
        os.dup2(each, target)
        os.close(each)
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    sys.argv[:] = request["argv"]
    return sys.argv[0]


def _run(module: str) -> None:
    """Run the module and end the process as Python does, but leave its memory to the system: freeing it takes 0.2 s."""
    code: object = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    if not isinstance(code, int | None):
        sys.exit(str(code))
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # some versions of Great Expectations read it when they are imported
    garbage.collect_seldom()
    for name in LIBRARIES:
        import_module(name)
    if module := _serve(socket.socket(fileno=int(sys.argv[1]))):
        child_process.die_with_parent()
        _run(module)
