"""What answers for a server without a project folder while the registry, which has its params, does not answer."""

import json
import logging
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from evergreen.flows.operations import http_server
from evergreen.flows.operations.served_project import find_or_fetch
from evergreen.tasks.core.errors import RegistryError
from evergreen.tasks.core.paths import Layout

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
WAITING = "the model registry does not answer; the server tries again"


def find(root: Path, host: str, port: int) -> tuple[Layout, int]:
    """The project to serve (see served_project.find_or_fetch), and the port, which is a free one for 0.

    While the registry does not answer, /health says that the server lives, and everything else gets 503. Raises what
    find_or_fetch raises, and ProjectError if the address cannot be bound.
    """
    try:
        return find_or_fetch(root), port
    except RegistryError as error:
        log.warning("serve: waits for the params of the project: %s", error)
    before, again = signal.signal(signal.SIGTERM, _leave), threading.Event()
    try:
        with _answering(host, port) as bound:
            while not again.wait(RETRY_SECONDS):
                try:
                    return find_or_fetch(root), bound
                except RegistryError as error:
                    log.debug("serve: still waits: %s", error)
    finally:
        signal.signal(signal.SIGTERM, before)
    raise AssertionError


def _leave(*_: Any) -> None:
    sys.exit(0)


@contextmanager
def _answering(host: str, port: int) -> Generator[int]:
    """Yields the port."""
    bound = http_server.bind("serve", host, port)
    address = bound.getsockname()[:2]
    server = ThreadingHTTPServer(address, _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = bound
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="waiting server", daemon=True)
    thread.start()
    log.warning("serve: http://%s:%d answers /health meanwhile, and 503 otherwise", *address)
    try:
        yield address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    timeout = 5

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        found: dict[str, dict[str, Any]] = {
            "/health": {"status": "alive"},
            "/ready": {"ready": False, "problems": {}, "registry": WAITING},
        }
        body = json.dumps(found.get(path, {"error": WAITING})).encode()
        self.send_response(200 if path == "/health" else 503)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_DELETE = _answer  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: probes come every few seconds."""
