"""Copies of new SQLite databases in the user's cache: a library's migrations take seconds in each new project.

A copy has the name of its library and version. Where there is none, or it cannot be read, the library makes the database.
"""

import os
import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from evergreen.tasks.core.errors import StorageError
from evergreen.tasks.core.paths import writing

NO_COPY = (OSError, RuntimeError, StorageError, sqlite3.Error)
"""Why there is no copy to read or to write: no home (RuntimeError), no permission, no space, a damaged file."""


def _kept(library: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "evergreen" / f"{library}-{version(library)}.db"


def exists(library: str) -> bool:
    """Whether there is a copy for the installed version of `library`."""
    with suppress(*NO_COPY):
        return _kept(library).exists()
    return False


def copy(library: str, database: Path) -> bool:
    """Write the copy to `database`, which does not exist. Returns whether there was one that could be read."""
    with suppress(*NO_COPY):
        _copy(_kept(library), database)
        return True
    return False


def keep(library: str, database: Path) -> None:
    """Copy `database`, which `library` has just made, for the user's other projects. A missing file leaves no copy."""
    with suppress(*NO_COPY):
        _copy(database, _kept(library))


def _copy(source: Path, target: Path) -> None:
    """As SQLite reads it: a damaged file and one without tables are refused."""
    with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reader:
        if not reader.execute("PRAGMA schema_version").fetchone()[0]:
            raise sqlite3.DatabaseError(f"{source}: has no tables")
        with writing(target) as scratch:
            reader.execute("VACUUM INTO ?", [str(scratch)])
            scratch.chmod(0o600)
