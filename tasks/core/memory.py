"""Memory of this process and of this machine, and how much of it the data may take."""

import os
import resource
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from evergreen.tasks.core.errors import ParamsError

PER_MB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of ru_maxrss in a megabyte."""
LIMIT = "EVERGREEN_MEMORY_MB"
"""Environment: megabytes that one part of a table may take."""
LIMIT_MB = 1000
LEARNING = "EVERGREEN_LEARNING_MB"
"""Environment: megabytes that the rows of a learning process may take."""
LEARNING_STEPS = ("tune", "train", "evaluate", "diagnose", "explain")
"""Steps that it bounds; the others hold parts of LIMIT."""
LEARNING_SHARE = 0.5
"""Of the memory of the machine or the container, where the environment says nothing."""
CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 2**60
"""What control groups say where they set no limit, or more."""


def limit() -> int:
    """Bytes that one part of a table may take. Raises ParamsError where the environment says no positive number."""
    return _megabytes(LIMIT) or LIMIT_MB * 2**20


_given: ContextVar[int | None] = ContextVar("learning_limit", default=None)


@contextmanager
def learning_within(most: int | None) -> Generator[None]:
    """Let rows take `most` bytes in the block, whatever the environment of this process says; None: no change."""
    token = _given.set(most or _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def learning_limit() -> int:
    """Bytes that the rows of a learning process may take. Raises ParamsError where the environment says no positive number."""
    return _given.get() or _megabytes(LEARNING) or int(LEARNING_SHARE * machine())


def _megabytes(name: str) -> int | None:
    """What the environment says under `name`, in bytes; None where it says nothing."""
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        most = float(text)
    except ValueError:
        most = 0.0
    if not 1 <= most < float("inf"):
        raise ParamsError(f"{name} = {text}: is no number of megabytes from 1 on; for example {LIMIT_MB}, or unset it")
    return int(most * 2**20)


def machine() -> int:
    """Bytes of memory of this machine, or of its container where that has fewer."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(each for each in _group_limits() if 0 < each < UNLIMITED)])


def _group_limits() -> Iterator[int]:
    """The limits of the control groups that this process is in, of version 2 and of version 1."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            root, name = (CGROUPS, "memory.max") if not controllers else (CGROUPS / "memory", "memory.limit_in_bytes")
            place = root / group.lstrip("/")
            for folder in (place, *place.parents):
                if folder.is_relative_to(root) and (folder / name).is_file():
                    text = (folder / name).read_text().strip()
                    yield int(text) if text.isdigit() else UNLIMITED


def advice(step: str) -> str:
    """What to do where `step` had too little memory."""
    name, most = (LEARNING, learning_limit()) if step in LEARNING_STEPS else (LIMIT, limit())
    return f"Set {name} below {most / 2**20:,.0f}, its value now: less is then held at a time."


def peak_mb() -> float:
    """Peak memory in MB: VmHWM on Linux, where ru_maxrss includes the memory of the parent process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    reported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MB
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), reported)
