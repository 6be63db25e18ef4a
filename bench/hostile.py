"""`python -m bench.hostile`: memory of the server's processes, and whether /health answers, under hostile requests.

    python -m bench.hostile                          every load for ten seconds, in turn: about three minutes
    python -m bench.hostile --seconds 3 bodies k     shorter, and only these

It serves a small project from a temporary folder on loopback, with two workers. The hostile client is a process of its own at
another loopback address. It fails where a process grows beyond MOST_MB, or /health takes longer than HEALTH_SECONDS.
"""

import argparse
import asyncio
import gzip
import http.client
import json
import logging
import multiprocessing
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from bench.load import HOST
from tests import projects
from tests.serving.server import Server

ADDRESS = "127.0.0.2"
"""Address of the hostile client: limits per client leave the others alone."""
MOST_MB = 700.0
"""Largest accepted memory (RSS) of a process of the server."""
HEALTH_SECONDS = 1.0
WORKERS = 2
BODY = 4096 * 1024
"""Largest body that the server takes."""
PREDICT, RECOMMEND = "/v1/predict/redeem", "/v1/recommend/recommend"
log = logging.getLogger("bench")


def request(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """`length`: the length that the head claims."""
    lines = [
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join((f"POST {path} HTTP/1.1", *lines, "", "")).encode() + body


async def _send(port: int, sent: bytes, wait: float) -> None:
    """One connection that sends `sent` and reads until the server closes, `wait` seconds at most."""
    reader, writer = await asyncio.open_connection(HOST, port, local_addr=(ADDRESS, 0))
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(wait):
            await reader.read(64)
    finally:
        writer.transport.abort()


def _repeated(make: Callable[[], bytes]) -> Callable[[int], Awaitable[None]]:
    return lambda port: _send(port, make(), 10.0)


async def _endless(port: int, head: bytes, part: bytes) -> None:
    """One connection that never ends its request."""
    _, writer = await asyncio.open_connection(HOST, port, local_addr=(ADDRESS, 0))
    try:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
    finally:
        writer.transport.abort()


async def _half_open(port: int) -> None:
    await _send(port, b"GET /health HT", 60.0)


async def _slow_reader(port: int) -> None:
    """Asks for big answers, one behind another, and reads none."""
    _, writer = await asyncio.open_connection(HOST, port, local_addr=(ADDRESS, 0), limit=1024)
    writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        writer.write(request(RECOMMEND, _lists(1000, 50)) * 20)
        await asyncio.sleep(60.0)
    finally:
        writer.transport.abort()


def _lists(users: int, k: int) -> bytes:
    return json.dumps({"users": [secrets.randbelow(1 << 40) for _ in range(users)], "k": k}).encode()


def _labels() -> bytes:
    return json.dumps([{"id": secrets.token_hex(16), "value": 1} for _ in range(1000)]).encode()


BOMB = gzip.compress(bytes(200_000_000), 1)
ROWS = json.dumps({"dataframe_records": [{f"x{number}": 1.5 for number in range(200)}] * 1000}).encode()[:BODY]
CHUNKED = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
LOADS: dict[str, tuple[int, Callable[[int], Awaitable[None]]]] = {
    "headers": (64, lambda port: _endless(port, b"GET /health HTTP/1.1\r\n", b"x-more: " + b"a" * 60_000 + b"\r\n")),
    "half-open": (1000, _half_open),
    "chunks": (64, lambda port: _endless(port, CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n")),
    "bodies": (64, _repeated(lambda: request("/v1/models/redeem/invocations", ROWS.ljust(BODY)))),
    "half-bodies": (256, _repeated(lambda: request(PREDICT, b"[" + b" " * (BODY - 100), length=BODY))),
    "deep": (32, _repeated(lambda: request(PREDICT, b"[" * BODY))),
    "bombs": (32, _repeated(lambda: request(PREDICT, BOMB, "content-encoding: gzip"))),
    "encodings": (32, _repeated(lambda: request(PREDICT, secrets.token_bytes(100_000), "content-encoding: gzip"))),
    "ids": (32, _repeated(lambda: request("/v1/labels/redeem", _labels()))),
    "k": (32, _repeated(lambda: request(RECOMMEND, _lists(50, 1000)))),
    "users": (32, _repeated(lambda: request(RECOMMEND, _lists(1000, 50)))),
    "slow-readers": (64, _slow_reader),
    "keys": (32, _repeated(lambda: request(PREDICT, b"{}", f"authorization: Bearer {secrets.token_hex(24)}"))),
    "entities": (32, _repeated(lambda: request(PREDICT, json.dumps({"household": secrets.token_hex(200)}).encode()))),
    "addresses": (32, _repeated(lambda: request(f"/{secrets.token_hex(100)}", b"{}"))),
}
"""Load -> connections at once, and what each does again and again."""


async def _attack(name: str, port: int, seconds: float) -> None:
    count, act = LOADS[name]

    async def again() -> None:
        while True:
            with suppress(OSError, TimeoutError):
                await act(port)
            await asyncio.sleep(0)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(again() for _ in range(count)))


def attack(name: str, port: int, seconds: float) -> None:
    asyncio.run(_attack(name, port, seconds))


def memory(server: Server) -> dict[int, float]:
    """Process -> MB of memory, of all of the server's."""
    found = dict[int, float]()
    for each in [parent := psutil.Process(server.process.pid), *parent.children(recursive=True)]:
        with suppress(psutil.Error):
            found[each.pid] = each.memory_info().rss / 1e6
    return found


def health(port: int) -> float:
    """Seconds until /health answers, of a client of its own connection; HEALTH_SECONDS times ten if it does not."""
    began, link = time.monotonic(), http.client.HTTPConnection(HOST, port, timeout=10 * HEALTH_SECONDS)
    try:
        link.request("GET", "/health")
        fine = link.getresponse().status == 200
    except OSError as error:
        log.info("/health: %r", error)
        fine = False
    finally:
        link.close()
    return time.monotonic() - began if fine else 10 * HEALTH_SECONDS


def run(server: Server, name: str, seconds: float) -> bool:
    """Run one load and print what was measured; whether the bounds hold."""
    port = int(server.url.rpartition(":")[2])
    before, most, waits = memory(server), dict[int, float](), list[float]()
    client = multiprocessing.get_context("fork").Process(target=attack, args=(name, port, seconds), daemon=True)
    client.start()
    while client.is_alive():
        waits.append(health(port))
        for pid, size in memory(server).items():
            most[pid] = max(size, most.get(pid, 0.0))
        client.join(0.1)
    time.sleep(1.0)
    after = memory(server)
    peaks = {pid: max(most.get(pid, 0.0), after.get(pid, 0.0)) for pid in {*most, *after}}
    fine = max(peaks.values()) <= MOST_MB and max(waits) <= HEALTH_SECONDS and set(before) <= set(after)
    sizes = (" ".join(f"{each:.0f}" for each in sorted(found.values(), reverse=True)) for found in (before, peaks, after))
    log.info("| %s | %s | %s | %s |", name, " | ".join(sizes), f"{1000 * max(waits):.0f} ms", "yes" if fine else "NO")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loads", nargs="*", metavar="LOAD", choices=[*LOADS, []], help=f"of {', '.join(LOADS)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    log.setLevel(logging.INFO)
    projects.forget_settings()
    with tempfile.TemporaryDirectory(prefix="evergreen-hostile-") as folder:
        layout = projects.lay_deployed(Path(folder), ("redeem", "recommend"))
        server = Server(layout, "--workers", str(WORKERS), seconds=240)
        try:
            log.info("| load | MB before | most | after | /health, slowest | holds |\n| --- | --- | --- | --- | --- | --- |")
            fine = [run(server, name, options.seconds) for name in options.loads or LOADS]
        finally:
            server.stop()
    if not all(fine):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
