"""The code and the packages of a bundle: what serving a version imports, followed from its server, and its pinned packages."""

import ast
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evergreen
from evergreen.serving.bundle_server import MODEL
from evergreen.tasks.config.params import SECTIONS, KindName
from evergreen.tasks.core.paths import Layout

CODE = Path(evergreen.__file__).parents[1]
"""The folder that holds the package evergreen."""
SERVER = ("uvicorn", "uvloop", "httptools")
"""Packages that run the application, without being imported by it."""


def roots(kind: KindName, compiled: bool) -> list[str]:
    if compiled:
        return ["evergreen.serving.bundle_server"]
    lists = (
        ["evergreen.serving.recommender_service", "evergreen.tasks.problems.recommender.list_builder"]
        if SECTIONS[kind].predicts == "lists"
        else []
    )
    return [
        "evergreen.serving.bundle_server",
        "evergreen.tasks.model_files.skops_models",
        f"evergreen.tasks.problems.{kind}.kind",
        *lists,
    ]


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


def copy_code(folder: Path, modules: Iterable[str]) -> None:
    for name in modules:
        path = _file(name)
        assert path is not None
        place = folder / path.relative_to(CODE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def write_requirements(folder: Path, layout: Layout, modules: dict[str, ast.Module], compiled: bool) -> list[str]:
    """Write requirements.txt for all packages that code and model need. Returns the packages.

    It has the lines of requirements.lock with their hashes; in a project without this file, the versions installed here.
    """
    known = packages_distributions()
    named = {each.partition(".")[0] for tree in modules.values() for each in imported(tree)} - {
        "evergreen",
        *sys.stdlib_module_names,
    }
    wanted: set[str] = {*SERVER, *(canonicalize_name(each) for name in named for each in known.get(name, ()))}
    if not compiled:
        from evergreen.tasks.release.mlflow_store import requirements

        pinned = requirements(next((folder / MODEL).glob("*.skops")))
        wanted |= {canonicalize_name(Requirement(each).name) for each in pinned} - {"mlflow"}
    everything = with_dependencies(wanted)
    if layout.lock.is_file():
        blocks = lock_entries(layout.lock.read_text())
        head = "# From the project's requirements.lock. Install with  pip install --require-hashes -r requirements.txt\n"
    else:
        blocks = installed_entries(everything)
        head = "# The versions of the export. Install with  pip install -r requirements.txt\n"
    needed = sorted(everything & blocks.keys())
    (folder / "requirements.txt").write_text(head + "".join(blocks[name] for name in needed))
    return needed


def lock_entries(lock: str) -> dict[str, str]:
    """Package -> its lines in the lock, without comments; several versions if they depend on Python or the system."""
    lines, found = "".join(line for line in lock.splitlines(keepends=True) if not line.lstrip().startswith("#")), {}
    for each in filter(None, re.split(r"(?m)^(?=[A-Za-z0-9])", lines)):
        name = canonicalize_name(re.split(r"[=\[ ]", each, maxsplit=1)[0])
        found[name] = found.get(name, "") + each
    return found


def installed_entries(names: set[str]) -> dict[str, str]:
    """Package -> its line with the version that is installed here, for those that are."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = f"{name}=={distribution(name).version}\n"
    return found


def with_dependencies(names: set[str]) -> set[str]:
    """The packages and all their dependencies, as installed here."""
    found: set[str] = set()
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # needed on another system only
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(each.name))
    return found
