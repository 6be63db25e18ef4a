"""The spool: a server writes each prediction to a local file, and a drainer moves it into the ledger, each exactly once.

Each writer appends lines of JSON to a segment file of its own, locked while the writer runs, and starts the next segment when
it is large. `drain` moves whole lines into the ledger, records its progress and removes finished segments; after a kill between
the two, the ledger recognises the ids. Each writer also has a counter in shared memory that survives a kill, so predictions
that were returned to a client and never written are counted (`lost`).

`python -m evergreen.monitoring.ledger.spool FOLDER` drains into the database named by EVERGREEN_DATABASE until it is stopped.
"""

import fcntl
import gc
import logging
import mmap
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from evergreen.monitoring.ledger import refused_rows
from evergreen.tasks.core import log_limits
from evergreen.tasks.core.errors import EvergreenError, StorageError
from evergreen.tasks.core.paths import make_folder, shortage

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Ledger, Prediction, Variant

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 2**20
"""A writer starts its next segment beyond this size."""
READ_BYTES = 2**20
"""Read from a segment at a time."""
LINES_PER_APPEND = 5_000
"""Lines that go into the ledger together."""
COLLECT_AFTER = 200_000
"""New objects between two garbage collections of the drainer: a collection scans all parsed lines, which have no cycles."""
MAX_WAITING = 50_000
MAX_WAITING_BYTES = 64 * 2**20
"""Most predictions that wait in memory while the disk is full, and their size; further ones are dropped and counted."""
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
RETURNED, WRITTEN, END = range(3)
"""Numbers of a counter: predictions put, lines written, and the length of the newest segment at that time."""
COUNTER_BYTES = 24


