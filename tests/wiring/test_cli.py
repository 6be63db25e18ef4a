"""Every command and option that a document shows is one that the command line has."""

import re

import pytest
import typer

from evergreen.flows.cli.main import GROUPS, app
from tests import ROOT

COMMANDS = {
    " ".join(filter(None, (name, inner))): each
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for inner, each in getattr(command, "commands", {"": command}).items()
}
"""Those of a group under both names, as in keys add."""
SHOWN = re.compile(r"^(?:\$ )?evergreen ([a-z].*?)(?:\s+#.*)?$", re.MULTILINE)

SHARED = {"__init__", "main", "common", "progress"}
"""Files of flows/cli that are no verb."""


def shown() -> list[tuple[str, str]]:
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
    return [(path.name, line) for path in files if path.exists() for line in SHOWN.findall(path.read_text())]


def test_the_readme_shows_commands():
    assert len(shown()) > 3


@pytest.mark.parametrize(("file", "line"), shown(), ids=lambda value: value)
def test_a_command_in_a_document_exists_with_its_options(file: str, line: str):
    words = line.split()
    name = next((each for each in (" ".join(words[:2]), words[0]) if each in COMMANDS), None)
    assert name, f"{file}: evergreen {line}"
    known = {option for each in COMMANDS[name].params for option in each.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_takes_root_json_and_debug_and_says_what_it_does(name: str):
    known = {option for each in COMMANDS[name].params for option in each.opts}
    assert {"--root", "--json", "--debug"} <= known
    assert COMMANDS[name].help


def test_each_verb_has_a_file_of_its_name_and_one_place_in_the_groups_of_the_help():
    verbs = [verb for group in GROUPS.values() for verb in group]
    assert len(set(verbs)) == len(verbs)
    assert set(verbs) == {path.stem for path in (ROOT / "flows" / "cli").glob("*.py")} - SHARED
    assert list(GROUPS) == ["Start", "Train", "Predict", "Operate", "Inspect"]
