"""Every command that a document shows parses, and verbs, files, groups and pages agree."""

import shlex
from pathlib import Path

import pytest
import typer

from docs.generate import cli
from evergreen.flows.cli.main import GROUPS, app
from tests import ROOT
from tests.docs.pages import DOCS, evergreen_lines

COMMANDS = {
    " ".join(filter(None, (name, inner))): each
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for inner, each in getattr(command, "commands", {"": command}).items()
}
"""Those of a group under both names, as in keys add."""
SHARED = {"__init__", "main", "common", "progress"}
"""Files of flows/cli that are no verb."""


def test_the_readme_shows_commands():
    assert sum(where.startswith("README.md") for where, _ in evergreen_lines()) > 5


@pytest.mark.parametrize(("where", "line"), evergreen_lines(), ids=lambda value: value)
def test_a_command_in_a_document_parses(where: str, line: str):
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    context = command.make_context("evergreen", words[:], resilient_parsing=False)
    while hasattr(command, "commands"):
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        context = command.make_context(command.name, words, parent=context)


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


def test_each_verb_has_a_page_in_the_reference_and_is_shown_by_a_document():
    verbs = {name.split()[0] for name in COMMANDS}
    pages = {Path(path).stem for path, _ in cli.pages(DOCS) if not path.endswith("index.md")}
    assert pages == verbs
    assert {line.split()[1] for _, line in evergreen_lines()} == verbs
