"""The monitoring flow: predictions and labels -> drift and performance -> a decision, which is recorded, sent and acted on.

A monitoring run covers a day. Made twice, or by two monitors at once, it writes the same rows and starts one retraining.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.states import Completed, Failed

from evergreen.flows import current_project, retraining, settings
from evergreen.flows.operations import (
    monitoring_window,
    notifications,
    params_edit,
    prometheus_textfile,
    retention,
    rollouts,
    status,
)
from evergreen.flows.prefect_runtime import artifacts, cancellation, prefect_events, runs
from evergreen.flows.retraining import Train, request_for
from evergreen.monitoring.ledger.decisions import DecisionLog, RetrainingRecord, end_of_day, is_to_come
from evergreen.monitoring.ledger.records import Decision, Estimate, Performance
from evergreen.monitoring.retraining.policy import decide
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import EvergreenError, LockedError, ParamsError
from evergreen.tasks.core.paths import Layout, locking

if TYPE_CHECKING:
    from evergreen.monitoring.ledger.predictions import Predictions
    from evergreen.tasks.release.mlflow_store import Version

log = logging.getLogger(__name__)

Refresh = Callable[[Layout, Sequence[str], date | None], None]
"""Rebuild the features of some problems as of a day; None: of all data. Hold the project's lock."""
Emit = Callable[[Layout, Params, Decision], bool]
"""Send the events of a decision; returns whether an automation responds to them by retraining."""


@dataclass
class MonitoringResult:
    """One problem in one monitoring run."""

    problem: str
    decision: Decision | None = None
    changed: bool = True
    """Whether the run is the first of its day, or its alarms differ from the run before."""
    retraining: RetrainingRecord | None = None
    """Started here by the decision."""
    delegated: bool = False
    """An automation of a Prefect server starts the retraining."""
    notes: list[str] = field(default_factory=list)
    """What was skipped, and why."""
    error: str | None = None


@dataclass(frozen=True)
class Actions:
    """The side effects of a monitoring run."""

    refresh: Refresh
    emit: Emit
    train: Train


def run(layout: Layout, problems: Sequence[str], as_of: date | None, actions: Actions) -> list[MonitoringResult]:
    """Monitor `problems` at the end of a day, and act on the decisions; one that fails stops no other.

    `as_of`: None: today, or project.as_of of params.yaml unless predictions are newer. Raises ParamsError for a day to come,
    and ProjectError where the database cannot be used.
    """
    if as_of and is_to_come(end_of_day(as_of)):
        raise ParamsError(f"--as-of {as_of}: a day to come; its window has no predictions yet. Correct the day, or this clock")
    decisions = settings.decision_log(layout)
    drain_spool(layout)
    refresh_error = _refresh(layout, problems, as_of, actions)
    results = [_monitor_safely(layout, decisions, problem, as_of) for problem in problems]
    for each in results:
        each.error = each.error or refresh_error
    for each in results:
        if each.decision and each.changed:
            _notify(layout, each, each.decision)
    for each in results:
        if each.decision:
            _act(layout, decisions, each, each.decision, actions)
    _advance_rollouts(layout, problems)
    for completed in retraining.complete(layout, list(problems), actions.train):
        log.info("%s: %s", completed.problem, completed.outcome)
    prometheus_textfile.write(layout, decisions)
    status.page_after(layout, "the monitoring run")
    return results


def drain_spool(layout: Layout) -> int:
    """Move the predictions that servers spooled into the ledger."""
    from evergreen.monitoring.ledger import spool

    return spool.drain(settings.spool_folder(layout), settings.ledger(layout))


def _advance_rollouts(layout: Layout, problems: Sequence[str]) -> None:
    """Advance rollouts that no server manages, with the labels that arrived."""
    try:
        for problem, outcome in rollouts.advance(layout, problems).items():
            log.info("%s: rollout: %s", problem, outcome)
    except EvergreenError as error:
        log.error("rollouts: %s", error)


