"""Loads versions into memory, checks them, retries the ones that failed, and evicts the ones that nobody needs."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from evergreen.serving.serving_set import Loaded, M
from evergreen.tasks.core.errors import EvergreenError, ModelError, RegistryError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Time before a failed version is loaded again; doubles each time, up to 32 times; twice while the registry is away."""
ATTEMPTS = 3
"""After this many failed loads a candidate is withdrawn: a file server may be down for a moment. A candidate that loads and
fails its self-check is withdrawn at once."""


class NotLoadedError(Exception):
    """A version cannot serve. `final`: it failed its self-check, or could not be loaded ATTEMPTS times.

    `away`: the registry, or the store of its files, does not answer.
    """

    def __init__(self, reason: str, final: bool, away: bool = False) -> None:
        super().__init__(reason)
        self.final, self.away = final, away


@dataclass
class _Failure:
    attempts: int
    retry_at: float
    """Monotonic seconds."""
    reason: str
    away: bool


class VersionLoader(Generic[M]):
    """The versions in memory. `load` reads one version of a problem; it may take seconds."""

    def __init__(self, load: Callable[[str, int], M]) -> None:
        self._load = load
        self._loaded: dict[tuple[str, int], M] = {}
        self._failures: dict[tuple[str, int], _Failure] = {}

    def get(self, problem: str, version: int, serving: M | None) -> M:
        """The version, loaded and checked; `serving`: the version that it must be compatible with.

        Raises NotLoadedError if it failed and must not be tried again yet.
        """
        key = problem, version
        if key in self._loaded:
            return self._loaded[key]
        failure = self._failures.get(key)
        if failure and failure.retry_at > time.monotonic():
            raise NotLoadedError(failure.reason, failure.attempts >= ATTEMPTS, failure.away)
        found = None
        try:
            found = self._load(problem, version)
            _check(found, serving)
        except Exception as error:  # whatever it is, this version cannot serve
            reason = str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError):
                reason += ". The serving image has no training libraries: serve this problem with the other image"
            attempts = (failure.attempts if failure else 0) + (ATTEMPTS if found else 1)
            away = isinstance(error, RegistryError)
            retry_at = time.monotonic() + RETRY_SECONDS * 2 ** min(attempts - 1, 1 if away else 5)
            self._failures[key] = _Failure(attempts, retry_at, reason, away)
            if failure is None or failure.reason != reason:
                log.error("%s: v%d cannot serve: %s", problem, version, reason)
            raise NotLoadedError(reason, attempts >= ATTEMPTS, away) from error
        self._failures.pop(key, None)
        self._loaded[key] = found
        return found

    def retry_due(self, problem: str) -> bool:
        """Whether it is time to load a failed version again."""
        now = time.monotonic()
        return any(name == problem and each.retry_at <= now for (name, _), each in self._failures.items())

    def give_up(self, problem: str, version: int) -> None:
        """Do not retry a failed version."""
        self._failures.pop((problem, version), None)

    def evict(self, problem: str, keep: set[int], retry: set[int]) -> None:
        """Drop all versions of a problem but `keep`, and all failures but those of `retry`. Open requests keep theirs alive."""
        for held, needed in ((self._loaded, keep), (self._failures, retry)):
            for key in [key for key in held if key[0] == problem and key[1] not in needed]:
                del held[key]


def _check(found: Loaded, serving: Loaded | None) -> None:
    """Raises ModelError unless `found` predicts its own example with finite numbers and in the same form as `serving`."""
    name, outputs = f"{found.problem} v{found.version}", found.self_check()
    if outputs is None:
        return
    for output in outputs:
        for key, value in output.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ModelError(f"{name}: self-check failed: {key} = {value} is not a finite number")
    other = serving.self_check() if serving else None
    if serving and outputs and other and (mine := _form(outputs[0])) != (theirs := _form(other[0])):
        raise ModelError(f"{name}: self-check failed: predicts {mine}, but v{serving.version} predicts {theirs}")


def _form(output: Mapping[str, Any]) -> str:
    """The parts of an output, such as `prediction: number`; the classes may differ between versions."""
    names = {name.partition("_")[0] if name.startswith("probability_") else name: value for name, value in output.items()}
    return ", ".join(
        f"{name}: {'number' if isinstance(value, int | float) else type(value).__name__}"
        for name, value in sorted(names.items())
    )
