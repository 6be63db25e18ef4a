"""Who may come in, and how often: looked at for every request before anything of it is read, in microseconds.

A server that only this machine reaches needs no keys, but minds browsers: a page from elsewhere that is open in one may not
speak to it, neither directly nor under a name that was made to point here. A server that others reach needs keys, or does not
start.
"""

import ipaddress
import logging
import math
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import orjson

from evergreen.serving.keys import Keys, Lock, Scope, id_of
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ProjectError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""The keys are read again so often: a revoked one is refused within twice that."""
DEEPEST = 32
"""A body's objects and lists may lie so deep in each other; no protocol here needs more than five."""
FEW = 10_000
"""Callers whose rate is kept in mind before those that have been quiet are forgotten."""
INSTANT = 1e-6
"""Seconds; sums of fractions are no more exact than that."""
TELL_SECONDS = 1.0
"""A line of the log at most so often for refusals: they must not fill the disk."""
SECURITY: tuple[tuple[str, str], ...] = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every answer that is no page: nothing in it is run, framed, guessed at or kept."""
STRINGS = re.compile(rb'"[^"]*"?')
BUT_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
ALIKE = bytes.maketrans(b"{}", b"[]")


class Headers(Protocol):
    """Those of a request, by name in small letters."""

    def get(self, name: str, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to answer instead."""

    status: int
    body: bytes
    """JSON: `error`, one line that says what to do."""
    headers: tuple[tuple[str, str], ...] = ()


class Guard:
    """The guard of a server bound to `host`; `keys`: who may ask, where that is minded.

    Raises ProjectError where others than this machine reach the server and there are no keys.
    """

    def __init__(self, policy: Serve, host: str, keys: Keys) -> None:
        self.minds_keys = policy.keys == "always" or not is_loopback(host)
        self._keys = keys
        self._rate = Rate(policy.rate_per_second) if policy.rate_per_second else None
        self._hosts = {host}
        self._locks: Mapping[str, Lock] = keys.locks() if self.minds_keys else {}
        self._ended = threading.Event()
        self._told = 0.0
        if self.minds_keys and not self._locks:
            why = (
                f"{host} can be reached from other machines" if policy.keys != "always" else "params.yaml: serve.keys is always"
            )
            raise ProjectError(
                f"{why}, and there is no key: evergreen keys add NAME --scope predict makes one; "
                "or bind 127.0.0.1, where none is needed"
            )

    def start(self) -> None:
        """Look at the keys from now on, in a thread that ends with the process or by `stop`."""
        if self.minds_keys:
            threading.Thread(target=self._look, name="keys", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def admit(self, scope: Scope | None, headers: Headers, client: str, path: str) -> Refusal | None:
        """None: come in. `scope`: what the request needs (None: any good key); `client`: its address; `path`: for the log."""
        if not self.minds_keys:
            refusal = self._from_here(headers)
            caller = client
        else:
            caller, refusal = self._with_key(scope, headers, client)
        if self._rate is not None and (seconds := self._rate.wait(caller if refusal is None else client)):
            refusal = _refusal(429, "too many requests; serve.rate_per_second is the limit", ("retry-after", f"{seconds}"))
        if refusal is not None:
            self._tell(refusal, client, path)
        return refusal

    def _with_key(self, scope: Scope | None, headers: Headers, client: str) -> tuple[str, Refusal | None]:
        """The id of the key, and what is wrong with it."""
        secret = headers.get("x-api-key") or _bearer(headers.get("authorization"))
        if secret is None:
            return client, _unknown("a key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY")
        lock = self._locks.get(id_of(secret))
        if lock is None or not lock.opens(secret):
            return client, _unknown("the key is not known, or was revoked")
        scopes = lock.key.scopes
        if scope is not None and scope not in scopes and "admin" not in scopes:
            return lock.key.id, _refusal(403, f"the key {lock.key.name} is not for this; it lacks the scope {scope}")
        return lock.key.id, None

    def _from_here(self, headers: Headers) -> Refusal | None:
        """Nobody but programs of this machine and pages of this server."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and host not in self._hosts and not self._is_here(host):
            return _refusal(403, f"without keys this server answers to names of this machine alone; {AWAY}")
        if origin is not None and origin.partition("://")[2] != host:
            return _refusal(403, f"without keys this server does not answer to pages from elsewhere; {AWAY}")
        return None

    def _is_here(self, host: str) -> bool:
        """Whether that name, a port behind it or not, means this machine; those that do are known the next time."""
        if not is_loopback(host.rpartition(":")[0] if re.search(r":\d*$", host) else host):
            return False
        if len(self._hosts) < FEW:
            self._hosts.add(host)
        return True

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._locks = self._keys.locks()
            except ProjectError as error:  # those that were good stay so until the database is back
                log.error("keys: %s", error)

    def _tell(self, refusal: Refusal, client: str, path: str) -> None:
        if (now := time.monotonic()) - self._told >= TELL_SECONDS:
            self._told = now
            log.warning("refused %s from %s at %.100r: %s", refusal.status, client, path, orjson.loads(refusal.body)["error"])


AWAY = "set serve.keys to always where a proxy passes requests on"


class Rate:
    """So many requests per second of each caller, and so many at once after a quiet second: a bucket of tokens for each.

    Of each caller one moment is kept: when its bucket will be full (the generic cell rate algorithm, ITU-T I.371).
    """

    def __init__(self, per_second: float) -> None:
        self._each, self._depth = 1 / per_second, max(1.0, 1 / per_second)
        self._full: dict[str, float] = {}
        self._most = FEW

    def wait(self, caller: str) -> int:
        """0: now is fine, and counted. Else whole seconds until it will be."""
        now, caller = time.monotonic(), _household(caller)
        full = max(self._full.get(caller, now), now) + self._each
        if full - now > self._depth + INSTANT:
            return max(1, math.ceil(full - now - self._depth - INSTANT))
        if len(self._full) >= self._most:
            self._full = {each: at for each, at in self._full.items() if at > now}
            self._most = FEW + 2 * len(self._full)
        self._full[caller] = full
        return 0


def too_deep(body: bytes) -> bool:
    """Whether the objects and lists of a JSON text lie deeper in each other than DEEPEST. Of a text that is no JSON, anything.

    Takes microseconds for a row, and less than parsing for a thousand: brackets that belong to strings are dropped, and what is
    left loses its innermost pairs, level by level.
    """
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    left = STRINGS.sub(b"", body.translate(ALIKE, BUT_BRACKETS).replace(b'""', b""))
    for _ in range(DEEPEST):
        if b"[" * (DEEPEST + 1) in left:
            return True
        before = len(left)
        left = left.replace(b"[]", b"")
        if len(left) == before:
            return False
    return bool(left)


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@lru_cache(FEW)
def _household(caller: str) -> str:
    """An address of IPv6 stands for its network of 64 bits, all of which one caller may have."""
    if ":" not in caller:
        return caller
    try:
        found = ipaddress.IPv6Address(caller.partition("%")[0])
    except ValueError:
        return caller
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


def _bearer(header: str | None) -> str | None:
    if header is None or header[:7].lower() != "bearer ":
        return None
    return header[7:].strip() or None


def _unknown(line: str) -> Refusal:
    return _refusal(401, line, ("www-authenticate", "Bearer"))


def _refusal(status: int, line: str, *headers: tuple[str, str]) -> Refusal:
    return Refusal(status, orjson.dumps({"error": line}), headers)
