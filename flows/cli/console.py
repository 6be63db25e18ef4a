"""`evergreen console`: the project in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import find, me, print_json, read_params, say


def console(
    host: Annotated[str, typer.Option(help="Address to bind; any but loopback needs an API key to sign in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")] = 8090,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Show and operate the project in the browser: what happens now, decisions, trials, single predictions, comparisons."""
    from evergreen.flows.operations import console_server

    place = find(root)
    read_params(place)
    console_server.run(place, host, port, me(), (lambda url: print_json({"url": url})) if as_json else _tell)


def _tell(url: str) -> None:
    say(f"Console at {url}. Ctrl-C to stop.")