def _refresh(layout: Layout, problems: Sequence[str], as_of: date | None, actions: Actions) -> str | None:
    """Rebuild the features up to the day, unless project.as_of is later. During a training they stay as they are.

    Returns why they could not be built; the run then uses those that exist.
    """
    fixed = load(layout.params).project.as_of
    if fixed is not None and (as_of is None or as_of <= fixed):
        return None
    try:
        with locking(layout.var / "train.lock", "monitor"):
            actions.refresh(layout, problems, as_of if fixed is not None else None)
    except LockedError as error:
        log.warning("the features are not refreshed: %s", error)
    except EvergreenError as error:
        notifications.send(layout, "monitoring: no new features", str(error))
        return f"no new features: {error}"
    return None


def _monitor_safely(layout: Layout, decisions: DecisionLog, problem: str, as_of: date | None) -> MonitoringResult:
    result = MonitoringResult(problem)
    try:
        monitor_problem(layout, decisions, as_of, result)
    except EvergreenError as error:
        result.error = str(error)
    except Exception as error:  # a bug in one problem must not stop the others
        log.debug("%s", problem, exc_info=error)
        result.error = f"{problem}: {type(error).__name__}: {' '.join(str(error).split())}"
    if result.error:
        log.error("%s", result.error)
        notifications.send(layout, f"{problem}: monitoring failed", result.error, {"problem": problem})
    return result


def monitor_problem(layout: Layout, decisions: DecisionLog, as_of: date | None, result: MonitoringResult) -> None:
    """Monitor one problem; fills `result` and records the decision."""
    problem, params = result.problem, load(layout.params)
    section = params.section(problem)
    number = settings.deployments(layout).champion(problem)
    champion = settings.registry(layout).version(problem, number) if number else None
    if champion is None:
        result.notes.append(f"nothing is deployed; run evergreen train {problem}")
        return
    ledger = settings.ledger(layout)
    day = as_of or monitoring_window.choose_day(params, ledger, problem)
    until = end_of_day(day)
    monitoring_window.score_if_unserved(layout, params, ledger, champion, day)
    _collect_labels(layout, params, problem, day)
    window, predictions = monitoring_window.measure_window(layout, params, champion, ledger, until)
    earlier = next((each for each in decisions.runs(problem) if each.decision.at == until), None)
    past = [each.summary() for each in decisions.retrainings(problem) if not is_to_come(each.at)]
    trained = monitoring_window.trained_until(champion)
    decision = decisions.record(decide(section.retrain, decisions.windows_with(window), past, trained, until))
    result.decision = decision
    result.changed = earlier is None or _alarms(earlier.decision) != _alarms(decision)
    retention.keep_ledger(params, problem, ledger, day)
    if section.monitor.evidently_report and window.rows and not window.drift.skipped:
        _write_report(layout, params, champion, predictions, decision, result)


def _alarms(decision: Decision) -> tuple[bool, bool]:
    return decision.retrain, decision.window.drift.alarm


def _collect_labels(layout: Layout, params: Params, problem: str, day: date) -> None:
    """Write the labels that matured into the ledger."""
    from evergreen.monitoring.ledger import labels

    if labels.collect(params, problem, layout, settings.ledger(layout), day):
        log.info("%s: new labels", problem)


def _write_report(
    layout: Layout,
    params: Params,
    champion: "Version",
    predictions: "Predictions",
    decision: Decision,
    result: MonitoringResult,
) -> None:
    """The Evidently report of a run, for people; the run is valid without it."""
    from evergreen.monitoring.drift import detection

    folder = layout.report(result.problem) / "drift"
    path = folder / f"{decision.at.date()}.html"
    try:
        if result.changed or not path.exists():
            reference = monitoring_window.load_reference(layout, params, champion)
            detection.report(reference, predictions, decision.window.drift, path, params.project.seed)
        retention.remove_old_reports(folder)
    except Exception as error:  # noqa: BLE001  # Evidently may fail in any way on odd columns
        result.notes.append(f"no report: {' '.join(str(error).split())[:200]}")


