"""The project of a flow. Prefect records the parameters of a flow: they call the project ".", so it can be moved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.core.paths import Layout, find

HERE = "."
"""A flow's parameter `root`: the project that called it, otherwise that of EVERGREEN_ROOT or of the working directory."""
VARIABLE = "EVERGREEN_ROOT"
"""Of a worker: the folder of the project whose runs it works on."""
KEY = "EVERGREEN_PROJECT"
"""Of a run of a deployment: the key of the project that it belongs to."""
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
    """The project of a flow with the parameter `root`. Raises ProjectError where there is none, or another than the run's."""
    known = _current.get()
    if root != HERE:
        return find(Path(root))
    return known or _of_worker()


def _of_worker() -> Layout:
    folder, wanted = os.environ.get(VARIABLE), os.environ.get(KEY)
    if wanted and not folder:
        raise ProjectError(
            f"{VARIABLE}: not set on this worker. Set it to the folder of the project {wanted} on this machine, the one with "
            "params.yaml, and start the worker again; or start it by evergreen schedule, which sets it."
        )
    found = find(Path(folder or HERE))
    if wanted and (key := load(found.params).project.key) != wanted:
        raise ProjectError(
            f"{VARIABLE} = {folder}: is the project {key}; this run belongs to the project {wanted}. Start one worker per "
            "project, each for the work queue of its project."
        )
    return found
