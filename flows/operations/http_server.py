"""The HTTP service as processes: a supervisor, workers that serve, and a drainer that moves predictions to the ledger.

`python -P -m evergreen.flows.operations.http_server` is a worker. A single one inherits the socket of the supervisor, so
connections wait while it is replaced. Each of several opens its own socket on the same port once its models are loaded
(SO_REUSEPORT): the kernel spreads connections evenly over the workers that live. Where all are dead, connections wait in the
supervisor's socket, which the next worker inherits.
docs/decisions/server-supervisor.md compares this with uvicorn's own supervisor.
"""

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.flows import child_process, settings
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import database, garbage, log_limits
from evergreen.tasks.core.errors import ProjectError, StepError
from evergreen.tasks.core.paths import Layout, make_folder

if TYPE_CHECKING:
    from evergreen.serving.app import App
    from evergreen.serving.deployment_watcher import DeploymentWatcher

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that wait for a worker."""
POLL_SECONDS = 0.1
QUICK_SECONDS = 5.0
"""A process that ends this early is restarted after a delay, which doubles each time."""
MAX_DELAY_SECONDS = 30.0
START_SECONDS = 300.0
"""Longest time until the first worker has loaded its models."""
SWITCH_SECONDS = 0.0005
"""Longest time that a thread holds the interpreter while the event loop waits."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


TRAINING_LIBRARIES = "evergreen.serving.recommender_service", "evergreen.tasks.model_files.skops_models"
"""Modules that recommenders, and models without an ONNX form, import. The serving image lacks their libraries."""


@dataclass
class Child:
    process: subprocess.Popen[str]
    started: float
    ended: float | None = None
    gate: int | None = None
    """A standby worker waits until the other end of this pipe closes."""


