"""The files of a project that a server needs beside the model of a version, for servers that have no project folder.

A version in a registry that other machines read has them in its folder `serving`: params, what ingest found, features by key or
histories, and the tables that are read while serving. A file keeps its path in the project. `fetch` lays them into the folder
of a server.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evergreen.tasks.config.params import Params
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.paths import Layout, locking, make_folder, read_json, sha256, write_json, writing
from evergreen.tasks.data.snapshot import facts_file

if TYPE_CHECKING:
    from evergreen.tasks.release.model_registry import Registry

log = logging.getLogger(__name__)

FOLDER = "serving"
LIST = f"{FOLDER}/files.json"
"""File of a version: path in the project -> sha256."""
TAG = f"sha256.{LIST}"


# -- training


def write(folder: Path, params: Params, problem: str, layout: Layout) -> dict[str, str]:
    """Copy the files into `folder`, that of a version. Returns the tag with the checksum of their list."""
    files = {}
    for path in _files(params, problem, layout):
        name = layout.relative(path)
        copy = folder / FOLDER / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        files[name] = sha256(copy)
    write_json(folder / LIST, files)
    return {TAG: sha256(folder / LIST)}


def _files(params: Params, problem: str, layout: Layout) -> Iterator[Path]:
    """Of these, the ones that exist."""
    section = params.section(problem)
    wanted = [layout.params, facts_file(layout)]
    if section.predicts == "lists":
        wanted += sorted(each for each in layout.features(problem).rglob("*") if each.is_file())
        wanted += table_parts.files(layout.table(section.features.stock_table)) if section.features.stock_table else []
    elif section.features.by_cutoff is True:
        wanted.append(layout.newest(problem) / "rows.parquet")
        if section.answers.features == "fresh":
            wanted += [part for name in section.features.tables for part in table_parts.files(layout.table(name))]
    return (each for each in wanted if each.is_file())


# -- serving


def is_fetched(layout: Layout) -> bool:
    """Whether the project's files came from the registry."""
    return _fetched(layout).is_dir()


def fetch(registry: "Registry", problem: str, version: int, layout: Layout) -> None:
    """Lay the files of a version into the folder, unless those of this version or a newer one are there; params stay.

    Raises ModelError for a version without such files, and for a file that is not the one that was registered.
    """
    seen = _fetched(layout) / f"{problem}.json"
    with locking(seen.with_suffix(".lock"), f"{problem}: fetch", wait=True):  # of the workers of a folder one fetches
        if seen.is_file() and int(read_json(seen)["version"]) >= version:
            return
        with TemporaryDirectory() as folder:
            found = registry.serving_files(problem, version, Path(folder))
            for name in dict.fromkeys(map(_whole, found)):
                if name != layout.params.name:
                    _replace(layout.root / name, {each: path for each, path in found.items() if _whole(each) == name}, name)
        write_json(seen, {"version": version})
    log.info("%s: has the features and tables of v%d", problem, version)


def fetch_params(registry: "Registry", problem: str, version: int, layout: Layout) -> None:
    """Write the params of a version into the folder, and mark it as fetched. Raises what `fetch` raises."""
    make_folder(_fetched(layout))
    with TemporaryDirectory() as folder:
        name = layout.params.name
        _replace(layout.params, registry.serving_files(problem, version, Path(folder), only=name), name)


def _whole(name: str) -> str:
    """The table whose part a file is, otherwise the file."""
    folder = str(PurePosixPath(name).parent)
    return folder if folder.endswith(".parquet") else name


def _replace(place: Path, files: Mapping[str, Path], whole: str) -> None:
    """Replace a file, or a table with all its parts."""
    with writing(place) as scratch:
        for name, path in files.items():
            to = scratch / PurePosixPath(name).relative_to(whole)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, to)


def _fetched(layout: Layout) -> Path:
    return layout.var / "fetched"
