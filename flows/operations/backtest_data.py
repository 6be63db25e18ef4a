"""The past windows of a problem for backtest and simulation, and the rows built for them, cached under var/backtest."""

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

from evergreen.monitoring.retraining.backtest_lists import PurchaseWindows
from evergreen.monitoring.retraining.backtest_windows import EventWindows, PastWindows, TableWindows, row_days, windows
from evergreen.tasks import problems
from evergreen.tasks.config.params import Features, Params, Recommend, Table, Tabular
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.errors import ParamsError, StepError
from evergreen.tasks.core.paths import Layout, sha256, writing
from evergreen.tasks.data import snapshot
from evergreen.tasks.problems.tabular import point_in_time

log = logging.getLogger(__name__)

KEPT_FOLDERS = 3
"""States of data and params whose results stay cached."""
MIN_WINDOWS = 2
TRAINING_SHARE = 0.25
"""Smallest share of a plain table's rows in the training data of the first model."""


def check_section(params: Params, problem: str) -> Tabular | Recommend:
    """The section of a problem that can be backtested; raises ParamsError for another."""
    section = params.section(problem)
    if section.predicts == "lists":
        if section.features.order is not None:
            raise ParamsError(
                f"{problem}.features.order = {section.features.order}: orders without dates belong to no window of the "
                f"calendar; give ingest.{section.features.table}.time to backtest"
            )
        if section.features.judge_by != "calendar":
            raise ParamsError(
                f"{problem}.features.judge_by = {section.features.judge_by}: judges users by their own last purchases, which "
                "belong to no window of the calendar; a backtest needs judge_by: calendar"
            )
        return section
    if not section.features.by_cutoff and section.features.time_column is None:
        raise ParamsError(f"{problem}.features.time: is missing, so its rows belong to no window; name the column to backtest")
    return section


def load_windows(
    layout: Layout,
    params: Params,
    problem: str,
    first: date | None,
    last: date | None,
    say: Callable[[str], None],
) -> tuple[str, PastWindows]:
    """A digest of what the rows depend on, and the windows. Raises ParamsError for days that do not fit, StepError where the
    tables are missing."""
    section, kind = check_section(params, problem), problems.kind(params.kind(problem))
    if section.predicts == "lists":
        return _load_purchase_windows(layout, params, problem, section, kind, first, last)
    if section.features.by_cutoff is False:
        return _load_table_windows(layout, problem, section, section.features, kind, first, last)
    return _load_event_windows(layout, params, problem, section, section.features, kind, first, last, say)


