"""A server without a project folder has the tables of the newest version that it fetched, whole."""

from pathlib import Path
from typing import Any

from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import serving_files


class Versions:
    """Stands for the registry: version -> path in the project -> content."""

    def __init__(self, files: dict[int, dict[str, bytes]]) -> None:
        self.files = files

    def serving_files(self, problem: str, version: int, folder: Path) -> dict[str, Path]:
        found = {}
        for number, (name, content) in enumerate(self.files[version].items()):
            found[name] = folder / str(number)
            found[name].write_bytes(content)
        return found


def test_a_table_with_fewer_parts_or_of_one_file_replaces_the_one_before(tmp_path):
    table, layout = "data/tables/t.parquet", Layout(tmp_path)
    parts = {f"{table}/000000.parquet": b"a", f"{table}/000001.parquet": b"b", "data/raw/sources.json": b"{}"}
    fewer, one = {f"{table}/000000.parquet": b"c"}, {table: b"d"}
    registry: Any = Versions({1: parts, 2: fewer, 3: one, 4: parts})
    for version in registry.files:
        serving_files.fetch(registry, "buys", version, layout)
        files = [path for path in tmp_path.joinpath("data", "tables").rglob("*") if path.is_file()]
        wanted = {name: content for name, content in registry.files[version].items() if name.startswith(table)}
        assert {layout.relative(path): path.read_bytes() for path in files} == wanted
