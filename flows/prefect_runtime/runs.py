"""What a run of a flow shows on a Prefect server: its name, tags and log."""

import logging
import sys
from datetime import date
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from evergreen.flows import current_project
from evergreen.flows.prefect_runtime import deployments
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError

LOGGER = "evergreen"


def begin(params: Params, problems: list[str]) -> None:
    """Tag the current run with its project, problems and day, and send the log of the work to it from now on."""
    _send_log()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    wanted = {tag for problem in problems for tag in deployments.tags(params, problem)} | {
        f"day:{_day(context.parameters or {})}"
    }
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=sorted(wanted | set(context.flow_run.tags)))


def _send_log() -> None:
    """Send the log of our own packages to the run, at the level INFO unless another is set."""
    logger = logging.getLogger(LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(each, RunLog) for each in logger.handlers):
        logger.addHandler(RunLog())


class RunLog(APILogHandler):
    """Lines that are logged outside a run go nowhere, without a word."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging.Handler
        if not isinstance(sys.exc_info()[1], MissingContextError):
            super().handleError(record)


def current() -> str | None:
    """The id of the current run of a flow; None outside one."""
    return flow_run.id


def first_attempt() -> str | None:
    """The id of the current run, if it is its first attempt: a person who retries a run asks for new work."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return str(run.id) if run and run.run_count <= 1 else None


def name() -> str:
    """Name of the current run: PROJECT PROBLEM, ...: FLOW, and the day it is about."""
    given: dict[str, Any] = flow_run.parameters or {}
    problems = [given["problem"]] if given.get("problem") else list(given.get("problems") or ())
    try:
        params = load(current_project.of(given["root"]).params)
        subject = [params.project.name, ", ".join(problems or params.problems)]
    except EvergreenError:  # the run itself reports it
        subject = [", ".join(problems)]
    return f"{' '.join(filter(None, subject))}: {flow_run.flow_name} {_day(given)}"


def _day(given: dict[str, Any]) -> str:
    decision: dict[str, Any] = given.get("decision") or {}
    return str(given.get("as_of") or decision.get("as_of") or decision.get("at", "")[:10] or date.today())
