"""`evergreen report`: rebuild the page."""

from pathlib import Path

import typer

from evergreen.flows.cli.common import find, print_json


def report(*, root: Path, as_json: bool) -> None:
    """Rebuild the report page, reports/index.html."""
    from evergreen.flows.operations import status as results

    path = results.page(find(root))
    if as_json:
        print_json({"page": str(path)})
    else:
        typer.echo(path)
