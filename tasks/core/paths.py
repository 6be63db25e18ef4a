"""Paths of a project's files, atomic writing, and locks."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.tasks.core.errors import LockedError, ProjectError, StorageError

MODEL = "model.skops"
"""The model that is served."""
JUDGED = "judged.skops"
"""The evaluated model, trained without the test rows. Written only if it differs from the served one."""
HELD_OUT = "held_out.parquet"
"""Out-of-fold predictions of the chosen configuration, for kinds that calibrate their models with them."""
LEVELS = "levels.json"
"""Category -> its values in training."""
BACKGROUND = "background.json"
"""Training rows that the contributions of a served model start from."""
RECEIVED = "events@"
"""The received purchases among the tables of one recommender: user, basket, item and place as text, day, and the moment (null
where only the day is known)."""
COMPILED = "model.onnx"
"""The ONNX model, in the folder `compiled` of a registered version."""

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
STATE = "var"
"""Folder of a project that only its user may enter: keys, predictions, labels and logs lie there."""


@dataclass(frozen=True)
class Layout:
    """The paths of one project. `root` is the folder that holds params.yaml."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def source_lock(self) -> Path:
        """What DVC cannot see of the sources; see tasks.data.source_lock."""
        return self.root / "sources.lock"

    @property
    def lock(self) -> Path:
        return self.root / "requirements.lock"

    @property
    def var(self) -> Path:
        """State that is neither data nor result: databases, spools, locks, costs."""
        return self.root / STATE

    def events(self, problem: str) -> Path:
        """The purchases that the server received for a recommender; see tasks.data.received_events."""
        return self.root / "data" / "events" / f"{problem}.parquet"

    def received(self, table: str) -> Path:
        """The rows of a table that the server received; see tasks.data.received_rows."""
        return self.root / "data" / "received" / f"{table}.parquet"

    def raw(self, table: str) -> Path:
        """A folder of parts; see tasks.core.table_parts."""
        return self.root / "data" / "raw" / f"{table}.parquet"

    def table(self, table: str) -> Path:
        """The same, of the rows that met every rule."""
        return self.root / "data" / "tables" / f"{table}.parquet"

    def quarantine(self, table: str) -> Path:
        return self.root / "data" / "quarantine" / f"{table}.parquet"

    def features(self, problem: str) -> Path:
        """A folder of parquet files, made by the problem's kind."""
        return self.root / "data" / "features" / problem

    def newest(self, problem: str) -> Path:
        """A folder: the rows of the last day (rows.parquet) of a problem with features from events; empty for others."""
        return self.root / "data" / "newest" / problem

    def newest_rows(self, problem: str) -> Path:
        """The file with the rows of the last day; an older version wrote them among the features."""
        found = self.newest(problem) / "rows.parquet"
        return found if found.is_file() else self.features(problem) / found.name

    def scores(self, problem: str) -> Path:
        """The newest predictions for all entities; see flows.operations.batch_scoring.newest."""
        return self.root / "data" / "scores" / f"{problem}.parquet"

    def tuning(self, problem: str) -> Path:
        """A folder: best.json (the chosen configuration), trials.parquet (one row per trial)."""
        return self.root / "models" / problem / "tuning"

    def model(self, problem: str) -> Path:
        """A folder: model.skops and model.json (configuration, columns, cutoff)."""
        return self.root / "models" / problem / "model"

    def report(self, problem: str) -> Path:
        """A folder: metrics.json, headline.json, plots/ (one CSV each), evaluation/ (evaluation.json, predictions.parquet)."""
        return self.root / "reports" / problem

    @property
    def validation(self) -> Path:
        return self.root / "reports" / "validation"

    @property
    def page(self) -> Path:
        return self.root / "reports" / "index.html"

    def relative(self, path: Path) -> str:
        """How state names a file: relative to the project, links unresolved; in full for a file outside it."""
        place, root = path.absolute(), self.root.absolute()
        return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)

    def cost(self, step: str, problem: str | None) -> Path:
        return self.var / "costs" / f"{step}@{problem}.json" if problem else self.var / "costs" / f"{step}.json"


