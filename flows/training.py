"""Training: ingest -> validate -> features -> tune -> train -> evaluate -> diagnose -> explain -> gate ->
register -> deploy, and the page.

The problems' branches run side by side; one that fails stops no other. What DVC finds fresh is not done again, and each
finished step is recorded at once: a flow killed at any moment continues where it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

from evergreen.flows import current_project, fork_server, steps
from evergreen.flows.operations import event_snapshots, status
from evergreen.flows.operations.status import Outcome
from evergreen.flows.prefect_runtime import artifacts, runs, stale_runs
from evergreen.flows.prefect_runtime.server import Server
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import EvergreenError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.data import snapshot
from evergreen.tasks.release import pipeline_file
from evergreen.tasks.release.lineage import Stages
from evergreen.tasks.search import time_budget

log = logging.getLogger(__name__)

BRANCHES = 2
"""Problems at work at once; each step uses one core."""


def run(layout: Layout, problems: Sequence[str], server: Server, *, refresh: bool, deploy: bool, by: str) -> list[Outcome]:
    """Train `problems`, in this order, and say what became of each. Hold the project's lock around it.

    Received purchases are those of the newest snapshot, which the caller writes (event_snapshots). `refresh` reads the sources
    again though no param of them changed. Raises the error of a shared step; errors of single problems are in their outcomes.
    """
    mark_crashed(layout, server)
    try:
        with current_project.calling(layout) as root:
            state = training(root, list(problems), refresh, deploy, by, return_state=True)
    finally:
        stale_runs.deliver()
    stale_runs.forget(layout)
    outcomes = state.result(raise_on_failure=False)
    if isinstance(outcomes, BaseException):
        raise outcomes
    return outcomes


def mark_crashed(layout: Layout, server: Server) -> None:
    """Wait for the server, then set the runs of killed processes to Crashed."""
    server.wait()
    for name in stale_runs.mark_crashed(layout):
        log.warning("the run %s was killed; it is now marked as crashed", name)


@flow(name="training", flow_run_name=runs.name, log_prints=False)
def training(root: str, problems: list[str], refresh: bool, deploy: bool, by: str) -> Any:
    """The flow. It fails, after all branches ended, with one line per branch that failed. If every challenger was refused, its
    state reads Refused."""
    layout = current_project.of(root)
    runs.begin(load(layout.params), problems)
    outcomes = train(layout, problems, refresh=refresh, deploy=deploy, by=by, read_events=False)
    failed = [each.error for each in outcomes if each.error]
    if failed:
        return Failed(message="\n".join(failed), data=outcomes)
    message = "\n".join(f"{each.problem}: {each.verdict or each.status}" for each in outcomes)
    refused = {each.action for each in outcomes if each.action} == {"refuse"}
    return Completed(name="Refused" if refused else None, message=message, data=outcomes)


def train(
    layout: Layout, problems: Sequence[str], *, refresh: bool, deploy: bool, by: str, read_events: bool = True
) -> list[Outcome]:
    """The work of the flow, in the run that calls it: shared steps, branches, page. `read_events`: see run_shared_steps."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        stale_runs.note(layout, context.flow_run.id)
    with fork_server.running(layout.root):
        branch = Branches(layout, refresh, deploy, by)
        branch.run_shared_steps(read_events)
        outcomes = _side_by_side(branch.train, problems)
    try:
        steps.page.with_options(task_run_name="page")(str(layout.root), wait_for=branch.ends())
    except Exception as error:  # noqa: BLE001  # what was trained stands, and is told
        log.error("the page: %s: %s. The models are there; evergreen report draws it again", type(error).__name__, error)
    return outcomes


