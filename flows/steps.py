"""The steps as Prefect tasks: the only place for retries and timeouts.

The steps of dvc.yaml run as processes of their own, as DVC runs them. Those that change the world run here, one at a time,
since neither MLflow nor DVC is safe in threads. What goes between tasks is paths and numbers.
"""

import json
import logging
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from prefect import Task
from prefect.cache_policies import NO_CACHE

from evergreen.flows import child_process, fork_server, running_steps, settings
from evergreen.flows.fork_server import Fork
from evergreen.flows.operations import status
from evergreen.flows.prefect_runtime import artifacts, runs
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core import memory
from evergreen.tasks.core.errors import EvergreenError, StepError, UnavailableError
from evergreen.tasks.core.paths import Layout, make_folder

if TYPE_CHECKING:
    from evergreen.tasks.release.model_registry import Registry
    from evergreen.tasks.release.off_policy_value import OffPolicyValue

log = logging.getLogger(__name__)

WORLD = threading.RLock()
"""Held by whoever uses MLflow or DVC in this process."""

TIMEOUT_SECONDS = {"tune": 12 * 3600}
"""Of the steps that may take more than OTHERWISE_SECONDS."""
OTHERWISE_SECONDS = 3600
NO_MEMORY = "memory allocation of"
"""In the last line of a process that Polars ended."""
PROGRAM = "evergreen"
"""Module that runs a step."""

RELEASE_LIBRARIES = (
    "evergreen.tasks.release.model_registry",
    "mlflow.store.tracking.sqlalchemy_store",
    "lightgbm",
    "sklearn.ensemble",
    "evergreen.tasks.release.mlflow_model",
    "evergreen.tasks.model_files.onnx_export",
    "evergreen.monitoring.report.charts",
)
"""Modules of the last steps of a training, with their libraries."""

here: ContextVar[tuple[str, str | None]] = ContextVar("here")
"""The step and the problem that this thread is at: what a log line is about."""

_running: set[subprocess.Popen[str] | Fork] = set()
_interrupted = threading.Event()


class CrashError(StepError):
    """A step ended without saying what a person could mend: a bug, a lack of memory, a server that is away."""


@contextmanager
def at(step: str, problem: str | None) -> Iterator[None]:
    """Say that a step begins and how it ends, and mark the lines in between as its own."""
    token = here.set((step, problem))
    try:
        log.info("started", extra={"event": "started"})
        yield
        log.info("done", extra={"event": "done"})
    except BaseException as error:
        log.error("failed: %s", error, extra={"event": "failed"})
        raise
    finally:
        here.reset(token)


def unchanged(step: str, problem: str | None) -> None:
    """Say that a step has nothing to do."""
    token = here.set((step, problem))
    log.info("unchanged", extra={"event": "unchanged"})
    here.reset(token)


def work(step: str, root: str, problem: str | None = None) -> dict[str, Any]:
    """Run a step as `python -P -m evergreen` does, its progress going to the log, and return its result.

    Raises StepError with the step's own line where the step refused, and CrashError where it ended in any other way.
    """
    layout = Layout(Path(root))
    log_file = layout.var / "logs" / f"{step}@{problem or 'all'}.log"
    make_folder(log_file.parent)
    arguments = [step, *([problem] if problem else []), "--root", root]
    marked = running_steps.marking(layout, step, problem, runs.current())
    with at(step, problem), tempfile.TemporaryFile("w+") as result, log_file.open("w") as copy, marked:
        process = fork_server.start(PROGRAM, *arguments, cwd=layout.root, stdout=result)
        progress = artifacts.Progress(layout, step, problem)
        last = _follow(process, copy, _timeout(step), progress)
        if process.returncode:
            raise _why(process.returncode, last, step, problem, log_file)
        progress.finish()
        result.seek(0)
        return json.loads(result.read())


def _timeout(step: str) -> int:
    return TIMEOUT_SECONDS.get(step, OTHERWISE_SECONDS)


def _follow(process: subprocess.Popen[str] | Fork, copy: IO[str], timeout_seconds: float, progress: artifacts.Progress) -> str:
    """Log each line of the process until it ends, and show its progress; the last one is returned."""
    last, clock = "", threading.Timer(timeout_seconds, child_process.end, [process, signal.SIGTERM])
    clock.start()
    _running.add(process)
    try:
        broken = False
        for line in process.stderr or ():
            print(line, end="", file=copy, flush=True)
            if line.strip():
                last = line.strip()
                broken = broken or last.startswith(("error: ", "Traceback "))  # `_why` reports it; the log file holds it all
                log.log(logging.DEBUG if broken else logging.INFO, "%s", last, extra={"event": "line"})
                progress.follow(last)
        process.wait()
    finally:
        clock.cancel()
        child_process.end(process)
        _running.discard(process)
        for pipe in (process.stdin, process.stderr):
            if pipe:
                pipe.close()
    return last