class Supervisor:
    """The processes of one service. Raises ProjectError if the address cannot be bound, or needs API keys without any.

    `console`: the port of a console beside it, on the same host; None: there is none. `only`: the problems to serve; none: all.
    """

    def __init__(
        self,
        layout: Layout,
        params: Params,
        host: str,
        port: int,
        workers: int,
        console: int | None = None,
        only: Sequence[str] = (),
    ) -> None:
        from evergreen.serving.access_control import AccessControl

        database.expect_answers()
        AccessControl(params.serve, host, settings.keys(layout))  # raises before any worker starts
        self._layout, self._params, self._host, self._count, self._only = layout, params, host, workers, only
        self._socket = bind("serve", host, port) if workers == 1 else reserve("serve", host, port)
        self.url = url_of(self._socket)
        self._status = layout.var / "serving" / str(os.getpid())
        """Folder of the workers' readiness files and metrics."""
        self._workers: list[Child] = []
        self._standby: Child | None = None
        """A worker that has its libraries and waits: imports are most of a start."""
        self._drainer: Child | None = None
        self._console_port = console
        self._console: Child | None = None
        self._delays: dict[str, float] = {}
        """What a child is -> the delay of its next restart: one that cannot start must not delay the others."""
        self._holding = False
        """Whether several workers were dead at once: connections then wait for the next one that starts."""
        self._stopping = False

    def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; open requests finish. `on_ready`: called with the URL once a worker serves.

        Raises StepError if no worker starts.
        """
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._request_stop)
        _remove_stale(self._status.parent)
        make_folder(self._status)
        try:
            self._workers = [self._start_worker() for _ in range(self._count)]
            if self._params.serve.ledger:
                self._drainer = self._start_drainer()
            self._await_first_worker(on_ready)
            if self._console_port is not None:
                self._console = self._start_console(self._console_port)
            while not self._stopping:
                self._replace_dead()
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()
            self._socket.close()
            shutil.rmtree(self._status, ignore_errors=True)

    def _request_stop(self, *_: Any) -> None:
        self._stopping = True

    def _start_worker(self, *gate: int) -> Child:
        """`gate`: the end of a pipe. The worker waits until the other end closes."""
        fd, shared = self._socket.fileno(), self._count > 1 and not self._holding
        place = ("--port", str(self._socket.getsockname()[1])) if shared else ("--fd", str(fd))
        process = child_process.start(
            "evergreen.flows.operations.http_server", "--root", str(self._layout.root), *place, "--host", self._host,
            "--status", str(self._status), *(f"--wait={each}" for each in gate), *(f"--only={each}" for each in self._only),
            cwd=Path.cwd(), env={**dict.fromkeys(THREADS, "1"), **os.environ}, pass_fds=gate if shared else (fd, *gate),
        )  # fmt: skip
        if self._holding:
            self._holding = False
            host, port = self._socket.getsockname()[:2]
            self._socket.close()  # the worker has it now
            self._socket = _reserved("serve", host, port)
        return Child(process, time.monotonic())

    def _hold_connections(self) -> None:
        """Let connections wait while no worker listens; they would be refused. The next worker that starts serves them."""
        self._holding = True
        self._socket.listen(BACKLOG)

    def _start_standby(self) -> Child:
        inner, outer = os.pipe()
        try:
            found = self._start_worker(inner)
        finally:
            os.close(inner)
        found.gate = outer
        return found

    def _next_worker(self) -> Child:
        """The standby worker, or else a new one."""
        found, self._standby = self._standby, None
        if found is None or found.process.poll() is not None:
            return self._start_worker()
        _open_gate(found)
        found.started = time.monotonic()
        return found

    def _start_drainer(self) -> Child:
        environment = {**os.environ, "EVERGREEN_DATABASE": settings.read(self._layout).database}
        folder = str(settings.spool_folder(self._layout))
        process = child_process.start("evergreen.monitoring.ledger.spool", folder, cwd=Path.cwd(), env=environment)
        return Child(process, time.monotonic())

    def _start_console(self, port: int) -> Child:
        process = child_process.start(
            "evergreen.flows.cli.main", "console", "--host", self._host, "--port", str(port), "--root", str(self._layout.root),
            cwd=Path.cwd(),
        )  # fmt: skip
        return Child(process, time.monotonic())

    def _await_first_worker(self, on_ready: Callable[[str], None]) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._stopping and not self._is_ready():
            ended = [each.process.returncode for each in self._workers if each.process.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"exited with code {ended[0]}" if ended else f"is not ready after {START_SECONDS:.0f} s"
                raise StepError(f"serve: a worker {why}; see its output above")
            time.sleep(POLL_SECONDS)
        if not self._stopping:
            on_ready(self.url)

    def _is_ready(self) -> bool:
        return any(self._serves(each) for each in self._workers)

    def _serves(self, worker: Child) -> bool:
        return (self._status / f"{worker.process.pid}.ready").exists()

    def _replace_dead(self) -> None:
        if self._count > 1 and not self._holding and all(each.process.poll() is not None for each in self._workers):
            self._hold_connections()
        for place, each in enumerate(self._workers):
            if self._restart_due(each, "a worker"):
                self._workers[place] = self._next_worker()
        if self._standby and self._restart_due(self._standby, "the standby worker"):
            _open_gate(self._standby)
            self._standby = None
        if self._standby is None and self._params.serve.standby_worker and all(map(self._serves, self._workers)):
            self._standby = self._start_standby()
        if self._drainer and self._restart_due(self._drainer, "the spool drainer"):
            self._drainer = self._start_drainer()
        if self._console and self._console_port is not None and self._restart_due(self._console, "the console"):
            self._console = self._start_console(self._console_port)

    def _restart_due(self, child: Child, name: str) -> bool:
        """Whether a child ended and it is time to replace it: at once, or after a delay if it ended early."""
        if child.process.poll() is None:
            return False
        now = time.monotonic()
        if child.ended is None:
            child.ended = now
            early = now - child.started < QUICK_SECONDS
            delay = self._delays.get(name, 0.0)
            self._delays[name] = min(MAX_DELAY_SECONDS, 2 * delay + POLL_SECONDS) if early else 0.0
            _close_stdin(child.process)
            log.error("%s exited with code %s and is replaced", name, child.process.returncode)
        return now - child.ended >= self._delays[name]

    def _stop(self) -> None:
        """Stop the workers, which finish open requests; then the drainer, which empties the spool."""
        timeout = self._params.serve.timeout_seconds + QUICK_SECONDS
        others = [each for each in (self._standby, self._console) if each]
        _stop([each.process for each in (*self._workers, *others)], timeout)
        if self._drainer:
            _stop([self._drainer.process], timeout)


def _stop(processes: list[subprocess.Popen[str]], timeout: float) -> None:
    for each in processes:
        if each.poll() is None:
            each.send_signal(signal.SIGTERM)
    end = time.monotonic() + timeout
    for each in processes:
        try:
            each.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child_process.end(each)
            each.wait()
        _close_stdin(each)


def _open_gate(standby: Child) -> None:
    if standby.gate is not None:
        os.close(standby.gate)
        standby.gate = None


def _close_stdin(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        with suppress(OSError):
            process.stdin.close()


def status_folders(layout: Layout) -> list[Path]:
    """The status folders of the supervisors of this machine that run."""
    return [each for each in _status_folders(layout.var / "serving") if _runs(each)]


def _remove_stale(folder: Path) -> None:
    """Remove the status folders of supervisors that no longer run."""
    for each in _status_folders(folder):
        if not _runs(each):
            shutil.rmtree(each, ignore_errors=True)


def _status_folders(folder: Path) -> list[Path]:
    return [each for each in folder.glob("*") if each.name.isdigit()] if folder.is_dir() else []


def _runs(status: Path) -> bool:
    return Path(f"/proc/{status.name}").exists()


def bind(command: str, host: str, port: int) -> socket.socket:
    """A socket that listens, for this process or one child. Raises ProjectError if it cannot."""
    found = _bound(command, host, port)
    found.listen(BACKLOG)
    found.set_inheritable(True)
    return found


def reserve(command: str, host: str, port: int) -> socket.socket:
    """A socket that holds the port and does not listen, for `share` of its children. Raises ProjectError if it cannot."""
    with _bound(command, host, port) as free:  # fails where another server listens, of which SO_REUSEPORT would take a share
        free.listen(1)
        port = free.getsockname()[1]
    return _reserved(command, host, port)


def _reserved(command: str, host: str, port: int) -> socket.socket:
    found = _bound(command, host, port, socket.SO_REUSEPORT)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nobody else binds it before a worker listens
    return found


def share(host: str, port: int) -> socket.socket:
    """One of several sockets that listen on a port; the kernel gives each an equal share of the connections."""
    found = _bound("serve", host, port, socket.SO_REUSEPORT)
    found.listen(BACKLOG)
    return found


def _bound(command: str, host: str, port: int, option: int = socket.SO_REUSEADDR) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, proto)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, option, 1)
        found.bind(address)
    except OSError as error:
        raise _unbound(command, host, port, error) from error
    return found


def _unbound(command: str, host: str, port: int, error: OSError) -> ProjectError:
    return ProjectError(f"{command}: cannot bind {host}:{port}: {error.strerror or error}. Choose another --port.")


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def application(
    layout: Layout, params: Params, host: str, status: Path | None = None, only: Sequence[str] = ()
) -> "tuple[App, DeploymentWatcher[Any]]":
    """The application of a worker, with the project's registry, databases and spool, and the deployed versions loaded.

    `only`: the problems to serve; none: all.
    """
    from evergreen.monitoring.ledger import refused_rows
    from evergreen.monitoring.ledger import spool as spools
    from evergreen.serving import model_loading, text_values
    from evergreen.serving.access_control import AccessControl
    from evergreen.serving.app import App
    from evergreen.serving.deployment_watcher import DeploymentWatcher
    from evergreen.serving.fresh_problems import FreshProblems
    from evergreen.serving.loaded_model import LoadedModel
    from evergreen.serving.metrics import Metrics
    from evergreen.serving.prediction_service import PredictionService
    from evergreen.serving.status_endpoints import SpoolState
    from evergreen.tasks.release import serving_files

    params = params.narrow(only)
    database.expect_answers()
    registry, events = settings.registry(layout, patient=False), settings.events(layout)
    ledger = settings.ledger(layout) if params.serve.ledger else None
    folder = settings.spool_folder(layout)
    spool = spools.Spool(folder, params.serve.durable) if params.serve.ledger else None
    if spool and (lost := spool.lost()):
        log.warning("%d predictions were lost so far: served by processes that were killed before they spooled them", lost)

    fresh = FreshProblems(params, layout, lambda: settings.row_log(layout))

    def load_model(problem: str, version: int) -> LoadedModel:
        if serving_files.is_fetched(layout):
            serving_files.fetch(registry, problem, version, layout)
        source = text_values.source(params, problem, layout)
        readers = text_values.readers(source)
        return model_loading.load(params, layout, registry, events, problem, version, readers, source, fresh.of(problem))

    watcher = DeploymentWatcher(
        params, registry, settings.rollouts(layout), load_model, ledger, lambda: spool and spool.failing_since
    )
    watcher.start()
    access = AccessControl(params.serve, host, settings.keys(layout))
    access.start()
    service = PredictionService(params, watcher, spool, ledger, Metrics(status))

    def spool_state() -> SpoolState:
        backlog, refused = spools.backlog_bytes(folder), refused_rows.count(folder)
        return SpoolState(backlog, spool.lost(), refused, spool.waiting, spool.failing_since) if spool else SpoolState(backlog)

    return App(service, access, spool_state, only), watcher


def _wait(gate: int) -> None:
    """Import what a worker needs; return when the other end of the pipe `gate` closes."""
    from evergreen.serving import deployment_watcher, http_protocol, model_loading, prediction_service  # noqa: F401
    from evergreen.tasks.release import model_registry  # noqa: F401

    with suppress(ImportError):
        for name in TRAINING_LIBRARIES:
            import_module(name)
    with os.fdopen(gate) as pipe:
        pipe.read()


def work(
    layout: Layout, host: str, fd: int | None, port: int, status: Path, gate: int | None = None, only: Sequence[str] = ()
) -> None:
    """Serve on the socket `fd`, or else on a share of `port`, until SIGTERM.

    `gate`: the end of a pipe; first wait until the other end closes. `only`: the problems to serve; none: all.
    """
    import uvicorn

    from evergreen.serving import http_protocol

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the supervisor decides when to stop
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if gate is not None:
        _wait(gate)
    params = load(layout.params)
    sys.setswitchinterval(SWITCH_SECONDS)
    app, watcher = application(layout, params, host, status, only)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn handles it, and raises it again once it has stopped
    garbage.keep_loaded()
    config = http_protocol.configure(
        app, params.serve, loop="uvloop", log_config=None, timeout_graceful_shutdown=int(params.serve.timeout_seconds) + 1
    )
    if fd is None:
        while watcher.read_at is None and _others_serve(status):
            time.sleep(POLL_SECONDS)
    bound = share(host, port) if fd is None else socket.socket(fileno=fd)
    try:
        (status / f"{os.getpid()}.ready").touch()
    except OSError as error:
        log.error("the disk takes no file: %s; this worker serves all the same", error)
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        watcher.stop()


def _others_serve(status: Path) -> bool:
    """Whether another worker serves: one that cannot know who serves, as the database does not answer, leaves it alone."""
    return any(Path(f"/proc/{each.stem}").exists() for each in status.glob("*.ready"))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host")
    parser.add_argument("--status", type=Path)
    parser.add_argument("--wait", type=int)
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    log_limits.configure(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("uvicorn.error", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    work(Layout(options.root), options.host, options.fd, options.port, options.status, options.wait, options.only)


if __name__ == "__main__":
    _main()
