"""What a person sees while a flow works: one line per branch on a terminal, plain prefixed lines elsewhere.

The flow knows nothing of this: it logs, and these are handlers of its log.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evergreen.flows.cli.common import INTERRUPTED, one_thread, say

if TYPE_CHECKING:
    from evergreen.tasks.core.paths import Layout

LOGGERS = ("evergreen",)
MARKS = {"waiting": " ", "started": "▸", "done": "✓", "unchanged": "·", "failed": "✗"}
COLOURS = {"started": "cyan", "done": "green", "unchanged": "dim", "failed": "red"}

Where = Callable[[], tuple[str, str | None] | None]
"""Tells which step and problem the calling thread is at."""


class Plain(logging.Handler):
    """`[redeem tune] trial 3 of 12 …`, one line each."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where = where

    def emit(self, record: logging.LogRecord) -> None:
        place = self.where()
        prefix = f"[{' '.join(part for part in reversed(place) if part)}] " if place else ""
        failed = getattr(record, "event", "") == "failed"  # why, the command says in its last lines
        sys.stderr.write(f"{prefix}{'failed' if failed else _line(record, place)}\n")


@dataclass
class Branch:
    step: str = ""
    event: str = "waiting"
    line: str = ""
    since: float = 0.0
    """Monotonic seconds at which its first step began; 0 before."""
    seconds: float = 0.0


class Board(logging.Handler):
    """One row per problem, and one for the steps they share: what it does, its last word, for how long."""

    def __init__(self, where: Where, problems: list[str]) -> None:
        super().__init__()
        self.where = where
        self.branches = {name: Branch() for name in ("all", *problems)}

    def emit(self, record: logging.LogRecord) -> None:
        place = self.where()
        if place is None:
            return
        branch = self.branches.setdefault(place[1] or "all", Branch())
        event = getattr(record, "event", "line")
        branch.step = place[0]
        if event in MARKS:
            branch.event = event
        branch.line = _line(record, place) if event in ("line", "failed") else "" if event == "started" else branch.line
        now = time.monotonic()
        branch.since = branch.since or now
        branch.seconds = now - branch.since

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        for width in (1, 12, 10, None, 6):
            table.add_column(
                width=width,
                ratio=None if width else 1,
                no_wrap=True,
                overflow="ellipsis",
                justify="right" if width == 6 else "left",
            )
        for name, branch in self.branches.items():
            seconds = time.monotonic() - branch.since if branch.event == "started" else branch.seconds
            mark = Text(MARKS[branch.event], style=COLOURS.get(branch.event, ""))
            table.add_row(mark, name, branch.step, Text(branch.line, style="dim"), f"{seconds:.0f} s" if branch.since else "")
        return table


def _line(record: logging.LogRecord, place: tuple[str, str | None] | None) -> str:
    """The message without the problem's name and the step's in front, which the reader sees already."""
    text = record.getMessage().splitlines()[0] if record.getMessage() else ""
    for part in reversed(place or ()):
        text = text.removeprefix(f"{part}: ") if part else text
    return text


@contextmanager
def shown(where: Where, problems: list[str]) -> Iterator[None]:
    """Show the logs of our own packages on stderr until the block ends."""
    console = Console(stderr=True)
    handler = Board(where, problems) if console.is_terminal else Plain(where)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        if isinstance(handler, Board):
            with Live(handler, console=console, refresh_per_second=4):
                yield
        else:
            yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


def run_flow(place: "Layout", problems: list[str], start: Callable[[], Any], interrupted: str) -> Any:
    """The result of a flow, run on the project's Prefect server with its progress shown.

    `start` imports and calls the flow, and returns its state: Prefect reads the server's address when it is first imported.
    `interrupted`: printed after Ctrl-C. Raises the flow's error, and typer.Exit after Ctrl-C.
    """
    from evergreen.flows.prefect_runtime import server

    one_thread()
    with server.running(place, say) as prefect:
        from evergreen.flows import steps
        from evergreen.flows.prefect_runtime import stale_runs

        prefect.wait()
        try:
            with shown(lambda: steps.here.get(None), problems):
                state = start()
        except KeyboardInterrupt:
            say(interrupted)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            stale_runs.deliver()
        found = state.result(raise_on_failure=False)
    if isinstance(found, BaseException):
        raise found
    return found
