"""The HTTP service as processes: one that starts the others and keeps them alive, workers that answer, one that drains.

`python -m evergreen.operations.http_server` is a worker. It takes its socket from the process that started it, so that
connections wait while a
worker that was killed is replaced.
"""

import argparse
import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.flows import child_process, settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ProjectError, StepError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from evergreen.serving.app import App
    from evergreen.serving.deployment_watcher import DeploymentWatcher

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that wait for a worker."""
LOOK_SECONDS = 0.1
QUICK_SECONDS = 5.0
"""A worker that ends so soon waits before it is replaced, twice as long each time."""
MOST_SECONDS = 30.0
STARTING_SECONDS = 300.0
"""A worker loads its models in this time."""
SWITCH_SECONDS = 0.0005
"""A thread beside the event loop gives way so soon."""
KEEP_ALIVE_SECONDS = 75
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class Worker:
    process: subprocess.Popen[str]
    begun: float
    ended: float | None = None


class Service:
    """The processes of one service. Raises ProjectError where the address cannot be had or needs keys that are not there."""

    def __init__(self, layout: Layout, params: Params, host: str, port: int, workers: int) -> None:
        from evergreen.serving.access_control import AccessControl

        AccessControl(params.serve, host, settings.keys(layout))  # it says why the service may not start
        self._layout, self._params, self._host, self._count = layout, params, host, workers
        self._socket = _bind(host, port)
        self.url = _url(self._socket)
        self._notes = layout.var / "serving" / str(os.getpid())
        self._workers: list[Worker] = []
        self._drainer: Worker | None = None
        self._waits: float = 0.0
        self._ending = False

    def run(self, ready: Callable[[str], None]) -> None:
        """Answer until SIGTERM or SIGINT; what is under way is finished then. `ready`: is told the address once it answers.

        Raises StepError where no worker comes to life.
        """
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._end)
        _clear(self._notes.parent)
        self._notes.mkdir(parents=True)
        try:
            self._workers = [self._start() for _ in range(self._count)]
            if self._params.serve.ledger:
                self._drainer = self._drain()
            self._await_first(ready)
            while not self._ending:
                self._replace()
                time.sleep(LOOK_SECONDS)
        finally:
            self._stop()
            self._socket.close()
            shutil.rmtree(self._notes, ignore_errors=True)

    def _end(self, *_: Any) -> None:
        self._ending = True

    def _start(self) -> Worker:
        fd = self._socket.fileno()
        process = child_process.start(
            "evergreen.flows.operations.http_server", "--root", str(self._layout.root), "--fd", str(fd), "--host", self._host,
            "--notes", str(self._notes), cwd=Path.cwd(), env={**dict.fromkeys(THREADS, "1"), **os.environ}, pass_fds=(fd,),
        )  # fmt: skip
        return Worker(process, time.monotonic())

    def _drain(self) -> Worker:
        environment = {**os.environ, "EVERGREEN_DATABASE": settings.read(self._layout).database}
        folder = str(settings.spool_folder(self._layout))
        return Worker(
            child_process.start("evergreen.monitoring.ledger.spool", folder, cwd=Path.cwd(), env=environment), time.monotonic()
        )

    def _await_first(self, ready: Callable[[str], None]) -> None:
        end = time.monotonic() + STARTING_SECONDS
        while not self._ending and not self._ready():
            ended = [each.process.returncode for each in self._workers if each.process.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"ended with code {ended[0]}" if ended else f"is not ready after {STARTING_SECONDS:.0f} s"
                raise StepError(f"serve: a worker {why}; what it said stands above")
            time.sleep(LOOK_SECONDS)
        if not self._ending:
            ready(self.url)

    def _ready(self) -> bool:
        return any((self._notes / f"{each.process.pid}.ready").exists() for each in self._workers)

    def _replace(self) -> None:
        """Another worker, or another drainer, for each that ended by itself."""
        for place, each in enumerate(self._workers):
            if self._is_due(each, "a worker"):
                self._workers[place] = self._start()
        if self._drainer and self._is_due(self._drainer, "the drainer of the journal"):
            self._drainer = self._drain()

    def _is_due(self, process: Worker, what: str) -> bool:
        """Whether it ended and it is time for another: at once, or after a while where it lived but for a moment."""
        if process.process.poll() is None:
            return False
        now = time.monotonic()
        if process.ended is None:
            process.ended = now
            quick = now - process.begun < QUICK_SECONDS
            self._waits = min(MOST_SECONDS, 2 * self._waits + LOOK_SECONDS) if quick else 0.0
            _let_go(process.process)
            log.error("%s ended with code %s; another takes its place", what, process.process.returncode)
        return now - process.ended >= self._waits

    def _stop(self) -> None:
        """Workers finish what is under way; then the journal is drained for the last time."""
        patience = self._params.serve.timeout_seconds + QUICK_SECONDS
        _finish([each.process for each in self._workers], patience)
        if self._drainer:
            _finish([self._drainer.process], patience)


def _finish(processes: list[subprocess.Popen[str]], seconds: float) -> None:
    for each in processes:
        if each.poll() is None:
            each.send_signal(signal.SIGTERM)
    end = time.monotonic() + seconds
    for each in processes:
        try:
            each.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child_process.end(each)
            each.wait()
        _let_go(each)


def _let_go(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        with suppress(OSError):
            process.stdin.close()


def _clear(folder: Path) -> None:
    """What services that are no more left behind."""
    for each in folder.glob("*") if folder.is_dir() else ():
        if each.name.isdigit() and not Path(f"/proc/{each.name}").exists():
            shutil.rmtree(each, ignore_errors=True)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        raise ProjectError(f"serve: cannot bind {host}:{port}: {error.strerror or error}. Choose another --port.") from error
    found.set_inheritable(True)
    return found


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# --- a worker ----------------------------------------------------------------------------------------------------------------


def application(layout: Layout, params: Params, host: str, notes: Path | None = None) -> "tuple[App, DeploymentWatcher[Any]]":
    """The application on the project's registry, databases and journal, its versions loaded."""
    from functools import partial

    from evergreen.monitoring.ledger import spool as journals
    from evergreen.serving import model_loading
    from evergreen.serving.access_control import AccessControl
    from evergreen.serving.app import App
    from evergreen.serving.deployment_watcher import DeploymentWatcher
    from evergreen.serving.metrics import Metrics
    from evergreen.serving.prediction_service import PredictionService

    registry, events = settings.registry(layout), settings.events(layout)
    ledger = settings.ledger(layout) if params.serve.ledger else None
    folder = settings.spool_folder(layout)
    journal = journals.Spool(folder, params.serve.durable) if params.serve.ledger else None
    if journal and (lost := journal.lost()):
        log.warning("%d predictions of processes that were killed were answered and never written, all told", lost)
    watch = DeploymentWatcher(
        params, registry, settings.rollouts(layout), partial(model_loading.load, params, layout, registry, events), ledger
    )
    watch.start()
    access = AccessControl(params.serve, host, settings.keys(layout))
    access.start()
    service = PredictionService(params, watch, journal, ledger, Metrics(notes))
    lag, lost_ = (lambda: float(journals.backlog_bytes(folder))), (lambda: float(journal.lost() if journal else 0))
    return App(service, access, lag, lost_), watch


def work(layout: Layout, host: str, fd: int, notes: Path) -> None:
    """Answer on the socket `fd` until SIGTERM."""
    import uvicorn

    params = load(layout.params)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started this says when to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.setswitchinterval(SWITCH_SECONDS)
    app, watch = application(layout, params, host, notes)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn's turn; it comes back here when it is done
    gc.collect()
    gc.freeze()  # what is loaded now stays: nothing to look through again and again
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="none", lifespan="on", interface="asgi3", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(params.serve.timeout_seconds) + 1,
    )  # fmt: skip
    (notes / f"{os.getpid()}.ready").touch()
    try:
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
    finally:
        watch.stop()


def _main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--root", type=Path)
    given.add_argument("--fd", type=int)
    given.add_argument("--host")
    given.add_argument("--notes", type=Path)
    found = given.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in ("uvicorn.error", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    work(Layout(found.root), found.host, found.fd, found.notes)


if __name__ == "__main__":
    _main()
