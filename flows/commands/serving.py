"""`evergreen serve`."""

from typing import Annotated

import typer

from flows.terminal import HERE, Debug, Root, app, find, read_params, say


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind; other than this machine's own needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8080,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that answer; none: as in params.")] = None,
    root: Root = HERE,
    debug: Debug = False,
) -> None:
    """Answer for every deployed problem over HTTP, and follow what is deployed, rolled out and rolled back meanwhile."""
    import logging

    from flows.serving import Service

    place = find(root)
    params = read_params(place)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    Service(place, params, host, port, workers or params.serve.workers, say).run()
