"""The training flow without Prefect: each step is a call in this process, which a test may kill before or after."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest

from evergreen.flows import steps, training
from evergreen.flows.operations.status import Outcome
from evergreen.tasks import __main__ as tasks_main
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import Layout
from tests.kills import KilledError


class Plain:
    """A step as a plain call in this process, not a Prefect task; `before` and `after` may kill it."""

    def __init__(self, name: str, work: Callable[..., Any], watch: "Watch") -> None:
        self.name, self.work, self.watch = name, work, watch

    def with_options(self, task_run_name: str) -> "Plain":
        return self

    def __call__(self, *given: Any, wait_for: object = None) -> Any:
        self.watch("before", self.name)
        found = self.work(*given)
        self.watch.ran.append(self.name)
        self.watch("after", self.name)
        return found


class Watch:
    """Which steps ran; kills at the moments in `kills`, each once."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.kills: list[tuple[str, str]] = []

    def __call__(self, when: str, name: str) -> None:
        if (when, name) in self.kills:
            self.kills.remove((when, name))
            raise KilledError(f"{when} {name}")


def work(step: str, root: str, problem: str | None = None) -> None:
    """A step of dvc.yaml, in this process."""
    words = [step, *([problem] if problem else []), "--root", root]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = tasks_main.main(words)
    if code:
        raise StepError(said.getvalue().strip().splitlines()[-1])


def replace_tasks(patch: pytest.MonkeyPatch) -> Watch:
    """Replace the tasks of the flow by calls in this process. Returns what watches them."""
    found = Watch()
    for name, worker in (("gate", steps.judge), ("register", steps.enter), ("deploy", steps.release)):
        patch.setattr(steps, name, Plain(name, worker, found))
    patch.setattr(steps, "SHARED", {name: Plain(name, work, found) for name in steps.SHARED})
    patch.setattr(steps, "OWN", {name: Plain(name, work, found) for name in steps.OWN})
    return found


def train(layout: Layout, problem: str, refresh: bool, by: str) -> Outcome:
    """The training flow without Prefect."""
    branches = training.Branches(layout, refresh, True, by)
    branches.run_shared_steps()
    return branches.train(problem)
