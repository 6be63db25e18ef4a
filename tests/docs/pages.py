"""Fenced blocks of the README and of the documentation, with the marks that say how a test treats them.

A mark is an HTML comment before a block; the page does not show it:

    <!-- project: NAME -->         from here on, commands run in a fresh copy of this project (see tests/docs/projects.py)
    <!-- project: NAME; server: postgres -->     with state in a PostgreSQL server that the test starts
    <!-- not run: REASON -->       the next block is only parsed
    <!-- run by PATH -->           the next block is only parsed; the test at PATH runs the same commands
    <!-- not params -->            the next YAML block is not part of params.yaml; others are merged into the project's
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

DOCS = ROOT / "docs"
README, TUTORIAL = ROOT / "README.md", DOCS / "tutorials" / "your-table.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PART = re.compile(
    r"^ *<!-- (?P<mark>.+?) -->$|^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    project: str
    """The project that commands run in; "" where the page names none."""
    server: str
    """A server that the test starts before; "" for none."""
    mark: str
    """The mark of this block alone: not run, run by, not params; "" for none."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language == "sh" and not self.mark

    def commands(self) -> list[str]:
        """The command lines, without comments."""
        lines = (re.sub(r"\s+#.*$", "", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text, project, server, mark = page.read_text(encoding="utf8"), "", "", ""
    for found in PART.finditer(text):
        if said := found["mark"]:
            if said.startswith("project: "):
                parts = dict(part.split(": ") for part in said.split("; "))
                project, server = parts["project"], parts.get("server", "")
            else:
                mark = said
            continue
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"], textwrap.dedent(found["text"]), project, server, mark)
        mark = ""


def every() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def evergreen_lines() -> list[tuple[str, str]]:
    """(where, line) of every `evergreen` command that a document shows."""
    return [
        (block.where, part.strip())
        for block in every()
        if block.language == "sh"
        for line in block.commands()
        for part in line.split("&&")
        if part.strip().startswith("evergreen ")
    ]
