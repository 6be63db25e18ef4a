"""Faults for `make soak`: a full disk, a locked database, a stepped clock, killed processes, hostile connections, odd rows."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from bench.load import HOST
from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout, make_folder

SPOOL_MB = 64
"""Size of the file system of the spool: more than a full segment of each worker, and of killed ones, needs."""
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


CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile long *offset;

static void __attribute__((constructor)) open_clock(void) {
  const char *path = getenv("SOAK_CLOCK");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *found = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
  if (found != MAP_FAILED) offset = found;
  if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = syscall(SYS_clock_gettime, clock, now);
  if (!status && clock == CLOCK_REALTIME && offset) now->tv_sec += *offset;
  return status;
}
"""
"""Source of a library: CLOCK_REALTIME is ahead by the number of seconds in the file SOAK_CLOCK. Other clocks stay."""


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
    """The write lock of the project's database, as a process that hangs in a transaction holds it."""

    def __init__(self, layout: Layout) -> None:
        self._engine = sa.create_engine(settings.read(layout).database, isolation_level="AUTOCOMMIT")
        self._held: sa.Connection | None = None

    def take(self) -> None:
        self._held = self._engine.connect()
        if self._engine.dialect.name == "sqlite":
            self._held.exec_driver_sql("PRAGMA busy_timeout = 30000")
            self._held.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            names = ", ".join(f'"{name}"' for name in sa.inspect(self._held).get_table_names())
            self._held.exec_driver_sql("BEGIN")
            self._held.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")

    def release(self) -> None:
        if self._held:
            self._held.exec_driver_sql("ROLLBACK")
            self._held.close()
        self._held = None


class Clock:
    """The clock of the server's processes, by a library that is preloaded, if there is a C compiler.

    libfaketime also wraps clock_nanosleep, where the sleeps of Python 3.11 then fail.
    """

    def __init__(self, folder: Path) -> None:
        self._file, source, library = folder / "clock", folder / "clock.c", folder / "clock.so"
        self.environment: dict[str, str] = {}
        """Variables for the server."""
        self.step(0)
        source.write_text(CLOCK)
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)]
        if shutil.which("cc") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            self.environment = {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(self._file)}

    def step(self, hours: int) -> None:
        """Put it `hours` ahead of the true time."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write((3600 * hours).to_bytes(8, sys.byteorder, signed=True))


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
