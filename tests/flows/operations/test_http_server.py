"""The supervisor of a server's processes."""

import subprocess
import sys
import time
from pathlib import Path

from evergreen.flows.operations.http_server import Child, Supervisor
from evergreen.tasks.config import loading
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
