"""The files of evergreen that a file imports, read from its source: inside functions too, but not for type checking alone."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests import ROOT

KINDS = ROOT / "tasks" / "problems" / "__init__.py"
"""It imports kinds by name."""


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """The files of evergreen that `path` imports itself."""
    found = {_file(module) or _file(module.rpartition(".")[0]) for module in _modules(ast.parse(path.read_text()))}
    if path == KINDS:
        found |= set(KINDS.parent.glob("*/kind.py"))
    return frozenset(each for each in found if each)


def closure(path: Path) -> set[Path]:
    """`path`, the files of evergreen that it imports, those that they import, and so on."""
    found, waiting = {path}, [path]
    while waiting:
        new = imported_files(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def _modules(node: ast.AST) -> Iterator[str]:
    """`evergreen.a.b` for each `import evergreen.a.b`, and `evergreen.a.b.c` for each `from evergreen.a.b import c`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _modules(child)


def _file(module: str) -> Path | None:
    """The file of a module of evergreen; None for other modules, for names that are not modules, and for the package itself."""
    package, _, rest = module.partition(".")
    if package != "evergreen" or not rest:
        return None
    first = ROOT if (ROOT / rest.split(".")[0]).is_dir() else ROOT / "src" / "evergreen"
    base = first.joinpath(*rest.split("."))
    return next((each for each in (base.with_suffix(".py"), base / "__init__.py") if each.exists()), None)
