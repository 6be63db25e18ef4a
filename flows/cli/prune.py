"""`evergreen prune`: remove what a project no longer needs."""

from contextlib import nullcontext
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

    from evergreen.flows import settings
    from evergreen.flows.operations import prune as pruning
    from evergreen.flows.operations import retention
    from evergreen.tasks.core.paths import locking

    layout = find(root)
    params, ledger, now = read_params(layout), settings.ledger(layout), datetime.now(UTC)
    with nullcontext() if dry_run else locking(layout.var / "train.lock", "prune"):
        found = [(part, part.bytes) for part in pruning.find(layout, params, now)]
        rows = [(part.what, len(part.paths), size, part.rule) for part, size in found]
        if not dry_run:
            for part, _ in found:
                pruning.remove(part)
            for problem in params.problems:
                retention.keep_ledger(params, problem, ledger, now.date())
            rows.append(("ledger", 0, ledger.shrink(), "space of its file that was free"))
    if as_json:
        parts = [dict(zip(("what", "files", "bytes", "rule"), row, strict=True)) for row in rows]
        print_json({"removed": not dry_run, "parts": parts})
        return
    cells = [(what, f"{files:,}", f"{size / 2**20:,.1f} MB", rule) for what, files, size, rule in rows]
    print_table(("what", "files", "size", "rule"), cells)
    if dry_run:
        say("Nothing was removed.")
