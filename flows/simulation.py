"""The simulation flow: the last weeks of a project, from a champion trained before them; each week is scored and monitored, and
a retraining runs where the policy decides so.

For problems with retrain.mode automatic and features built from events. The data are ingested and validated once. Each week
sets project.as_of in params.yaml and cuts the features to that day; params.yaml is restored at the end. An interrupted
simulation resumes; each project has one.
"""

import logging
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import polars as pl
from prefect import flow

from evergreen.flows import current_project, monitoring, retraining, settings, training
from evergreen.flows.operations import backtest_data, params_edit, simulation_state
from evergreen.flows.prefect_runtime import runs, stale_runs
from evergreen.flows.prefect_runtime.server import Server
from evergreen.monitoring.ledger.decisions import DecisionLog, end_of_day
from evergreen.monitoring.ledger.records import Decision
from evergreen.monitoring.retraining.backtest_windows import windows
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import Layout, locking, write_json, writing

log = logging.getLogger(__name__)

WEEKS = 12


def run(layout: Layout, problems: Sequence[str], server: Server, by: str) -> None:
    """Simulate the last weeks of `problems`. Raises the error of a step; finished weeks stay."""
    server.wait()
    stale_runs.mark_crashed(layout)
    try:
        with current_project.calling(layout) as root:
            simulation(root, list(problems), by)
    finally:
        stale_runs.deliver()


@flow(name="simulation", flow_run_name=runs.name)
def simulation(root: str, problems: list[str], by: str) -> None:
    layout = current_project.of(root)
    runs.begin(load(layout.params), problems)
    original = back_up_params(layout)
    end = load(original).project.as_of
    assert end is not None
    params_edit.set_as_of(layout.params, end)
    branches = training.Branches(layout, refresh=False, deploy=True, by=by, advise=False)
    with locking(layout.var / "train.lock", "simulation"):
        branches.run_shared_steps()
    rows = {problem: backtest_data.build_window_rows(layout, load(original), problem, end)[1] for problem in problems}
    for problem in problems:
        step = load(original).section(problem).monitor.window_days
        days = windows(end - timedelta(days=step * (WEEKS - 1)), end, step)
        _allow_report(layout, problem, False)  # 4 MB and some seconds each: at most one, in the last week
        _train_first_champion(layout, problem, days[0] - timedelta(days=step), branches)
        for day in days:
            if day == end:
                _allow_report(layout, problem, load(original).section(problem).monitor.evidently_report)
            _simulate_week(layout, problem, day, rows[problem], branches)
    restore_params(layout, original, problems)


def back_up_params(layout: Layout) -> Path:
    """Copy params.yaml, unless an interrupted simulation did; returns the copy."""
    backup = simulation_state.params_backup(layout)
    if not backup.exists():
        with writing(backup) as scratch:
            scratch.write_bytes(layout.params.read_bytes())
    return backup


def restore_params(layout: Layout, original: Path, problems: list[str]) -> None:
    """Restore params.yaml, and record that the simulation is finished."""
    with writing(layout.params) as scratch:
        scratch.write_bytes(original.read_bytes())
    as_of = load(original).project.as_of
    write_json(simulation_state.result_file(layout), {"problems": problems, "weeks": WEEKS, "until": as_of})
    original.unlink()


def _allow_report(layout: Layout, problem: str, allowed: bool) -> None:
    """Let the monitoring runs from now on write an Evidently report, or not."""
    params_edit.set_value(layout.params, (problem, "monitor", "evidently_report"), allowed)


def _train_first_champion(layout: Layout, problem: str, day: date, branches: training.Branches) -> None:
    """The champion of the first week, trained as of `day`."""
    if settings.deployments(layout).champion(problem):
        return
    log.info("%s: training as of %s", problem, day)
    with locking(layout.var / "train.lock", "simulation"):
        params_edit.set_as_of(layout.params, day)
        outcome = branches.train(problem)
    if outcome.error:
        raise StepError(outcome.error)


def _simulate_week(layout: Layout, problem: str, day: date, rows: Path, branches: training.Branches) -> None:
    """One week: features, batch scores, labels, the monitoring run, and a retraining if it decides so."""
    decisions = settings.decision_log(layout)
    if _is_finished(decisions, problem, day):
        return
    params_edit.set_as_of(layout.params, day)
    params = load(layout.params)
    result = monitoring.MonitoringResult(problem)
    if not decisions.unfinished([problem]):
        cut_features(layout, params, problem, rows, day)
        monitoring.monitor_problem(layout, decisions, day, result)
        for note in result.notes:
            log.warning("%s: %s", problem, note)
    decision = result.decision or decisions.runs(problem, last=1)[-1].decision
    log.info("%s: %s: %s", problem, day, decision.reason)
    if decision.retrain:
        request = retraining.request_for(params, decision)
        retraining.run(layout, request, lambda _layout, name, *_: branches.train(name))


def _is_finished(decisions: DecisionLog, problem: str, day: date) -> bool:
    """Whether the run of that day was made, and the retraining it decided on is finished."""
    made = [each.decision for each in decisions.runs(problem) if each.decision.at == end_of_day(day)]
    return bool(made) and not decisions.unfinished([problem]) and _is_acted_on(decisions, made[0])


def _is_acted_on(decisions: DecisionLog, decision: Decision) -> bool:
    retrainings = decisions.retrainings(decision.problem)
    return not decision.retrain or any(each.at == decision.at and each.ended for each in retrainings)


def cut_features(layout: Layout, params: Params, problem: str, folder: Path, day: date) -> None:
    """Write the features as the step would have at the end of `day`. `folder`: holds the rows of all cutoffs."""
    learned = pl.col("cutoff").is_in(backtest_data.training_cutoffs(params, problem, day))
    rows = pl.read_parquet(folder / "rows.parquet").filter(pl.col("cutoff") <= day)
    newest = rows.filter(pl.col("cutoff") == pl.col("cutoff").max())
    parts = {layout.features(problem): rows.filter(learned), layout.newest(problem): newest.with_columns(target=pl.lit(None))}
    for place, frame in parts.items():
        with writing(place) as scratch:
            scratch.mkdir()
            frame.cast({"target": pl.Float64}).write_parquet(scratch / "rows.parquet")
