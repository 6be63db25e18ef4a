"""DVC's own command line in a project made by `evergreen init`: each test does what its user does first."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.e2e.shop import BIN, Shop

pytestmark = pytest.mark.slow
EVERGREEN = str(BIN / "evergreen")
SMALL = {
    "tune: {n_trials: 20, folds: 5}": "tune: {n_trials: 2, folds: 2, models: [logistic]}",
    "evaluate: {windows: 3}": "evaluate: {windows: 1, resamples: 50, diagnose_seconds: 0, explain_rows: 50}",
}


def customers(rows: int = 300) -> pl.DataFrame:
    """Whether a customer leaves: mostly by plan, a column of words."""
    draw = np.random.default_rng(3)
    plan = draw.choice(["a", "b", "c"], rows)
    left = draw.random(rows) < np.where(plan == "a", 0.75, 0.2)
    return pl.DataFrame({"age": draw.integers(18, 80, rows), "plan": plan, "churned": left.astype(int)})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A committed project in a folder with a space, of which `dvc repro` made every stage."""
    made = Shop(tmp_path_factory.mktemp("dvc") / "my shop")
    made.root.mkdir()
    customers().write_csv(made.root / "churn.csv")
    made.run(EVERGREEN, "init", "churn", "--data", "churn.csv", "--target", "churned")
    params = made.root / "params.yaml"
    text = params.read_text()
    for before, after in SMALL.items():
        assert before in text
        text = text.replace(before, after)
    params.write_text(text)
    for line in (
        "dvc add churn.csv",
        "git add -A",
        "git commit -qm begin",
        "dvc repro",
        "git add -A",
        "git commit -qm trained",
    ):
        made.run(*line.split())
    return made


def status(shop: Shop) -> dict[str, list[dict[str, dict[str, str]]]]:
    return json.loads(shop.run("dvc", "status", "--json").stdout)


def test_status_is_clean_and_sees_a_changed_source(shop: Shop):
    assert status(shop) == {}
    source = shop.root / "churn.csv"
    before = source.read_bytes()
    with source.open("a") as file:
        file.write("30,a,1\n")
    assert {"changed deps": {"churn.csv": "modified"}} in status(shop)["ingest"]
    source.write_bytes(before)
    assert status(shop) == {}


def test_metrics_are_one_short_row_and_the_rest_is_in_a_file_of_its_own(shop: Shop):
    shown = shop.run("dvc", "metrics", "show").stdout.split()
    assert shown[:6] == ["Path", "baseline", "high", "low", "roc_auc", "reports/churn/headline.json"]
    whole = json.loads((shop.root / "reports" / "churn" / "metrics.json").read_text())
    assert {"roc_auc", "brier"} < set(whole)


def test_plots_are_drawn_with_the_page_s_titles(shop: Shop):
    done = shop.run("dvc", "plots", "show")
    assert "failed" not in done.stderr
    page = (shop.root / "dvc_plots" / "index.html").read_text()
    for title in ("churn: ROC", "churn: Calibration", "churn: Confusion"):
        assert title in page


def test_the_graph_holds_the_source_and_every_stage_once(shop: Shop):
    drawn = shop.run("dvc", "dag", "--dot").stdout
    for node in ("churn.csv.dvc", "ingest", "features@churn", "explain@churn"):
        assert f'"{node}";' in drawn
    assert "templates" not in drawn


def test_an_experiment_changes_a_number_by_its_key(shop: Shop):
    shop.run("dvc", "exp", "run", "--temp", "-n", "fewer", "-S", "churn.tune.n_trials=1")
    shown = shop.run("dvc", "exp", "show", "--json").stdout
    assert '"n_trials": 1' in shown
    assert '"n_trials": 2' in shown


def test_a_clone_pulls_sources_and_outputs_and_makes_the_same_snapshot(shop: Shop, tmp_path: Path):
    shop.run("dvc", "remote", "add", "-d", "-f", "backup", str(tmp_path / "backup"))
    shop.run("git", "commit", "-qam", "remote")
    shop.run("dvc", "push")
    shop.run("git", "clone", "-q", str(shop.root), str(tmp_path / "a clone"))
    clone = Shop(tmp_path / "a clone")
    clone.run("dvc", "pull")
    assert status(clone) == {}
    shutil.rmtree(clone.root / "data" / "raw")
    clone.run("dvc", "repro", "-f", "-s", "ingest")
    assert status(clone) == {}


def test_a_second_problem_adds_its_source_and_plots(shop: Shop, tmp_path: Path):
    copy = Shop(Path(shutil.copytree(shop.root, tmp_path / "copy", symlinks=True)))
    customers().write_csv(copy.root / "other.csv")
    copy.run(EVERGREEN, "init", "other", "--data", "other.csv", "--target", "age")
    assert any("other.csv" in change.get("changed deps", {}) for change in status(copy)["ingest"])
    assert "reports/other/plots/residuals.csv" in (copy.root / "dvc.yaml").read_text()
