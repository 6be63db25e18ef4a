"""Deployments, schedules and automations of a project, made from its params; and their work.

    embedded          one process with its own local Prefect server runs what is due (`work` without a pool)
    PREFECT_API_URL   deployments of a work pool on that server, which a worker runs, here or elsewhere; an automation answers
                      the event of a decision by a retraining

Whatever is made is made once: names say whose it is, and the same call again changes what differs. Of several runs that were
missed one is caught up.
"""

import asyncio
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.flows.current_project import HERE, VARIABLE
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.operations import INPUT_NEEDED
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

POOL = "evergreen"
"""The work pool on a server."""
LATE = timedelta(minutes=1)
"""A run that began no later than this after its time was not missed."""
CAUGHT = "caught up"
"""Tag of a run that stands for those that were missed."""
AT_ONCE = 2
"""Runs at work in one process."""


@dataclass(frozen=True)
class Planned:
    """One deployment."""

    name: str
    """PROJECT.PROBLEM; with the flow's name before it, the deployment."""
    flow: str
    """Its flow: monitoring, retraining or scoring."""
    entrypoint: str
    """Module path of the flow."""
    problem: str
    parameters: dict[str, Any] = field(hash=False)
    cron: str | None
    zone: str
    waits: bool
    """A run that comes while another is at work: waits for it (one retraining after the other), or is left out."""


def resource(params: Params, problem: str) -> str:
    """Resource id of the events of a problem."""
    return f"evergreen.problem.{_allowed(params.project.name)}.{problem}"


def plan(params: Params, root: str) -> list[Planned]:
    """What params schedule. A retraining of each problem is always there: an automation, or a person, may run it."""
    return [each for problem in params.problems for each in _planned(params, problem, root)]


def _planned(params: Params, problem: str, root: str) -> Iterator[Planned]:
    name, schedule = f"{_allowed(params.project.name)}.{problem}", params.section(problem).schedule
    retrain = {"root": root, "problem": problem, "reason": "scheduled"}
    yield Planned(
        name, "retraining", "evergreen.flows.retraining.retraining", problem, retrain, schedule.train, schedule.timezone, True
    )
    if schedule.score:
        score = {"root": root, "problem": problem}
        yield Planned(
            name, "scoring", "evergreen.flows.scoring.scoring", problem, score, schedule.score, schedule.timezone, False
        )
    if schedule.monitor:
        watch = {"root": root, "problems": [problem]}
        yield Planned(
            name,
            "monitoring",
            "evergreen.flows.monitoring.monitoring",
            problem,
            watch,
            schedule.monitor,
            schedule.timezone,
            False,
        )


def _allowed(name: str) -> str:
    """Prefect's names hold none of these letters."""
    return re.sub(r"[/%&<>]", "-", name)


def check(params: Params) -> None:
    """Raises ParamsError for a time or a zone that is none, for a plain table to score without an input, and where nothing is
    scheduled."""
    from prefect.client.schemas.schedules import CronSchedule

    for problem in params.problems:
        asked = params.section(problem).schedule
        if asked.score and not asked.input and params.section(problem).features.by_cutoff is False:
            raise ParamsError(f"params.yaml: {problem}.schedule.score: {INPUT_NEEDED}")
        for key in ("train", "score", "monitor"):
            if cron := getattr(asked, key):
                try:
                    CronSchedule(cron=cron, timezone=asked.timezone)
                except ValueError as error:
                    raise ParamsError(
                        f"params.yaml: {problem}.schedule.{key} = {cron}: {str(error).splitlines()[-1].strip()}"
                    ) from None
    if not any(each.cron for each in plan(params, ".")):
        raise ParamsError(
            "params.yaml: no problem has a schedule; say when, such as "
            f'{next(iter(params.problems))}.schedule: {{monitor: "0 6 * * *", timezone: Europe/Paris}}'
        )


