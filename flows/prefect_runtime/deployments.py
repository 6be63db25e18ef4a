"""Deployments, schedules and automations of a project, made from its params; and their work.

    embedded          one process with its own local Prefect server runs what is due (`work` without a pool)
    PREFECT_API_URL   deployments of a work pool on that server, which a worker runs, here or elsewhere; an automation answers
                      the event of a decision by a retraining

`register` and `prefect deploy` with the file of `as_yaml` make the same deployments and automations: names and tags bear the
project's key, no path is stored, and each project has a queue of its own. The same call again changes what differs. Of several
runs that were missed one is caught up.
"""

import asyncio
import json
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.flows.current_project import HERE, KEY, VARIABLE
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.operations import INPUT_NEEDED
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout, make_folder

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
    """PROJECT.PROBLEM or PROJECT-ID.PROBLEM; with the flow's name before it, the deployment."""
    flow: str
    """Its flow: monitoring, retraining, scoring or pruning."""
    entrypoint: str
    """Module path of the flow."""
    problem: str
    """"": the project as a whole."""
    parameters: dict[str, Any] = field(hash=False)
    cron: str | None
    zone: str
    waits: bool
    """A run that comes while another is at work: waits for it (one retraining after the other), or is left out."""


def resource(params: Params, problem: str) -> str:
    """Resource id of the events of a problem."""
    return f"evergreen.problem.{_allowed(params.project.key)}.{problem}"


def queue(params: Params) -> str:
    """The work queue of the project, and its name in those of deployments: PROJECT or PROJECT-ID."""
    return _allowed("-".join(part for part in (params.project.name, params.project.id) if part))


def plan(params: Params) -> list[Planned]:
    """What params schedule. A retraining of each problem is always there: an automation, or a person, may run it."""
    planned = [each for problem in params.problems for each in _planned(params, problem)]
    if params.project.prune:
        name, place = f"{queue(params)}.project", "evergreen.flows.pruning.pruning"
        planned.append(Planned(name, "pruning", place, "", {"root": HERE}, params.project.prune, "UTC", False))
    return planned


def _planned(params: Params, problem: str) -> Iterator[Planned]:
    name, schedule = f"{queue(params)}.{problem}", params.section(problem).schedule
    retrain = {"root": HERE, "problem": problem, "reason": "scheduled"}
    yield Planned(
        name, "retraining", "evergreen.flows.retraining.retraining", problem, retrain, schedule.train, schedule.timezone, True
    )
    if schedule.score:
        score = {"root": HERE, "problem": problem}
        yield Planned(
            name, "scoring", "evergreen.flows.scoring.scoring", problem, score, schedule.score, schedule.timezone, False
        )
    if schedule.monitor:
        watch = {"root": HERE, "problems": [problem]}
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
    for problem in params.problems:
        asked = params.section(problem).schedule
        if asked.score and not asked.input and params.section(problem).features.by_cutoff is False:
            raise ParamsError(f"params.yaml: {problem}.schedule.score: {INPUT_NEEDED}")
        for key in ("train", "score", "monitor"):
            _check_cron(f"{problem}.schedule.{key}", getattr(asked, key), asked.timezone)
    _check_cron("project.prune", params.project.prune, "UTC")
    if not any(each.cron for each in plan(params)):
        raise ParamsError(
            "params.yaml: no problem has a schedule; say when, such as "
            f'{next(iter(params.problems))}.schedule: {{monitor: "0 6 * * *", timezone: Europe/Paris}}'
        )


