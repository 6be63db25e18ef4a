"""The pipeline as DVC drives it."""

import json

import pytest

from tests.e2e.conftest import Shop

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("dvc")]
PROBLEMS = ["recommend", "redeem", "spend", "segments"]


def test_dvc_makes_every_model_and_report_and_repeats_only_the_branch_whose_number_changed(shop: Shop):
    shop.run("dvc", "repro")
    for problem in PROBLEMS:
        metrics = json.loads((shop.root / "reports" / problem / "metrics.json").read_text())
        assert metrics
        assert all({"score", "low", "high", "baseline"} <= set(each) for each in metrics.values())
        assert (shop.root / "models" / problem / "model" / "model.skops").exists()
    assert json.loads(shop.run("dvc", "status", "--json").stdout) == {}

    params = shop.root / "params.yaml"
    before, after = "tune: {method: tpe, n_trials: 3", "tune: {method: tpe, n_trials: 2"
    head, redeem, tail = params.read_text().partition("\nredeem:")
    assert before in tail
    params.write_text(head + redeem + tail.replace(before, after, 1))
    assert set(json.loads(shop.run("dvc", "status", "--json").stdout)) == {"tune@redeem"}
    plan = shop.run("dvc", "repro", "--dry").stdout
    assert [line.split("'")[1] for line in plan.splitlines() if line.startswith("Running stage")] == ["tune@redeem"]