def register(layout: Layout, params: Params, pool: str | None) -> "dict[Planned, UUID]":
    """Make the deployments on the server that PREFECT_API_URL names, and remove those that params no longer plan.

    `pool`: a work pool, made where it is not there, and automations with it; None: this process runs them itself.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    made = {}
    with get_client(sync_client=True) as client:
        if pool and not any(each.name == pool for each in client.read_work_pools()):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        wanted = plan(params, str(layout.root) if pool else HERE)
        for each in wanted:
            made[each] = deployment(each, params, pool).apply()
        for found in _ours(client, params):
            if found.id not in made.values():
                client.delete_deployment(found.id)
        if pool:
            for each in wanted:
                if each.flow == "retraining":
                    _automate(client, params, each, made[each])
    return made


def deployment(each: Planned, params: Params, pool: str | None = None) -> Any:
    """As Prefect takes it."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.types.entrypoint import EntrypointType

    module, _, flow = each.entrypoint.rpartition(".")
    found: Any = getattr(import_module(module), flow)  # prefect's own import puts the working directory first on sys.path
    collision = ConcurrencyLimitStrategy.ENQUEUE if each.waits else ConcurrencyLimitStrategy.CANCEL_NEW
    return found.to_deployment(
        each.name,
        schedules=[CronSchedule(cron=each.cron, timezone=each.zone)] if each.cron else [],
        parameters=each.parameters,
        tags=[tag(params)],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=collision),
        work_pool_name=pool,
        job_variables={"env": environment()} if pool else None,  # without working_dir a run gets an empty temporary one
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def environment() -> dict[str, str]:
    """Environment of a run, added to the worker's own. PYTHONSAFEPATH keeps the working directory off sys.path."""
    return {"PREFECT_LOGGING_EXTRA_LOGGERS": "evergreen", "PYTHONSAFEPATH": "1"}


def tag(params: Params) -> str:
    """Tag of all deployments of a project."""
    return f"evergreen:{params.project.name}"


def _ours(client: "SyncPrefectClient", params: Params) -> list[Any]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    tags = DeploymentFilterTags(all_=[tag(params)])
    return list(client.read_deployments(deployment_filter=DeploymentFilter(tags=tags)))


# Automations


def automation_name(params: Params, problem: str) -> str:
    return f"evergreen: retrain {_allowed(params.project.name)}.{problem}"