def _check_cron(key: str, cron: str | None, zone: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    if cron is None:
        return
    try:
        CronSchedule(cron=cron, timezone=zone)
    except ValueError as error:
        raise ParamsError(f"params.yaml: {key} = {cron}: {str(error).splitlines()[-1].strip()}") from None


def register(layout: Layout, params: Params, pool: str | None) -> "dict[Planned, UUID]":
    """Make the deployments on the server that PREFECT_API_URL names, and remove those that params no longer plan.

    `pool`: a work pool, made where it is not there, and automations with it; None: this process runs them itself. Raises
    ParamsError, before anything changes, where another folder's project has the same name and none has an id.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    made = {}
    with get_client(sync_client=True) as client:
        known = _ours(client, params)
        if pool:
            _check_folder(layout, params, known)
            if not any(each.name == pool for each in client.read_work_pools()):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        for each in plan(params):
            paused = _remove_automations(client, params, each.problem) if each.flow == "retraining" else False
            made[each] = deployment(each, params, pool, layout, paused).apply()
        for found in known:
            if found.id not in made.values():
                client.delete_deployment(found.id)
    return made


def folder(layout: Layout) -> str:
    """The folder of a project, as the description of its deployments names it."""
    return f"{socket.gethostname()}:{layout.root}"


def other_folder(layout: Layout, params: Params) -> str | None:
    """The folder that made the deployments of this project's key on the server; None: this one, or none."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return next(_other_folders(layout, _ours(client, params)), None)


def _other_folders(layout: Layout, known: Iterable[Any]) -> Iterator[str]:
    """Those of the machine's and the project's folders in descriptions that are not this one's."""
    for each in known:
        named = (each.description or "").partition(FROM)[2].strip()
        if named and named != folder(layout):
            yield named


def _check_folder(layout: Layout, params: Params, known: Iterable[Any]) -> None:
    if not (other := next(_other_folders(layout, known), None)):
        return
    if not params.project.id:
        raise ParamsError(
            f"params.yaml: project.name = {params.project.name}: the server's deployments of this name are those of {other}. "
            "If this is another project, set project.id, such as id: north. If the folder was moved, delete them in Prefect."
        )
    log.warning("the deployments of this project were those of %s: it was moved, or it is a copy with the same id", other)


def deployment(
    each: Planned, params: Params, pool: str | None = None, layout: Layout | None = None, paused: bool = False
) -> Any:
    """As Prefect takes it. `paused`: its automation does not act."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.events import DeploymentEventTrigger
    from prefect.types.entrypoint import EntrypointType

    module, _, flow = each.entrypoint.rpartition(".")
    found: Any = getattr(import_module(module), flow)  # prefect's own import puts the working directory first on sys.path
    collision = ConcurrencyLimitStrategy.ENQUEUE if each.waits else ConcurrencyLimitStrategy.CANCEL_NEW
    return found.to_deployment(
        each.name,
        schedules=[CronSchedule(cron=each.cron, timezone=each.zone)] if each.cron else [],
        parameters=each.parameters,
        tags=tags(params, each.problem),
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=collision),
        work_pool_name=pool,
        work_queue_name=queue(params) if pool else None,
        description=_describe(each, params) + (f" {FROM} {folder(layout)}" if layout else ""),
        job_variables={"env": environment(params)} if pool else None,  # without working_dir a run gets an empty temporary one
        triggers=[DeploymentEventTrigger(**{**one, "enabled": not paused}) for one in triggers(each, params)] if pool else [],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


FROM = "Registered from"
"""Before the folder in the description of a deployment."""


def _describe(each: Planned, params: Params) -> str:
    of = f" of {each.problem}" if each.problem else ""
    return f"Evergreen: {each.flow}{of}, project {params.project.name}."


def environment(params: Params) -> dict[str, str]:
    """Environment of a run, added to the worker's own. PYTHONSAFEPATH keeps the working directory off sys.path."""
    return {KEY: params.project.key, "PYTHONSAFEPATH": "1", "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore"}


def tag(params: Params) -> str:
    """Tag of all deployments of a project."""
    return f"evergreen:{params.project.key}"


def tags(params: Params, problem: str) -> list[str]:
    """Tags of a deployment and of its runs."""
    return [tag(params), f"project:{params.project.name}", *([f"problem:{problem}"] if problem else [])]


def _ours(client: "SyncPrefectClient", params: Params) -> list[Any]:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    tags = DeploymentFilterTags(all_=[tag(params)])
    return list(client.read_deployments(deployment_filter=DeploymentFilter(tags=tags)))


# Automations


def automation_name(params: Params, problem: str) -> str:
    return f"evergreen: retrain {queue(params)}.{problem}"


def has_automation(params: Params, problem: str) -> bool:
    """Whether an automation of the server answers the event of a decision by retraining."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return any(each.enabled for each in client.read_automations_by_name(automation_name(params, problem)))


def _remove_automations(client: "SyncPrefectClient", params: Params, problem: str) -> bool:
    """Remove the automations of a problem, to be made again. Returns whether somebody had paused them."""
    there = client.read_automations_by_name(automation_name(params, problem))
    for one in there:
        client.delete_automation(one.id)
    return bool(there) and not any(each.enabled for each in there)


def triggers(each: Planned, params: Params) -> list[dict[str, Any]]:
    """As prefect.yaml writes them: one for the retraining of a problem that retrains by itself; none for others."""
    if each.flow != "retraining" or params.section(each.problem).retrain.mode != "automatic":
        return []

    def from_event(text: str, json_: bool = False) -> dict[str, Any]:
        template = {"__prefect_kind": "jinja", "template": f"{{{{ {text} }}}}"}
        return {"__prefect_kind": "json", "value": template} if json_ else template

    parameters = {
        "problem": from_event("event.payload.problem"),
        "reason": from_event("event.payload.reason"),
        "decision": from_event("event.payload.monitoring_run | tojson", True),
    }
    return [
        {
            "type": "event",
            "name": automation_name(params, each.problem),
            "description": "Answers Evergreen's decision to retrain; the same decision twice retrains once.",
            "enabled": True,
            "expect": ["evergreen.decision"],
            "match": {"prefect.resource.id": resource(params, each.problem), "evergreen.retrain": "automatic"},
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
            "parameters": parameters,
        }
    ]


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


def set_health_port(port: int) -> None:
    """Where a worker answers GET /health. Prefect reads its settings once, so call this before its first import."""
    os.environ.update({"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)})


def work(layout: Layout, params: Params, pool: str | None, health: bool = False) -> None:
    """Run what is due until SIGINT or SIGTERM. `pool`: as its worker for the project's queue; None: as the process that serves
    the deployments. `health`: the worker answers GET /health, with 503 once it could not ask for work 30 times in a row."""
    os.environ.update({"PYTHONSAFEPATH": "1", VARIABLE: str(layout.root)})
    if pool:
        from prefect.workers.process import ProcessWorker

        asyncio.run(
            ProcessWorker(work_pool_name=pool, work_queues=[queue(params)], limit=AT_ONCE).start(with_healthcheck=health)
        )
        return
    from prefect import serve

    make_folder(layout.var)
    os.chdir(layout.var)  # Prefect puts it first on sys.path: modules beside params.yaml must not be importable
    deployments = [deployment(each, params) for each in plan(params)]
    serve(*deployments, limit=AT_ONCE, pause_on_shutdown=False, print_starting_message=False)


# prefect.yaml


def as_yaml(params: Params) -> str:
    """The same deployments as a file for `prefect deploy --all`, for deployments under git."""
    from io import StringIO

    from ruamel.yaml import YAML

    deployments = []
    for each in plan(params):
        schedules = [{"cron": each.cron, "timezone": each.zone, "active": True}] if each.cron else []
        limit = {"limit": 1, "collision_strategy": "ENQUEUE" if each.waits else "CANCEL_NEW"}
        deployments.append(
            {
                "name": each.name,
                "description": _describe(each, params),
                "entrypoint": each.entrypoint,
                "tags": tags(params, each.problem),
                "parameters": dict(each.parameters),
                "schedules": schedules,
                "concurrency_limit": limit,
                "work_pool": {
                    "name": POOL,
                    "work_queue_name": queue(params),
                    "job_variables": {"env": environment(params)},
                },
                **({"triggers": found} if (found := triggers(each, params)) else {}),
            }
        )
    whole = {"name": params.project.name, "pull": [], "deployments": deployments}
    text, yaml = StringIO(), YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 127
    yaml.dump(json.loads(json.dumps(whole)), text)
    return HEAD + text.getvalue()


HEAD = """\
# Written by `evergreen schedule --write` from params.yaml, which says when. docs/how-to/prefect-server.md deploys from it.
"""


def write(layout: Layout) -> Path:
    """Write prefect.yaml beside params.yaml."""
    from evergreen.tasks.core.paths import writing

    path = layout.root / "prefect.yaml"
    with writing(path) as scratch:
        scratch.write_text(as_yaml(load(layout.params)), encoding="utf8")
    return path
