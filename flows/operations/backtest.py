"""Replay: the past of a problem lived through again under several policies of retraining, before one of them is trusted.

Features of every window are built once, in a folder of their own; models are what retrainings would have made with the
configuration that tuning chose (the one thing that is not of the time). Nothing of the project changes but the report.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evergreen.monitoring.report import time_series
from evergreen.monitoring.retraining import backtest, policy
from evergreen.monitoring.retraining.backtest import REFERENCE, Outcome, Verdict
from evergreen.monitoring.retraining.backtest_models import RESAMPLES, Kept, Past
from evergreen.monitoring.retraining.backtest_windows import Cutoffs, Lines, Timeline, days_of, windows
from evergreen.tasks import problems
from evergreen.tasks.config.base import Section
from evergreen.tasks.config.operations import Retrain
from evergreen.tasks.config.params import Features, Params, Table, Tabular
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout, locking, read_json, write_json, writing
from evergreen.tasks.core.suggestions import nearest
from evergreen.tasks.data import snapshot
from evergreen.tasks.search.best_config import load_best_config

log = logging.getLogger(__name__)

OWN = "params"
"""The policy that the problem's own section describes."""
STEPS = ("features", "tune", "train", "evaluate", "diagnose", "explain")
"""What a retraining runs."""
CURVES = "quality.svg"
KEPT = 3
"""So many states of data and params keep what was worked out for them."""
LEAST = 2
"""Windows that a replay needs."""
TO_LEARN = 0.25
"""Share of a plain table's rows that the first model learns from, at least."""


class Replayed(Section):
    """What reports/NAME/replay/replay.json says."""

    problem: str
    metric: str
    greater_is_better: bool
    first: date
    """Last day of the first window."""
    last: date
    step_days: int
    resamples: int
    outcomes: tuple[Outcome, ...]
    verdict: Verdict | None
    cost: str
    """Where the CPU minutes of a retraining come from."""


def run(
    layout: Layout,
    params: Params,
    problem: str,
    names: Sequence[str],
    first: date | None = None,
    last: date | None = None,
    metric: str | None = None,
    say: Callable[[str], None] = log.info,
) -> Replayed:
    """Live through the windows that end from `first` to `last` (None: all that the data allow) under the policies `names`.

    `never` is always among them. Raises ParamsError for a policy, metric, kind or day that does not fit, StepError where
    nothing was tuned yet, DataError for too little data.
    """
    policies = chosen(params, problem, names)
    with locking(layout.var / "replay" / f"{problem}.lock", f"{problem}: replay"), problems.naming(problem):
        past, cost = world(layout, params, problem, first, last, metric, say)
        ahead = _ahead(past)
        lives = {}
        for name, each in policies.items():
            say(f"{name}: {past.days[0]} to {past.days[-1]}, {len(past.days)} windows")
            lives[name] = backtest.live(past, each, ahead)
        outcomes = backtest.outcomes(past, lives)
        found = Replayed(
            problem=problem,
            metric=past.metric.name,
            greater_is_better=past.metric.greater_is_better,
            first=past.days[0],
            last=past.days[-1],
            step_days=params.section(problem).monitor.window_days,
            resamples=RESAMPLES,
            outcomes=tuple(outcomes),
            verdict=backtest.recommend(outcomes),
            cost=cost,
        )
        write(layout, found)
    return found


def chosen(params: Params, problem: str, names: Sequence[str]) -> dict[str, Retrain]:
    """Name -> policy, REFERENCE first. Raises ParamsError for one that is not there."""
    own = params.section(problem).retrain
    asked = dict.fromkeys([REFERENCE, *names])
    for name in asked:
        if name != OWN and name not in policy.POLICIES:
            raise ParamsError(f"--policy {name}: no such policy{nearest(name, [*policy.POLICIES, OWN])}")
    return {name: own if name == OWN else policy.named(name) for name in asked}


def _ahead(past: Past) -> int:
    """In so many windows an alarm has to prove right: those of the horizon."""
    span = past.timeline.known(past.days[0]) - past.days[0]
    return max(round(span / (past.days[1] - past.days[0])), 1)


