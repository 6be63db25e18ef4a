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
    found = recommend.observe(place, read_params(place), name, data)
    refused = [{"event": dict(each.event), "reason": each.reason} for each in found.refused]
    if as_json:
        print_json({"problem": name, "counted": found.counted, "known": found.known, "refused": refused})
        return
    print_table(
        ("problem", "counted", "known already", "refused"),
        [(name, f"{found.counted:,}", f"{found.known:,}", f"{len(refused):,}")],
    )
    for each in found.refused[:SHOWN]:
        say(f"refused: {each.reason}")
    if len(refused) > SHOWN:
        say(f"and {len(refused) - SHOWN:,} more; --json shows all")