class Spool:
    """The writer of one process, in `folder`. `durable`: `flush` returns after an fsync.

    `put` and `flush` may be called from several threads. Where the disk is full, predictions wait in memory (MAX_WAITING of
    them, and MAX_WAITING_BYTES; further ones are dropped and counted), and each `flush` tries again.
    """

    def __init__(self, folder: Path, durable: bool = False) -> None:
        self._folder, self._durable = folder, durable
        self._name = f"{time.time_ns():020d}-{os.getpid()}"
        self._waiting: list[tuple[Any, ...]] = []
        self._lines = deque[tuple[int, bytes]]()
        """Lines that the disk has not taken, and their number, oldest first: their size is known, and they are made once."""
        self._line_count = self._line_bytes = 0
        self._put_lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._number, self._dropped, self._closed = 0, 0, False
        self._lost, self._end, self._put_before = 0, 0, 0
        self._counter: _Counter | None = None
        self._file: int | None = None
        self.failing_since: datetime | None = None
        """Since when nothing can be written, UTC; None: it can."""
        try:
            self._open()
        except OSError as error:
            self.failing_since = datetime.now(UTC)
            log.error("predictions wait in memory: %s", _no_space(folder, error))

    def _open(self) -> int:
        """The file of the present segment; made on the first call that finds space."""
        if self._counter is None:
            make_folder(self._folder)
            with _locked(self._folder, "settle"):
                self._lost = _settle(self._folder)
            counter = _Counter(self._folder / f"{self._name}.count", create=True)
            with self._put_lock:
                counter.numbers[RETURNED] = self._put_before
                self._counter = counter
        if self._file is None:
            self._file = self._start_segment()
        return self._file

    def put(
        self,
        id: str,
        problem: str,
        version: int,
        variant: "Variant",
        at: datetime,
        entity: str | None,
        features: Mapping[str, Any],
        outputs: Mapping[str, Any],
        cutoff: date | None = None,
    ) -> None:
        """Queue one prediction for the next `flush`. `features` and `outputs` must not change until then."""
        with self._put_lock:
            if len(self._waiting) + self._line_count >= MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append((id, problem, version, variant, at.timestamp(), entity, cutoff, features, outputs))
            if self._counter:
                self._counter.numbers[RETURNED] += 1
            else:
                self._put_before += 1

    @property
    def waiting(self) -> int:
        """Predictions in memory that are not written yet."""
        return len(self._waiting) + self._line_count

    def flush(self) -> int:
        """Write all queued predictions; returns the number of lines. Those that cannot be written stay queued.

        Raises StorageError where the disk is full or read-only.
        """
        with self._flush_lock:
            written = 0
            try:
                self._make_lines()
                while self._lines:
                    count, lines = self._lines[0]
                    self._write(self._open(), lines)
                    self._forget(*self._lines.popleft())
                    written += count
                    assert self._counter
                    self._counter.numbers[WRITTEN] += count
                    self._counter.numbers[END] = self._end
            except OSError as error:
                while self._line_bytes > MAX_WAITING_BYTES and len(self._lines) > 1:
                    self._dropped += self._forget(*self._lines.pop())
                self.failing_since = self.failing_since or datetime.now(UTC)
                raise _no_space(self._folder, error) from error
            if written and self.failing_since:
                log.warning("predictions are written again; the disk refused them since %s", self.failing_since)
                self.failing_since = None
            if self._end >= SEGMENT_BYTES:
                with suppress(OSError):  # then the old segment grows on
                    self._rotate()
            return written

    def _make_lines(self) -> None:
        with self._put_lock:
            rows, self._waiting = self._waiting, []
        if not rows:
            return
        try:
            lines = _to_lines(self._folder, rows)
        except OSError:  # a row that JSON cannot hold, and no space to set it aside
            with self._put_lock:
                self._waiting = rows + self._waiting
            raise
        self._lines.append((len(rows), lines))
        self._line_count += len(rows)
        self._line_bytes += len(lines)

    def _forget(self, count: int, lines: bytes) -> int:
        self._line_count -= count
        self._line_bytes -= len(lines)
        return count

    def lost(self) -> int:
        """Predictions that were returned and never written: by killed predecessors, and here for lack of space."""
        return self._lost + self._dropped

    def close(self) -> None:
        """Write what is queued, and leave the segments to `drain`. Nothing may be put afterwards."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = True
            if self._file is not None:
                os.close(self._file)
            if self._counter:
                self._counter.close()

    def _start_segment(self) -> int:
        self._number += 1
        file = _create_locked(self._folder / f"{self._name}.{self._number:06d}.jsonl")
        self._end = 0
        if self._durable:
            _sync_folder(self._folder)
        return file

    def _rotate(self) -> None:
        assert self._counter
        assert self._file is not None
        old, self._file = self._file, self._start_segment()
        self._counter.numbers[END] = 0
        os.close(old)

    def _write(self, file: int, lines: bytes) -> None:
        """All of `lines` or, for readers of the segment, none."""
        done = 0
        try:
            while done < len(lines):
                done += os.pwrite(file, lines[done:], self._end + done)
            if self._durable:
                os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._end)
            raise
        self._end += len(lines)


class _Counter:
    """Three numbers in a memory-mapped file. The file is locked while its writer runs."""

    def __init__(self, path: Path, create: bool = False) -> None:
        self._file = _create_locked(path, bytes(COUNTER_BYTES)) if create else os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(self._file, COUNTER_BYTES)
        self.numbers = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        self.numbers.release()
        self._memory.close()
        os.close(self._file)


def drain(folder: Path, ledger: "Ledger") -> int:
    """Move all written lines into `ledger`; returns the number of new predictions. Concurrent calls run one after the other.

    Raises ProjectError where the ledger's database cannot be used; nothing is lost then. On a full disk it goes on: what is in
    the ledger leaves the disk.
    """
    if not folder.is_dir():
        return 0
    new = 0
    with _locked(folder, "drain"):
        with _locked(folder, "settle"), _going_on_without_space(folder):
            _settle(folder)
        for path in sorted(folder.glob("*.jsonl")):
            finished = not _is_locked(path)  # checked before reading: a later line must not be removed unread
            new += _drain_segment(path, ledger)
            if finished:
                path.unlink()
                _progress_file(path).unlink(missing_ok=True)
    return new


def backlog_bytes(folder: Path) -> int:
    """Bytes written and not in the ledger yet."""
    total = 0
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # drained meanwhile
            total += path.stat().st_size - progress(path)
    return total


def _drain_segment(path: Path, ledger: "Ledger") -> int:
    new, position = 0, progress(path)
    with path.open("rb", buffering=READ_BYTES) as file:
        file.seek(position)
        lines = list[bytes]()
        for line in file:
            if not line.endswith(b"\n"):  # an incomplete line: its writer was killed, or is writing it
                break
            lines.append(line)
            if len(lines) == LINES_PER_APPEND:
                new, position = new + _move(path, lines, position, ledger), position + sum(map(len, lines))
                lines = []
    return new + (_move(path, lines, position, ledger) if lines else 0)


def _move(path: Path, lines: list[bytes], position: int, ledger: "Ledger") -> int:
    predictions = [parsed for parsed in (_parse(path, line) for line in lines) if parsed is not None]
    new = refused_rows.store_each(predictions, ledger.append, path.parent)
    with _going_on_without_space(path.parent):  # lines that are read again are in the ledger already
        _write_number(_progress_file(path), position + sum(map(len, lines)))
    return new


@contextmanager
def _going_on_without_space(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if shortage(error, folder) is None:
            raise


def _write_number(path: Path, number: int) -> None:
    """Replace the number in a file atomically; on a full disk it is written over the old one, which needs no space."""
    scratch = path.with_name(f"{path.name}.new")
    try:
        scratch.write_text(str(number))
        scratch.replace(path)
    except OSError as error:
        if shortage(error, path.parent) is None or not path.exists():
            raise
        scratch.unlink(missing_ok=True)
        with path.open("r+") as file:
            file.write(str(number))
            file.truncate()


def _parse(path: Path, line: bytes) -> "Prediction | None":
    from evergreen.monitoring.ledger.predictions import Prediction

    try:
        id_, problem, version, variant, at, entity, cutoff, features, outputs = _members(line)
        day = date.fromisoformat(cutoff) if cutoff else None
        return Prediction(id_, problem, version, variant, datetime.fromtimestamp(at, UTC), entity, day, features, outputs)
    except (ValueError, TypeError, OverflowError, OSError) as error:  # OSError: a time that this system cannot hold
        refused_rows.set_aside(path.parent, [(line, ValueError(f"{path.name}: an invalid line: {error}"))])
        return None


class _Line(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A line as a server writes it. Features and outputs stay JSON: the ledger makes columns of them."""

    id: str
    problem: str
    version: int
    variant: str
    at: float
    entity: str | None
    cutoff: str | None
    features: msgspec.Raw
    outputs: msgspec.Raw


