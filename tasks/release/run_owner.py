"""The process that writes a run, so that a run whose process died can be recognised."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def owner() -> dict[str, str]:
    """Tags of this process: its machine, and its number with the time it began."""
    return {"host": socket.gethostname(), "process": f"{os.getpid()} {_born(os.getpid())}"}


def is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process with these tags, on this machine, still runs; another process with its number does not count."""
    pid, _, born = tags.get("process", "").partition(" ")
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(int(pid)) == born


def _born(pid: int) -> str:
    """When the process began, in the system's ticks; "" on a system without /proc."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
