"""Hooks of MkDocs: add the generated pages, and fill the patterns of the navigation."""

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs is a program of its own: the code lies beside the site

from mkdocs.structure.files import File, Files  # noqa: E402

from docs.generate import cli, params, server  # noqa: E402

TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "explanation/security.md"}
"""File at the top of the repository -> its page."""


def generated() -> Iterator[tuple[str, str]]:
    """(path in the site, Markdown) of every page that is not a file of docs/."""
    yield from cli.pages(ROOT / "docs")
    yield from params.pages()
    yield from server.pages()
    for name, path in TOP.items():
        text = (ROOT / name).read_text(encoding="utf8")
        yield path, text.replace("](docs/", "](").replace("](SECURITY.md)", f"]({TOP['SECURITY.md']})")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages, and replace each pattern of the navigation (such as decisions/*.md) by the pages that fit."""
    pages = sorted(each.src_uri for each in files.documentation_pages())
    for path, text in generated():
        files.append(File.generated(config, path, content=text))
        pages.append(path)
    config["nav"] = _filled(config["nav"], pages)
    return files


def _filled(nav: Any, pages: list[str]) -> Any:
    if isinstance(nav, list):
        found: list[Any] = []
        for entry in nav:
            if isinstance(entry, str) and "*" in entry:
                folder = entry.partition("*")[0]
                found += [each for each in pages if each.startswith(folder) and not each.endswith("/index.md")]
            else:
                found.append(_filled(entry, pages))
        return found
    return {title: _filled(inner, pages) for title, inner in nav.items()} if isinstance(nav, dict) else nav


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """List the decision records on their index."""
    if page.file.src_uri != "decisions/index.md":
        return markdown
    records = sorted(path for path in (ROOT / "docs" / "decisions").glob("*.md") if path.name != "index.md")
    titles = [path.read_text(encoding="utf8").partition("\n")[0].lstrip("# ") for path in records]
    return "\n".join([markdown, *(f"- [{title}]({path.name})" for title, path in zip(titles, records, strict=True)), ""])


ELSEWHERE = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="https?:[^"]*"|<link\b[^>]*\bhref="https?:[^"]*"')
"""What a browser would load from another machine."""


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Warn, which fails a strict build, where a page is not readable offline."""
    for found in ELSEWHERE.findall(output):
        logging.getLogger("mkdocs.docs").warning("%s: loads from elsewhere: %s", page.file.src_uri, found)
    return output
