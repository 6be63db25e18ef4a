"""Faults for `make soak`: a full disk, a locked database, killed processes, hostile connections, odd rows."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from bench.load import HOST
from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout, make_folder

SPOOL_MB = 24
"""Size of the file system of the spool."""
HOSTILE_ADDRESS = "127.0.0.2"
"""Address of the hostile client: limits per client leave the others alone."""
HOSTILE_CONNECTIONS, HOSTILE_SECONDS = 300, 8.0
EDGES = (
    "0001-01-01",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59.999999Z",
    "2017-02-30",
    "+292277026596-12-04",
    "",
    1e300,
    None,
)
"""Times of labels and purchases."""
ODD_VALUES = ("\0", "\ud800", "😀" * 300, "x" * 100_000, 10**400, -1e308, True, [], {"a": {}}, None)
"""Values of a feature or an entity."""


class Disk:
    """The spool's folder on a file system of its own, if this user may mount one."""

    def __init__(self, layout: Layout) -> None:
        self._folder = settings.spool_folder(layout)
        make_folder(self._folder)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SPOOL_MB}m,mode=700", "tmpfs", str(self._folder)]
        self.mounted = (
            shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    def fill(self) -> None:
        if self.mounted:
            with suppress(OSError), (self._folder / "ballast").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    def free(self) -> None:
        (self._folder / "ballast").unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


class Lock:
    """SQLite's write lock on the project's database, as a process that hangs in a transaction holds it."""

    def __init__(self, layout: Layout) -> None:
        self._path = settings.read(layout).database.removeprefix("sqlite:///")
        self._held: sqlite3.Connection | None = None

    def take(self) -> None:
        self._held = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        self._held.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        if self._held:
            self._held.execute("ROLLBACK")
            self._held.close()
        self._held = None


def kill_drainer(supervisor: int) -> None:
    for each in psutil.Process(supervisor).children():
        with suppress(psutil.Error):
            if any("ledger.spool" in word for word in each.cmdline()):
                os.kill(each.pid, signal.SIGKILL)


async def be_hostile(port: int) -> int:
    """Endless headers on many connections; returns how many the server closed within HOSTILE_SECONDS."""
    return sum(await asyncio.gather(*(_send_headers(port) for _ in range(HOSTILE_CONNECTIONS))))


async def _send_headers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port, local_addr=(HOSTILE_ADDRESS, 0))
    except OSError:
        return True
    try:
        writer.write(b"GET /health HTTP/1.1\r\n")
        for _ in range(int(HOSTILE_SECONDS / 0.2)):
            writer.write(b"x-more: " + b"a" * 500 + b"\r\n")
            await writer.drain()
            with suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(4096), 0.2):
                    return True
        return False
    except OSError:
        return True
    finally:
        writer.close()


def odd_row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with an odd value in one of its features."""
    names = list(row)
    return {**row, names[number % len(names)]: ODD_VALUES[number // len(names) % len(ODD_VALUES)]}
