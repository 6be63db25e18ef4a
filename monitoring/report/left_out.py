"""Parts of the page that fail: each is left out with its reason in its place, and the rest of the page stands."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST = 300
"""Most characters of a reason."""


def reason(part: str, error: Exception) -> str:
    """Why `part` is left out, in one line; it is logged too."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
    log.warning("page: %s is left out: %s", part, text)
    log.debug("page: %s", part, exc_info=error)
    return text


@dataclass(frozen=True)
class Attempts:
    """Parts of one section. reasons: title of a part that failed -> why."""

    section: str
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def get(self, title: str, otherwise: T, make: Callable[..., T], *arguments: Any) -> T:
        """What `make` returns, or `otherwise` where it fails, whatever it raises: no part may take the page away."""
        try:
            return make(*arguments)
        except Exception as error:  # noqa: BLE001
            self.reasons[title] = reason(f"{self.section}: {title}", error)
            return otherwise
