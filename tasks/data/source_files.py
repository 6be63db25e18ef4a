"""The files of a source: local, or in an S3-compatible store."""

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from evergreen.tasks.config.data import SUFFIXES, Source
from evergreen.tasks.core.errors import SourceError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import s3_files

RESOLUTION_NS = 2 * 10**9
"""A file that changed less than this before it was listed may change again without another time."""


@dataclass(frozen=True)
class SourceFile:
    address: str
    """Relative to the project where it can be; of an object in S3 in full."""
    state: tuple[int | str, ...]
    """As it was listed: bytes, times of change (ns); bytes and ETag. The same: the same content. Empty: nothing to go by."""
    path: Path | None
    """None: in S3."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.address).name


def listed(name: str, source: Source, root: Path) -> list[SourceFile]:
    """The files of a source in the order of their names; none of a query or the worked example.

    Raises SourceError if there is none, UnavailableError where an S3-compatible store does not answer.
    """
    if source.files is None:
        return []
    if s3_files.is_s3(source.files[1]):
        return [SourceFile(str(each[0]), tuple(each[1:]), None) for each in s3_files.states(name, *source.files)]
    layout, now = Layout(root), time.time_ns()
    return [SourceFile(layout.relative(path), _state(path, now), path) for path in source_files(name, *source.files, root)]


def _state(path: Path, now: int) -> tuple[int, ...]:
    found = path.stat()
    changed = found.st_mtime_ns, found.st_ctime_ns
    return () if now - max(changed) < RESOLUTION_NS else (found.st_size, *changed)


def fetched(name: str, kind: str, files: Sequence[SourceFile], staging: Path) -> list[Path]:
    """The files themselves, those of an S3-compatible store copied into `staging`."""
    if files and files[0].path is None:
        return s3_files.fetch(f"ingest.{name}.{kind}", [each.address for each in files], staging / f"{name}.s3")
    return [each.path for each in files if each.path]


def source_files(name: str, key: str, pattern: str, root: Path) -> list[Path]:
    """The local files of a path, a folder or a glob, sorted. Raises SourceError if there is none."""
    path = root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES[key]) and each.is_file())
    else:
        start = Path(path.anchor) if Path(pattern).is_absolute() else root
        found = sorted(each for each in start.glob(str(Path(pattern).relative_to(Path(pattern).anchor))) if each.is_file())
    if not found:
        raise SourceError(f"ingest.{name}.{key} = {pattern} (relative to params.yaml): no such file{similar_files(path)}")
    return found


def similar_files(path: Path) -> str:
    """The end of a message that a file is not there: the nearest names, or the first ones."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent.name} does not exist"
    there = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(there[:8]) or 'no files'}"
