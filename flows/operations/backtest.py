"""Backtest: past windows of a problem under several retraining policies, before one of them is chosen.

Features of every window are built once, in a folder of their own. Models are trained as retrainings would have trained them,
with the configuration of the current tuning (the one thing that is not of the time). Only the report of the project changes.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from evergreen.flows.operations import backtest_data
from evergreen.monitoring.report import time_series
from evergreen.monitoring.retraining import backtest, policy
from evergreen.monitoring.retraining.backtest import REFERENCE, Outcome, Recommendation
from evergreen.monitoring.retraining.backtest_lists import CounterfactualShop
from evergreen.monitoring.retraining.backtest_models import GROUPS, DiskCache
from evergreen.monitoring.retraining.backtest_monitoring import CounterfactualWorld
from evergreen.tasks import problems
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Params
from evergreen.tasks.core.errors import ParamsError
from evergreen.tasks.core.paths import Layout, locking, read_json, write_json, writing
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.search.best_config import load_best_config

log = logging.getLogger(__name__)

OWN = "params"
"""The policy of the problem's own section."""
STEPS = ("features", "tune", "train", "evaluate", "diagnose", "explain")
"""The steps of a retraining."""
CURVES = "quality.svg"
SHAPING = {"features", "pipeline", "train", "evaluate", "gate"}
"""Parts of a section that models and scores depend on; monitoring results depend on its part monitor too."""


class BacktestReport(Section):
    """The content of reports/NAME/backtest/backtest.json."""

    problem: str
    metric: str
    greater_is_better: bool
    first: date
    """Last day of the first window."""
    last: date
    step_days: int
    groups: int
    outcomes: tuple[Outcome, ...]
    recommendation: Recommendation | None
    cost: str
    """Source of the CPU minutes of a retraining."""


def run(
    layout: Layout,
    params: Params,
    problem: str,
    names: Sequence[str],
    first: date | None = None,
    last: date | None = None,
    metric: str | None = None,
    say: Callable[[str], None] = log.info,
) -> BacktestReport:
    """Backtest the policies `names` on the windows that end from `first` to `last` (None: all that the data allow).

    `never` is always included. Raises ParamsError for a policy, metric, kind or day that does not fit, StepError where nothing
    was tuned yet, DataError for too little data.
    """
    policies = select_policies(params, problem, names)
    with locking(layout.var / "backtest" / f"{problem}.lock", f"{problem}: backtest"), problems.naming(problem):
        world, cost = build_world(layout, params, problem, first, last, metric, say)
        ahead = _count_label_windows(world)
        runs = {}
        for name, each in policies.items():
            say(f"{name}: {world.days[0]} to {world.days[-1]}, {len(world.days)} windows")
            runs[name] = backtest.run_policy(world, each, ahead)
        outcomes = backtest.compare_policies(world, runs)
        report = BacktestReport(
            problem=problem,
            metric=world.metric.name,
            greater_is_better=world.metric.greater_is_better,
            first=world.days[0],
            last=world.days[-1],
            step_days=params.section(problem).monitor.window_days,
            groups=GROUPS,
            outcomes=tuple(outcomes),
            recommendation=backtest.recommend(outcomes),
            cost=cost,
        )
        write(layout, report)
    return report


def select_policies(params: Params, problem: str, names: Sequence[str]) -> dict[str, Retrain]:
    """Name -> policy, REFERENCE first. Raises ParamsError for an unknown one."""
    own = params.section(problem).retrain
    wanted = dict.fromkeys([REFERENCE, *names])
    for name in wanted:
        if name != OWN and name not in policy.POLICIES:
            raise ParamsError(f"--policy {name}: no such policy{nearest(name, [*policy.POLICIES, OWN])}")
    return {name: own if name == OWN else policy.named(name) for name in wanted}


def _count_label_windows(world: CounterfactualWorld) -> int:
    """Windows within the horizon, at least 1: an alarm must prove right in them."""
    span = world.past.labelled_on(world.days[0]) - world.days[0]
    return max(round(span / (world.days[1] - world.days[0])), 1)


def write(layout: Layout, report: BacktestReport) -> None:
    """Write backtest.json and its curves."""
    with writing(folder(layout, report.problem)) as scratch:
        scratch.mkdir()
        write_json(scratch / "backtest.json", report.model_dump(mode="json"))
        time_series.save_backtest(report.model_dump(mode="json"), scratch / CURVES)


def folder(layout: Layout, problem: str) -> Path:
    return layout.report(problem) / "backtest"


def build_world(
    layout: Layout,
    params: Params,
    problem: str,
    first: date | None,
    last: date | None,
    metric: str | None,
    say: Callable[[str], None],
) -> tuple[CounterfactualWorld, str]:
    """The counterfactual world of `problem`, and the source of its costs."""
    section = backtest_data.check_section(params, problem)
    kind: Any = problems.kind(params.kind(problem))
    config = load_best_config(layout.tuning(problem), problem)
    key, past = backtest_data.load_windows(layout, params, problem, first, last, say)
    state = backtest_data.digest(key, config, section.model_dump(mode="json", include=SHAPING))
    folder = layout.var / "backtest" / problem / state
    backtest_data.touch_folder(folder)
    minutes, cost = _training_cost(layout, problem)
    world = (CounterfactualShop if section.predicts == "lists" else CounterfactualWorld)(
        problem=problem,
        kind=kind,
        section=section,
        past=past,
        config=config,
        metric=problems.metric(kind, metric or kind.headline(section).name, "--metric"),
        gate_metric=problems.metric(kind, section.gate.metric, f"{problem}.gate.metric"),
        seed=params.project.seed,
        cache=DiskCache(folder),
        minutes=minutes,
        report=lambda line: say(f"{problem}: {line}"),
    )
    return world, cost


def _training_cost(layout: Layout, problem: str) -> tuple[Callable[[int], float | None], str]:
    """CPU minutes of a training by its rows, from the last training, and the source in words."""
    spent = [read_json(layout.cost(step, problem))["cpu_seconds"] for step in STEPS if layout.cost(step, problem).is_file()]
    card = layout.model(problem) / "model.json"
    rows = read_json(card)["rows"] if card.is_file() else 0
    if not spent or not rows:
        return lambda _: None, "fitting only, as measured here; no training is on record"
    per_row = sum(spent) / 60 / rows
    return (
        lambda trained_on: per_row * trained_on,
        f"all steps of a training, by its rows: the last one took {sum(spent) / 60:.1f} minutes for {rows:,} rows",
    )
