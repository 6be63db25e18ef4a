"""The loop against a real Prefect server: drift, event, automation, retraining, gate, deployment, and what its UI shows."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout
from tests import hostile_modules, projects
from tests.e2e.shop import BIN, ENVIRONMENT, Shop
from tests.projects import BEFORE, DAY

pytestmark = pytest.mark.slow
EVERGREEN = str(BIN / "evergreen")
POLICY = """
spend:
  retrain: {mode: automatic, on_drift: true, min_labels: 10}
  monitor: {min_importance: 0}
  schedule: {monitor: "0 6 * * *", train: "0 3 * * 1", timezone: America/New_York}
"""
PATIENCE_SECONDS = 900
"""On a busy machine; without others at work it takes a tenth."""


def wait_for(what: Callable[[], Any], say: Callable[[], str]) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := what()):
        assert time.monotonic() < end, say()
        time.sleep(1)
    return found


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=20) as answer:
        return json.loads(answer.read())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Prefect server of this test's own; the environment that names it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **ENVIRONMENT,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"],
            env=environment, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip

        def up() -> bool:
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            try:
                return ask(environment["PREFECT_API_URL"], "/health") is True
            except (URLError, OSError):
                return False

        try:
            wait_for(up, lambda: (tmp_path / "server.log").read_text()[-2000:])
            yield environment
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def inject(shop: Shop) -> None:
    """From BEFORE on, every household spends forty times as much.

    So a column moves as a whole. Eight times is found too, but as other units in some rows: a fault, which asks for no
    retraining.
    """
    path = next((shop.root / "data-in").glob("transactions.*"))
    rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    times = rows["transaction_timestamp"].cast(pl.String).str.slice(0, 10)
    value = pl.col("sales_value")
    changed = rows.with_columns(pl.when(pl.Series(times > str(BEFORE))).then(value * 40).otherwise(value).alias("sales_value"))
    changed.write_parquet(path) if path.suffix == ".parquet" else changed.write_csv(path)


def described(url: str) -> dict[str, dict[str, Any]]:
    """Id -> what a deployment is, but for the folder that registered it."""
    keys = ("name", "entrypoint", "tags", "parameters", "job_variables", "pull_steps", "work_queue_name", "concurrency_options")
    found = {}
    for each in ask(url, "/deployments/filter", {}):
        times = [(one["schedule"]["cron"], one["schedule"]["timezone"], one["active"]) for one in each["schedules"]]
        found[each["id"]] = {**{key: each[key] or [] for key in keys}, "times": times}
    return found


def acting(url: str) -> list[Any]:
    """What the automations respond to, and how."""
    keys = ("expect", "match", "posture", "threshold", "within")
    return [
        (each["name"], each["enabled"], {key: each["trigger"][key] for key in keys}, each["actions"])
        for each in ask(url, "/automations/filter", {})
    ]


def with_twin_of_the_same_name(layout: Layout, tmp_path: Path, url: str) -> None:
    """Register another project whose name is the same: refused without an id, beside the first with one."""
    twin = Shop(projects.copy(layout, tmp_path / "twin" / "my shop").root)
    count = len(described(url))
    shop_folder = f"those of .*:{layout.root}"
    shop = Shop(layout.root)
    shop.run(EVERGREEN, "schedule", "--no-work")  # prefect deploy knows no folder
    told = twin.run(EVERGREEN, "schedule", "--no-work", code=1).stderr
    assert re.search(rf"project.name = small store: the server's deployments of this name are {shop_folder}", told)
    text = (twin.root / "params.yaml").read_text()
    (twin.root / "params.yaml").write_text(text.replace("name: small store", "name: small store, id: twin", 1))
    twin.run(EVERGREEN, "schedule", "--no-work")
    names = [each["name"] for each in described(url).values()]
    assert sorted(names) == ["small store-twin.spend"] * count + ["small store.spend"] * count


def check_run_page(url: str, run: dict[str, Any], done: dict[str, Any]) -> None:
    """What a person sees of a retraining in Prefect's UI."""
    assert run["name"] == f"small store spend: retraining {DAY}"
    assert set(run["tags"]) == {"evergreen:small store", "project:small store", "problem:spend", f"day:{DAY}"}
    ended = wait_for(lambda: (found := ask(url, f"/flow_runs/{run['id']}"))["state"]["type"] == "COMPLETED" and found, str)
    state = ended["state"]
    assert (state["name"], state["message"]) == ("Completed" if done["promoted"] else "Refused", f"v2: {done['outcome']}")
    mine = {"any_": [run["id"]]}
    logs = ask(url, "/logs/filter", {"logs": {"flow_run_id": mine}, "limit": 200})
    assert {"spend: trial 3 of 3", "spend: train: ", "ingest: as of "} <= {
        start
        for start in ("spend: trial 3 of 3", "spend: train: ", "ingest: as of ")
        for each in logs
        if start in each["message"]
    }
    tasks = {each["id"]: each for each in ask(url, "/task_runs/filter", {"task_runs": {"flow_run_id": mine}})}
    before = {
        each["name"]: {tasks[one["id"]]["name"] for inputs in each["task_inputs"].values() for one in inputs if "id" in one}
        for each in tasks.values()
    }
    assert before["evaluate spend"] == {"train spend"}
    assert before["deploy spend"] == {"gate spend", "register spend"}
    assert before["page"] >= {"register spend"}
    artifacts = {each["key"]: each for each in ask(url, "/artifacts/filter", {"artifacts": {"flow_run_id": mine}})}
    table = json.loads(artifacts["small-store-spend-verdict"]["data"])
    assert table[0]["metric"] == "rmse, judged"
    assert done["outcome"] in artifacts["small-store-spend-verdict"]["description"]
    assert "index.html" in artifacts["small-store-spend-links"]["data"]
    assert artifacts["small-store-spend-tune"]["data"] == 100
    (decision,) = ask(url, "/artifacts/filter", {"artifacts": {"key": {"like_": "small-store-spend-decision"}}})[:1]
    assert "| prediction | moved | **alarm** |" in decision["data"]


