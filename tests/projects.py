"""Small projects with deployed versions: made without a search, or trained by every step in this process.

Beside the small store's problems there is `dear`: houses, a plain table with rules in params.yaml. The fixtures `deployed` and
`trained` of tests/conftest.py make each project once for all workers.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.flows.operations import params_edit
from evergreen.tasks import problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout, write_json
from evergreen.tasks.model_files import skops_models
from evergreen.tasks.problems.base import RowKind
from evergreen.tasks.release.promotion_gate import Verdict
from evergreen.tasks.train import background_rows, describe
from tests import store
from tests.contracts import keep, localised
from tests.e2e.shop import WEEKS, Shop
from tests.flows import in_process
from tests.tasks.problems.tabular import test_tabular_kind

DAY = store.last_day(WEEKS)
BEFORE = DAY - timedelta(days=28)
"""The trained project's last day of data, and the day as of which it was trained."""
BEGAN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
MODELS = {"redeem": "logistic", "spend": "ridge", "recommend": "frequency", "dear": "logistic"}
HOUSES = """
dear:
  question: Is this house dear?
  features: {table: houses, target: dear, columns: {size: number, colour: category, built: date}}
  tune: {method: random, n_trials: 2}
"""
Deployed = Callable[..., Layout]
"""(folder, names, serve="") -> a copy, in `folder`, of the project with `names` deployed; `serve`: a section of params.yaml."""
RULES = """  houses:
    expectations:
      - {type: expect_column_values_to_be_between, kwargs: {column: size, min_value: 0, strict_min: true}}
      - {type: expect_column_values_to_be_in_set, kwargs: {column: colour, value_set: [red, green, blue]}}
      - {type: expect_column_values_to_be_between, kwargs: {column: size, max_value: 50}, severity: warning}
"""


def forget_settings() -> None:
    """Remove what the environment says to Evergreen, so that a bench uses its own project."""
    for name in [each for each in os.environ if each.startswith("EVERGREEN_")]:
        del os.environ[name]


def lay_deployed(folder: Path, names: Sequence[str]) -> Layout:
    """A project in `folder` with one deployed version of each of `names`."""
    store.project(folder, households=80, weeks=20)
    text = (folder / "params.yaml").read_text()
    text = text.replace("problems:\n", "problems:\n  dear: classification\n", 1)
    text = text.replace("ingest:\n", "ingest:\n  houses: {parquet: data-in/houses.parquet}\n", 1)
    text = text.replace("validate:\n", f"validate:\n{RULES}", 1)
    (folder / "params.yaml").write_text(f"{text}\n{HOUSES}")
    test_tabular_kind.houses(300).write_parquet(folder / "data-in" / "houses.parquet")
    layout, known = Layout(folder), loading.load(folder / "params.yaml")
    tables = {
        table: localised(pl.scan_parquet(folder / "data-in" / f"{table}.parquet"), known, table) for table in known.ingest
    }
    times = {table: source.time for table, source in known.ingest.items()}
    assert known.project.as_of
    for name in names:
        frames = problems.kind(known.kind(name)).build(tables, times, known.section(name), known.project.as_of)
        keep(frames, layout, name)
        deploy(layout, name, MODELS[name])
    return layout


def lay_trained(folder: Path) -> Layout:
    """A project in `folder` with `spend` alone; every step, the gate and the deployment ran as of BEFORE."""
    shop = Shop.lay(folder, ("spend",))
    layout = Layout(shop.root)
    text = layout.params.read_text()
    layout.params.write_text(text.replace("resamples: 100}", "resamples: 50, diagnose_seconds: 0, explain_rows: 50}", 1))
    params_edit.set_as_of(layout.params, BEFORE)
    with pytest.MonkeyPatch.context() as patch:
        in_process.replace_tasks(patch)
        outcome = in_process.train(layout, "spend", False, "ada")
    assert outcome.error is None
    return layout


def copy(layout: Layout, folder: Path) -> Layout:
    """A copy of a project in `folder`, for a test that writes. Its registered models stay where they are."""
    return Layout(Path(shutil.copytree(layout.root, folder, symlinks=True, dirs_exist_ok=True)))


def deploy(layout: Layout, problem: str, name: str, **changed: Any) -> int:
    """Fit, register and deploy the model `name` with its defaults updated by `changed`. Returns its version."""
    version = register(layout, problem, name, **changed)
    settings.deployments(layout).deploy(settings.registry(layout), problem, version, verdict(), "ann")
    return version


def register(layout: Layout, problem: str, name: str, **changed: Any) -> int:
    known = loading.load(layout.params)
    kind, section = problems.kind(known.kind(problem)), known.section(problem)
    data = kind.load(layout.features(problem), section)
    fold = kind.splits(data, section).tests[-1]
    config = {**kind.defaults(name, section), **changed}
    model = kind.fit(data, fold.train, config, section, 7)
    card = describe(kind, model, data, fold, kind.rows(data, fold.train), config, section)
    skops_models.save(model, layout.model(problem) / "model.skops")
    write_json(layout.model(problem) / "model.json", json.loads(json.dumps({"problem": problem, **card}, default=str)))
    write_json(layout.model(problem) / "levels.json", kind.levels(data) if isinstance(kind, RowKind) else {})
    if isinstance(kind, RowKind):
        (layout.model(problem) / "background.json").write_text(background_rows(data, fold))
    trial = {"number": 0, "state": "complete", "model": name, "config": "{}", "score": 0.8, "std": None, "reason": ""}
    times = {"started": BEGAN, "ended": BEGAN + timedelta(seconds=30), "seconds": 30.0}
    layout.tuning(problem).mkdir(parents=True, exist_ok=True)
    pl.DataFrame([{**trial, **times}], schema_overrides={"std": pl.Float64}).write_parquet(
        layout.tuning(problem) / "trials.parquet"
    )
    write_json(layout.report(problem) / "metrics.json", {kind.metrics[0].name: {"score": 0.9, "low": 0.8, "high": 0.95}})
    write_json(layout.report(problem) / "evaluation" / "evaluation.json", {"primary": kind.metrics[0].name})
    made = settings.registry(layout).register(known, problem, layout, verdict(), {"git.commit": "c0ffee"})
    return made.version


def verdict() -> Verdict:
    numbers = {"candidate": 0.9, "other": 0.7, "gain": 0.2, "low": 0.1, "high": 0.3}
    return Verdict(
        decision="better", promote=True, reason="better by far", metric="m", rows=99, against="baseline prior", **numbers
    )