def _why(code: int, last: str, step: str, problem: str | None, log_file: Path) -> StepError:
    where, shown = f"{problem}: {step}" if problem else step, f"var/logs/{log_file.name}"
    if _interrupted.is_set():
        return StepError(f"{where}: stopped")
    if code in (EvergreenError.code, UnavailableError.code) and last.startswith("error: "):
        return (CrashError if code == UnavailableError.code else StepError)(f"{where}: {last.removeprefix('error: ')}")
    if code == -signal.SIGTERM:
        return CrashError(f"{where}: stopped after {_timeout(step)} s, its time limit. {shown} says how far it came.")
    if code == -signal.SIGKILL:
        return CrashError(f"{where}: killed, perhaps for lack of memory. {memory.advice(step)} {shown} says how far it came.")
    if code == -signal.SIGABRT and NO_MEMORY in last:
        return CrashError(f"{where}: out of memory ({last}). {memory.advice(step)} {shown} says how far it came.")
    return CrashError(f"{where}: ended with code {code}: {last}. {shown} says more.")


def check() -> None:
    """Raise StepError where the flow was interrupted: no further step begins."""
    if _interrupted.is_set():
        raise StepError("stopped")


def end_all() -> None:
    """End every step that still runs, and try none again: for an interrupted flow."""
    _interrupted.set()
    for process in list(_running):
        child_process.end(process)


def resume() -> None:
    """Allow steps again after `end_all`, once the work that was stopped has ended."""
    _interrupted.clear()


def judge(root: str, problem: str) -> dict[str, Any]:
    """The gate's verdict on the newest model of a problem, beside its champion or, where there is none, its baseline."""
    from evergreen.tasks.release import promotion_gate as gates

    layout = Layout(Path(root))
    with at("gate", problem):
        with WORLD:
            registry, deployments = settings.registry(layout), settings.deployments(layout)
            registry.mark_stale_runs_killed()
            deployments.update_alias(registry, problem)
            version = deployments.champion(problem)
            if version and (damage := registry.damage(problem, version)):
                log.warning("%s: champion v%d is lost: %s. The baseline is judged in its place", problem, version, damage)
                version = None
            champion = registry.load(problem, version, judged=True) if version else None
            seen = status.cutoff(registry, problem, version) if version else None
        params = load(layout.params)
        verdict = gates.run(params, problem, layout, champion, version, seen)
        if champion is not None and version:
            verdict = verdict.with_off_policy(_off_policy(params, problem, layout, champion, version))
        return verdict.model_dump()


def _off_policy(params: Params, problem: str, layout: Layout, champion: Any, version: int) -> "OffPolicyValue | None":
    """See monitoring.rollout.unseen_lists; where that fails the verdict on past data stands."""
    if params.section(problem).predicts != "lists":
        return None
    from evergreen.monitoring.rollout import unseen_lists

    try:
        return unseen_lists.judge_challenger(params, problem, layout, settings.ledger(layout), champion, version)
    except Exception as error:  # noqa: BLE001  # an old champion may fail in any way
        log.warning("%s: gate: no estimate of lists that nobody saw: %s", problem, " ".join(str(error).split()))
        return None


def import_release_libraries() -> None:
    """Import what the gate, the registration and the page need, while the first steps run as processes of their own."""
    for name in RELEASE_LIBRARIES:
        with suppress(Exception):  # the step that needs it reports it
            import_module(name)
    with suppress(Exception):
        from evergreen.tasks.release import mlflow_model

        mlflow_model.read_packages()


def open_run(root: str, problem: str) -> str | None:
    """MLflow's run of a training that begins, and an end for those whose process is gone. None where MLflow refuses: the
    registration makes the run then."""
    layout = Layout(Path(root))
    try:
        with WORLD:
            registry = settings.registry(layout)
            registry.mark_stale_runs_killed()
            return registry.open_run(load(layout.params), problem)
    except EvergreenError as error:
        log.warning("%s: no run in MLflow while it trains: %s", problem, error)
        return None


def close_run(root: str, run_id: str, failed: bool) -> None:
    """End the run of a training that registered nothing; where MLflow refuses, the next training does."""
    status = ("KILLED" if _interrupted.is_set() else "FAILED") if failed else None
    try:
        with WORLD:
            settings.registry(Layout(Path(root))).close_run(run_id, status)
    except EvergreenError as error:
        log.warning("MLflow's run %s stays open: %s", run_id, error)


