"""The pipeline as the flow drives it: killed in the middle, continued, and run again."""

import json
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.shop import BIN, PROBLEMS, Shop

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("training")]
EVERGREEN = str(BIN / "evergreen")


def recorded(shop: Shop) -> set[str]:
    """The stages that dvc.lock knows."""
    path = shop.root / "dvc.lock"
    return (
        {line.strip().rstrip(":") for line in path.read_text().splitlines() if line.startswith("  ") and line[2] != " "}
        if path.exists()
        else set()
    )


def began(shop: Shop) -> dict[str, str]:
    """Step -> when its last finished run began."""
    return {path.stem: json.loads(path.read_text())["started"] for path in (shop.root / "var" / "costs").glob("*.json")}


def steps_alive(root: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "evergreen.flows.child_process tasks" in line and str(root) in line]


def prefect_states(shop: Shop) -> list[str]:
    with sqlite3.connect(shop.root / "var" / "prefect" / "prefect.db") as link:
        return [state for (state,) in link.execute("select state_type from flow_run order by start_time")]


def test_a_killed_training_goes_on_where_it_was_and_leaves_nothing_half_done(tmp_path: Path):
    shop = Shop(tmp_path / "my shop")
    flow = shop.start(EVERGREEN, "train")
    end = time.monotonic() + 300
    while not any(name.startswith("features@") for name in recorded(shop)):
        assert flow.poll() is None, "the flow ended by itself"
        assert time.monotonic() < end
        time.sleep(0.1)

    second = shop.run(EVERGREEN, "train", code=1)
    assert f"process {flow.pid} is at" in second.stderr
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
        assert (one["version"], one["done"][-3:]) == (1, ["gate", "register", "deploy"])
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

    history = json.loads(shop.run(EVERGREEN, "history", "spend", "--json").stdout)
    assert (history["champion"], [each["action"] for each in history["decisions"]]) == (1, ["deploy"])
