"""The modules of Evergreen that a piece of its code imports: what a bundle and a logged model take with them."""

import ast
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import evergreen

CODE = Path(evergreen.__file__).parents[1]
"""The folder that holds the package evergreen."""


def closure(roots: Iterable[str]) -> dict[str, ast.Module]:
    """Name -> syntax tree of each module of evergreen that importing `roots` imports. Imports inside functions do not count."""
    found: dict[str, ast.Module] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = ast.parse(path.read_text())
        waiting += [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [each for each in imported(found[name]) if each.partition(".")[0] == "evergreen"]
    return found


def _file(module: str) -> Path | None:
    path = CODE.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def imported(module: ast.Module) -> list[str]:
    """Dotted names that a module imports at its top level; `from a import b` gives a and a.b."""
    found: list[str] = []
    for node in _statements(module.body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With):
            yield from _statements(node.body)


def files(modules: Iterable[str]) -> list[Path]:
    """The file of each module."""
    found = [_file(name) for name in modules]
    return [path for path in found if path is not None]


def copy_code(folder: Path, modules: Iterable[str]) -> None:
    for path in files(modules):
        place = folder / path.relative_to(CODE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