def has_automation(params: Params, problem: str) -> bool:
    """Whether an automation of the server answers the event of a decision by retraining."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return any(each.enabled for each in client.read_automations_by_name(automation_name(params, problem)))


def _automate(client: "SyncPrefectClient", params: Params, each: Planned, id: "UUID") -> None:
    """One automation for a problem that retrains by itself; none for another."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    name = automation_name(params, each.problem)
    there = client.read_automations_by_name(name)
    wanted = params.section(each.problem).retrain.mode == "automatic"
    for one in there[1:] if wanted else there:
        client.delete_automation(one.id)
    if not wanted:
        return

    def from_event(text: str, json_: bool = False) -> dict[str, Any]:
        template = {"__prefect_kind": "jinja", "template": f"{{{{ {text} }}}}"}
        return {"__prefect_kind": "json", "value": template} if json_ else template

    arguments: dict[str, Any] = {
        "problem": from_event("event.payload.problem"),
        "reason": from_event("event.payload.reason"),
        "decision": from_event("event.payload.monitoring_run | tojson", True),
    }
    action: Any = RunDeployment(source="selected", deployment_id=id, parameters=arguments, job_variables=None)
    core = AutomationCore(
        name=name,
        description="Answers Evergreen's decision to retrain; the same decision twice retrains once.",
        enabled=True,
        trigger=EventTrigger(
            expect={"evergreen.decision"},
            match={"prefect.resource.id": resource(params, each.problem), "evergreen.retrain": "automatic"},  # pyright: ignore
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[action],
    )
    if there:
        client.update_automation(there[0].id, core)
    else:
        client.create_automation(core)


# What was missed


def mark_stale_runs_crashed(made: "dict[Planned, UUID]") -> None:
    """Set the runs of these deployments that are at work to crashed: for a process that serves them, when it begins."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as OfType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    asked = DeploymentFilter(id=DeploymentFilterId(any_=list(made.values())))
    states = FlowRunFilterState(type=OfType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(deployment_filter=asked, flow_run_filter=FlowRunFilter(state=states)):
            client.set_flow_run_state(run.id, Crashed(message="the process that served it is gone"), force=True)


def catch_up(made: "dict[Planned, UUID]", now: datetime | None = None) -> list[Planned]:
    """Of the scheduled runs that no process began, however many, one for each deployment is run now; the others are removed."""
    from prefect.client.orchestration import get_client

    moment = now or datetime.now(UTC)
    caught = []
    with get_client(sync_client=True) as client:
        for each, id in made.items():
            if each.cron and (missed := _missed(client, each, id, moment)):
                key = f"{id} missed {missed.isoformat()}"
                client.create_flow_run_from_deployment(id, idempotency_key=key, tags=[CAUGHT])
                caught.append(each)
    return caught


def _missed(client: "SyncPrefectClient", each: Planned, id: "UUID", now: datetime) -> datetime | None:
    """The first time after the last run that began, if it has passed; waiting runs that are late are removed."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.server.schemas.schedules import CronSchedule

    asked = DeploymentFilter(id=DeploymentFilterId(any_=[id]))
    runs = client.read_flow_runs(deployment_filter=asked, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    late = [(run.expected_start_time, run.id) for run in runs if run.start_time is None and run.auto_scheduled]
    late = [(due, run) for due, run in late if due and due < now - LATE]
    lost = (StateType.CANCELLED, StateType.CRASHED)
    begun = [
        run.start_time or run.created
        for run in runs
        if (run.start_time or CAUGHT in run.tags) and run.state and run.state.type not in lost
    ]
    for _, run in late:
        client.delete_flow_run(run)
    last = max((moment for moment in begun if moment), default=min(late)[0] - LATE if late else None)
    if last is None:
        return None  # it is new: nothing was missed
    due = asyncio.run(CronSchedule(cron=each.cron or "", timezone=each.zone).get_dates(1, start=last + timedelta(seconds=1)))
    return due[0] if due and due[0] < now - LATE else None


# Work


def work(layout: Layout, params: Params, pool: str | None) -> None:
    """Run what is due until SIGINT or SIGTERM. `pool`: as its worker; None: as the process that serves the deployments."""
    os.environ["PYTHONSAFEPATH"] = "1"
    if pool:
        from prefect.workers.process import ProcessWorker

        asyncio.run(ProcessWorker(work_pool_name=pool, limit=AT_ONCE).start())
        return
    from prefect import serve

    layout.var.mkdir(exist_ok=True)
    os.environ[VARIABLE] = str(layout.root)
    os.chdir(layout.var)  # Prefect puts it first on sys.path: modules beside params.yaml must not be importable
    deployments = [deployment(each, params) for each in plan(params, HERE)]
    serve(*deployments, limit=AT_ONCE, pause_on_shutdown=False, print_starting_message=False)


# prefect.yaml


def as_yaml(params: Params) -> str:
    """The same deployments as a file for `prefect deploy --all`, for deployments under git."""
    from io import StringIO

    from ruamel.yaml import YAML

    deployments = []
    for each in plan(params, "."):
        schedules = [{"cron": each.cron, "timezone": each.zone, "active": True}] if each.cron else []
        limit = {"limit": 1, "collision_strategy": "ENQUEUE" if each.waits else "CANCEL_NEW"}
        deployments.append(
            {
                "name": each.name,
                "entrypoint": each.entrypoint,
                "tags": [tag(params)],
                "parameters": dict(each.parameters),
                "schedules": schedules,
                "concurrency_limit": limit,
                "work_pool": {"name": POOL, "job_variables": {"env": environment()}},
            }
        )
    whole = {
        "name": params.project.name,
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $EVERGREEN_ROOT }}"}}],
        "deployments": deployments,
    }
    text, yaml = StringIO(), YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 127
    yaml.dump(json.loads(json.dumps(whole)), text)
    return HEAD + text.getvalue()


HEAD = """\
# Written by `evergreen schedule --write` from params.yaml, which says when. For `prefect --no-prompt deploy --all`, with the
# folder of this file in EVERGREEN_ROOT and a work pool of the type process: prefect work-pool create evergreen --type process
"""


def write(layout: Layout) -> Path:
    """Write prefect.yaml beside params.yaml."""
    from evergreen.tasks.core.paths import writing

    path = layout.root / "prefect.yaml"
    with writing(path) as scratch:
        scratch.write_text(as_yaml(load(layout.params)), encoding="utf8")
    return path