def find(start: Path) -> Layout:
    """The project around `start`: the nearest folder upwards with a params.yaml.

    Raises ProjectError without one.
    """
    for folder in [start.resolve(), *start.resolve().parents]:
        if (folder / "params.yaml").is_file():
            return Layout(folder)
    raise ProjectError(f"{start}: no params.yaml here or in any folder above. Go to a project, or name one with --root DIR.")


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents. A new folder STATE is closed to other users, and so is all that it will hold."""
    if not folder.is_dir():
        if not folder.parent.exists():
            make_folder(folder.parent)
        folder.mkdir(0o700 if folder.name == STATE else 0o777, exist_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block succeeds and is removed when it fails.

    Works for a file and for a folder (make the temporary path a folder, and it replaces the old one). Readers see the old
    artefact or the new one, never a part. The next writer removes the remains of killed processes. Raises StorageError when
    the disk is full or the folder is not writable; other errors of the block pass unchanged.
    """
    try:
        make_folder(path.parent)
        _clear_dead(path)
        scratch = Path(tempfile.mkdtemp(prefix=f"{_mark(path)}{os.getpid()}.", dir=path.parent))
    except OSError as error:
        raise _no_space(path, error.strerror) from error
    try:
        yield scratch / path.name
        _replace(scratch / path.name, path)
    except Exception as error:
        if (why := shortage(error, path.parent)) is None:
            raise
        raise _no_space(path, why) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def shortage(error: BaseException, folder: Path) -> str | None:
    """Why a write in `folder` failed: no space, no permission, read-only. None for other errors.

    Polars wraps errors of the operating system, and only its text has their number.
    """
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    name = getattr(error, "filename", None)
    here = name is None or folder in Path(os.fsdecode(name)).parents
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or (number in (errno.EACCES, errno.EPERM) and here):
        return os.strerror(number)
    return None


def refusal(error: OSError) -> str | None:
    """One line for a disk that is full or refuses; None for other errors."""
    if error.errno not in REFUSALS:
        return None
    where = error.filename or f"the project's folder or {tempfile.gettempdir()}"  # a write to an open file names none
    return f"{where}: {error.strerror}. Free space or allow writing there, then run the same command again."


def _no_space(path: Path, why: str | None) -> StorageError:
    return StorageError(f"{path}: {why}. Free space or allow writing there, then run the same command again.")


def _mark(path: Path) -> str:
    """Prefix of the temporary folders for `path`, on this machine."""
    return f".{path.name}.{socket.gethostname()}."


def _clear_dead(path: Path) -> None:
    """Remove the temporary folders of dead processes, and restore an old artefact that one of them had set aside."""
    for left in path.parent.glob(f"{glob.escape(_mark(path))}*"):
        pid = left.name.removeprefix(_mark(path)).split(".")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            if (left / "old").exists() and not path.exists():
                (left / "old").replace(path)
            shutil.rmtree(left, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _replace(new: Path, path: Path) -> None:
    """Move `new` onto `path`; what is there is set aside first where one is a folder: a rename does not replace folders."""
    if path.exists() and (new.is_dir() or path.is_dir()):
        path.rename(new.parent / "old")
    new.replace(path)


@contextmanager
def locking(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` until the block ends; a kill releases it too. For processes of one machine.

    `what`: the locked work in the error, as in "redeem: tune". Raises LockedError at once if another process holds the lock;
    `wait`: waits for it instead.
    """
    import fcntl  # here: a logged model that imports this module loads on Windows too

    make_folder(path.parent)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(
                f"{what}: process {file.read().strip() or 'unknown'} holds the lock {path}. Wait for it, or stop it first."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. Dates become ISO text."""
    with writing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ProjectError if it is malformed."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ProjectError(f"{path}: is damaged: {error}. Remove it, then run the same command again.") from error


def truncated_parquet(layout: Layout) -> Path | None:
    """The first truncated parquet file under data/ or models/; None without one."""
    return next(filter(is_truncated, parquet_files(layout)), None)


def parquet_files(layout: Layout) -> Iterator[Path]:
    """Those under data/ and models/, in order. What a killed process left beside them is not read by anyone."""
    every = (path for part in ("data", "models") for path in sorted((layout.root / part).rglob("*.parquet")))
    return (path for path in every if path.is_file() and not _is_scratch(layout, path))


def is_truncated(path: Path) -> bool:
    """Whether a parquet file lacks its end."""
    return _end(path) != b"PAR1"


def _is_scratch(layout: Layout, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(layout.root).parts)


def _end(path: Path) -> bytes:
    """The last four bytes."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return file.read()
