"""Rate limit per caller: the generic cell rate algorithm (ITU-T I.371), one timestamp per caller."""

import ipaddress
import math
import time
from functools import lru_cache

CALLERS = 10_000
"""Callers that are remembered before those with a full bucket are dropped."""
TOLERANCE = 1e-6
"""Seconds: rounding error of sums of fractions."""


class RateLimiter:
    """`per_second` requests of each caller, with a burst of one second's worth: a token bucket per caller.

    Only one moment is stored per caller: when its bucket will be full.
    """

    def __init__(self, per_second: float) -> None:
        self._interval, self._burst = 1 / per_second, max(1.0, 1 / per_second)
        self._full: dict[str, float] = {}
        self._max_callers = CALLERS

    def wait(self, caller: str) -> int:
        """0: the request is within the limit, and counted. Otherwise whole seconds until the next one is allowed."""
        now, caller = time.monotonic(), rate_limit_key(caller)
        full = max(self._full.get(caller, now), now) + self._interval
        if full - now > self._burst + TOLERANCE:
            return max(1, math.ceil(full - now - self._burst - TOLERANCE))
        if len(self._full) >= self._max_callers:
            self._full = {each: at for each, at in self._full.items() if at > now}
            self._max_callers = CALLERS + 2 * len(self._full)
        self._full[caller] = full
        return 0


@lru_cache(CALLERS)
def rate_limit_key(caller: str) -> str:
    """The key id or address that shares one bucket. An IPv6 address counts as its /64 network: one caller may own all of it."""
    if ":" not in caller:
        return caller
    try:
        found = ipaddress.IPv6Address(caller.partition("%")[0])
    except ValueError:
        return caller
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