def write(layout: Layout, found: Replayed) -> None:
    """The report: replay.json, and its curves."""
    with writing(folder(layout, found.problem)) as scratch:
        scratch.mkdir()
        write_json(scratch / "replay.json", found.model_dump(mode="json"))
        time_series.save_replay(found.model_dump(mode="json"), scratch / CURVES)


def folder(layout: Layout, problem: str) -> Path:
    return layout.report(problem) / "replay"


def world(
    layout: Layout,
    params: Params,
    problem: str,
    first: date | None,
    last: date | None,
    metric: str | None,
    say: Callable[[str], None],
) -> tuple[Past, str]:
    """The past of `problem`, ready to be lived through, and where its costs come from."""
    section = _fitting(params, problem)
    kind: Any = problems.kind(params.kind(problem))
    config = load_best_config(layout.tuning(problem), problem)
    key, timeline = _timeline(layout, params, problem, section, kind, first, last, say)
    folder = layout.var / "replay" / problem / _digest(key, config, section.model_dump(mode="json", include=SHAPING))
    _forget(folder)
    minutes, cost = _minutes(layout, problem)
    past = Past(
        problem=problem,
        kind=kind,
        section=section,
        timeline=timeline,
        config=config,
        metric=problems.metric(kind, metric, "--metric"),
        judged_by=problems.metric(kind, section.gate.metric, f"{problem}.gate.metric"),
        seed=params.project.seed,
        kept=Kept(folder),
        minutes=minutes,
        said=lambda line: say(f"{problem}: {line}"),
    )
    return past, cost


SHAPING = {"features", "pipeline", "train", "evaluate", "gate"}
"""Parts of a section on which models and scores depend; what looks found is kept by the section monitor too."""


def _fitting(params: Params, problem: str) -> Tabular:
    """The section of a problem that can be lived through; raises ParamsError for another."""
    section = params.section(problem)
    if section.predicts == "lists":
        raise ParamsError(
            f"{problem}: a problem of {params.kind(problem)} cannot be replayed: its lists live on histories that count at "
            "once, and each of its models takes minutes. Replay works for classification, regression and clustering"
        )
    if not section.features.by_cutoff and section.features.time_column is None:
        raise ParamsError(f"{problem}.features.time: is missing, so its rows lie in no window; name the column to replay it")
    return section


def _timeline(
    layout: Layout,
    params: Params,
    problem: str,
    section: Tabular,
    kind: Any,
    first: date | None,
    last: date | None,
    say: Callable[[str], None],
) -> tuple[str, Timeline]:
    """The windows, and what their rows depend on as one text."""
    if section.features.by_cutoff is False:
        return _lines(layout, problem, section, section.features, kind, first, last)
    return _cutoffs(layout, params, problem, section, section.features, kind, first, last, say)


