"""`evergreen schedule`: run training, scoring and monitoring by the clock."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergreen.flows.cli.common import (
    find,
    one_thread,
    print_json,
    print_table,
    read_params,
    say,
)
from evergreen.tasks.core.errors import ProjectError

if TYPE_CHECKING:
    from evergreen.tasks.config.params import Params


def schedule(
    no_work: Annotated[
        bool, typer.Option("--no-work", help="With a Prefect server: register, and leave the work to other workers.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what is scheduled, and do nothing.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write prefect.yaml, for prefect deploy, and end.")] = False,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="With a Prefect server: GET /health on this port of 127.0.0.1 gives 503 once the worker gets no answer.",
            show_default=False,
        ),
    ] = None,
    *,
    root: Path,
    as_json: bool,
) -> None:
    """Train, score and monitor by NAME.schedule in params.yaml, until Ctrl-C; on a Prefect server if one is set."""
    from evergreen.flows.prefect_runtime import deployments as schedules
    from evergreen.flows.prefect_runtime import server

    place = find(root)
    known = read_params(place)
    one_thread()
    if show or write:
        _planned(known, as_json)
        if write:
            say(f"written: {schedules.write(place)}")
        return
    pool = schedules.POOL if os.environ.get("PREFECT_API_URL") else None
    if health_port is not None:
        if not pool:
            raise ProjectError("schedule: --health-port is for a worker of a Prefect server; set PREFECT_API_URL")
        schedules.set_health_port(health_port)
    with server.running(place, say, scheduling=True) as prefect:
        _planned(known, as_json)
        prefect.wait()
        made = schedules.register(place, known, pool)
        if not pool:
            schedules.mark_stale_runs_crashed(made)
        for each in schedules.catch_up(made):
            say(f"{each.flow} {each.problem}: a run was missed and is started now")
        if no_work:
            return
        say(f"{len(made)} deployments run here. Ctrl-C to stop.")
        schedules.work(place, known, pool, health_port is not None)


def _planned(known: "Params", as_json: bool) -> None:
    """Check and print what is scheduled. Imports prefect, which reads its settings once: a server must be named before."""
    from evergreen.flows.prefect_runtime import deployments as schedules

    schedules.check(known)
    planned = schedules.plan(known)
    if as_json:
        print_json([vars(each) for each in planned])
        return
    cells = [(each.flow, each.problem, each.cron or "on request", each.zone if each.cron else "") for each in planned]
    print_table(("flow", "problem", "when", "time zone"), cells)
