"""Arrays that several steps of one problem need: computed by the first step, read from disk by the next.

A step opens the cache with `using`; outside that block nothing is cached. Files of other data, settings or code are removed.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evergreen.tasks.core.errors import StorageError
from evergreen.tasks.core.paths import sha256, writing


@dataclass
class _Cache:
    folder: Path
    features: Path
    settings: str

    @cached_property
    def home(self) -> Path:
        """The folder of these features, settings and code; folders of others are removed."""
        digest = hashlib.sha256((self.settings + code()).encode())
        for path in sorted(self.features.rglob("*.parquet")):
            digest.update(sha256(path).encode())
        home = self.folder / digest.hexdigest()[:16]
        for other in self.folder.iterdir() if self.folder.is_dir() else ():
            if other != home:
                shutil.rmtree(other, ignore_errors=True)
        return home


_cache: ContextVar[_Cache | None] = ContextVar("step_cache", default=None)


@contextmanager
def using(folder: Path, features: Path, settings: str) -> Iterator[None]:
    """Cache below `folder` what the present code computes from the files of `features` under `settings`, any text."""
    token = _cache.set(_Cache(folder, features, settings))
    try:
        yield
    finally:
        _cache.reset(token)


def code() -> str:
    """A digest of the code that features and models are computed by."""
    files = sorted((Path(__file__).parents[1] / "problems").rglob("*.py"))
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def clear(folder: Path) -> None:
    """Remove everything below `folder`."""
    shutil.rmtree(folder, ignore_errors=True)


def arrays(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays called `key`: from disk (read-only, memory-mapped), or from `make`. `key` names everything but data and code.

    A full disk is no error: the arrays are then computed each time. Files that cannot be read are computed again.
    """
    cache = _cache.get()
    if cache is None:
        return make()
    place = cache.home / hashlib.sha256(key.encode()).hexdigest()[:24]
    if place.is_dir():
        try:
            return {path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)) for path in place.glob("*.npy")}
        except (OSError, ValueError):
            shutil.rmtree(place, ignore_errors=True)
    made = make()
    try:
        with writing(place) as scratch:
            scratch.mkdir()
            for name, values in made.items():
                np.save(scratch / f"{name}.npy", values, allow_pickle=False)
    except StorageError:
        clear(cache.home)
    return made
