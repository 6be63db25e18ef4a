"""Prefect events of a monitoring run: evergreen.decision, and evergreen.drift on an alarm.

Each event has an id that depends only on the run, so the server stores a repeated event once.
"""

from uuid import UUID

from evergreen.flows.prefect_runtime import deployments
from evergreen.flows.retraining import request_for
from evergreen.monitoring.ledger.decisions import run_id, summarize
from evergreen.monitoring.ledger.records import Decision
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.paths import Layout


def emit(layout: Layout, params: Params, decision: Decision) -> bool:
    """Send the events of a decision; returns whether an automation on the server responds to them by retraining."""
    from prefect.events import emit_event

    problem, id = decision.problem, run_id(params.project.key, decision.problem, decision.at)
    resource = {
        "prefect.resource.id": deployments.resource(params, problem),
        "prefect.resource.name": problem,
        "evergreen.retrain": params.section(problem).retrain.mode if decision.retrain else "no",
    }
    request = request_for(params, decision)
    as_of = request.as_of and str(request.as_of)
    run = {"id": id, "at": decision.at.isoformat(), "as_of": as_of, "trigger": request.trigger}
    payload = {**summarize(decision), "reason": request.reason, "monitoring_run": run}
    emit_event("evergreen.decision", resource, payload=payload, id=UUID(id))
    if decision.window.drift.alarm:
        drift_id = run_id(params.project.key, f"{problem}.drift", decision.at)
        emit_event("evergreen.drift", resource, payload=payload, id=UUID(drift_id))
    return deployments.has_automation(params, problem)