def _load_event_windows(
    layout: Layout,
    params: Params,
    problem: str,
    section: Tabular,
    features: Features,
    kind: Any,
    first: date | None,
    last: date | None,
    say: Callable[[str], None],
) -> tuple[str, PastWindows]:
    """Rows are built for the cutoff of every window."""
    step, horizon, end = section.monitor.window_days, features.horizon_days, snapshot.resolve_as_of(params, layout)
    last = min(last or end, end)
    grid = windows(features.cutoffs.first, last, step)
    labelled = -(-horizon // step) + 1  # windows until the first cutoff is labelled, and one more for training
    days = _select_days(grid[labelled:], first, last, f"labels of {problem} are first complete")
    key, folder = build_window_rows(layout, params, problem, last, say)
    return key, EventWindows(
        kind.load(folder, section), section, days, end, step, frozenset(training_cutoffs(params, problem, end))
    )


def build_window_rows(
    layout: Layout, params: Params, problem: str, last: date, say: Callable[[str], None] = log.info
) -> tuple[str, Path]:
    """The rows of an event problem at the cutoffs of windows up to `last` and of trainings: a digest of what they depend on,
    and a folder for the kind's `load`. Incomplete targets are null. Raises StepError without tables."""
    section = check_section(params, problem)
    assert section.predicts != "lists"
    features = section.features
    assert features.by_cutoff is True
    step, end = section.monitor.window_days, snapshot.resolve_as_of(params, layout)
    paths = {name: layout.table(name) for name in section.features.tables}
    for path in paths.values():
        if not table_parts.is_there(path):
            raise StepError(f"{path}: is not there. Train first: evergreen train {problem}")
    contents = [table_parts.digests(path) for path in paths.values()]
    cutoffs = sorted({*windows(features.cutoffs.first, last, step), *training_cutoffs(params, problem, last)})
    key = digest(features.model_dump(mode="json"), str(end), list(map(str, cutoffs)), contents)
    folder = layout.var / "backtest" / problem / f"features-{key}"
    if not (folder / "rows.parquet").exists():
        say(f"{problem}: features of every {step} days up to {last}")
        tables = {name: table_parts.scan(path) for name, path in paths.items()}
        times = {name: params.ingest[name].time for name in tables}
        rows = point_in_time.point_in_time(tables, times, features, end, cutoffs)
        with writing(folder) as scratch:
            scratch.mkdir()
            rows.write_parquet(scratch / "rows.parquet")
    touch_folder(folder)
    return key, folder


def training_cutoffs(params: Params, problem: str, until: date) -> list[date]:
    """The cutoffs that a training of an event problem as of `until` learns from."""
    section = check_section(params, problem)
    assert section.predicts != "lists"
    features = section.features
    assert features.by_cutoff is True
    return point_in_time.list_cutoffs(features, until)[:-1]


def _load_table_windows(
    layout: Layout, problem: str, section: Tabular, features: Table, kind: Any, first: date | None, last: date | None
) -> tuple[str, PastWindows]:
    """The rows of a plain table with a time, from its features."""
    path = layout.features(problem) / "rows.parquet"
    if not path.is_file():
        raise StepError(f"{path}: is not there. Train first: evergreen train {problem}")
    dates, step = row_days(pl.read_parquet(path)), section.monitor.window_days
    delay, end = section.monitor.label_delay_days or 0, _to_date(dates.max())
    last = min(last, end) if last else end
    enough = _to_date(np.sort(dates)[int(len(dates) * TRAINING_SHARE)]) + timedelta(days=delay + step)
    days = _select_days(windows(enough, last, step), first, last, f"a quarter of {problem}'s rows are labelled")
    return digest(sha256(path), step), TableWindows(kind.load(path.parent, section), section, days, step, dates, delay)


def _load_purchase_windows(
    layout: Layout, params: Params, problem: str, section: Recommend, kind: Any, first: date | None, last: date | None
) -> tuple[str, PastWindows]:
    """The purchases of a recommender, from its features; the first model has a cutoff to learn from."""
    folder, step = layout.features(problem), section.monitor.window_days
    path = folder / "lines.parquet"
    if not path.is_file():
        raise StepError(f"{path}: is not there. Train first: evergreen train {problem}")
    data = kind.load(folder, section)
    until: date = min(last or data.as_of, data.as_of)
    enough = data.first + timedelta(days=2 * data.horizon_days - 1 + step)
    days = _select_days(windows(enough, until, step), first, until, f"purchases of {problem} are enough to learn from")
    contents = [sha256(each) for each in sorted(folder.glob("*.parquet"))]
    return digest(contents, step), PurchaseWindows(data, section, days, step)


def _to_date(day: np.datetime64) -> date:
    return date.fromisoformat(str(day))


def _select_days(possible: Sequence[date], first: date | None, last: date, since: str) -> list[date]:
    """The requested ones of the `possible` windows. Raises ParamsError where they are too few."""
    days = [day for day in possible if first is None or day >= first]
    if first and possible and first < possible[0]:
        raise ParamsError(f"--from {first}: {since} one window before {possible[0]}; begin there or later")
    if len(days) < MIN_WINDOWS:
        span = f"from {first or (possible[0] if possible else 'the first label')} to {last}"
        raise ParamsError(f"--from, --to: {len(days)} windows {span}; a backtest needs {MIN_WINDOWS} or more")
    return days


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def touch_folder(folder: Path) -> None:
    """Mark `folder` as used now, and remove the folders of its sort that were not used for longest."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    features = folder.name.startswith("features-")
    siblings = [each for each in folder.parent.iterdir() if each.is_dir() and each.name.startswith("features-") == features]
    for old in sorted(siblings, key=lambda each: -each.stat().st_mtime)[KEPT_FOLDERS:]:
        shutil.rmtree(old, ignore_errors=True)
