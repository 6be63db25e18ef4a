"""For benches of the server: a small HTTP client, open-loop load, wrk, and processes that end with the bench."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
LUA = """
local requests, turn, failed = {}, 0, 0
function init(arguments)
  local headers = {}
  headers["Content-Type"] = "application/json"
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, line)
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\\n', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Pace:
    """Throughput and latency under load."""

    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """HTTP client for one loopback port, with a pool of kept-alive connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str) -> Reply:
        return await self.send(f"GET {path} HTTP/1.1\r\nhost: {HOST}:{self._port}\r\n\r\n".encode())

    async def post(self, path: str, body: bytes) -> Reply:
        head = f"POST {path} HTTP/1.1\r\nhost: {HOST}:{self._port}\r\ncontent-type: application/json\r\n"
        return await self.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def send(self, request: bytes) -> Reply:
        """Raises ConnectionError if the connection ends before the response."""
        reader, writer = self._open_idle() or await asyncio.open_connection(HOST, self._port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _head(head)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, OSError) as error:
            writer.close()
            raise ConnectionError(f"incomplete response: {error}") from error
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return Reply(status, body)

    def _open_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A kept connection that the server did not end: those of a killed worker, and those idle too long, are dropped."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def _head(text: bytes) -> tuple[int, dict[str, str]]:
    lines = text.decode("latin-1").split("\r\n")
    headers = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ")[1]), {name.strip().lower(): value.strip().lower() for name, _, value in headers}


@dataclass
class Load:
    """Open-loop load: requests leave at fixed times, whatever the state of earlier ones."""

    per_second: float
    seconds: float
    latencies: list[float] = field(default_factory=list)
    """Seconds since each request was due, so that waiting for the server counts."""

    async def run(self, ask: Callable[[int], Awaitable[bool]]) -> None:
        """`ask(number)` sends one request; if it returns False, its latency is not recorded."""
        began, count = time.perf_counter() + 0.1, int(self.per_second * self.seconds)
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                due = began + number / self.per_second
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                group.create_task(self._one(ask, number, due))

    async def _one(self, ask: Callable[[int], Awaitable[bool]], number: int, due: float) -> None:
        if await ask(number):
            self.latencies.append(time.perf_counter() - due)

    def pace(self) -> Pace:
        p50, p99 = 1000 * np.quantile(self.latencies, [0.5, 0.99])
        return Pace(self.per_second, float(p50), float(p99))


def wrk(port: int, path: str, bodies: Sequence[bytes], seconds: float, connections: int = 32) -> Pace:
    """Closed-loop load: each connection sends the next of `bodies` after its response. Raises RuntimeError if one fails."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="evergreen wrk ") as folder:
        script, lines = Path(folder) / "post.lua", Path(folder) / "bodies"
        script.write_text(LUA)
        lines.write_bytes(b"\n".join(bodies))
        about = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency", "-s", str(script)]
        done = subprocess.run(["wrk", *about, f"http://{HOST}:{port}{path}", "--", str(lines)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wrk: {(done.stderr or done.stdout)[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["failed"]:
        raise RuntimeError(f"{path}: {found['failed']} of {found['requests']} requests failed")
    if not found["requests"]:
        raise RuntimeError(f"{path}: no response within {seconds:g} s")
    return Pace(found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"])


@contextmanager
def running(command: Sequence[str], cwd: Path, port: int, ready: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is up once GET `ready` succeeds, in its own process group, stopped at the end of the block.

    Raises RuntimeError, with the end of its output, if it exits or is not ready within four minutes.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=_clean(environment)
    )
    try:
        try:
            asyncio.run(_until_ready(process, port, ready))
        except RuntimeError as error:
            log.seek(0)
            output = log.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:4])}: {error}: {output}") from None
        yield process
    finally:
        end(process)
        log.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process group: SIGTERM, and SIGKILL after ten seconds."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def _until_ready(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    client, until = Client(port), time.monotonic() + 240
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"exited with status {process.returncode}")
        with suppress(OSError):
            if (await client.get(path)).status == 200:
                client.close()
                return
        await asyncio.sleep(0.2)
    raise RuntimeError("not ready after four minutes")


def _clean(more: Mapping[str, str]) -> dict[str, str]:
    """The environment without this interpreter's variables, and with one thread per numeric library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return kept | threads | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | dict(more)
