"""Authentication, host check and rate limit: applied to every request before its body is read, in microseconds.

A server that only this machine can reach needs no keys. It still rejects browsers that show a page of another origin, sent
directly or through a host name that resolves to this machine (DNS rebinding). A server that other machines can reach needs
keys, or does not start.
"""

import ipaddress
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson

from evergreen.serving.keys import HashedKey, Key, Keys, Scope, key_id
from evergreen.serving.rate_limit import RateLimiter, rate_limit_key
from evergreen.tasks.config.operations import Serve
from evergreen.tasks.core.errors import ProjectError

log = logging.getLogger(__name__)

RELOAD_SECONDS = 1.0
"""Interval of reading the keys: a revoked key is rejected within twice that."""
LOG_SECONDS = 1.0
"""Shortest interval between two log lines about rejected requests: they must not fill the disk."""
KNOWN_HOSTS = 10_000
SECURITY_HEADERS: tuple[tuple[str, str], ...] = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""Sent with every response but pages: a browser must not run, frame, sniff or cache it."""
PROXY_ADVICE = "set serve.require_api_key to always if a proxy forwards requests"


class Headers(Protocol):
    """Request headers by lower-case name."""

    def get(self, name: str, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Denial:
    """The response to a request that is not admitted."""

    status: int
    body: bytes
    """JSON: `error`, one line with the remedy."""
    headers: tuple[tuple[str, str], ...] = ()


class AccessControl:
    """Access control of a server bound to `host`.

    While the keys cannot be read, requests that need one get 503. Raises ProjectError if other machines can reach the server
    and there is no key.
    """

    def __init__(self, policy: Serve, host: str, keys: Keys) -> None:
        self.requires_key = policy.require_api_key == "always" or not is_loopback(host)
        self._keys = keys
        self._rate = RateLimiter(policy.rate_limit_per_second) if policy.rate_limit_per_second else None
        self._local_hosts = {host}
        self._unread = False
        """Whether the last reading failed."""
        self._active: Mapping[str, HashedKey] | None = self._read() if self.requires_key else {}
        """By id; None: not read yet."""
        self._stopped = threading.Event()
        self._logged = 0.0
        if self.requires_key and self._active is not None and not self._active:
            reason = (
                f"other machines can reach {host}"
                if policy.require_api_key != "always"
                else "params.yaml: serve.require_api_key is always"
            )
            raise ProjectError(
                f"{reason}, and there is no API key: create one with evergreen keys add NAME --scope predict; "
                "or bind 127.0.0.1, which needs none"
            )

    def start(self) -> None:
        """Reload the keys regularly, in a thread that ends with the process or with `stop`."""
        if self.requires_key:
            threading.Thread(target=self._reload, name="keys", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def check(self, scope: Scope | None, headers: Headers, client: str, path: str, problem: str | None = None) -> Denial | None:
        """None: admitted. `scope`: needed by the route (None: any active key); `client`: its address; `path`: for the log.

        `problem`: that of the request ("": one that the path does not name); None: the route has none.
        """
        if not self.requires_key:
            denial = self._check_local(headers)
            caller = client
        else:
            caller, denial = self._check_key(scope, problem, headers, client)
        if self._rate is not None and (seconds := self._rate.wait(caller if denial is None else client)):
            denial = _denial(429, "too many requests; serve.rate_limit_per_second is the limit", ("retry-after", f"{seconds}"))
        if denial is not None:
            self._log(denial, client, path)
        return denial

    def caller(self, headers: Headers, client: str) -> str:
        """The id of the key of an admitted request; without keys the address of its client."""
        return key_id(_secret(headers) or "") if self.requires_key else rate_limit_key(client)

    def check_problem(self, headers: Headers, problem: str) -> Denial | None:
        """The denial of an admitted request whose body names `problem`; None: its key allows it."""
        key = self._key(headers) if self.requires_key else None
        return None if key is None or key.allows(problem) else _other_problem(key)

    def visible(self, headers: Headers, problems: Iterable[str]) -> list[str]:
        """Those of `problems` that a request may learn of; without a valid key, where one is required, none."""
        if not self.requires_key:
            return [*problems]
        key = self._key(headers)
        return [each for each in problems if key.allows(each)] if key else []

    def _key(self, headers: Headers) -> Key | None:
        """The valid key of a request."""
        secret = _secret(headers) or ""
        hashed = (self._active or {}).get(key_id(secret))
        return hashed.key if hashed is not None and hashed.matches(secret) else None

    def _check_key(self, scope: Scope | None, problem: str | None, headers: Headers, client: str) -> tuple[str, Denial | None]:
        """The id of the key (the client's address without a valid one), and the denial."""
        if _secret(headers) is None:
            return client, _unauthorized("needs an API key: send Authorization: Bearer KEY, or X-API-Key: KEY")
        if self._active is None:
            return client, _denial(503, "the API keys cannot be read now; try again", ("retry-after", "1"))
        key = self._key(headers)
        if key is None:
            return client, _unauthorized("the API key is unknown or revoked")
        if scope is not None and scope not in key.scopes and "admin" not in key.scopes:
            return key.id, _denial(403, f"the API key {key.name} lacks the scope {scope}")
        if problem is not None and not key.allows(problem):
            return key.id, _other_problem(key)
        return key.id, None

    def _check_local(self, headers: Headers) -> Denial | None:
        """Admits programs of this machine and pages of this server only."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and host not in self._local_hosts and not self._is_local(host):
            return _denial(403, f"without keys this server accepts only host names of this machine; {PROXY_ADVICE}")
        if origin is not None and origin.partition("://")[2] != host:
            return _denial(403, f"without keys this server rejects pages of other origins; {PROXY_ADVICE}")
        return None

    def _is_local(self, host: str) -> bool:
        """Whether a Host header, with or without a port, names this machine. Remembers those that do."""
        if not is_loopback(host.rpartition(":")[0] if re.search(r":\d*$", host) else host):
            return False
        if len(self._local_hosts) < KNOWN_HOSTS:
            self._local_hosts.add(host)
        return True

    def _read(self) -> Mapping[str, HashedKey] | None:
        """None: the database does not answer."""
        try:
            found = self._keys.active_keys()
        except ProjectError as error:
            if not self._unread:
                log.error("keys: %s", error)
            self._unread = True
            return None
        self._unread = False
        return found

    def _reload(self) -> None:
        while not self._stopped.wait(RELOAD_SECONDS):
            found = self._read()
            self._active = self._active if found is None else found  # those read last stay active until it is back

    def _log(self, denial: Denial, client: str, path: str) -> None:
        if (now := time.monotonic()) - self._logged >= LOG_SECONDS:
            self._logged = now
            log.warning("denied %s to %s at %.100r: %s", denial.status, client, path, orjson.loads(denial.body)["error"])


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _secret(headers: Headers) -> str | None:
    return headers.get("x-api-key") or _bearer_token(headers.get("authorization"))


def _bearer_token(header: str | None) -> str | None:
    if header is None or header[:7].lower() != "bearer ":
        return None
    return header[7:].strip() or None


def _unauthorized(line: str) -> Denial:
    return _denial(401, line, ("www-authenticate", "Bearer"))


def _other_problem(key: Key) -> Denial:
    """The same for a problem that exists and one that does not."""
    bound = ", ".join(sorted(key.problems))
    return _denial(403, f"the API key {key.name} is for {bound} alone; name such a problem in the path, or take another key")


def _denial(status: int, line: str, *headers: tuple[str, str]) -> Denial:
    return Denial(status, orjson.dumps({"error": line}), headers)
