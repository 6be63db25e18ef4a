"""Limits on log lines: a fault that repeats must not fill the disk, nor hide others."""

import logging
import sys
import time
from dataclasses import dataclass
from typing import TextIO

PER_MINUTE = 20
"""Lines per minute that one place in the code may log; further ones are counted."""
SECONDS = 60.0


@dataclass
class _Place:
    began: float
    lines: int = 0
    left_out: int = 0


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes at most PER_MINUTE lines per minute and place in the code, then how many were left out."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._places: dict[tuple[str, int], _Place] = {}
        self._checked = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._checked >= 1:
            self._checked = now
            self._report_left_out(now)
        place = self._places.setdefault((record.pathname, record.lineno), _Place(now))
        place.lines += 1
        if place.lines <= PER_MINUTE:
            super().emit(record)
        else:
            place.left_out += 1

    def _report_left_out(self, now: float) -> None:
        """Begin the next minute of each place whose minute is over."""
        for (path, line), place in list(self._places.items()):
            if now - place.began < SECONDS:
                continue
            del self._places[path, line]
            if place.left_out:
                text = "%d more lines like those of %s:%d were left out in %.0f s"
                values = (place.left_out, path.rpartition("/")[2], line, now - place.began)
                super().emit(logging.LogRecord("evergreen", logging.WARNING, path, line, text, values, None))


def configure(level: int, form: str) -> None:
    """Log to stderr, with the limit."""
    logging.basicConfig(level=level, format=form, handlers=[LimitedHandler(sys.stderr)])
