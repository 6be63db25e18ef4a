"""The loop against a real Prefect server: drift, report, event, automation, retraining, gate, deployment."""

import json
import os
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
    """From BEFORE on, every household spends eight times as much."""
    path = next((shop.root / "data-in").glob("transactions.*"))
    rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    times = rows["transaction_timestamp"].cast(pl.String).str.slice(0, 10)
    value = pl.col("sales_value")
    changed = rows.with_columns(pl.when(pl.Series(times > str(BEFORE))).then(value * 8).otherwise(value).alias("sales_value"))
    changed.write_parquet(path) if path.suffix == ".parquet" else changed.write_csv(path)


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
    first = {each["id"]: each["name"] for each in ask(url, "/deployments/filter", {})}
    shop.run(EVERGREEN, "schedule", "--no-work")
    assert {each["id"]: each["name"] for each in ask(url, "/deployments/filter", {})} == first
    assert sorted(first.values()) == ["small store.spend", "small store.spend"]
    assert len(ask(url, "/automations/filter", {})) == 1

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
        automated = [each for each in runs if each["created_by"] and each["created_by"]["type"] == "AUTOMATION"]
        assert automated
        assert len(json.loads(shop.run("evergreen", "history", "spend", "--json").stdout)["decisions"]) == 2
        assert hostile_modules.imported(marker) == []
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
