"""Examples in docstrings print what they show."""

import doctest
from importlib import import_module

import pytest

from tests import ROOT

FOLDERS = ("flows", "monitoring", "serving", "tasks")
MODULES = sorted(
    ".".join(("evergreen", *path.relative_to(ROOT).with_suffix("").parts))
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf8")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_show(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed
