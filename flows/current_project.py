"""The project of a flow. Prefect records the parameters of a flow: they call the project ".", so it can be moved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from evergreen.tasks.core.paths import Layout, find

HERE = "."
"""A flow's parameter `root`: the project that called it, otherwise that of EVERGREEN_ROOT or of the working directory."""
VARIABLE = "EVERGREEN_ROOT"
_current: ContextVar[Layout | None] = ContextVar("current_project", default=None)


@contextmanager
def calling(layout: Layout) -> Iterator[str]:
    """A flow called in the block with the yielded `root` works on the project `layout`."""
    token = _current.set(layout)
    try:
        yield HERE
    finally:
        _current.reset(token)


def of(root: str) -> Layout:
    """The project of a flow with the parameter `root`. Raises ProjectError where there is none."""
    known = _current.get()
    if root != HERE:
        return find(Path(root))
    return known or find(Path(os.environ.get(VARIABLE, HERE)))
