"""What a server writes down as it answers, and how that reaches the ledger: off the way of the answer, and nothing twice.

Each writer appends to a file of its own, a line of JSON per prediction, and begins the next one when it is large. It holds a
lock on it as long as it lives. `drain` moves whole lines into the ledger, notes how far it came, and removes what is done;
where it was killed between the two, the ledger knows the ids. Beside its files each writer has a small counter in shared
memory, which outlives a kill: what it gave and never wrote is known, and told by `lost`.

`python -m evergreen.monitoring.ledger.spool FOLDER` drains until it is ended, into the database that EVERGREEN_DATABASE names.
"""

import fcntl
import logging
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from evergreen.tasks.core.errors import EvergreenError, SpaceError
from evergreen.tasks.core.paths import shortage

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger, Prediction, Variant

log = logging.getLogger(__name__)

SEGMENT = 16 * 2**20
"""Bytes after which a writer begins its next file."""
AT_ONCE = 5_000
"""Lines that go into the ledger together."""
HELD = 200_000
"""Most lines that wait in memory where the disk takes none; further ones are lost, and counted."""
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
ANSWERED, WRITTEN, END = range(3)
"""Places in a counter: predictions given, lines written, length of the newest file when these were counted."""


class Journal:
    """The writer of one process, in `folder`. `durable`: `flush` returns when the lines are safe on disk.

    `put` and `flush` may be called from several threads. Raises SpaceError where nothing can be written.
    """

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self._folder, self._durable = folder, durable
        self._name = f"{time.time_ns():020d}-{os.getpid()}"
        self._waiting: list[tuple[Any, ...]] = []
        self._putting, self._writing = threading.Lock(), threading.Lock()
        self._number, self._dropped, self._closed = 0, 0, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder, "settle"):
                self._lost = _settle(folder)
            self._counter = _Counter(folder / f"{self._name}.count", make=True)
            self._file = self._begin()
        except OSError as error:
            raise _no_space(folder, error) from error

    def put(
        self,
        id: str,
        problem: str,
        version: int,
        variant: "Variant",
        at: datetime,
        entity: str | None,
        features: Mapping[str, Any],
        answer: Mapping[str, Any],
        cutoff: date | None = None,
    ) -> None:
        """Note one prediction; it is written by the next `flush`. `features` and `answer` must not change until then."""
        with self._putting:
            if len(self._waiting) >= HELD:
                self._dropped += 1
                return
            self._waiting.append((id, problem, version, variant, at.timestamp(), entity, cutoff, features, answer))
            self._counter.numbers[ANSWERED] += 1

    def flush(self) -> int:
        """Write all that waits, at once; returns how many lines. What cannot be written waits on.

        Raises SpaceError where the disk takes nothing.
        """
        with self._writing:
            with self._putting:
                rows, self._waiting = self._waiting, []
            if not rows:
                return 0
            try:
                self._write(b"".join(_line(row) for row in rows))
            except OSError as error:
                with self._putting:
                    self._waiting = rows + self._waiting
                raise _no_space(self._folder, error) from error
            self._counter.numbers[WRITTEN] += len(rows)
            self._counter.numbers[END] = self._end
            if self._end >= SEGMENT:
                with suppress(OSError):  # then the old file grows on
                    self._turn()
            return len(rows)

    def lost(self) -> int:
        """Predictions that were answered and never written: by predecessors that were killed, and here for want of space."""
        return self._lost + self._dropped

    def close(self) -> None:
        """Write what waits, and leave the files to `drain`. Nothing may be put after it."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = True
            os.close(self._file)
            self._counter.close()

    def _begin(self) -> int:
        """The next file."""
        self._number += 1
        file = _held_from_birth(self._folder / f"{self._name}.{self._number:06d}.jsonl")
        self._end = 0
        if self._durable:
            _sync(self._folder)
        return file

    def _turn(self) -> None:
        old, self._file = self._file, self._begin()
        self._counter.numbers[END] = 0
        os.close(old)

    def _write(self, lines: bytes) -> None:
        """All of `lines` or, for whoever reads the file, none."""
        done = 0
        try:
            while done < len(lines):
                done += os.pwrite(self._file, lines[done:], self._end + done)
            if self._durable:
                os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(lines)


class _Counter:
    """Three numbers in a file that is memory too. Its lock says that its writer lives."""

    def __init__(self, path: Path, make: bool = False) -> None:
        self._file = _held_from_birth(path, bytes(24)) if make else os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(self._file, 24)
        self.numbers = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        self.numbers.release()
        self._memory.close()
        os.close(self._file)


def drain(folder: Path, ledger: "Ledger") -> int:
    """Move what is written into `ledger`; returns how many predictions were new there. Of two that drain, one does it all.

    Raises ProjectError where the ledger's database cannot be used; nothing is lost then.
    """
    if not folder.is_dir():
        return 0
    new = 0
    with _alone(folder, "drain"):
        with _alone(folder, "settle"):
            _settle(folder)
        for path in sorted(folder.glob("*.jsonl")):
            done = not _held(path)  # asked before it is read: what is written later is not there to remove
            new += _drain(path, ledger)
            if done:
                path.unlink()
                _mark(path).unlink(missing_ok=True)
    return new


def waiting(folder: Path) -> int:
    """Bytes that are written and not yet in the ledger."""
    total = 0
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # drained by now
            total += path.stat().st_size - _come(path)
    return total


def _drain(path: Path, ledger: "Ledger") -> int:
    new, place = 0, _come(path)
    with path.open("rb") as file:
        file.seek(place)
        lines = list[bytes]()
        for line in file:
            if not line.endswith(b"\n"):  # half a line: of a writer that was killed, or is at it
                break
            lines.append(line)
            if len(lines) == AT_ONCE:
                new, place = new + _move(path, lines, place, ledger), place + sum(map(len, lines))
                lines = []
    return new + (_move(path, lines, place, ledger) if lines else 0)


def _move(path: Path, lines: list[bytes], place: int, ledger: "Ledger") -> int:
    found = [made for made in (_read(path, line) for line in lines) if made is not None]
    new = ledger.append(found)
    scratch = _mark(path).with_suffix(".new")
    scratch.write_text(str(place + sum(map(len, lines))))
    scratch.replace(_mark(path))
    return new


def _read(path: Path, line: bytes) -> "Prediction | None":
    from evergreen.monitoring.ledger.predictions import Prediction

    try:
        id_, problem, version, variant, at, entity, cutoff, features, answer = orjson.loads(line)
        day = date.fromisoformat(cutoff) if cutoff else None
        return Prediction(id_, problem, version, variant, datetime.fromtimestamp(at, UTC), entity, day, features, answer)
    except (ValueError, TypeError) as error:
        log.warning("%s: a line cannot be read and is left out: %s", path.name, error)
        return None


def _mark(path: Path) -> Path:
    """Where it is noted how far `path` was drained."""
    return path.with_suffix(".done")


def _come(path: Path) -> int:
    """How far `path` was drained, in bytes."""
    with suppress(FileNotFoundError, ValueError):
        return int(_mark(path).read_text())
    return 0


def _settle(folder: Path) -> int:
    """Count what writers that are no more never wrote, and forget them; how many predictions were ever lost here."""
    total = folder / "lost"
    lost = int(total.read_text() or 0) if total.exists() else 0
    for path in sorted(folder.glob("*.count")):
        if _held(path):
            continue
        counter = _Counter(path)
        answered, written, end = counter.numbers
        counter.close()
        lost += max(0, answered - written - _further(folder, path.stem, end))
        scratch = folder / "lost.new"
        scratch.write_text(str(lost))
        scratch.replace(total)
        path.unlink()
    return lost


def _further(folder: Path, writer: str, end: int) -> int:
    """Lines of the newest file of `writer` beyond `end`: written, and not counted before it was killed."""
    files = sorted(folder.glob(f"{writer}.*.jsonl"))
    if not files:
        return 0
    with files[-1].open("rb") as file:
        file.seek(end)
        return file.read().count(b"\n")


def _held(path: Path) -> bool:
    """Whether the writer of a file lives and still holds it."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _held_from_birth(path: Path, holds: bytes = b"") -> int:
    """A new file, locked by this process before anybody can see it."""
    scratch = path.with_suffix(".born")
    file = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.pwrite(file, holds, 0)
    scratch.replace(path)
    return file


