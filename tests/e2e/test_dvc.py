"""The pipeline as DVC drives it."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import DOCS, blocks
from tests.e2e.shop import Shop

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("dvc")]
PROBLEMS = ("recommend", "redeem")
"""A list per user and a table: the two ways through the steps. The flow's test takes all kinds."""


def test_dvc_makes_every_model_and_report_and_repeats_only_the_branch_whose_number_changed(tmp_path: Path):
    shop = Shop(tmp_path / "my shop", PROBLEMS)
    shop.run("dvc", "repro")
    for problem in PROBLEMS:
        metrics = json.loads((shop.root / "reports" / problem / "metrics.json").read_text())
        assert metrics
        assert all({"score", "low", "high", "baseline"} <= set(each) for each in metrics.values())
        assert (shop.root / "models" / problem / "model" / "model.skops").exists()
    assert json.loads(shop.run("dvc", "status", "--json").stdout) == {}

    params = shop.root / "params.yaml"
    head, redeem, tail = params.read_text().partition("\nredeem:")
    assert "n_trials: 3" in tail
    params.write_text(head + redeem + tail.replace("n_trials: 3", "n_trials: 2", 1))
    assert set(json.loads(shop.run("dvc", "status", "--json").stdout)) == {"tune@redeem"}

    shutil.copytree(ROOT / ".dvc" / "plots", shop.root / ".dvc" / "plots")
    for block in blocks(DOCS / "how-to" / "dvc.md"):
        for line in block.commands() if block.mark == "run by tests/e2e/test_dvc.py" else ():
            if not line.startswith("dvc repro"):
                shop.run(*shlex.split(line))
