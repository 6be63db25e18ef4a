"""The console as a process: its own, so that it never slows the answers of the server."""

import os
import socket
from collections.abc import Callable

from evergreen.flows import settings
from evergreen.flows.operations import http_server
from evergreen.tasks.core.paths import Layout

THREADS = 4
"""Pages that are made at the same time."""


def run(layout: Layout, host: str, port: int, user: str, on_ready: Callable[[str], None]) -> None:
    """Serve the console until SIGTERM or SIGINT. `on_ready`: called with its URL once it answers.

    Raises ProjectError if the address cannot be bound, or needs an API key without any.
    """
    import anyio.to_thread
    import uvicorn

    from evergreen.flows.console import preload
    from evergreen.flows.console.app import build

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.keep_open()
    app = build(layout, host, user)
    bound = http_server.bind("console", host, port)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
            await super().startup(sockets=sockets)
            on_ready(http_server.url_of(bound))
            preload.begin(layout)

    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5, server_header=False)
    Server(config).run(sockets=[bound])
