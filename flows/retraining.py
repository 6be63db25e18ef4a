"""Retraining: an event, a schedule or a person -> a challenger on what is known now -> the gate -> deploy's rollout.

Each is claimed in the database before its first step, by the id of the look it was decided on: one event twice trains once.
One that was killed stays claimed and unfinished, and whoever comes next (a monitor, another retraining) completes it; until the
gate has spoken the champion answers as before.
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

from evergreen.flows import settings
from evergreen.flows.operations import notifications, params_edit
from evergreen.flows.operations import status as results
from evergreen.monitoring.ledger.decisions import DecisionLog, RetrainingRecord, end_of_day
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import LockedError, StepError
from evergreen.tasks.core.paths import Layout, find, locking, read_json

if TYPE_CHECKING:
    from evergreen.flows.operations.status import Outcome

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 6 * 3600.0
"""So long a retraining waits for another training of the project."""
PERSON = "person"
"""Ground of a retraining that somebody asked for."""

Train = Callable[[Layout, str, bool, str], "Outcome"]
"""(project, problem, whether to read the sources again, who) -> what became of the training flow. Hold the project's lock."""


@dataclass(frozen=True)
class Asked:
    """A retraining that is wanted. `id`, `at`: of the look it was decided on; None: a person asks, now."""

    problem: str
    reason: str
    by: str
    trigger: str = PERSON
    id: str | None = None
    at: datetime | None = None
    as_of: date | None = None
    """The day to live on, for a project that lives on a day of params.yaml."""


def run(layout: Layout, asked: Asked, train: Train) -> RetrainingRecord:
    """Retrain, or complete what an earlier call began; one that is finished is returned as it stands.

    Raises LockedError if another training runs for longer than `PATIENCE_SECONDS`, ParamsError for an unknown problem, and
    StepError, after the failure was recorded, if the training failed.
    """
    load(layout.params).section(asked.problem)
    looks = settings.decision_log(layout)
    with waiting(layout, asked.problem):
        status, stands = looks.claim(_claimed(layout, looks, asked))
        if status == "done":
            log.info("%s: this retraining was done already: %s", stands.problem, stands.outcome)
            return stands
        if status == "unfinished":
            log.warning("%s: completing the retraining that began at %s", stands.problem, f"{stands.started:%Y-%m-%d %H:%M}")
        prepare(layout, stands)
        outcome = train(layout, stands.problem, not _read_since(layout, stands.started), stands.by)
        done = _done(layout, stands, outcome)
        looks.finish(done)
    if outcome.error:
        raise StepError(outcome.error)
    return done


def complete(layout: Layout, problems: list[str], train: Train) -> list[RetrainingRecord]:
    """Complete what was claimed and never finished, unless somebody is at it right now."""
    looks, done = settings.decision_log(layout), []
    for left in looks.unfinished(problems):
        if _busy(layout):
            log.info("%s: a training is under way", left.problem)
            return done
        done.append(run(layout, _again(left), train))
    return done


def _again(left: RetrainingRecord) -> Asked:
    return Asked(left.problem, left.reason, left.by, left.trigger, left.id, left.at, left.as_of)


@contextmanager
def waiting(layout: Layout, problem: str) -> Iterator[None]:
    """Hold the project's lock, after whoever trains now. Raises LockedError after `PATIENCE_SECONDS`."""
    end, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        lock = locking(layout.var / "train.lock", f"{problem}: retrain")
        try:
            lock.__enter__()
            break
        except LockedError as error:
            if time.monotonic() > end:
                raise
            if not told:
                log.info("%s: waiting: %s", problem, error)
            told = True
            time.sleep(1)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _busy(layout: Layout) -> bool:
    try:
        with locking(layout.var / "train.lock", "monitor"):
            return False
    except LockedError:
        return True


def _claimed(layout: Layout, looks: DecisionLog, asked: Asked) -> RetrainingRecord:
    """What to claim: what is asked for; of a person, what was begun for this problem and not finished."""
    if asked.id is None and (left := looks.unfinished([asked.problem])):
        return left[0]
    known = load(layout.params).project.as_of
    return RetrainingRecord(
        id=asked.id or str(uuid4()),
        problem=asked.problem,
        at=asked.at or (end_of_day(known) if known else datetime.now(UTC)),
        as_of=asked.as_of,
        trigger=asked.trigger,
        reason=asked.reason,
        by=asked.by,
        started=datetime.now(UTC),
    )


