"""How many rows of each table servers received, beside the files that hold them."""

from collections.abc import Mapping
from pathlib import Path

from evergreen.tasks.core.paths import read_json, write_json

COUNTS = "received.json"
"""In data/tables and in a problem's features, where there are any."""


def write(folder: Path, counts: Mapping[str, int]) -> None:
    """Write the numbers above 0; no file without any."""
    if any(counts.values()):
        write_json(folder / COUNTS, {name: number for name, number in counts.items() if number})


def read(folder: Path) -> dict[str, int]:
    """Table -> how many of the rows in `folder` servers received, for tables with any."""
    path = folder / COUNTS
    return read_json(path) if path.is_file() else {}
