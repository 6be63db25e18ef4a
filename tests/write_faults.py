"""The n-th write of a command and of all processes that it starts fails, or kills them: a library in C that is preloaded.

It counts calls that write below a folder: open (of a new file, or one that is emptied), write, pwrite, writev, rename, link,
mkdir, truncate, fsync, and so on, of SQLite, Polars and git as of Python. At the n-th call the disk is full, and stays full:
half of the bytes are written, and every later write fails with ENOSPC. Or half of the bytes are written, and the command with
all its processes is killed.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, NoReturn

import psutil

from tests import ROOT

Fault = Literal["full", "killed"]
MODES: Mapping[Fault, int] = {"full": 1, "killed": 2}
NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SECONDS = 180
"""Longest run of a command."""
SERVED_SECONDS = 1.0
"""A command that serves goes on for so long once it is ready."""
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* calls so far, the call that fails, mode, process group of the command; then, as text, the call and its file */
static volatile long *state;
static __thread char place[PATH_MAX];
static char *folder;
static size_t length;

static void __attribute__((constructor)) begin(void) {
  const char *path = getenv("WRITE_FAULTS");
  folder = getenv("WRITE_FAULTS_FOLDER");
  if (!path || !folder) return;
  folder = strdup(folder);
  length = strlen(folder);
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
  void *found = fd < 0 ? MAP_FAILED : mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (found != MAP_FAILED) state = found;
  if (fd >= 0) close(fd);
}

static int is_below(const char *path) {
  snprintf(place, sizeof place, "%s", path);
  return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int is_path_below(int at, const char *path) {
  char link[64], base[PATH_MAX];
  if (!state || !path) return 0;
  if (path[0] == '/') return is_below(path);
  snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
  ssize_t size = readlink(link, base, sizeof base - 1);
  if (size < 0) return 0;
  base[size] = 0;
  if (!is_below(base)) return 0;
  snprintf(place, sizeof place, "%s/%s", base, path);
  return 1;
}

static int is_file_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!state || fd < 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return is_below(path);
}

static void end(void) {
  if (state[3]) kill(-state[3], SIGKILL);
  kill(0, SIGKILL);
  kill(getpid(), SIGKILL);
}

/* 0: goes on; 1: this call fails; 2: this call does half and the fault follows */
static int fault(const char *call) {
  long number = __atomic_add_fetch(&state[0], 1, __ATOMIC_SEQ_CST);
  if (!state[1] || number < state[1]) return 0;
  if (number > state[1]) return 1;
  snprintf((char *)(state + 4), 4000, "%s %s", call, place);
  return 2;
}

static int refuse(const char *call) { /* of a call that does nothing by half */
  if (!fault(call)) return 0;
  if (state[2] == 2) end();
  errno = ENOSPC;
  return 1;
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, name)

#define WRITE(name, first, ...) \
  if (is_file_below(fd)) { \
    int what = fault(name); \
    size_t half = (first) / 2; \
    if (what == 1 || (what == 2 && !half)) { \
      if (state[2] == 2) end(); \
      errno = ENOSPC; \
      return -1; \
    } \
    if (what == 2) { \
      ssize_t done = __VA_ARGS__; \
      if (state[2] == 2) end(); \
      return done; \
    } \
  }

ssize_t write(int fd, const void *bytes, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  WRITE("write", size, real(fd, bytes, half))
  return real(fd, bytes, size);
}

#define PWRITE(name) \
  ssize_t name(int fd, const void *bytes, size_t size, off_t at) { \
    REAL(ssize_t, #name, int, const void *, size_t, off_t); \
    WRITE(#name, size, real(fd, bytes, half, at)) \
    return real(fd, bytes, size, at); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  WRITE("writev", count > 0 ? parts[0].iov_len : 0, write(fd, parts[0].iov_base, half))
  return real(fd, parts, count);
}

#define SENDFILE(name) \
  ssize_t name(int fd, int from, off_t *at, size_t size) { \
    REAL(ssize_t, #name, int, int, off_t *, size_t); \
    WRITE(#name, size, real(fd, from, at, half > 10 ? 10 : half)) \
    return real(fd, from, at, size); \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off_t *begin, int fd, off_t *at, size_t size, unsigned int flags) {
  REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned int);
  WRITE("copy_file_range", size, real(from, begin, fd, at, half > 10 ? 10 : half, flags))
  return real(from, begin, fd, at, size, flags);
}

static int makes(int at, const char *path, int flags) {
  if (!(flags & (O_CREAT | O_TRUNC)) || !is_path_below(at, path)) return 0;
  return flags & O_TRUNC ? 1 : faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
}

#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list more; \
    va_start(more, flags); \
    mode = va_arg(more, mode_t); \
    va_end(more); \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, mode_t); \
    MODE \
    if (makes(AT_FDCWD, path, flags) && refuse(__func__)) return -1; \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(int, #name, int, const char *, int, mode_t); \
    MODE \
    if (makes(at, path, flags) && refuse(__func__)) return -1; \
    return real(at, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *how) { \
    REAL(FILE *, #name, const char *, const char *); \
    int makes = how[0] == 'w' || (how[0] == 'a' && access(path, F_OK)); \
    if (makes && is_path_below(AT_FDCWD, path) && refuse(__func__)) return 0; \
    return real(path, how); \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define SYNC(name) \
  int name(int fd) { \
    REAL(int, #name, int); \
    if (is_file_below(fd) && refuse(__func__)) return -1; \
    return real(fd); \
  }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name) \
  int name(int fd, off_t size) { \
    REAL(int, #name, int, off_t); \
    if (is_file_below(fd) && refuse(__func__)) return -1; \
    return real(fd, size); \
  }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ALLOCATE(name) \
  int name(int fd, off_t at, off_t size) { \
    REAL(int, #name, int, off_t, off_t); \
    if (is_file_below(fd) && refuse(__func__)) return ENOSPC; \
    return real(fd, at, size); \
  }
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  if (is_path_below(AT_FDCWD, to) && refuse(__func__)) return -1;
  return real(from, to);
}

int renameat(int old, const char *from, int at, const char *to) {
  REAL(int, "renameat", int, const char *, int, const char *);
  if (is_path_below(at, to) && refuse(__func__)) return -1;
  return real(old, from, at, to);
}

int renameat2(int old, const char *from, int at, const char *to, unsigned int flags) {
  REAL(int, "renameat2", int, const char *, int, const char *, unsigned int);
  if (is_path_below(at, to) && refuse(__func__)) return -1;
  return real(old, from, at, to, flags);
}

int link(const char *from, const char *to) {
  REAL(int, "link", const char *, const char *);
  if (is_path_below(AT_FDCWD, to) && refuse(__func__)) return -1;
  return real(from, to);
}

int symlink(const char *from, const char *to) {
  REAL(int, "symlink", const char *, const char *);
  if (is_path_below(AT_FDCWD, to) && refuse(__func__)) return -1;
  return real(from, to);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  if (is_path_below(AT_FDCWD, path) && access(path, F_OK) && refuse(__func__)) return -1;
  return real(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
  REAL(int, "mkdirat", int, const char *, mode_t);
  if (is_path_below(at, path) && refuse(__func__)) return -1;
  return real(at, path, mode);
}

int unlink(const char *path) { /* succeeds on a full disk; a kill may come before it */
  REAL(int, "unlink", const char *);
  if (is_path_below(AT_FDCWD, path) && fault(__func__) == 2 && state[2] == 2) end();
  return real(path);
}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    calls: int
    """Calls that wrote, or would have."""
    place: str
    """The call at which the fault happened, and its file."""

    @property
    def is_clear(self) -> bool:
        """Whether it succeeded, or ended with one line that says what is wrong."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return "Traceback" not in self.stderr and (self.code == 0 or len(lines) == 1)


