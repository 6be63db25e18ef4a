"""The last weeks of a project, lived through one after the other: a champion of before them, and then each week its scores, its
look, its decision, and the retraining where the policy asks for one.

For problems that retrain by themselves (retrain.mode automatic) and are made from events. The data are read and validated
once; what a week may know is cut in its features, and project.as_of says so: params.yaml lives on the day of each week for the
time, and is then as it was. A life that was killed goes on where it was; each project has one.
"""

import logging
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow

from evergreen.flows import monitoring as watching
from evergreen.flows import retraining, settings, training
from evergreen.flows.operations import backtest, params_edit, simulation_state
from evergreen.flows.operations.status import Outcome
from evergreen.flows.prefect_runtime import stale_runs
from evergreen.flows.prefect_runtime.server import Server
from evergreen.monitoring.ledger.decisions import DecisionLog, end_of_day
from evergreen.monitoring.retraining.backtest_windows import windows
from evergreen.tasks.config.loading import load
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import StepError
from evergreen.tasks.core.paths import Layout, locking, write_json, writing

log = logging.getLogger(__name__)

WEEKS = 12


def run(layout: Layout, problems: Sequence[str], server: Server, by: str) -> None:
    """Live through the last weeks of `problems`. Raises the error of a step; what was done stays."""
    server.wait()
    stale_runs.mark_crashed(layout)
    try:
        living(str(layout.root), list(problems), by)
    finally:
        stale_runs.deliver()


@flow(name="living")
def living(root: str, problems: list[str], by: str) -> None:
    layout = Layout(Path(root))
    original = begin(layout)
    end = load(original).project.as_of
    assert end is not None
    params_edit.set_as_of(layout.params, end)
    branches = training.Branches(layout, refresh=False, deploy=True, by=by, advise=False)
    with locking(layout.var / "train.lock", "living"):
        branches.run_shared_steps()
    dense = {problem: backtest.dense(layout, load(original), problem, end)[1] for problem in problems}
    for problem in problems:
        days = windows(end - timedelta(days=_step(original, problem) * (WEEKS - 1)), end, _step(original, problem))
        _champion(layout, problem, days[0] - timedelta(days=_step(original, problem)), branches)
        for day in days:
            _week(layout, problem, day, dense[problem], day == end, branches)
    restore(layout, original, problems)


def _step(original: Path, problem: str) -> int:
    return load(original).section(problem).monitor.window_days


def begin(layout: Layout) -> Path:
    """Keep params.yaml as it is, unless an earlier life did."""
    kept = simulation_state.kept(layout)
    if not kept.exists():
        with writing(kept) as scratch:
            scratch.write_bytes(layout.params.read_bytes())
    return kept


def restore(layout: Layout, original: Path, problems: list[str]) -> None:
    """Let params.yaml be as it was, and write down that this life is over."""
    with writing(layout.params) as scratch:
        scratch.write_bytes(original.read_bytes())
    write_json(simulation_state.told(layout), {"problems": problems, "weeks": WEEKS, "until": load(original).project.as_of})
    original.unlink()


def _champion(layout: Layout, problem: str, day: date, branches: training.Branches) -> None:
    """The one that answers in the first week, trained on the day before it."""
    if settings.deployments(layout).champion(problem):
        return
    log.info("%s: lives on %s", problem, day)
    with locking(layout.var / "train.lock", "living"):
        params_edit.set_as_of(layout.params, day)
        outcome = branches.train(problem)
    if outcome.error:
        raise StepError(outcome.error)


def _week(layout: Layout, problem: str, day: date, dense: Path, last: bool, branches: training.Branches) -> None:
    """One week: its features, the champion's answers, the truths that came, the look, and what is decided on it."""
    looks = settings.decision_log(layout)
    if _over(looks, problem, day):
        return
    params_edit.set_as_of(layout.params, day)
    params_edit.set_value(layout.params, (problem, "monitor", "evidently_report"), last)  # 4 MB and some seconds each
    params = load(layout.params)
    seen = watching.Seen(problem)
    if not looks.unfinished([problem]):
        cut(layout, params, problem, dense, day)
        watching.look(layout, looks, day, seen)
        for note in seen.notes:
            log.warning("%s: %s", problem, note)
    found = seen.decision or looks.runs(problem, last=1)[-1].decision
    log.info("%s: %s: %s", problem, day, found.reason)
    if found.retrain:
        retraining.run(layout, watching.asked_for(params, found), lambda *asked: _trained(branches, asked[1]))


def _trained(branches: training.Branches, problem: str) -> Outcome:
    """The steps of a training, on the tables that are there."""
    return branches.train(problem)


def _over(looks: DecisionLog, problem: str, day: date) -> bool:
    """Whether the look of that day was made, and the retraining that it asked for was finished."""
    made = [each.decision for each in looks.runs(problem) if each.decision.at == end_of_day(day)]
    return bool(made) and not looks.unfinished([problem]) and _answered(looks, made[0])


def _answered(looks: DecisionLog, decision: Any) -> bool:
    return not decision.retrain or any(each.at == decision.at and each.ended for each in looks.retrainings(decision.problem))


def cut(layout: Layout, params: Params, problem: str, dense: Path, day: date) -> None:
    """The features as they were at the end of `day`: no later cutoff, no label that was not complete."""
    features = params.section(problem).features
    assert features.by_cutoff is True
    complete = pl.col("cutoff") <= day - timedelta(days=features.horizon_days)
    rows = pl.read_parquet(dense / "rows.parquet").filter(pl.col("cutoff") <= day)
    with writing(layout.features(problem)) as scratch:
        scratch.mkdir()
        rows.with_columns(target=pl.when(complete).then(pl.col("target"))).write_parquet(scratch / "rows.parquet")
