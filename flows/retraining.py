"""The retraining flow: an event, a schedule or a person -> a challenger on the data known now -> the gate -> a rollout.

Each retraining is claimed in the database before its first step, by the id of the monitoring run that decided it: the same
event twice trains once. A killed retraining stays claimed and unfinished; the next monitor or retraining completes it. One that
was cancelled is finished. Until the gate has decided, the champion serves as before.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect import flow
from prefect.states import Cancelled, Completed

from evergreen.flows import current_project, settings, steps
from evergreen.flows.operations import notifications, params_edit, status
from evergreen.flows.prefect_runtime import cancellation, runs, stale_runs
from evergreen.monitoring.ledger.decisions import DecisionLog, RetrainingRecord, end_of_day, run_id
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, LockedError, StepError
from evergreen.tasks.core.paths import Layout, locking, read_json
from evergreen.tasks.data.snapshot import contract_notes

if TYPE_CHECKING:
    from evergreen.flows.operations.status import Outcome

log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 6 * 3600.0
"""How long a retraining waits for another training of the project."""
PERSON = "person"
"""Trigger of a retraining that somebody requested."""
SCHEDULE = "schedule"
"""Trigger, and author, of a scheduled one."""

Train = Callable[[Layout, str, bool, str], "Outcome"]
"""(project, problem, whether to read the sources again, who) -> outcome of the training flow. Hold the project's lock."""


@dataclass(frozen=True)
class RetrainRequest:
    """`id`, `at`: of the monitoring run that decided it; None: a person's request, now. `run`: Prefect's id of its run."""

    problem: str
    reason: str
    by: str
    trigger: str = PERSON
    id: str | None = None
    at: datetime | None = None
    as_of: date | None = None
    """The new project.as_of, where params.yaml sets one."""
    run: str | None = None


def request_for(params: Params, decision: Decision) -> RetrainRequest:
    """The retraining that a decision requests."""
    id = run_id(params.project.key, decision.problem, decision.at)
    day = decision.at.date() if params.project.as_of else None
    reason, trigger = decision.reason.removeprefix("retrain: "), decision.trigger or "age"
    return RetrainRequest(decision.problem, reason, f"policy ({trigger})", trigger, id, decision.at, day)


def run(layout: Layout, request: RetrainRequest, train: Train) -> RetrainingRecord:
    """Retrain, or complete what an earlier call started; a finished or cancelled retraining is returned as recorded.

    Raises LockedError if another training runs for longer than `LOCK_TIMEOUT_SECONDS`, ParamsError for an unknown problem, and
    StepError, after the failure was recorded, if the training failed.
    """
    load(layout.params).section(request.problem)
    decisions = settings.decision_log(layout)
    with wait_for_lock(layout, request.problem):
        state, record = decisions.claim(_to_claim(layout, decisions, request))
        if state == "done":
            log.info("%s: this retraining is finished: %s", record.problem, record.outcome)
            return record
        if state == "unfinished":
            log.warning("%s: completing the retraining started at %s", record.problem, f"{record.started:%Y-%m-%d %H:%M}")
        prepare(layout, record)
        outcome = _train(layout, record, train)
        cancelled = decisions.retraining(record.id)
        if outcome.error and cancelled and cancelled.cancelled:
            steps.resume()
            log.warning("%s: %s", record.problem, cancelled.outcome)
            return cancelled
        done = _finished(layout, record, outcome)
        decisions.finish(done)
    if outcome.error:
        raise StepError(outcome.error)
    return done


def _train(layout: Layout, record: RetrainingRecord, train: Train) -> "Outcome":
    """The outcome of the training; its steps end if the retraining is cancelled. Raises what a shared step raises otherwise."""
    with cancellation.watching(layout, record.id, steps.end_all):
        try:
            return train(layout, record.problem, not _ingested_since(layout, record.started), record.by)
        except EvergreenError as error:
            found = settings.decision_log(layout).retraining(record.id)
            if found is None or not found.cancelled:
                raise
            return status.Outcome(record.problem, error=str(error))


