"""What a spool's folder records beside the predictions: its numbers, whether they are whole, and how far the drainer is behind.

A number that a power loss damaged stops no writer and no drainer: each counts on from what can be known (ledger.spool).
"""

import fcntl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson

from evergreen.monitoring.ledger import refused_rows, spool

LOST = "lost"
AT = 4
"""Place of the time in a line."""


@dataclass(frozen=True)
class Lag:
    """Predictions that are written and not in the ledger yet."""

    bytes: int
    oldest: datetime
    """When the first of them was made, UTC."""


def find_lag(folder: Path) -> Lag | None:
    """None: the ledger has all that was written."""
    waiting = spool.backlog_bytes(folder)
    oldest = next((at for path in sorted(folder.glob("*.jsonl")) if (at := _first_time(path))), None)
    return Lag(waiting, oldest) if waiting and oldest else None


def _first_time(path: Path) -> datetime | None:
    """When the first prediction of a segment that is not in the ledger was made."""
    with suppress(OSError, ValueError, TypeError, IndexError, OverflowError), path.open("rb") as file:
        file.seek(spool.progress(path))
        return datetime.fromtimestamp(orjson.loads(file.readline())[AT], UTC)
    return None


def find_damaged(folder: Path) -> list[Path]:
    """Records that cannot be read."""
    return sorted(path for path in _records(folder) if not _is_whole(path))


def rebuild(folder: Path) -> None:
    """Replace damaged records by what is known: refused rows are counted in their file, a drained position begins at 0 (the
    ledger recognises what it has), and lost predictions are counted from now on."""
    for path in find_damaged(folder):
        if path.name == refused_rows.COUNT:
            _replace(path, refused_rows.count(folder))
        elif path.name == LOST:
            _replace(path, 0)
        else:
            path.unlink(missing_ok=True)


def _records(folder: Path) -> Iterator[Path]:
    yield from (path for name in (LOST, refused_rows.COUNT) if (path := folder / name).exists())
    for pattern in ("*.done", "*.count"):
        yield from folder.glob(pattern)


def _is_whole(path: Path) -> bool:
    with suppress(FileNotFoundError):  # its server ends, or its segment is drained, meanwhile
        if path.suffix == ".count":
            return path.stat().st_size == spool.COUNTER_BYTES
        segment = path.with_suffix(".jsonl")
        try:
            number = int(path.read_text())
            return number >= 0 if path.suffix != ".done" or not segment.exists() else number == spool.progress(segment)
        except ValueError:
            return False
    return True


def _replace(path: Path, number: int) -> None:
    with (path.parent / "settle.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = path.with_name(f"{path.name}.new")
        scratch.write_text(str(number))
        scratch.replace(path)