_LINE = msgspec.json.Decoder(_Line)


def _members(line: bytes) -> Sequence[Any]:
    """The nine members of a line; raises ValueError for an invalid one."""
    try:
        found = _LINE.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return orjson.loads(line)
    *head, features, outputs = msgspec.structs.astuple(found)
    return (*head, bytes(features), bytes(outputs))


def _progress_file(path: Path) -> Path:
    return path.with_suffix(".done")


def progress(path: Path) -> int:
    """Bytes of `path` that were drained. A damaged record counts as none: the ledger recognises what it has."""
    with suppress(FileNotFoundError, ValueError):
        position = int(_progress_file(path).read_text())
        with path.open("rb") as file:
            file.seek(max(0, position - 1))
            if position > 0 and file.read(1) == b"\n":
                return position
    return 0


def _settle(folder: Path) -> int:
    """Count what ended writers never wrote, and remove their counters; returns the number of predictions ever lost here."""
    total = folder / "lost"
    lost = _read_lost(total)
    for path in sorted(folder.glob("*.count")):
        if _is_locked(path):
            continue
        try:
            counter = _Counter(path)
        except ValueError:  # emptied or cut by a power loss
            log.warning("%s is damaged: predictions that its server lost are not counted", path)
            path.unlink()
            continue
        returned, written, end = counter.numbers
        counter.close()
        missing = returned - written - _count_lines_beyond(folder, path.stem, end)
        if missing > MAX_WAITING:
            log.warning("%s is damaged: it counts %d lost predictions, more than a server may queue", path, missing)
            missing = 0
        lost += max(0, missing)
        _write_number(total, lost)
        path.unlink()
    return lost


def _read_lost(path: Path) -> int:
    """The number in `path`; 0 where there is none, or a damaged one."""
    if not path.exists():
        return 0
    try:
        return int(path.read_text() or 0)
    except ValueError:  # UnicodeDecodeError too
        log.warning("%s is damaged: predictions lost before are not counted", path)
        return 0


def _count_lines_beyond(folder: Path, writer: str, end: int) -> int:
    """Lines of the newest segment of `writer` beyond `end`: written, and not counted before the kill."""
    segments = sorted(folder.glob(f"{writer}.*.jsonl"))
    if not segments:
        return 0
    with segments[-1].open("rb") as file:
        file.seek(min(end, segments[-1].stat().st_size))
        return file.read().count(b"\n")


def _is_locked(path: Path) -> bool:
    """Whether the writer of a file still runs."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _create_locked(path: Path, content: bytes = b"") -> int:
    """A new file, locked by this process before it appears under its name."""
    scratch = path.with_suffix(".born")
    file = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.pwrite(file, content, 0)
        scratch.replace(path)
    except OSError:  # no space: the next attempt needs the name
        os.close(file)
        scratch.unlink(missing_ok=True)
        raise
    return file


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock of the folder; wait for it."""
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _to_lines(folder: Path, rows: list[tuple[Any, ...]]) -> bytes:
    """A line of JSON per row. A row that JSON cannot hold is set aside."""
    lines, refused = list[bytes](), list[tuple[Any, Exception]]()
    for row in rows:
        try:
            lines.append(orjson.dumps(row, default=str, option=OPTIONS))
        except (TypeError, ValueError, RecursionError) as error:
            refused.append((row, error))
    if refused:
        refused_rows.set_aside(folder, refused)
    return b"".join(lines)


def _sync_folder(folder: Path) -> None:
    """A new file is durable only after an fsync of its folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder}: {shortage(error, folder) or error.strerror}. Free space or allow writing there.")


NICE = 15
"""The drainer yields the CPU to the servers and catches up after a peak."""


def main(folder: Path, address: str, every_seconds: float = 0.5) -> None:
    """Drain until SIGTERM or SIGINT, then once more. An unavailable database is tried again."""
    from evergreen.monitoring.ledger.predictions import Ledger

    os.nice(NICE)
    gc.set_threshold(COLLECT_AFTER)
    stopped = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stopped.set())
    ledger: Ledger | None = None
    told = ""
    while True:
        is_last = stopped.is_set()
        try:
            ledger = ledger or Ledger(address)
            drain(folder, ledger)
            told = ""
        except (EvergreenError, OSError) as error:
            if str(error) != told:
                log.warning("the spool cannot be drained now: %s", error)
            told = str(error)
            stopped.wait(5)
        if is_last:
            return
        stopped.wait(every_seconds)


if __name__ == "__main__":
    log_limits.configure(logging.WARNING, "%(message)s")
    main(Path(sys.argv[1]), os.environ["EVERGREEN_DATABASE"])
