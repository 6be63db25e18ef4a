"""`evergreen prune`: remove what a project no longer needs."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import find, print_json, print_table, read_params, say


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Remove what no commit and no version in use needs, delete predictions beyond their retention, give disk space back."""
    from datetime import UTC, datetime

    from evergreen.flows.operations import prune as pruning

    layout = find(root)
    removals = pruning.run(layout, read_params(layout), datetime.now(UTC), dry_run)
    if as_json:
        print_json({"removed": not dry_run, "parts": [each._asdict() for each in removals]})
        return
    cells = [(each.what, f"{each.number:,}", f"{each.bytes / 2**20:,.1f} MB", each.rule) for each in removals]
    print_table(("what", "number", "size", "rule"), cells)
    if dry_run:
        say("Nothing was removed.")