def enter(root: str, problem: str, verdict: dict[str, Any], opened: str | None = None) -> dict[str, int]:
    """Register the newest model with the verdict on it and where it comes from. `opened`: see open_run. Returns its
    `version`, in a dict: Prefect draws the order of tasks by results that it can tell apart."""
    from evergreen.tasks.release.lineage import lineage
    from evergreen.tasks.release.promotion_gate import Verdict

    layout = Layout(Path(root))
    with at("register", problem), WORLD:
        registry = settings.registry(layout)
        params = load(layout.params)
        origin = lineage(layout, params, problem)
        if run := runs.current():
            origin["prefect.run"] = run
        found = registry.register(
            params,
            problem,
            layout,
            Verdict.model_validate(verdict),
            {**origin, "digest": status.digest(origin, problem)},
            opened,
        )
        log.info("version %d", found.version, extra={"event": "line"})
        _log_figures(registry, problem, layout, found.version)
        refer(params, problem, layout, found.version)
        return {"version": found.version}


def _log_figures(registry: "Registry", problem: str, layout: Layout, version: int) -> None:
    """Show the charts of the report page in the run of the version, too; where that fails the version stands."""
    from evergreen.monitoring.report import charts

    try:
        with tempfile.TemporaryDirectory() as folder:
            charts.save(layout.report(problem) / "plots", Path(folder))
            registry.log_figures(problem, version, Path(folder))
    except Exception as error:  # noqa: BLE001  # they are on the page
        log.warning("%s: no figures in the run of v%d: %s", problem, version, " ".join(str(error).split()))


def refer(params: Params, problem: str, layout: Layout, version: int) -> None:
    """Keep what the version learned from, for monitoring; where that fails the first look makes it."""
    from evergreen.monitoring.drift import reference_data

    try:
        reference_data.build(params, problem, layout, None, version)
    except Exception as error:  # noqa: BLE001  # the version stands
        log.warning("%s: no reference for monitoring yet: %s", problem, " ".join(str(error).split()))


def release(root: str, problem: str, version: int, verdict: dict[str, Any], by: str) -> str:
    """Deploy the version, begin its rollout or reject it, by the verdict and by `rollout` in the problem's params.

    Records who decided, when and why. Returns the action: deploy, begin or refuse.
    """
    from evergreen.tasks.release.promotion_gate import Verdict

    with at("deploy", problem), WORLD:
        layout = Layout(Path(root))
        policy = load(layout.params).section(problem).rollout
        found = settings.rollouts(layout).apply_verdict(
            settings.registry(layout), problem, version, Verdict.model_validate(verdict), by, policy
        )
        log.info("%s version %d: %s", found.action, found.version, found.reason, extra={"event": "line"})
        return found.action


def draw(root: str) -> str:
    """Rebuild the page. Returns its path."""
    with at("page", None), WORLD:
        return str(status.page(Layout(Path(root))))


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    """Whether a failure may be gone next time; what a person has to mend stays."""
    error = state.result(raise_on_failure=False)
    mendable = isinstance(error, EvergreenError) and not isinstance(error, CrashError)
    if mendable or _interrupted.is_set():
        return False
    log.warning("trying again: %s", error)
    return True


WORLDLY: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 20], "retry_condition_fn": _may_pass}

ingest = Task(work, name="ingest", cache_policy=NO_CACHE, **WORLDLY)
validate = Task(work, name="validate", cache_policy=NO_CACHE)
features = Task(work, name="features", cache_policy=NO_CACHE)
tune = Task(work, name="tune", cache_policy=NO_CACHE)
train = Task(work, name="train", cache_policy=NO_CACHE)
evaluate = Task(work, name="evaluate", cache_policy=NO_CACHE)
diagnose = Task(work, name="diagnose", cache_policy=NO_CACHE)
explain = Task(work, name="explain", cache_policy=NO_CACHE)
gate = Task(judge, name="gate", cache_policy=NO_CACHE)
register = Task(enter, name="register", cache_policy=NO_CACHE, **WORLDLY)
deploy = Task(release, name="deploy", cache_policy=NO_CACHE, **WORLDLY)
page = Task(draw, name="page", cache_policy=NO_CACHE)

SHARED = {"ingest": ingest, "validate": validate}
"""Once for all problems."""
OWN = {
    "features": features,
    "tune": tune,
    "train": train,
    "evaluate": evaluate,
    "diagnose": diagnose,
    "explain": explain,
}
"""Once per problem."""
FITTING = ("tune", "train")
"""Steps that make a new model; MLflow shows a run as RUNNING from the first of them on."""
ADVICE = ("diagnose", "explain")
"""Steps that only people read."""
