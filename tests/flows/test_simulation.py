"""The simulation: each week has the features of its day, and params.yaml is restored."""

import json
import shutil
from datetime import date, timedelta

import polars as pl
import pytest

from evergreen.flows import simulation
from evergreen.flows.operations import backtest_data, simulation_state
from evergreen.tasks import ingest, problems
from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from tests import store

PROBLEM = "redeem"
AUTOMATIC = "  retrain: {mode: automatic, on_drift: true}\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A project whose tables are read; redeem retrains automatically."""
    root = store.project(tmp_path_factory.mktemp("shop"), households=80, weeks=26)
    layout = Layout(root)
    text = layout.params.read_text()
    layout.params.write_text(text.replace("\nredeem:\n", f"\nredeem:\n{AUTOMATIC}"))
    ingest.run(loading.load(layout.params), None, layout)
    shutil.copytree(root / "data" / "raw", root / "data" / "tables")
    return layout


def test_the_features_of_a_week_equal_those_of_the_step_on_its_day(shop):
    known = loading.load(shop.params)
    section, kind = known.section(PROBLEM), problems.kind(known.kind(PROBLEM))
    _, folder = backtest_data.build_window_rows(shop, known, PROBLEM, known.project.as_of)
    day = known.project.as_of - timedelta(days=35)
    simulation.cut_features(shop, known, PROBLEM, folder, day)
    ours = pl.concat([pl.read_parquet(each(PROBLEM) / "rows.parquet") for each in (shop.features, shop.newest)])
    tables = {name: pl.scan_parquet(shop.table(name)) for name in section.features.tables}
    step = pl.concat(kind.build(tables, {name: known.ingest[name].time for name in tables}, section, day).values())
    assert ours["cutoff"].max() == step["cutoff"].max() == day
    assert ours.sort("cutoff", "household_id").equals(step.sort("cutoff", "household_id"))


def test_automatic_problems_are_simulated_once_and_before_their_first_training(shop, tmp_path):
    fresh = Layout(tmp_path / "fresh")
    fresh.root.mkdir()
    shutil.copy(shop.params, fresh.params)
    assert simulation_state.due(fresh) == [PROBLEM]
    simulation_state.params_backup(fresh).parent.mkdir(parents=True)
    shutil.copy(fresh.params, simulation_state.params_backup(fresh))
    assert simulation_state.due(fresh) == [PROBLEM]  # unfinished
    simulation_state.result_file(fresh).write_text(json.dumps({}))
    assert simulation_state.due(fresh) == []
    others = Layout(tmp_path / "others")
    others.root.mkdir()
    others.params.write_text(shop.params.read_text().replace(AUTOMATIC, ""))
    assert simulation_state.due(others) == []
    assert simulation_state.summary_lines(others) == []


def test_an_interrupted_simulation_keeps_the_original_params(tmp_path, shop):
    layout = Layout(tmp_path)
    shutil.copy(shop.params, layout.params)
    first = layout.params.read_bytes()
    kept = simulation.back_up_params(layout)
    layout.params.write_text(layout.params.read_text().replace(f'"{loading.load(kept).project.as_of}"', '"2017-05-07"'))
    assert loading.load(layout.params).project.as_of == date(2017, 5, 7)
    assert simulation.back_up_params(layout).read_bytes() == first
    simulation.restore_params(layout, kept, [PROBLEM])
    assert layout.params.read_bytes() == first
    assert not kept.exists()
    assert json.loads(simulation_state.result_file(layout).read_text())["problems"] == [PROBLEM]
