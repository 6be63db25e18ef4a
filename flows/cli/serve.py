"""`evergreen serve`."""

from typing import Annotated

import typer

from evergreen.flows.cli.common import HERE, Debug, Json, Root, app, find, print_json, read_params, say


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind; other than this machine's own needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8080,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that answer; none: as in params.")] = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer for every deployed problem over HTTP, and follow what is deployed, rolled out and rolled back meanwhile."""
    import logging

    from evergreen.flows.operations.http_server import Service

    place = find(root)
    params = read_params(place)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    service = Service(place, params, host, port, workers or params.serve.workers)
    service.run((lambda url: print_json({"url": url})) if as_json else _tell)


def _tell(url: str) -> None:
    say(f"answers at {url} ({url}/docs says what); Ctrl-C ends it")