def _notify(layout: Layout, result: MonitoringResult, decision: Decision) -> None:
    """Send a notification of an alarm and of a decision to retrain."""
    alarms = ", ".join(each.column for each in decision.window.drift.alarms[:3])
    if not decision.retrain and not alarms:
        return
    subject = f"{result.problem}: {'retraining' if decision.retrain else f'drift in {alarms}'}"
    notifications.send(layout, subject, decision.reason, {"problem": result.problem, "at": decision.at, "alarms": alarms})


def _act(layout: Layout, decisions: DecisionLog, result: MonitoringResult, decision: Decision, actions: Actions) -> None:
    """Send the events; retrain in automatic mode, unless an automation does."""
    params = load(layout.params)
    automatic = decision.retrain and params.section(result.problem).retrain.mode == "automatic"
    request = request_for(params, decision)
    record = decisions.retraining(request.id or "")
    if record and record.ended:
        return
    result.delegated = actions.emit(layout, params, decision) and automatic
    if not automatic or result.delegated:
        return
    try:
        result.retraining = retraining.run(layout, request, actions.train)
    except EvergreenError as error:
        result.error = str(error)
        notifications.send(layout, f"{result.problem}: retraining failed", str(error), {"problem": result.problem})


# The table of a run

COLUMNS = ("problem", "version", "window", "predictions", "drift", "score", "expected", "decision")


def to_cells(result: MonitoringResult) -> tuple[str, ...]:
    """One row of the table, as in COLUMNS."""
    if result.decision is None:
        return (result.problem, "", "", "", "", "", "", result.error or "; ".join(result.notes))
    decision, window = result.decision, result.decision.window
    alarms = [each.column for each in window.drift.alarms]
    significant = sum(each.significant for each in window.drift.changes)
    drift = window.drift.skipped or (f"ALARM: {', '.join(alarms[:3])}" if alarms else f"{significant} columns, no alarm")
    span = f"{window.since:%Y-%m-%d} to {window.until:%Y-%m-%d}"
    found = window.performance
    score, expected = (_format_score(found, each) for each in (found.newest, found.expected)) if found else ("", "")
    return (result.problem, f"v{window.version}", span, f"{window.rows:,}", drift, score, expected, decision.reason)


def _format_score(found: Performance, estimate: Estimate) -> str:
    source = "realised " if estimate is found.realised else "" if estimate is found.expected else "estimated "
    return f"{source if estimate.score is not None else ''}{estimate.describe(found.metric)}"


# The flow


def refresh_features(layout: Layout, problems: Sequence[str], as_of: date | None) -> None:
    """Read the sources again and build the features, as steps of the flow, recorded with DVC."""
    from evergreen.flows import training

    if as_of:
        params_edit.set_as_of(layout.params, as_of)
    branches = training.Branches(layout, refresh=True, deploy=False, by="monitoring")
    branches.run_shared_steps()
    for problem in problems:
        branches.build_features(problem)


@flow(name="monitoring", flow_run_name=runs.name, on_failure=[retraining.notify_crash], on_crashed=[retraining.notify_crash])
def monitoring(root: str, problems: list[str] | None = None, as_of: str | None = None) -> Any:
    """The flow. It fails after all problems were monitored, with one line per problem that failed."""
    layout = current_project.of(root)
    params = load(layout.params)
    named = list(problems or params.problems)
    runs.begin(params, named)
    cancellation.record(layout, named)
    day = date.fromisoformat(as_of) if as_of else None
    actions = Actions(refresh_features, prefect_events.emit, retraining.run_training)
    results = run(layout, named, day, actions)
    for each in results:
        if each.decision:
            artifacts.publish_decision(layout, each.decision)
    if failed := [each.error for each in results if each.error]:
        return Failed(message="\n".join(failed), data=results)
    lines = [f"{each.problem}: {each.decision.reason if each.decision else '; '.join(each.notes)}" for each in results]
    return Completed(message="\n".join(lines), data=results)
