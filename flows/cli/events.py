"""`evergreen events`: new purchases for a recommender."""

from pathlib import Path
from typing import Annotated

import typer

from evergreen.flows.cli.common import Name, find, print_json, print_table, read_params, say

SHOWN = 10
"""Number of rejected events that are printed."""


def events(
    name: Name,
    data: Annotated[Path, typer.Option(help="csv or parquet: purchases, one line of a basket per row.")],
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Upload purchases for a recommender; every later list uses them. Rejected events carry the reason."""
    from evergreen.flows.operations import recommend

    place = find(root)
    found = recommend.record_events(place, read_params(place), name, data)
    rejected = [{"event": dict(each.event), "reason": each.reason} for each in found.rejected]
    if as_json:
        print_json({"problem": name, "accepted": found.accepted, "duplicate": found.duplicate, "rejected": rejected})
        return
    print_table(
        ("problem", "accepted", "duplicate", "rejected"),
        [(name, f"{found.accepted:,}", f"{found.duplicate:,}", f"{len(rejected):,}")],
    )
    for each in found.rejected[:SHOWN]:
        say(f"rejected: {each.reason}")
    if len(rejected) > SHOWN:
        say(f"and {len(rejected) - SHOWN:,} more; --json shows all")
