"""`evergreen params`: params.yaml with every default, or its schema."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import find, print_json, read_params


def params(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema instead, with the meaning of each key.")
    ] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Check params.yaml and print it with every default filled in."""
    from evergreen.tasks.config import loading

    if schema:
        typer.echo(loading.schema())
        return
    found = read_params(find(root))
    whole = found.model_dump(mode="json", by_alias=True, exclude={"sections"})
    whole.update({name: section.model_dump(mode="json") for name, section in found.sections.items()})
    if as_json:
        print_json(whole)
        return
    from ruamel.yaml import YAML

    YAML(typ="rt").dump(whole, sys.stdout)