class WriteFaults:
    """Runs commands with a fault at one of their writes below `folder`; its own files lie in `tools`.

    A process that has their libraries is forked for each command.
    """

    def __init__(self, tools: Path, folder: Path, environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
        """`modules`: what to import once, beside the command line."""
        self._tools, self._state = tools, tools / "state"
        source, library = tools / "write_faults.c", tools / "write_faults.so"
        source.write_text(SOURCE)
        command = ["cc", "-shared", "-fPIC", "-O2", "-w", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        self._prepare(0, "full")
        own = {"LD_PRELOAD": str(library), "WRITE_FAULTS": str(self._state), "WRITE_FAULTS_FOLDER": str(folder.resolve())}
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            cwd=ROOT, env={**environment, **own}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, words: Sequence[str], number: int = 0, fault: Fault = "full", *, cwd: Path, step: bool = False, until: str = ""
    ) -> Ended:
        """Run `evergreen words`, or a step; `fault` happens at its `number`-th write, for 0 at none.

        `until`: what a command prints that runs until Ctrl-C, which it then gets. No process of it is left afterwards.
        """
        assert self._server.stdin
        assert self._server.stdout
        self._prepare(number, fault)
        self._server.stdin.write(json.dumps({"words": list(words), "cwd": str(cwd), "step": step, "until": until}) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        self._end_others()
        stdout, stderr = ((self._tools / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        state = self._state.read_bytes()
        place = state[32:].split(b"\0")[0].decode(errors="replace")
        return Ended(code, stdout, stderr, int.from_bytes(state[:8], sys.byteorder), place)

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(60)

    def _prepare(self, number: int, fault: Fault) -> None:
        with self._state.open("r+b" if self._state.exists() else "w+b") as file:  # the same file: processes map it
            file.write(b"".join(value.to_bytes(8, sys.byteorder) for value in (0, number, MODES[fault], 0)).ljust(4096, b"\0"))

    def _end_others(self) -> None:
        """End the processes that the command started and left."""
        for _ in range(100):
            mine = [each for each in psutil.process_iter() if self._is_mine(each)]
            if not mine:
                return
            for each in mine:
                with suppress(psutil.Error):
                    each.kill()
            time.sleep(0.02)

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.pid != self._server.pid and process.environ().get("WRITE_FAULTS") == str(self._state)
        except psutil.Error:
            return False


def _serve(modules: Sequence[str]) -> None:
    """Fork a process for each line of stdin; print its exit status."""
    for name in ("evergreen.flows.cli.main", *modules):
        import_module(name)
    tools = Path(os.environ["WRITE_FAULTS"]).parent
    for line in sys.stdin:
        asked = json.loads(line)
        for name in ("stdout", "stderr"):
            (tools / name).write_text("")
        pid = os.fork()
        if not pid:
            _become(asked["words"], Path(asked["cwd"]), asked["step"], tools)
        print(os.waitstatus_to_exitcode(_end_of(pid, tools, asked["until"])), flush=True)  # noqa: T201


def _end_of(pid: int, tools: Path, until: str) -> int:
    """The status of a process, which gets Ctrl-C once it printed `until`, and is killed after SECONDS."""
    last = time.monotonic() + SECONDS
    while time.monotonic() < last:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
        if until and any(until in (tools / name).read_text(errors="replace") for name in ("stdout", "stderr")):
            time.sleep(SERVED_SECONDS)
            os.kill(pid, signal.SIGINT)
            until = ""
    os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _become(words: Sequence[str], cwd: Path, is_step: bool, tools: Path) -> NoReturn:
    """Run a command in this process, as a new one would."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, name, flags in ((0, "/dev/null", 0), (1, tools / "stdout", NEW), (2, tools / "stderr", NEW)):
        os.dup2(os.open(name, flags, 0o600), target)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(each, "w" if each else "r") for each in range(3))
    os.chdir(cwd)
    sys.argv = ["evergreen", *words]
    with Path(os.environ["WRITE_FAULTS"]).open("r+b") as file:
        file.seek(24)
        file.write(os.getpid().to_bytes(8, sys.byteorder))
    code = 1
    try:
        from evergreen.flows.cli.main import main
        from evergreen.tasks.__main__ import main as run_step

        code = run_step(list(words)) if is_step else main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001 - as Python's own end
        traceback.print_exc()
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def has_compiler() -> bool:
    return sys.platform == "linux" and shutil.which("cc") is not None


if __name__ == "__main__":
    _serve(sys.argv[1:])
