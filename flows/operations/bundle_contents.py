"""The code and the packages of a bundle: what serving a version imports, followed from its server, and its pinned packages."""

import ast
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evergreen.serving.bundle_server import MODEL
from evergreen.tasks.config.params import SECTIONS, KindName
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release.code_closure import imported

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
        from evergreen.tasks.release.mlflow_model import requirements

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
