"""Results that take long: made once for a key, kept for some time."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Made(Generic[T]):
    value: T
    at: datetime
    """UTC."""
    until: float
    """Of `time.monotonic`."""


@dataclass
class Kept(Generic[T]):
    """Of several callers for one key one makes the result, and the others wait for it. An error is kept by nobody."""

    seconds: float
    """A result is this old at most."""
    most: int
    """Results that are kept; the one that was made first goes."""
    _made: OrderedDict[Hashable, Made[T]] = field(default_factory=OrderedDict[Hashable, Made[T]])
    _making: dict[Hashable, Lock] = field(default_factory=dict[Hashable, Lock])
    _lock: Lock = field(default_factory=Lock)

    def peek(self, key: Hashable) -> Made[T] | None:
        """What is kept for the key; None: nothing, or nothing young enough."""
        with self._lock:
            found = self._made.get(key)
        return found if found and time.monotonic() < found.until else None

    def get(self, key: Hashable, make: Callable[[], T], anew: bool = False) -> Made[T]:
        """What is kept for the key, or else what `make` returns; `anew`: make it in any case."""
        asked = time.monotonic()
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            found = self.peek(key)
            if found and (not anew or found.until - self.seconds > asked):
                return found
            value = make()
            return self._keep(key, Made(value, datetime.now(UTC), time.monotonic() + self.seconds))

    def _keep(self, key: Hashable, made: Made[T]) -> Made[T]:
        with self._lock:
            self._made.pop(key, None)
            self._made[key] = made
            while len(self._made) > self.most:
                gone, _ = self._made.popitem(last=False)
                self._making.pop(gone, None)
        return made
