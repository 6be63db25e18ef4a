"""Warnings of libraries: counted while a step runs, then logged once each, with their count.

A search fits hundreds of models, and each may warn of the same thing.
"""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

COUNTED = (UserWarning, RuntimeWarning, FutureWarning)
"""Their subclasses too, such as scikit-learn's ConvergenceWarning."""
Kind = tuple[str, str, str]
"""Library, name of the category, and the first line of the text with N for each number."""


class WarningCounts:
    """How often each kind of warning came. texts: kind -> the first line of its first text."""

    def __init__(self) -> None:
        self.counts: Counter[Kind] = Counter()
        self.texts: dict[Kind, str] = {}

    def count(self, message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        """Count one warning; takes the arguments of warnings.showwarning."""
        text = next(iter(str(message).strip().splitlines()), "").rstrip(": ")
        kind = _library(category, filename), category.__name__, re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "N", text)
        self.counts[kind] += 1
        self.texts.setdefault(kind, text)

    def add(self, other: "WarningCounts") -> None:
        """Add the counts of another process."""
        self.counts += other.counts
        self.texts = other.texts | self.texts

    def lines(self) -> list[str]:
        """One line per kind, the most frequent first."""
        return [
            f"{kind[0]}: {kind[1]}{f' ({count:,} times)' if count > 1 else ''}: {self.texts[kind]}"
            for kind, count in self.counts.most_common()
        ]


_counting: list[WarningCounts] = []
"""The counts of this process, the innermost last."""


@contextmanager
def counting() -> Generator[WarningCounts]:
    """Count the warnings of the block instead of printing them. Filters that are set already, such as -W error, go first."""
    found = WarningCounts()
    with warnings.catch_warnings():
        for category in COUNTED:
            warnings.simplefilter("always", category, append=True)
        warnings.showwarning = found.count
        _counting.append(found)
        try:
            yield found
        finally:
            _counting.remove(found)


@contextmanager
def logging_once(label: str) -> Generator[None]:
    """Count the warnings of the block, and log each kind once at its end, however it ends. `label`: begins each line."""
    with counting() as found:
        try:
            yield
        finally:
            for line in found.lines():
                log.warning("%s: %s", label, line)


def add(other: WarningCounts | None) -> None:
    """Add what a worker process counted to the counts of this process, if it counts."""
    if other is not None and _counting:
        _counting[-1].add(other)


def _library(category: type[Warning], filename: str) -> str:
    """The package that warned, by its file; where that is ours or Python's, by the category's module."""
    parts = Path(filename).parts
    if "site-packages" in parts[:-1]:
        return parts[len(parts) - parts[::-1].index("site-packages")].removesuffix(".py")
    package = category.__module__.partition(".")[0]
    return "Python" if package == "builtins" else package