def cancel_the_next_retraining(shop: Shop, url: str, layout: Layout) -> None:
    """A retraining is cancelled in the UI while it works; no monitoring run takes it up again."""
    named = {"deployments": {"name": {"any_": ["small store.spend"]}}, "flows": {"name": {"any_": ["retraining"]}}}
    (deployment,) = ask(url, "/deployments/filter", named)
    run = ask(url, f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"reason": "by hand"}})
    decisions = settings.decision_log(layout)
    (claimed,) = wait_for(lambda: decisions.unfinished(["spend"]), str)
    assert claimed.id == run["id"]
    ask(url, f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: ask(url, f"/flow_runs/{run['id']}")["state"]["type"] == "CANCELLED", str)
    shop.run(EVERGREEN, "monitor", "spend", "--as-of", str(DAY), "--json")
    told = json.loads(shop.run(EVERGREEN, "why", "spend", "--json").stdout)["retraining"]
    assert (told["id"], told["outcome"]) == (run["id"], "cancelled by somebody in Prefect")
    assert decisions.unfinished(["spend"]) == []


def test_drift_is_reported_answered_by_an_automation_and_ends_in_a_judged_challenger(
    tmp_path: Path, trained: Layout, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = projects.copy(trained, tmp_path / "my shop")
    shop = Shop(layout.root)
    layout.params.write_text(layout.params.read_text().replace("\nspend:\n", POLICY, 1))
    inject(shop)
    for name, value in server.items():
        monkeypatch.setitem(os.environ, name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    url = server["PREFECT_API_URL"]

    marker = hostile_modules.plant(shop.root)
    shop.run(EVERGREEN, "schedule", "--no-work")
    first = described(url)
    assert sorted(each["name"] for each in first.values()) == ["small store.spend", "small store.spend"]
    assert [each["name"] for each in ask(url, "/automations/filter", {})] == ["evergreen: retrain small store.spend"]
    automations = acting(url)
    shop.run(EVERGREEN, "schedule", "--write")
    (tmp_path / "empty").mkdir()
    deploy = (str(BIN / "prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(shop.root / "prefect.yaml"))
    Shop(tmp_path / "empty").run(*deploy)
    assert (described(url), acting(url)) == (first, automations)
    with_twin_of_the_same_name(layout, tmp_path, url)
    shop.run(EVERGREEN, "schedule", "--no-work")
    assert {id: each for id, each in described(url).items() if id in first} == first

    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen([EVERGREEN, "schedule"], cwd=shop.root, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        told = json.loads(shop.run(EVERGREEN, "monitor", "spend", "--as-of", str(DAY), "--json").stdout)["problems"]["spend"]
        decision = told["decision"]
        assert (decision["retrain"], decision["trigger"], told["delegated"]) == (True, "drift", True)
        assert told["notes"] == []
        assert (shop.root / "reports" / "spend" / "drift" / f"{DAY}.html").stat().st_size > 10_000
        assert 'evergreen_drift_alarm{problem="spend"} 1' in (shop.root / "var" / "metrics.prom").read_text()

        def log_end() -> str:
            return (tmp_path / "worker.log").read_text()[-3000:]

        wait_for(lambda: any(each.ended for each in settings.decision_log(layout).retrainings("spend")), log_end)
        done = json.loads(shop.run(EVERGREEN, "why", "spend", "--json").stdout)["retraining"]
        assert (done["trigger"], done["version"], done["by"]) == ("drift", 2, "policy (drift)")
        history = json.loads(shop.run(EVERGREEN, "history", "spend", "--json").stdout)
        assert history["champion"] == (2 if done["promoted"] else 1)
        assert history["decisions"][-1]["by"] == "policy (drift)"

        shop.run(EVERGREEN, "monitor", "spend", "--as-of", str(DAY), "--json")
        events = ask(url, "/events/filter", {"filter": {"event": {"prefix": ["evergreen."]}}})["events"]
        assert {each["event"] for each in events} == {"evergreen.decision", "evergreen.drift"}
        runs = ask(url, "/flow_runs/filter", {"flows": {"name": {"any_": ["retraining"]}}})
        (automated,) = [each for each in runs if each["created_by"] and each["created_by"]["type"] == "AUTOMATION"]
        check_run_page(url, automated, done)
        cancel_the_next_retraining(shop, url, layout)
        assert len(json.loads(shop.run("evergreen", "history", "spend", "--json").stdout)["decisions"]) == 2
        assert hostile_modules.imported(marker) == []
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
