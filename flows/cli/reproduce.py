"""`evergreen reproduce`: rebuild a registered version and compare."""

import dataclasses
from pathlib import Path

import typer

from evergreen.flows.cli.common import Name, Version, open_problem, print_json, print_table, say


def reproduce(
    name: Name,
    version: Version = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Rebuild a version from its recorded code, data and params; compare its predictions and list the differences."""
    from evergreen.flows.operations import reproduce as reproducing

    place, known = open_problem(root, name)
    found = reproducing.run(place, known, name, version)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        outcome = "the same" if found.same else "differs" if found.rows else "cannot be rebuilt"
        far = "" if found.difference is None else f"{found.difference:.2g}"
        cells = (name, f"v{found.version}", outcome, f"{found.rows:,}", far, found.commit[:12])
        print_table(("problem", "version", "predictions", "rows", "largest difference", "commit"), [cells])
        for line in found.differs:
            say(line)
    if not found.same:
        raise typer.Exit(1)