def prepare(layout: Layout, begun: RetrainingRecord) -> None:
    """Write into params.yaml, where DVC sees it, what the challenger learns from and where its search begins."""
    if begun.as_of and load(layout.params).project.as_of is not None:
        params_edit.set_as_of(layout.params, begun.as_of)
    if _searched_since(layout, begun):
        return
    for keys, value in changes(load(layout.params), begun.problem, layout).items():
        if params_edit.set_value(layout.params, (begun.problem, *keys), value):
            log.info("params.yaml: %s = %s", ".".join((begun.problem, *keys)), value)


def changes(params: Params, problem: str, layout: Layout) -> Mapping[tuple[str, str], Any]:
    """Keys of the problem's section, and what a retraining sets there."""
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


def _searched_since(layout: Layout, begun: RetrainingRecord) -> bool:
    """Whether the search ran after the retraining began: its best are those of the search before it no longer."""
    path = layout.cost("tune", begun.problem)
    return path.exists() and _started(path) >= begun.started


def _read_since(layout: Layout, begun: datetime) -> bool:
    """Whether the sources were read after the retraining began: one that is completed goes on with the same tables."""
    path = layout.cost("ingest", None)
    return path.exists() and _started(path) >= begun


def _started(path: Path) -> datetime:
    found = datetime.fromisoformat(read_json(path)["started"])
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _done(layout: Layout, begun: RetrainingRecord, outcome: "Outcome") -> RetrainingRecord:
    """`begun` with what became of it, as the registry and the deployments say."""
    ended: dict[str, Any] = {"ended": datetime.now(UTC), "cpu_minutes": _cpu_minutes(layout, begun)}
    if outcome.error:
        return begun.model_copy(update={**ended, "outcome": f"failed: {outcome.error}"})
    version, _ = results.standing(layout, begun.problem)
    deployments = settings.deployments(layout)
    judged = [each for each in deployments.history(begun.problem) if each.action in ("deploy", "refuse", "begin")]
    told = [each for each in judged if each.version == version and each.evidence]
    if version is None or not told or told[-1].at < begun.started:
        why = f"nothing is new since v{version} was trained" if version else "there is no challenger"
        return begun.model_copy(update={**ended, "outcome": f"no challenger: {why}"})
    verdict = told[-1]
    return begun.model_copy(
        update={**ended, "version": version, "promoted": bool(verdict.evidence.get("promote")), "outcome": verdict.reason}
    )


def _cpu_minutes(layout: Layout, begun: RetrainingRecord) -> float:
    """Of the steps that worked for it, those before a kill included."""
    costs = [layout.cost("ingest", None), layout.cost("validate", None)]
    costs += sorted((layout.var / "costs").glob(f"*@{begun.problem}.json"))
    spent = [read_json(path)["cpu_seconds"] for path in costs if path.exists() and _started(path) >= begun.started]
    return round(sum(spent) / 60, 3)


def flowing(layout: Layout, problem: str, refresh: bool, by: str) -> "Outcome":
    """The training flow, on the server that PREFECT_API_URL names."""
    from evergreen.flows import training
    from evergreen.flows.prefect_runtime.server import Server

    server = Server(os.environ["PREFECT_API_URL"], layout.var / "prefect" / "server.log")
    return training.run(layout, [problem], server, refresh=refresh, deploy=True, by=by)[0]


def crashed(flow: Any, flow_run: Any, state: Any) -> None:
    """What Prefect calls when a run of a deployment failed or was killed."""
    given = flow_run.parameters
    root, problem = given.get("root"), given.get("problem") or ", ".join(given.get("problems") or ())
    if root:
        said = " ".join(str(state.message or state.name).split())
        notifications.send(Layout(Path(root)), f"{flow.name} {problem}: {state.name.lower()}", said, {"problem": problem})


@flow(name="retraining", flow_run_name="retraining {problem}", on_failure=[crashed], on_crashed=[crashed])
def retraining(
    root: str,
    problem: str,
    reason: str,
    decision: dict[str, Any] | None = None,
    by: str = "schedule",
    trigger: str = "schedule",
) -> dict[str, Any]:
    """The flow, run by a person, a schedule, or as the answer of an automation to the event of a decision.

    `decision`: id, at, as_of and trigger of the look it was decided on; None: nobody looked.
    """
    asked = Asked(problem, reason, by, trigger)
    if decision:
        at, as_of = datetime.fromisoformat(decision["at"]), decision.get("as_of")
        day = date.fromisoformat(as_of) if as_of else None
        asked = Asked(problem, reason, f"policy ({decision['trigger']})", decision["trigger"], decision["id"], at, day)
    return run(find(Path(root)), asked, flowing).model_dump(mode="json")
