"""What a process read and wrote, where the system counts it."""

from pathlib import Path

COUNTERS = {"rchar": "read_mb", "wchar": "written_mb"}
"""Counters of /proc/PID/io: bytes that it asked for, from the cache of the system too, but not through mapped memory."""


def megabytes(process: int | None = None) -> dict[str, float]:
    """`read_mb` and `written_mb` of a process, None: of this one; empty where the system does not tell."""
    try:
        lines = Path(f"/proc/{process or 'self'}/io").read_text().splitlines()
    except OSError:
        return {}
    counted = dict(line.split(": ", 1) for line in lines)
    return {name: round(int(counted[counter]) / 2**20, 1) for counter, name in COUNTERS.items() if counter in counted}
