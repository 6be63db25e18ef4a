"""Which steps run now, in any process of the project: one small file per step in var/running, removed when it ends."""

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evergreen.tasks.core.paths import Layout, is_alive, make_folder


@dataclass(frozen=True)
class RunningStep:
    step: str
    problem: str | None
    """None: a step that all problems share."""
    since: datetime
    """UTC."""
    lines: list[str]
    """The last lines of its log."""
    run: str | None = None
    """The id of its run on the Prefect server."""
    percent: float | None = None
    """How far it is: by its trials, or by the time that it has; None: neither is in its log."""


TRIAL = re.compile(r"\btrial (\d+) of (\d+)\b")
LEFT = re.compile(r"\b(\d+) s left\b")
LINES = 12
"""Lines of a log that are read."""


def percent(line: str) -> float | None:
    """How far a step is by a line of its log, in percent; None: the line says nothing of it.

    >>> percent("trial 3 of 12: linear roc_auc 0.81")
    25.0
    """
    found = TRIAL.search(line)
    return min(100.0, 100 * int(found[1]) / int(found[2])) if found and int(found[2]) else None


@contextmanager
def marking(layout: Layout, step: str, problem: str | None, run: str | None = None) -> Generator[None]:
    """Mark a step as running until the block ends. Without space on the disk it runs unmarked."""
    path = _folder(layout) / f"{step}@{problem or 'all'}.json"
    with suppress(OSError):
        make_folder(path.parent)
        mark = {"step": step, "problem": problem, "run": run, "pid": os.getpid(), "since": f"{datetime.now(UTC)}"}
        path.write_text(json.dumps(mark))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def read(layout: Layout) -> list[RunningStep]:
    """The steps whose process is alive, the oldest first."""
    found: list[RunningStep] = []
    for path in _folder(layout).glob("*.json"):
        with suppress(OSError, ValueError, KeyError):
            mark = json.loads(path.read_text())
            if is_alive(mark["pid"]):
                log = layout.var / "logs" / f"{path.stem}.log"
                since = datetime.fromisoformat(mark["since"])
                lines = last_lines(log)
                step = RunningStep(mark["step"], mark["problem"], since, lines, mark.get("run"), _progress(lines, since, log))
                found.append(step)
    return sorted(found, key=lambda each: each.since)


def _progress(lines: list[str], since: datetime, log: Path) -> float | None:
    """By the newest line that names trials, or the time left when the log was written last."""
    for line in reversed(lines):
        if (found := percent(line)) is not None:
            return found
        if left := LEFT.search(line):
            written = datetime.fromtimestamp(log.stat().st_mtime, UTC)
            whole = (written - since).total_seconds() + int(left[1])
            return max(0.0, min(100.0, 100 * (datetime.now(UTC) - since).total_seconds() / whole)) if whole > 0 else None
    return None


def last_lines(path: Path, count: int = LINES) -> list[str]:
    """The last lines of a text file; none where there is no file."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 400 * count))
        return [line for line in file.read().decode("utf8", "replace").splitlines() if line.strip()][-count:]
    return []


def _folder(layout: Layout) -> Path:
    return layout.var / "running"
