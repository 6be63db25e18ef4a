"""A server in this process, for tests that look at both sides."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from evergreen.flows.operations.http_server import application
from evergreen.serving import http_protocol
from evergreen.serving.app import App
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout


@dataclass
class Live:
    """A server in this process, on its own port."""

    app: App
    layout: Layout
    port: int
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, request: bytes) -> bytes:
        """All that comes back until the server closes or pauses for a second."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as link:
            link.sendall(request)
            link.settimeout(1.0)
            found = b""
            try:
                while part := link.recv(65536):
                    found += part
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass
            return found


@contextmanager
def serving(layout: Layout) -> Iterator[Live]:
    """The project's server, until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("EVERGREEN_")]:
            patch.delenv(name)
        params = loading.load(layout.params)
        app, watcher = application(layout, params, "127.0.0.1")
        server = uvicorn.Server(http_protocol.configure(app, params.serve, log_config=None))
        bound = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        port = bound.getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Live(app, layout, port, client)
        server.should_exit = True
        thread.join(30)
        watcher.stop()
