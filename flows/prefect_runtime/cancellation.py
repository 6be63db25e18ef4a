"""Cancelled retrainings: by a person in Prefect, or by `evergreen retrain NAME --cancel`. They stay cancelled.

The decision log says so. A run that was cancelled before or while it worked is written there by the worker's hook, or by the
next monitoring run or retraining, which asks the server.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Cancelling

from evergreen.flows import current_project, settings
from evergreen.flows.prefect_runtime import deployments
from evergreen.monitoring.ledger.decisions import RetrainingRecord
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

BY = "somebody in Prefect"
POLL_SECONDS = 2.0
"""Between two looks at whether a retraining at work was cancelled."""
LIMIT = 100
"""Newest runs that are read."""


def to_record(run: FlowRun) -> RetrainingRecord:
    """The retraining that a run of the flow `retraining` stands for. A run that no decision asked for has its own id."""
    given: dict[str, Any] = run.parameters
    decision: dict[str, Any] = given.get("decision") or {}
    trigger = decision.get("trigger") or given.get("trigger") or "schedule"
    started = run.start_time or run.created or datetime.now(UTC)
    as_of = decision.get("as_of")
    return RetrainingRecord(
        id=decision.get("id") or str(run.id),
        problem=given["problem"],
        at=datetime.fromisoformat(decision["at"]) if decision else started,
        as_of=date.fromisoformat(as_of) if as_of else None,
        trigger=trigger,
        reason=str(given.get("reason", "")),
        by=f"policy ({trigger})" if decision else str(given.get("by") or "schedule"),
        started=started,
    )


def record(layout: Layout, problems: Iterable[str]) -> None:
    """Write the retrainings that were cancelled on the server into the decision log."""
    params, decisions = load(layout.params), settings.decision_log(layout)
    with get_client(sync_client=True) as client:
        for problem in problems:
            for run in _runs(client, deployments.tags(params, problem), (StateType.CANCELLED, StateType.CANCELLING)):
                if decisions.cancel(to_record(run), BY):
                    log.warning(
                        "%s: the retraining of %s was cancelled: %s", problem, f"{run.created:%Y-%m-%d %H:%M}", run.name
                    )


def cancel_runs(layout: Layout, problem: str) -> int:
    """Cancel the runs on the server that retrain `problem`, or wait to, but for those of its schedule. Returns their number."""
    tags = deployments.tags(load(layout.params), problem)
    asked = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
    with get_client(sync_client=True) as client:
        runs = [
            each for each in _runs(client, tags, asked) if not (each.auto_scheduled and each.state_type == StateType.SCHEDULED)
        ]
        for run in runs:
            waits = run.state_type == StateType.SCHEDULED
            client.set_flow_run_state(run.id, Cancelled() if waits else Cancelling(), force=True)
    return len(runs)


def _runs(client: "SyncPrefectClient", tags: list[str], states: tuple[StateType, ...]) -> list[FlowRun]:
    """Newest runs of the flow `retraining` with these tags and states."""
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["retraining"])),
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=tags), state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=LIMIT,
    )


def note(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Prefect's hook for a cancelled run: write it into the decision log."""
    layout = current_project.of(flow_run.parameters["root"])
    settings.decision_log(layout).cancel(to_record(flow_run), BY)


@contextmanager
def watching(layout: Layout, id: str, stop: Callable[[], None]) -> Generator[None, None, None]:
    """During the block, call `stop` once if the retraining `id` is cancelled, in the decision log or as a run of Prefect."""
    context, done = FlowRunContext.get(), threading.Event()
    run = context.flow_run.id if context and context.flow_run else None

    def watch() -> None:
        decisions = settings.decision_log(layout)
        while not done.wait(POLL_SECONDS):
            try:
                found = decisions.retraining(id)
                if found and found.ended is None and run and _is_cancelling(run):
                    decisions.cancel(found, BY)
                    found = decisions.retraining(id)
            except Exception as error:  # noqa: BLE001  # a database or server that is away now may answer next time
                log.debug("%s", error)
                continue
            if found and found.ended:
                stop()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_cancelling(run: "UUID") -> bool:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run).state_type in (StateType.CANCELLING, StateType.CANCELLED)