def _cutoffs(
    layout: Layout,
    params: Params,
    problem: str,
    section: Tabular,
    features: Features,
    kind: Any,
    first: date | None,
    last: date | None,
    say: Callable[[str], None],
) -> tuple[str, Timeline]:
    """Of a problem whose rows are made from events: they are made for the cutoff of every window."""
    step, horizon, end = section.monitor.window_days, features.horizon_days, snapshot.resolve_as_of(params, layout)
    last = min(last or end, end)
    grid = windows(features.cutoffs.first, last, step)
    labelled = -(-horizon // step) + 1  # windows until the first cutoff is labelled, and one more to learn from it
    days = _asked(grid[labelled:], first, last, f"labels of {problem} are first complete")
    key, place = build_window_rows(layout, params, problem, last, say)
    return key, Cutoffs(kind.load(place, section), section, days, end, step, features.cutoffs.every_days)


def build_window_rows(
    layout: Layout, params: Params, problem: str, last: date, say: Callable[[str], None] = log.info
) -> tuple[str, Path]:
    """The rows of a problem made from events at the cutoff of every window up to `last`: a folder for the kind's `load`, and
    what it depends on as one text. Targets that the data leave incomplete are null. Raises StepError without tables."""
    section = _fitting(params, problem)
    features, kind = section.features, problems.kind(params.kind(problem))
    assert features.by_cutoff is True
    step, horizon, end = section.monitor.window_days, features.horizon_days, snapshot.resolve_as_of(params, layout)
    paths = {name: layout.table(name) for name in section.features.tables}
    for path in paths.values():
        if not path.is_file():
            raise StepError(f"{path}: is not there. Train first: evergreen train {problem}")
    key = _digest(features.model_dump(mode="json"), str(end), str(last), step, [_content(path) for path in paths.values()])
    place = layout.var / "replay" / problem / f"features-{key}"
    if not (place / "rows.parquet").exists():
        say(f"{problem}: features of every {step} days up to {last}")
        often = features.cutoffs.model_copy(update={"every_days": step})
        shaped = section.model_copy(update={"features": features.model_copy(update={"cutoffs": often})})
        tables = {name: pl.scan_parquet(path) for name, path in paths.items()}
        times = {name: params.ingest[name].time for name in tables}
        # as of a day on which every label of the windows would be complete, so that every window has its cutoff
        rows = kind.build(tables, times, shaped, last + timedelta(days=horizon))["rows"]
        complete = pl.col("cutoff") <= end - timedelta(days=horizon)
        rows = rows.filter(pl.col("cutoff") <= last).with_columns(target=pl.when(complete).then(pl.col("target")))
        with writing(place) as scratch:
            scratch.mkdir()
            rows.write_parquet(scratch / "rows.parquet")
    _forget(place)
    return key, place


def _lines(
    layout: Layout, problem: str, section: Tabular, features: Table, kind: Any, first: date | None, last: date | None
) -> tuple[str, Timeline]:
    """Of a plain table with a time: its rows are there."""
    path = layout.features(problem) / "rows.parquet"
    if not path.is_file():
        raise StepError(f"{path}: is not there. Train first: evergreen train {problem}")
    dates, step = days_of(pl.read_parquet(path)), section.monitor.window_days
    delay, end = section.monitor.label_delay_days or 0, _date(dates.max())
    last = min(last, end) if last else end
    enough = _date(np.sort(dates)[int(len(dates) * TO_LEARN)]) + timedelta(days=delay + step)
    days = _asked(windows(enough, last, step), first, last, f"a quarter of {problem}'s rows are labelled")
    return _digest(_content(path), step), Lines(kind.load(path.parent, section), section, days, step, dates, delay)


def _date(day: np.datetime64) -> date:
    return date.fromisoformat(str(day))


def _asked(possible: Sequence[date], first: date | None, last: date, since: str) -> list[date]:
    """Of the `possible` windows those asked for. Raises ParamsError where they are too few."""
    days = [day for day in possible if first is None or day >= first]
    if first and possible and first < possible[0]:
        raise ParamsError(f"--from {first}: {since} one window before {possible[0]}; begin there or later")
    if len(days) < LEAST:
        span = f"from {first or (possible[0] if possible else 'the first label')} to {last}"
        raise ParamsError(f"--from, --to: {len(days)} windows {span}; a replay needs {LEAST} or more")
    return days


def _minutes(layout: Layout, problem: str) -> tuple[Callable[[int], float | None], str]:
    """What the steps of the last training cost by the row, and that in words."""
    spent = [read_json(layout.cost(step, problem))["cpu_seconds"] for step in STEPS if layout.cost(step, problem).is_file()]
    card = layout.model(problem) / "model.json"
    rows = read_json(card)["rows"] if card.is_file() else 0
    if not spent or not rows:
        return lambda _: None, "learning alone, as measured here; no training is on record"
    each = sum(spent) / 60 / rows
    return (
        lambda learned: each * learned,
        f"all steps of a training, by its rows: the last one took {sum(spent) / 60:.1f} minutes for {rows:,} rows",
    )


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget(folder: Path) -> None:
    """Mark `folder` as used now, and remove those like it that were not used for longest."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    features = folder.name.startswith("features-")
    alike = [each for each in folder.parent.iterdir() if each.is_dir() and each.name.startswith("features-") == features]
    for old in sorted(alike, key=lambda each: -each.stat().st_mtime)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
