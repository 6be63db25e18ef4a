"""`evergreen export`: a version as a bundle that needs no project."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import Name, Version, open_problem, print_json, print_table, say


def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; new or empty.")],
    version: Version = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Write a version, its server and its pinned packages to a folder that serves without the project."""
    from evergreen.flows.operations import bundle

    place, known = open_problem(root, name)
    found = bundle.run(place, known, name, out, version)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    cells = (
        name, f"v{found.version}", "compiled" if found.compiled else "pipeline",
        f"{found.packages}", f"{found.megabytes:g}", f"{found.difference:.1g} on {found.rows}", found.out,
    )  # fmt: skip
    print_table(("problem", "version", "model", "packages", "MB", "differs by", "out"), [cells])
    say(f"{Path(found.out) / 'README.md'} explains how to run it.")
