"""What earlier runs of ingest and validation found, in files below var, so that a run computes what is new.

A result is found by a key of all that it follows from: rows, rules, other tables, code and versions of libraries. It is never
part of data/raw, data/tables, data/quarantine or reports, whose bytes are those of a run from nothing. A file that is damaged,
cannot be read or does not fit on the disk is no error: its result is computed again.
"""

import hashlib
import json
import logging
import platform
import zlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from evergreen.tasks.core.errors import StorageError
from evergreen.tasks.core.paths import sha256, writing

log = logging.getLogger(__name__)

ROOMS = ("data", "config", "core")
LIBRARIES = ("polars", "pandas", "numpy", "pyarrow", "great_expectations")
DIGEST_BYTES = 32


def digest(*parts: object) -> str:
    """Of any values that JSON holds, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """`value` as JSON holds it, so that a result read from a file is the same as one just found."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    return cast(Any, value).item() if isinstance(value, np.generic) else str(value)


@cache
def code() -> str:
    """Of the code of ingest and validation, of Python and of the libraries that it computes with."""
    tasks = Path(__file__).parents[1]
    files = [
        tasks / "ingest.py",
        tasks / "validate.py",
        *(path for room in ROOMS for path in sorted((tasks / room).rglob("*.py"))),
    ]
    return digest(platform.python_version(), [version(each) for each in LIBRARIES], [sha256(path) for path in files])


class EarlierResults:
    """A folder of results, one file per key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.used: dict[str, None] = {}
        """Keys of the results that this run found or made, in their order."""
        self._full = False

    def get(self, key: str) -> Any:
        """The result, of types of JSON; None if there is none."""
        try:
            content = (self._folder / key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[DIGEST_BYTES:]).digest() != content[:DIGEST_BYTES]:
            return None
        self.used[key] = None
        return json.loads(zlib.decompress(content[DIGEST_BYTES:]))

    def put(self, key: str, result: Any) -> None:
        if self._full:
            return
        self.used[key] = None
        content = zlib.compress(json.dumps(result).encode(), level=1)
        try:
            with writing(self._folder / key) as scratch:
                scratch.write_bytes(hashlib.sha256(content).digest() + content)
        except StorageError as error:
            self._full = True
            log.warning("%s: the next run will compute again what this one has found: %s", self._folder.name, error)

    def keep(self, keys: Iterable[str]) -> None:
        """Take these results as used."""
        self.used.update(dict.fromkeys(keys))

    def prune(self) -> None:
        """Remove what this run neither found nor made, so that the folder holds the results of one run."""
        try:
            for path in self._folder.iterdir():
                if path.is_file() and path.name not in self.used:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s stays as it is: %s", self._folder, error)
