"""The documentation agrees with the code, and both use the words of the glossary."""

import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

from docs.generate import hooks, params
from evergreen.tasks.core import errors
from tests import ROOT
from tests.docs.pages import DOCS, PAGES, Block, every

GLOSSARY = DOCS / "glossary.md"
WRITTEN = [page for page in PAGES if page != GLOSSARY]
"""By people; the glossary alone names banned words."""
CODE = re.compile(r"```.*?^ *```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


@cache
def generated() -> dict[str, str]:
    """Path in the site -> Markdown."""
    return dict(hooks.generated())


def banned(heading: str) -> list[str]:
    """The left column of the table below a heading of the glossary."""
    table = GLOSSARY.read_text(encoding="utf8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    return [word.strip().strip("`") for cell in cells for word in cell.split(",")]


# Commands

MARKED = [block for block in every() if block.language == "sh" and block.mark]


@pytest.mark.parametrize("block", MARKED, ids=lambda block: block.where)
def test_a_block_that_is_not_run_says_why_or_which_test_runs_it(block: Block):
    paths = [ROOT / path for path in re.findall(r"tests/\S+\.py", block.mark)]
    assert all(path.is_file() for path in paths), block.mark
    if block.mark.startswith("not run: "):
        assert len(block.mark.split()) >= 4
        return
    assert block.mark.startswith("run by ")
    text = paths[0].read_text(encoding="utf8")
    verbs = {line.split()[1] for line in block.commands() if line.startswith("evergreen ")}
    assert {verb for verb in verbs if not re.search(rf"\b{verb}\b", text)} == set(), f"{block.where}: {paths[0].name}"


def test_a_block_that_runs_has_a_project_and_only_make_and_doctor_have_none():
    free = [line for block in every() if block.runs and not block.project for line in block.commands()]
    allowed = r"make \w+|source \.venv/bin/activate|evergreen (doctor|status)"
    assert [line for line in free if not re.fullmatch(allowed, line)] == []
    targets = {line.split()[1] for line in free if line.startswith("make ")}
    assert targets
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


# Facts


def test_every_kind_of_error_is_explained():
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    text = (DOCS / "reference" / "errors.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_series_that_documents_name_are_exposed():
    known = set(re.findall(r"evergreen_\w+", generated()["reference/metrics.md"]))
    named = {name for page in WRITTEN for name in re.findall(r"\bevergreen_\w+", page.read_text())}
    assert named
    assert named <= known


def test_environment_variables_of_the_documents_are_those_of_the_code():
    from evergreen.flows.settings import Settings

    listed = set(re.findall(r"\| `(EVERGREEN_\w+)`", (DOCS / "reference" / "environment.md").read_text()))
    assert {f"EVERGREEN_{name.upper()}" for name in Settings.model_fields} <= listed
    code = "".join(path.read_text() for room in ("flows", "tasks") for path in (ROOT / room).rglob("*.py"))
    assert listed <= {*re.findall(r"EVERGREEN_\w+", code), *(f"EVERGREEN_{name.upper()}" for name in Settings.model_fields)}
    named = {name for page in WRITTEN for name in re.findall(r"\bEVERGREEN_[A-Z_]*[A-Z]", page.read_text())}
    assert named <= {*listed, "EVERGREEN_BIND"}


def test_every_setting_has_a_page_and_a_meaning():
    pages = {path: text for path, text in generated().items() if path.startswith(params.FOLDER)}
    assert set(params.PROBLEM) | set(params.TOP) == {Path(path).stem for path in pages} - {"index"} | {"problems"}
    rows = [line for text in pages.values() for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_messages_that_the_runbook_explains_are_those_of_the_code():
    """Placeholders such as N, NAME and ... stand for anything."""
    rooms = ("flows", "serving", "monitoring", "tasks")
    code = "".join(path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a text over several lines
    text = (DOCS / "runbook.md").read_text()
    commands = text.partition("## What a command says")[2].partition("\n### ")[0]
    unavailable = text.partition("### Status 503")[2].partition("\n## ")[0]
    said = re.findall(r"^\| (?:`?\w+`? \| )?`([^`]+)` \|", commands + unavailable, re.MULTILINE)
    said += re.findall(r"^### (?:NAME|FLOW NAME|monitoring): (.+)$", text.partition("## Prometheus")[0], re.MULTILINE)
    parts = [part.strip(" ,:()") for each in said for part in re.split(r"\.\.\.|\bv?[A-Z]+\b|\d+|, or ", each)]
    assert len(parts) > 20
    assert [part for part in parts if part not in code] == []


# Navigation


def test_the_front_pages_lead_to_a_table_to_serving_to_retraining_and_to_the_runbook():
    for page in (ROOT / "README.md", DOCS / "index.md"):
        text = page.read_text()
        for path in ("tutorials/your-table.md", "how-to/serve.md", "how-to/retrain.md", "runbook.md"):
            assert f"{path})" in text, f"{page.name}: {path}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_files_at_the_top_lead_somewhere(name: str):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
        assert (ROOT / link).exists() or link.startswith("https://"), link


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


# Words


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_no_banned_word(page: Path):
    assert _banned_in(page.read_text(encoding="utf8")) == []


def test_the_reference_uses_no_banned_word():
    assert {path: found for path, text in generated().items() if (found := _banned_in(text))} == {}


def _banned_in(text: str) -> list[str]:
    return re.findall(rf"\b(?:{'|'.join(map(re.escape, banned('Banned words')))})\b", CODE.sub(" ", text), re.IGNORECASE)


SOURCES = [
    path for room in ("bench", "flows", "monitoring", "serving", "tasks") for path in sorted((ROOT / room).rglob("*.py"))
]


def test_the_code_uses_no_banned_word():
    pages = [*SOURCES, *(ROOT / "monitoring" / "templates").glob("*.html"), ROOT / "params.yaml", ROOT / "pyproject.toml"]
    allowed = {"Crew", "journal"}  # an author, and Optuna's name for the file of its trials
    found = {str(path.relative_to(ROOT)): set(_banned_in(_prose(path))) - allowed for path in pages}
    for path in ("flows/migrations/versions/r0001_words.py", "tasks/core/schema_revision.py"):
        found[path] -= {"truths"}  # the name of a table of an earlier version
    assert {path: words for path, words in found.items() if words} == {}


def test_no_identifier_has_a_banned_part():
    parts, seen = set(banned("Banned parts of names")), set()
    for path in SOURCES:
        for token in _tokens(path):
            if token.type == tokenize.NAME:
                seen |= {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", token.string)}
    assert len(seen) > 1000
    assert sorted(seen & parts) == []


def _tokens(path: Path) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf8")).readline))


def _prose(path: Path) -> str:
    """The whole file; of Python the comments and strings alone."""
    if path.suffix != ".py":
        return path.read_text(encoding="utf8")
    return "\n".join(each.string for each in _tokens(path) if each.type in (tokenize.COMMENT, tokenize.STRING))


def test_replaced_names_do_not_come_back():
    known = params.schema()
    names = set(_properties(known)) | set(_choices(known))
    names |= set(re.findall(r"evergreen_\w+", generated()["reference/metrics.md"].replace("_total`", "`")))
    names |= set(re.findall(r'"(\w+)":', generated()["reference/http.md"]))
    names |= {path.split("/")[-1].removesuffix(".md") for path in generated() if path.startswith("reference/cli/")}
    assert len(names) > 200
    assert sorted(names & set(banned("Banned names"))) == []


def _properties(part: object) -> list[str]:
    if isinstance(part, dict):
        mine = list(part["properties"]) if isinstance(part.get("properties"), dict) else []
        return [*mine, *(name for inner in part.values() for name in _properties(inner))]
    return [name for inner in part for name in _properties(inner)] if isinstance(part, list) else []


def _choices(part: object) -> list[str]:
    if isinstance(part, dict):
        mine = [each for each in part.get("enum", ()) if isinstance(each, str)]
        return [*mine, *(name for inner in part.values() for name in _choices(inner))]
    return [name for inner in part for name in _choices(inner)] if isinstance(part, list) else []
