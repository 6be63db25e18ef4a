"""Where every artefact lives, and how it gets there: whole or not at all."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import BusyError, ProjectError, SpaceError


@dataclass(frozen=True)
class Layout:
    """The paths of one project. `root` is the folder that holds params.yaml."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "requirements.lock"

    @property
    def var(self) -> Path:
        """State that is neither data nor result: databases, journals, locks, costs."""
        return self.root / "var"

    def raw(self, table: str) -> Path:
        return self.root / "data" / "raw" / f"{table}.parquet"

    def table(self, table: str) -> Path:
        return self.root / "data" / "tables" / f"{table}.parquet"

    def quarantine(self, table: str) -> Path:
        return self.root / "data" / "quarantine" / f"{table}.parquet"

    def features(self, problem: str) -> Path:
        """A folder of parquet files, made by the problem's kind."""
        return self.root / "data" / "features" / problem

    def tuning(self, problem: str) -> Path:
        """A folder: best.json (the chosen configuration), trials.parquet (one row per trial)."""
        return self.root / "models" / problem / "tuning"

    def model(self, problem: str) -> Path:
        """A folder: model.skops and model.json (configuration, columns, cutoff)."""
        return self.root / "models" / problem / "model"

    def report(self, problem: str) -> Path:
        """A folder: metrics.json, plots/ (one CSV each), evaluation/ (evaluation.json, predictions.parquet)."""
        return self.root / "reports" / problem

    @property
    def validation(self) -> Path:
        return self.root / "reports" / "validation"

    @property
    def page(self) -> Path:
        return self.root / "reports" / "index.html"

    def cost(self, step: str, problem: str | None) -> Path:
        return self.var / "costs" / f"{step}@{problem}.json" if problem else self.var / "costs" / f"{step}.json"


def find(start: Path) -> Layout:
    """The project that `start` lies in: the nearest folder upwards with a params.yaml.

    Raises ProjectError where there is none.
    """
    for folder in [start.resolve(), *start.resolve().parents]:
        if (folder / "params.yaml").is_file():
            return Layout(folder)
    raise ProjectError(f"{start}: no params.yaml here or in any folder above. Go to a project, or name one with --root DIR.")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed when it does not.

    Works for a file and for a folder (make the temporary path a folder, and it replaces the old one). Readers see the old
    artefact or the new one, never half of either. Raises SpaceError when the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise SpaceError(
            f"{path}: {error.strerror}. Free space or allow writing there, then run the same command again."
        ) from error
    try:
        yield scratch / path.name
        _replace(scratch / path.name, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise SpaceError(
            f"{path}: {error.strerror}. Free space or allow writing there, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """Move `new` onto `path`; a folder that stands there is set aside first, since a rename does not replace one."""
    if new.is_dir() and path.exists():
        os.rename(path, new.parent / "old")
    os.replace(new, path)


@contextmanager
def locking(path: Path, what: str) -> Iterator[None]:
    """Hold `path` as a lock among the processes of this machine until the block ends; a kill releases it too.

    Raises BusyError at once where another process holds it; `what` says at what, as in "redeem: tune".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BusyError(
                f"{what}: process {file.read().strip() or 'unknown'} is at it (lock {path}). Wait for it, or stop it first."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. Dates become ISO text."""
    with writing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
