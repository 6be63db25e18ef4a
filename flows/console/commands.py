"""Long work that the console starts: `evergreen` commands in processes of their own, with their output in var/console."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from evergreen.flows.running_steps import last_lines
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.core.paths import Layout, is_alive, locking, make_folder

SHOWN = timedelta(minutes=30)
"""An ended command stays on the overview for so long."""
KEPT = timedelta(days=30)
"""Its output is kept for so long."""


@dataclass(frozen=True)
class Command:
    verb: str
    problem: str
    by: str
    started: datetime
    """UTC."""
    code: int | None
    """Exit status; None: it runs."""
    ended: datetime | None
    lines: list[str]
    """The last lines of its output."""
    pid: int

    @property
    def state(self) -> str:
        return "runs" if self.code is None else "done" if self.code == 0 else "failed"


PROGRAM = ["-P", "-m", __name__]


def start_once(layout: Layout, problem: str, by: str, arguments: Sequence[str]) -> None:
    """The same as `start`. Raises ProjectError while a command that a console started for the problem still runs."""
    with locking(layout.var / "console" / "start.lock", f"{problem}: start", wait=True):  # of several consoles one starts it
        for each in recent(layout):
            if each.problem == problem and each.state == "runs":
                begun = f"{each.verb}, which {each.by} started at {each.started:%H:%M} UTC"
                raise ProjectError(f"{problem}: {begun}, still runs; wait for its end")
        start(layout, problem, by, arguments)


def start(layout: Layout, problem: str, by: str, arguments: Sequence[str]) -> None:
    """Run `evergreen ARGUMENTS` in the project, on behalf of `by`; it goes on when the console ends."""
    folder = layout.var / "console"
    make_folder(folder)
    _remove_old(folder)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}.{uuid4().hex[:8]}"
    mark = {"verb": arguments[0], "problem": problem, "by": by, "started": f"{datetime.now(UTC)}"}
    program = [sys.executable, *PROGRAM, str(folder / name), *arguments, "--root", str(layout.root)]
    environment = {**os.environ, "LOGNAME": by}  # the author, as the command line reads it
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            program, cwd=layout.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (folder / f"{name}.json").write_text(json.dumps({**mark, "pid": process.pid}))


def recent(layout: Layout) -> list[Command]:
    """The commands that run, and those that ended less than SHOWN ago, the newest first."""
    found = [each for path in sorted((layout.var / "console").glob("*.json"), reverse=True) if (each := _read(path))]
    now = datetime.now(UTC)
    return [each for each in found if each.ended is None or now - each.ended < SHOWN]


def _read(path: Path) -> Command | None:
    with suppress(OSError, ValueError, KeyError):
        mark = json.loads(path.read_text())
        end = path.with_suffix(".code")
        code = int(end.read_text()) if end.exists() else None if is_alive(mark["pid"]) else -9
        ended = None if code is None else datetime.fromtimestamp((end if end.exists() else path).stat().st_mtime, UTC)
        lines = last_lines(path.with_suffix(".log"))
        started = datetime.fromisoformat(mark["started"])
        return Command(mark["verb"], mark["problem"], mark["by"], started, code, ended, lines, mark["pid"])
    return None


def _remove_old(folder: Path) -> None:
    for path in folder.glob("2*"):
        with suppress(OSError):
            if datetime.now(UTC) - datetime.fromtimestamp(path.stat().st_mtime, UTC) > KEPT:
                path.unlink()


def _main() -> None:
    """Run the command line, and note its exit status for the console, which may have been started anew."""
    path, *arguments = sys.argv[1:]
    done = subprocess.run([sys.executable, "-P", "-m", "evergreen.flows.cli.main", *arguments], check=False)
    Path(f"{path}.code").write_text(str(done.returncode))


if __name__ == "__main__":
    _main()
