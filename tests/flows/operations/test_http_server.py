"""The supervisor of a server's processes."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from evergreen.flows import child_process
from evergreen.flows.operations import http_server
from evergreen.flows.operations.http_server import Child, Supervisor, bind, reserve, share
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.core.paths import Layout
from tests import store


def ended() -> Child:
    """A process that ended as soon as it had begun."""
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], text=True)
    process.wait(30)
    return Child(process, time.monotonic())


def test_a_console_that_cannot_start_delays_no_restart_of_a_worker(tmp_path: Path):
    store.project(tmp_path, households=5, weeks=20)
    layout = Layout(tmp_path)
    supervisor = Supervisor(layout, loading.load(layout.params), "127.0.0.1", 0, 1)
    console, worker = ended(), ended()
    for _ in range(12):
        console.ended = None
        assert not supervisor._restart_due(console, "the console")
    assert not supervisor._restart_due(worker, "a worker")
    assert worker.ended is not None
    worker.ended -= 1  # a second later, while the console waits for half a minute
    assert supervisor._restart_due(worker, "a worker")
    assert not supervisor._restart_due(console, "the console")
    supervisor._socket.close()


def test_each_worker_is_told_the_problems_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store.project(tmp_path, households=5, weeks=20)
    layout, commands = Layout(tmp_path), list[tuple[str, ...]]()
    process = SimpleNamespace(pid=1, poll=lambda: None)
    monkeypatch.setattr(child_process, "start", lambda *words, **_: commands.append(words) or process)
    known = loading.load(layout.params)
    names = [*known.problems][:2]
    supervisor = Supervisor(layout, known.narrow(names), "127.0.0.1", 0, 1, only=names)
    supervisor._start_worker()
    supervisor._socket.close()
    assert [word for word in commands[0] if word.startswith("--only=")] == [f"--only={each}" for each in names]


def accepted(listener: socket.socket) -> int:
    """The connections that wait for a socket."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_each_of_four_workers_gets_its_share_of_connections_and_a_dead_one_none():
    with ExitStack() as stack:
        held = stack.enter_context(reserve("serve", "127.0.0.1", 0))
        address = held.getsockname()[:2]
        workers = [stack.enter_context(share(*address)) for _ in range(4)]
        for _ in range(400):
            stack.enter_context(socket.create_connection(address, timeout=5))
        counts = [accepted(each) for each in workers]
        assert sum(counts) == 400
        assert all(60 <= each <= 140 for each in counts), counts  # four standard deviations are 35
        workers[0].close()
        for _ in range(100):
            stack.enter_context(socket.create_connection(address, timeout=5))
        assert sum(accepted(each) for each in workers[1:]) == 100


@pytest.mark.parametrize("listening", [False, True])
def test_a_port_that_several_workers_share_admits_no_second_server(listening: bool):
    with ExitStack() as stack:
        held = stack.enter_context(reserve("serve", "127.0.0.1", 0))
        host, port = held.getsockname()[:2]
        if listening:
            stack.enter_context(share(host, port))
        for claim in (bind, reserve):
            with pytest.raises(ProjectError, match=rf"serve: cannot bind {host}:{port}: Address already in use"):
                claim("serve", host, port)


def test_connections_wait_while_all_workers_are_dead_and_the_next_worker_inherits_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.project(tmp_path, households=5, weeks=20)
    layout = Layout(tmp_path)
    supervisor = Supervisor(layout, loading.load(layout.params), "127.0.0.1", 0, 2)
    given: list[tuple[str, ...]] = []
    inherited: list[socket.socket] = []

    def start(module: str, *arguments: str, pass_fds: tuple[int, ...], **_: object) -> subprocess.Popen[str]:
        given.append(arguments)
        inherited.extend(socket.socket(fileno=os.dup(each)) for each in pass_fds)
        return subprocess.Popen([sys.executable, "-c", "input()"], text=True, stdin=subprocess.PIPE)

    monkeypatch.setattr(http_server.child_process, "start", start)
    monkeypatch.setattr(supervisor, "_serves", lambda worker: False)
    address = supervisor._socket.getsockname()[:2]
    with pytest.raises(ConnectionRefusedError, match="refused"):
        socket.create_connection(address)
    supervisor._workers = [ended(), ended()]
    for each in supervisor._workers:
        each.started -= 60  # they ran for a minute
    try:
        supervisor._hold_connections()
        with socket.create_connection(address):
            supervisor._replace_dead()
            assert ["--fd" in each for each in given] == [True, False]
            assert accepted(inherited[0]) == 1
        assert not supervisor._holding
        assert supervisor._socket.getsockname()[:2] == address
    finally:
        for each in (*inherited, supervisor._socket):
            each.close()
        for child in supervisor._workers:
            child.process.kill()
            child.process.communicate()


def test_the_standby_worker_takes_the_place_of_a_dead_one(tmp_path: Path):
    store.project(tmp_path, households=5, weeks=20)
    layout = Layout(tmp_path)
    supervisor = Supervisor(layout, loading.load(layout.params), "127.0.0.1", 0, 1)
    inner, outer = os.pipe()
    waiting = [sys.executable, "-c", f"import os; os.read({inner}, 1)"]
    standby = Child(subprocess.Popen(waiting, text=True, pass_fds=[inner]), time.monotonic(), gate=outer)
    os.close(inner)
    supervisor._standby = standby
    assert supervisor._next_worker() is standby
    assert supervisor._standby is None
    assert standby.process.wait(30) == 0  # it waits no more
    supervisor._socket.close()