def _side_by_side(work: Callable[[str], Outcome], problems: Sequence[str]) -> list[Outcome]:
    """`work` for each problem on `BRANCHES` threads, in order. An interrupt ends the steps that run, then goes on."""
    with ThreadPoolExecutor(BRANCHES) as pool:
        waiting = [pool.submit(copy_context().run, work, problem) for problem in problems]
        try:
            return [each.result() for each in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            steps.end_all()
            raise


class Branches:
    """The way of one problem through the steps, and of all through those they share."""

    def __init__(self, layout: Layout, refresh: bool, deploy: bool, by: str, advise: bool = True) -> None:
        self.layout, self.root = layout, str(layout.root)
        self.refresh, self.deploy, self.by, self.advise = refresh, deploy, by, advise
        pipeline_file.name_sources(layout, load(layout.params))
        self.stages = Stages(layout)
        self._last: dict[str | None, Any] = {}
        """Problem, or None for the shared steps -> the result of its newest step, after which the next one begins."""
        self._opener = ThreadPoolExecutor(1)
        self._runs: dict[str, Future[str | None]] = {}
        """Problem -> MLflow's run of its training, which is opened while the first step works."""

    def run_shared_steps(self, read_events: bool = True) -> None:
        """The steps before the branches. Raises what they raise. `read_events`: False where the snapshot of received purchases
        is new already."""
        params = load(self.layout.params)
        if read_events:
            event_snapshots.update(self.layout, params)
        self.refresh = self.refresh or snapshot.sources_changed(params, self.layout)
        for name, task in steps.SHARED.items():
            self._step(name, task, None)

    def build_features(self, problem: str) -> None:
        """The features of one problem, for whoever scores or watches. Raises what the step raises."""
        self._step("features", steps.OWN["features"], problem)

    def train(self, problem: str) -> Outcome:
        """The steps of one problem; an error ends its branch and is told in the outcome."""
        outcome = Outcome(problem)
        try:
            for name, task in steps.OWN.items():
                if name in steps.ADVICE and not self.advise:
                    continue
                outcome.done += self._advise(name, task, problem) if name in steps.ADVICE else self._step(name, task, problem)
            outcome.done += self._promote(problem, outcome)
        except EvergreenError as error:
            outcome.error = str(error)
        except Exception as error:  # one branch's bug must not stop the others
            log.debug("%s", problem, exc_info=error)
            outcome.error = f"{problem}: {type(error).__name__}: {error}"
        if run_id := self._run(problem):
            steps.close_run(self.root, run_id, outcome.error is not None)
        self._runs.pop(problem, None)
        return outcome

    def _run(self, problem: str) -> str | None:
        """MLflow's run of the training, once it is open; None without one."""
        opened = self._runs.get(problem)
        return opened.result() if opened else None

    def _advise(self, name: str, task: Any, problem: str) -> list[str]:
        """A step that tells people about the model; where it fails, the model is deployed all the same."""
        try:
            return self._step(name, task, problem)
        except EvergreenError as error:
            steps.check()
            log.warning("%s: the page and the model card go without it: %s", problem, error)
            return []

    def _step(self, name: str, task: Any, problem: str | None) -> list[str]:
        """Do and record one step, unless it is fresh. Returns its name where it was done."""
        steps.check()
        stage = f"{name}@{problem}" if problem else name
        with steps.WORLD:
            fresh = self.stages.fresh(stage)
        if fresh and not (self.refresh and name == "ingest"):
            steps.unchanged(name, problem)
            return []
        if problem and name in steps.FITTING and problem not in self._runs:
            if not self._runs:  # while this step works
                threading.Thread(target=steps.import_release_libraries, daemon=True).start()
            self._runs[problem] = self._opener.submit(steps.open_run, self.root, problem)
        done = task.with_options(task_run_name=f"{name} {problem or ''}".strip())
        self._last[problem] = done(name, self.root, problem, wait_for=self._before(problem))
        with steps.WORLD:
            self.stages.commit(stage)
        return [name]

    def ends(self) -> list[Any]:
        """The results of the last steps of all branches, after which the page is drawn."""
        return list(self._last.values())

    def _before(self, problem: str | None) -> list[Any]:
        """The result of the step before the next one of `problem`, by which Prefect draws the order."""
        found = self._last.get(problem) or self._last.get(None)
        return [found] if found else []

    def _promote(self, problem: str, outcome: Outcome) -> list[str]:
        """Judge, register and deploy what `evaluate` left, or what of this an earlier run did not come to."""
        with steps.WORLD:
            version, decided = status.standing(self.layout, problem)
        registered: dict[str, int] = {"version": version} if version else {}
        if version and (decided or not self.deploy):
            steps.unchanged("gate", problem)
            return []
        steps.check()
        began = time.monotonic()
        verdict = steps.gate.with_options(task_run_name=f"gate {problem}")(
            self.root, problem, wait_for=self._before(problem)
        )  # fmt: skip
        if not version:
            registered = steps.register.with_options(task_run_name=f"register {problem}")(
                self.root, problem, verdict, self._run(problem)
            )  # fmt: skip
            version = registered["version"]
        if not self.deploy:
            return ["gate", "register"]
        action = steps.deploy.with_options(task_run_name=f"deploy {problem}")(
            self.root, problem, version, verdict, self.by, wait_for=[registered]
        )
        self._last[problem] = registered
        outcome.action, outcome.verdict = action, verdict["reason"]
        artifacts.publish_verdict(self.layout, problem, version, verdict, action)
        time_budget.note_release(self.layout, problem, time.monotonic() - began)
        return ["gate", "register", "deploy"]
