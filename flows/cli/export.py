"""`evergreen export` and `evergreen reproduce`: a version on another machine, and once more on this one."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import (
    HERE,
    Debug,
    Json,
    Name,
    Root,
    Version,
    app,
    find,
    print_json,
    print_table,
    read_params,
    say,
)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder of the bundle: new or empty.")],
    version: Version = None,
    root: Root = HERE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a version, its server and its pinned packages to a folder that answers on a machine without the project."""
    from evergreen.flows.operations import bundle

    place = find(root)
    known = read_params(place)
    known.section(name)
    found = bundle.run(place, known, name, out, version)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    cells = (
        name, f"v{found.version}", "compiled" if found.compiled else "pipeline",
        f"{found.packages}", f"{found.megabytes:g}", f"{found.difference:.1g} on {found.rows}", found.out,
    )  # fmt: skip
    print_table(("problem", "version", "model", "packages", "MB", "differs by", "out"), [cells])
    say(f"{Path(found.out) / 'README.md'} says how it is run.")


@app.command()
def reproduce(name: Name, version: Version = None, root: Root = HERE, as_json: Json = False, debug: Debug = False) -> None:
    """Make a version again from its recorded code, data and params; the same predictions, or a list of what differs."""
    from evergreen.flows.operations import reproduce as reproducing

    place = find(root)
    known = read_params(place)
    known.section(name)
    found = reproducing.run(place, known, name, version)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        said = "the same" if found.same else "differs" if found.rows else "cannot be made again"
        far = "" if found.difference is None else f"{found.difference:.2g}"
        cells = (name, f"v{found.version}", said, f"{found.rows:,}", far, found.commit[:12])
        print_table(("problem", "version", "predictions", "rows", "largest difference", "commit"), [cells])
        for line in found.differs:
            say(line)
    if not found.same:
        raise typer.Exit(1)