def complete(layout: Layout, problems: list[str], train: Train) -> list[RetrainingRecord]:
    """Complete claimed, unfinished retrainings, unless a training runs right now."""
    done = []
    for record in settings.decision_log(layout).unfinished(problems):
        if _is_training(layout):
            log.info("%s: a training is running", record.problem)
            return done
        done.append(run(layout, _to_request(record), train))
    return done


def _to_request(record: RetrainingRecord) -> RetrainRequest:
    return RetrainRequest(
        record.problem, record.reason, record.by, record.trigger, record.id, record.at, record.as_of
    )  # fmt: skip


@contextmanager
def wait_for_lock(layout: Layout, problem: str) -> Iterator[None]:
    """Hold the project's lock once the running training has ended. Raises LockedError after `LOCK_TIMEOUT_SECONDS`."""
    end, logged = time.monotonic() + LOCK_TIMEOUT_SECONDS, False
    while True:
        lock = locking(layout.var / "train.lock", f"{problem}: retrain")
        try:
            lock.__enter__()
            break
        except LockedError as error:
            if time.monotonic() > end:
                raise
            if not logged:
                log.info("%s: waiting: %s", problem, error)
            logged = True
            time.sleep(1)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _is_training(layout: Layout) -> bool:
    try:
        with locking(layout.var / "train.lock", "monitor"):
            return False
    except LockedError:
        return True


def _to_claim(layout: Layout, decisions: DecisionLog, request: RetrainRequest) -> RetrainingRecord:
    """The record to claim; a person's request completes an unfinished retraining of the problem first."""
    if request.id is None and (unfinished := decisions.unfinished([request.problem])):
        return unfinished[0]
    as_of = load(layout.params).project.as_of
    return RetrainingRecord(
        id=request.id or request.run or str(uuid4()),
        problem=request.problem,
        at=request.at or (end_of_day(as_of) if as_of else datetime.now(UTC)),
        as_of=request.as_of,
        trigger=request.trigger,
        reason=request.reason,
        by=request.by,
        started=datetime.now(UTC),
    )


def prepare(layout: Layout, record: RetrainingRecord) -> None:
    """Write the training window and the warm starts of the search into params.yaml, which DVC tracks."""
    if record.as_of and load(layout.params).project.as_of is not None:
        params_edit.set_as_of(layout.params, record.as_of)
    if _tuned_since(layout, record):
        return
    for keys, value in new_params(load(layout.params), record.problem, layout).items():
        if params_edit.set_value(layout.params, (record.problem, *keys), value):
            log.info("params.yaml: %s = %s", ".".join((record.problem, *keys)), value)


def new_params(params: Params, problem: str, layout: Layout) -> Mapping[tuple[str, str], Any]:
    """Keys of the problem's section -> the values that a retraining sets."""
    from evergreen.tasks.search.warm_starts import best_configs

    section = params.section(problem)
    policy, found = section.retrain, dict[tuple[str, str], Any]()
    if policy.window == "sliding":
        found["train", "history_days"] = policy.window_days
    if policy.window == "weighted":
        found["train", "half_life_days"] = policy.window_days
    if starts := best_configs(params, problem, layout):
        found["tune", "warm_starts"] = starts
    return found


def _tuned_since(layout: Layout, record: RetrainingRecord) -> bool:
    """Whether the search ran after the retraining started: its results are no warm starts for itself."""
    path = layout.cost("tune", record.problem)
    return path.exists() and _started(path) >= record.started


def _ingested_since(layout: Layout, moment: datetime) -> bool:
    """Whether the sources were read after `moment`: a completed retraining uses the same tables."""
    path = layout.cost("ingest", None)
    return path.exists() and _started(path) >= moment


def _started(path: Path) -> datetime:
    found = datetime.fromisoformat(read_json(path)["started"])
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _finished(layout: Layout, record: RetrainingRecord, outcome: "Outcome") -> RetrainingRecord:
    """`record` with its outcome, from the registry and the deployments, and how the tables differ from their contract."""
    found = _judged(layout, record, outcome)
    notes = contract_notes(load(layout.params), record.problem, layout)
    return found.model_copy(update={"outcome": "; ".join([str(found.outcome), *notes])}) if notes else found


