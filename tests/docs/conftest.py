"""Lays the projects that pages name, and runs the commands of a page."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, Block, blocks
from tests.docs.projects import Shell, lay_churn, lay_store, lay_tables, shape

MADE = {"store": lay_store, "churn": lay_churn}
Lay = Callable[[str, Path], Path]


@pytest.fixture(scope="module")
def lay(tmp_path_factory: pytest.TempPathFactory) -> Lay:
    """Lay a copy of a project into a folder, beside the tables that pages name; each is made once."""
    made: dict[str, Path] = {}

    def copy(name: str, folder: Path) -> Path:
        lay_tables(folder)
        target = folder / "here"
        if name in MADE:
            if name not in made:
                made[name] = tmp_path_factory.mktemp(name) / "here"
                MADE[name](made[name])
            return Path(shutil.copytree(made[name], target, symlinks=True))
        target.mkdir()
        if name == "clone":
            (target / "docs").symlink_to(DOCS)
        return target

    return copy


@pytest.fixture
def shell(tmp_path: Path, capsys, monkeypatch) -> Iterator[Shell]:
    made = Shell(tmp_path, capsys, monkeypatch)
    yield made
    made.stop()


@pytest.fixture
def run_page(lay: Lay, shell: Shell, tmp_path: Path, request, monkeypatch) -> Callable[[Path], None]:
    """Run the commands of a page, and compare the JSON that follows a command with what the command printed."""

    def run(page: Path) -> None:
        laid, printed = "", ""
        for number, block in enumerate(blocks(page)):
            if block.language == "json" and printed and not block.mark:
                assert shape(json.loads(block.text)) == shape(json.loads(printed)), f"{block.where}: printed was {printed}"
            printed = ""
            if not block.project or not (block.runs or block.language == "yaml"):
                continue
            if block.project != laid:
                laid, place = block.project, tmp_path / f"{number}"
                place.mkdir()
                shell.folder = lay(block.project, place)
            if block.language == "yaml":
                if block.mark != "not params":
                    shell.merge(block.text)
                continue
            if block.server:
                monkeypatch.setenv("EVERGREEN_DATABASE", request.getfixturevalue(block.server))
            _run(shell, block)
            printed = shell.out

    return run


def _run(shell: Shell, block: Block) -> None:
    for line in block.commands():
        try:
            shell.run(line)
        except Exception as error:
            raise AssertionError(f"{block.where}: {line}\n{type(error).__name__}: {error}") from error
