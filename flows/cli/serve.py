"""`evergreen serve`: the HTTP service."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import print_json, read_params, say


def serve(
    host: Annotated[str, typer.Option(help="Address to bind; any but loopback needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")] = 8080,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: params.")] = None,
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Problems to serve, separated by commas; default: all.", show_default=False)
    ] = "",
    console: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of a console beside it; default: none.", show_default=False)
    ] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Serve every deployed problem over HTTP; follow deployments, rollouts and rollbacks while running."""
    import logging

    from evergreen.flows.operations import waiting_server
    from evergreen.flows.operations.http_server import Supervisor
    from evergreen.tasks.core import log_limits

    log_limits.configure(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    place, port = waiting_server.find(root, host, port)
    names = tuple(dict.fromkeys(each.strip() for each in only.split(",") if each.strip()))
    params = read_params(place).narrow(names)
    supervisor = Supervisor(place, params, host, port, workers or params.serve.workers, console, names)
    supervisor.run((lambda url: print_json({"url": url})) if as_json else _tell)


def _tell(url: str) -> None:
    say(f"Serving at {url}, API docs at {url}/docs. Ctrl-C to stop.")
