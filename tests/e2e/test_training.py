"""One project under both drivers: DVC makes two problems; the flow takes them over, is killed, continues, and runs again."""

import contextlib
import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests import ROOT, hostile_modules
from tests.docs.pages import DOCS, blocks
from tests.e2e.shop import BIN, Shop

pytestmark = pytest.mark.slow
EVERGREEN = str(BIN / "evergreen")
BY_DVC = ("recommend", "redeem")
"""A list per user and a table: the two ways through the steps."""
BY_FLOW = ("segments",)
PROBLEMS = (*BY_DVC, *BY_FLOW)
"""With the regression of test_loop: every kind."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A project of which `dvc repro` made two problems."""
    made = Shop.lay(tmp_path_factory.mktemp("e2e") / "my shop", BY_DVC)
    made.run("dvc", "repro")
    return made


def recorded(shop: Shop) -> set[str]:
    """The stages that dvc.lock knows; while DVC writes it, those that it knew before."""
    for path in (shop.root / "var" / "dvc.lock.before", shop.root / "dvc.lock"):
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            return {line.strip().rstrip(":") for line in lines if line.startswith("  ") and line[2] != " "}
    return set()


def began(shop: Shop) -> dict[str, str]:
    """Step -> when its last finished run began."""
    return {path.stem: json.loads(path.read_text())["started"] for path in (shop.root / "var" / "costs").glob("*.json")}


def steps_alive(root: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "evergreen.flows.child_process tasks" in line and str(root) in line]


def prefect_states(shop: Shop) -> list[str]:
    with sqlite3.connect(shop.root / "var" / "prefect" / "prefect.db") as link:
        return [state for (state,) in link.execute("select state_type from flow_run order by start_time")]


def test_dvc_makes_every_model_and_report_and_repeats_only_the_branch_whose_number_changed(shop: Shop):
    for problem in BY_DVC:
        metrics = json.loads((shop.root / "reports" / problem / "metrics.json").read_text())
        assert metrics
        assert all({"score", "low", "high", "baseline"} <= set(each) for each in metrics.values())
        assert (shop.root / "models" / problem / "model" / "model.skops").exists()
    assert json.loads(shop.run("dvc", "status", "--json").stdout) == {}

    params = shop.root / "params.yaml"
    whole = params.read_text()
    head, redeem, tail = whole.partition("\nredeem:")
    assert "n_trials: 3" in tail
    params.write_text(head + redeem + tail.replace("n_trials: 3", "n_trials: 2", 1))
    assert set(json.loads(shop.run("dvc", "status", "--json").stdout)) == {"tune@redeem"}

    shutil.copytree(ROOT / ".dvc" / "plots", shop.root / ".dvc" / "plots")
    for block in blocks(DOCS / "how-to" / "dvc.md"):
        for line in block.commands() if block.mark == "run by tests/e2e/test_training.py" else ():
            if not line.startswith("dvc repro"):
                shop.run(*shlex.split(line))
    params.write_text(whole)


def test_a_killed_training_goes_on_where_it_was_and_leaves_nothing_half_done(shop: Shop):
    by_dvc = recorded(shop)
    assert {f"explain@{problem}" for problem in BY_DVC} < by_dvc
    shop.keep(PROBLEMS)
    marker = hostile_modules.plant(shop.root)
    flow = shop.start(EVERGREEN, "train")
    end = time.monotonic() + 300
    while not any(name.startswith("features@") for name in recorded(shop) - by_dvc):
        assert flow.poll() is None, "the flow ended by itself"
        assert time.monotonic() < end
        time.sleep(0.1)

    second = shop.run(EVERGREEN, "train", code=1)
    assert f"process {flow.pid} holds the lock" in second.stderr
    assert second.stderr.count("\n") == 1

    flow.send_signal(signal.SIGKILL)
    flow.wait()
    time.sleep(1)
    assert steps_alive(shop.root) == []
    finished, times = recorded(shop), began(shop)
    assert prefect_states(shop) == ["RUNNING"]

    told = json.loads(shop.run(EVERGREEN, "train", "--json").stdout)
    assert told["ok"]
    for problem in PROBLEMS:
        one = told["problems"][problem]
        assert one["version"] == 1
        assert problem in BY_DVC or one["done"][-3:] == ["gate", "register", "deploy"]
        assert one["low"] <= one["score"] <= one["high"]
    for stage in finished:
        assert began(shop)[stage] == times[stage], f"{stage} was done again"
    told = json.loads(shop.run(EVERGREEN, "status", "--json").stdout)
    assert {problem: (told[problem]["compiled"] or "").partition(":")[0] for problem in PROBLEMS} == {
        problem: "no" if problem == "recommend" else "yes" for problem in PROBLEMS
    }
    assert sorted(prefect_states(shop)) == ["COMPLETED", "CRASHED"]
    assert json.loads(shop.run("dvc", "status", "--json").stdout) == {}
    assert "Running stage" not in shop.run("dvc", "repro").stdout
    assert "<html" in (shop.root / "reports" / "index.html").read_text()

    times = began(shop)
    again = shop.run(EVERGREEN, "train")
    assert "Nothing to do" in again.stderr
    assert began(shop) == times
    assert len(prefect_states(shop)) == 2

    for problem in (BY_DVC[0], BY_FLOW[0]):
        history = json.loads(shop.run(EVERGREEN, "history", problem, "--json").stdout)
        assert (history["champion"], [each["action"] for each in history["decisions"]]) == (1, ["deploy"])
    assert hostile_modules.imported(marker) == []
