"""Mark Prefect runs of killed processes as crashed, so that they do not stay Running."""

import logging
import os
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from evergreen.tasks.core.paths import Layout, read_json, write_json


def note(layout: Layout, run: UUID) -> None:
    """Remember that this process works on `run`: Prefect knows no process of a flow that a person started."""
    write_json(layout.var / "prefect" / "runs" / f"{run}.json", {"pid": os.getpid(), "started": datetime.now(UTC).isoformat()})


def forget(layout: Layout) -> None:
    """Remove the notes of runs that ended."""
    for path in (layout.var / "prefect" / "runs").glob("*.json"):
        path.unlink()


def deliver() -> None:
    """Send the log lines and events that Prefect still holds back; then its server may end."""
    for name in ("evergreen", "prefect.flow_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    EventsWorker.drain_all()


def mark_crashed(layout: Layout) -> list[str]:
    """Set every noted run that is not final to Crashed, its tasks too, and return their names.

    Call it with the project's lock in hand: whoever noted a run held that lock, so no noted run is alive.
    """
    notes = sorted((layout.var / "prefect" / "runs").glob("*.json"))
    dead = []
    if notes:
        with get_client(sync_client=True) as client:
            dead = [name for note in notes if (name := _crash(client, UUID(note.stem), read_json(note)["pid"]))]
    forget(layout)
    return dead


def _crash(client: SyncPrefectClient, run: UUID, pid: int) -> str | None:
    with suppress(ObjectNotFound):
        found = client.read_flow_run(run)
        if found.state and found.state.is_final():
            return None
        state = Crashed(message=f"process {pid} is gone")
        for each in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
            if each.state and not each.state.is_final():
                client.set_task_run_state(each.id, state, force=True)
        client.set_flow_run_state(run, state, force=True)
        return found.name
    return None
