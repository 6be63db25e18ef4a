"""The Prefect server that a command talks to: the one PREFECT_API_URL names, one that runs for this project, or its own.

Imports no prefect at the top: a server is started first and needs 4 to 20 seconds, in which the command imports its libraries.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from evergreen.flows import child_process
from evergreen.tasks.core import new_databases
from evergreen.tasks.core.errors import ProjectError, StepError
from evergreen.tasks.core.paths import Layout, make_folder, read_json, write_json

PATIENCE_SECONDS = 180
"""A first start makes the database, which takes a minute on a busy machine."""

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal shows steps, not Prefect's own lines
    "PREFECT_LOGGING_EXTRA_LOGGERS": "evergreen",  # our lines go into the run's log
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
OWN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT__SERVER_FINAL": "1",
}
BRIEF = {"PREFECT__SERVER_EPHEMERAL": "1"}
"""For a server without schedules."""


@dataclass
class Server:
    """A Prefect API at `url`; `process` is None where somebody else runs it."""

    url: str
    log: Path
    process: subprocess.Popen[str] | None = None
    new: Path | None = None
    """The database that it makes; None where there is one."""

    def wait(self) -> None:
        """Return when it answers. Raises StepError where it ended or stays silent for `PATIENCE_SECONDS`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not healthy(self.url):
            if self.process is None:
                raise StepError(f"the Prefect server at {self.url} does not answer. Start it, or unset PREFECT_API_URL.")
            if self.process.poll() is not None:
                raise StepError(f"the local Prefect server ended with code {self.process.returncode}; {self.log} says why.")
            if time.monotonic() > end:
                raise StepError(f"the local Prefect server is silent after {PATIENCE_SECONDS} s; {self.log} says why.")
            time.sleep(0.1)
        if self.new:
            new_databases.keep("prefect", self.new)
            self.new = None


@contextmanager
def running(layout: Layout, say: Callable[[str], None], scheduling: bool = False) -> Iterator[Server]:
    """A server for the block, perhaps not ready yet (`Server.wait`). One that this starts ends with the block.

    `scheduling`: it also makes the runs of schedules.

    Sets PREFECT_API_URL and its like in this process, so do it before the first import of prefect. Raises StepError where the
    server refuses a request of the block, as on a full disk.
    """
    with _running(layout, say, scheduling) as found, _one_line(found):
        yield found


@contextmanager
def _one_line(server: Server) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from prefect.exceptions import PrefectHTTPStatusError  # here: the block has imported it

        if not isinstance(error, PrefectHTTPStatusError):
            raise
        why = f"{error.response.status_code} for {error.request.url.path}"
        raise StepError(
            f"the Prefect server at {server.url} failed: {why}. Look at it and at the space for its database, "
            "then run the same command again."
        ) from error


@contextmanager
def _running(layout: Layout, say: Callable[[str], None], scheduling: bool) -> Iterator[Server]:
    home = layout.var / "prefect"
    for name, value in {**ENVIRONMENT, "PREFECT_HOME": str(home)}.items():
        os.environ.setdefault(name, value)
    named = address(layout)
    if named:
        yield _use(Server(named, home / "server.log"))
        return
    first = not (home / "prefect.db").exists() and not new_databases.exists("prefect")
    say(f"starting the local Prefect server ({'the first start makes its database, about 20 s' if first else 'about 5 s'})")
    found = _use(_start(home, scheduling))
    try:
        yield found
    finally:
        del os.environ["PREFECT_API_URL"]
        _stop(home, found.process)


def healthy(url: str) -> bool:
    """Whether a Prefect API responds at `url`."""
    with (
        suppress(OSError, ValueError, HTTPException),
        build_opener(ProxyHandler({})).open(f"{url}/health", timeout=5) as response,
    ):
        return response.status == 200
    return False


def _use(server: Server) -> Server:
    os.environ["PREFECT_API_URL"] = server.url
    return server


def address(layout: Layout) -> str | None:
    """The address of a server that PREFECT_API_URL names, or that another command of this project runs now."""
    return os.environ.get("PREFECT_API_URL") or _already(layout.var / "prefect")


def run_page(run: str) -> str | None:
    """Where a person reads a run of a flow: in the UI that PREFECT_UI_URL names, or in that beside the API of PREFECT_API_URL.

    None without such an address: the server that a command starts for itself has no UI.
    """
    parts = urlsplit(os.environ.get("PREFECT_UI_URL") or os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api"))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    host = parts.netloc.rpartition("@")[2]  # without a password
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/runs/flow-run/{run}"


def _already(home: Path) -> str | None:
    """The address of a server that another command of this project runs now."""
    with suppress(FileNotFoundError, ProjectError, KeyError, TypeError):  # a note that says nothing is no note
        url = read_json(home / "server.json")["url"]
        return url if healthy(url) else None
    return None


def _start(home: Path, scheduling: bool) -> Server:
    make_folder(home)
    database = home / "prefect.db"
    if not database.exists():
        new_databases.copy("prefect", database)
    new = None if database.exists() else database
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "error")
    with (home / "server.log").open("w") as log:
        process = child_process.start(
            "uvicorn", "--factory", "prefect.server.api.server:create_app", *address,
            cwd=home, env={**os.environ, **OWN, **({} if scheduling else BRIEF)}, stdout=log, stderr=log,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}/api", home / "server.log", process, new)
    write_json(home / "server.json", {"url": server.url, "pid": process.pid, "port": port})
    return server


def _stop(home: Path, process: subprocess.Popen[str] | None) -> None:
    (home / "server.json").unlink(missing_ok=True)
    if process is None:
        return
    child_process.end(process, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        child_process.end(process)
        process.wait()
    if process.stdin:
        process.stdin.close()
