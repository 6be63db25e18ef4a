"""Memory of this process."""

import resource
import sys
from pathlib import Path

PER_MB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of ru_maxrss in a megabyte."""


def peak_mb() -> float:
    """Peak memory in MB: VmHWM on Linux, where ru_maxrss includes the memory of the parent process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    reported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MB
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), reported)