def _judged(layout: Layout, record: RetrainingRecord, outcome: "Outcome") -> RetrainingRecord:
    ended: dict[str, Any] = {"ended": datetime.now(UTC), "cpu_minutes": _cpu_minutes(layout, record)}
    if outcome.error:
        return record.model_copy(update={**ended, "outcome": f"failed: {outcome.error}"})
    version, _ = status.standing(layout, record.problem)
    history = settings.deployments(layout).history(record.problem)
    verdicts = [each for each in history if each.action in ("deploy", "refuse", "begin")]
    verdicts = [each for each in verdicts if each.version == version and each.evidence]
    if version is None or not verdicts or verdicts[-1].at < record.started:
        why = f"nothing is new since v{version} was trained" if version else "there is no challenger"
        return record.model_copy(update={**ended, "outcome": f"no challenger: {why}"})
    verdict = verdicts[-1]
    promoted = bool(verdict.evidence.get("promote"))
    return record.model_copy(update={**ended, "version": version, "promoted": promoted, "outcome": verdict.reason})


def _cpu_minutes(layout: Layout, record: RetrainingRecord) -> float:
    """Of all its steps, including those before a kill."""
    costs = [layout.cost("ingest", None), layout.cost("validate", None)]
    costs += sorted((layout.var / "costs").glob(f"*@{record.problem}.json"))
    spent = [read_json(path)["cpu_seconds"] for path in costs if path.exists() and _started(path) >= record.started]
    return round(sum(spent) / 60, 3)


def run_training(layout: Layout, problem: str, refresh: bool, by: str) -> "Outcome":
    """The work of the training flow in the run that calls it, on the server that PREFECT_API_URL names."""
    from evergreen.flows import training
    from evergreen.flows.prefect_runtime.server import Server

    training.mark_crashed(layout, Server(os.environ["PREFECT_API_URL"], layout.var / "prefect" / "server.log"))
    outcome = training.train(layout, [problem], refresh=refresh, deploy=True, by=by)[0]
    stale_runs.forget(layout)
    return outcome


def notify_crash(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook for a failed or killed run of a deployment."""
    given = flow_run.parameters
    root, subject = given.get("root"), given.get("problem") or ", ".join(given.get("problems") or ())
    if root:
        message = " ".join(str(state.message or state.name).split())
        at = f"{' '.join(filter(None, (flow.name, subject)))}: {state.name.lower()}"
        notifications.send(current_project.of(root), at, message, {"problem": subject})


@flow(
    name="retraining",
    flow_run_name=runs.name,
    on_failure=[notify_crash],
    on_crashed=[notify_crash],
    on_cancellation=[cancellation.note],
)
def retraining(
    root: str,
    problem: str,
    reason: str,
    decision: dict[str, Any] | None = None,
    by: str = SCHEDULE,
    trigger: str = SCHEDULE,
) -> Any:
    """The flow, started by a person, a schedule, or an automation that responds to the event of a decision. Its state reads
    Refused if the gate refused the challenger, and Cancelled if somebody cancelled it.

    `decision`: id, at, as_of and trigger of the monitoring run that decided it; None: no run did.
    """
    layout = current_project.of(root)
    runs.begin(load(layout.params), [problem])
    cancellation.record(layout, [problem])
    request = RetrainRequest(problem, reason, by, trigger, run=runs.first_attempt())
    if decision:
        at, as_of = datetime.fromisoformat(decision["at"]), decision.get("as_of")
        day, trigger = date.fromisoformat(as_of) if as_of else None, decision["trigger"]
        who = f"policy ({trigger})" if by == SCHEDULE else f"policy ({trigger}), approved by {by}"
        request = RetrainRequest(problem, reason, who, trigger, decision["id"], at, day)
    done = run(layout, request, run_training)
    found, message = done.model_dump(mode="json"), f"{f'v{done.version}: ' if done.version else ''}{done.outcome}"
    if done.cancelled:
        return Cancelled(message=message, data=found)
    return Completed(name="Refused" if done.promoted is False else None, message=message, data=found)
