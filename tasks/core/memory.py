"""Memory of this process, and how much of it one part of the data may take."""

import os
import resource
import sys
from pathlib import Path

from evergreen.tasks.core.errors import ParamsError

PER_MB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of ru_maxrss in a megabyte."""
LIMIT = "EVERGREEN_MEMORY_MB"
"""Environment: megabytes that one part of a table may take."""
LIMIT_MB = 1000


def limit() -> int:
    """Bytes that one part of a table may take. Raises ParamsError where the environment says no positive number."""
    text = os.environ.get(LIMIT, "")
    try:
        most = float(text or LIMIT_MB)
    except ValueError:
        most = 0.0
    if not 1 <= most < float("inf"):
        raise ParamsError(f"{LIMIT} = {text}: is no number of megabytes from 1 on; for example {LIMIT_MB}, or unset it")
    return int(most * 2**20)


def peak_mb() -> float:
    """Peak memory in MB: VmHWM on Linux, where ru_maxrss includes the memory of the parent process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    reported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MB
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), reported)