@contextmanager
def _alone(folder: Path, at: str) -> Iterator[None]:
    """Hold a lock of the folder; wait for it."""
    with (folder / f"{at}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(row: tuple[Any, ...]) -> bytes:
    return orjson.dumps(row, default=str, option=OPTIONS)


def _sync(folder: Path) -> None:
    """A file that was made is safe when its folder is."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _no_space(folder: Path, error: OSError) -> SpaceError:
    return SpaceError(f"{folder}: {shortage(error, folder) or error.strerror}. Free space or allow writing there.")


NICE = 15
"""What is drained gives way to what is answered; after a rush it catches up."""


def main(folder: Path, address: str, every_seconds: float = 0.5) -> None:
    """Drain until SIGTERM or SIGINT, then once more. A database that is away is tried again."""
    from evergreen.monitoring.ledger.predictions import Ledger

    os.nice(NICE)
    ended = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: ended.set())
    ledger: Ledger | None = None
    while True:
        last = ended.is_set()
        try:
            ledger = ledger or Ledger(address)
            drain(folder, ledger)
        except (EvergreenError, OSError) as error:
            log.warning("the journal is not drained now: %s", error)
            ended.wait(5)
        if last:
            return
        ended.wait(every_seconds)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main(Path(sys.argv[1]), os.environ["EVERGREEN_DATABASE"])
