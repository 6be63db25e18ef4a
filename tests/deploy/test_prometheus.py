"""Prometheus scrapes a server and var/metrics.prom; each expression of the dashboard and of the alerts is evaluated by it."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from evergreen.flows.operations.prometheus_textfile import FAMILIES
from evergreen.serving.metrics import counter, gauge, text
from tests import ROOT
from tests.projects import Deployed
from tests.serving.live import Live, serving

pytestmark = pytest.mark.slow

BOARD = json.loads((ROOT / "deploy" / "grafana" / "evergreen.json").read_text())
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
HOUSE = {"size": 100.0, "colour": "red", "built": "1990-05-01"}


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def live(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with each of its series: predictions, an unseen category, a failed request."""
    folder = tmp_path_factory.mktemp("scraped") / "shop"
    serve = "serve: {default_problem: dear, parity_share: 1.0}\n"
    with serving(deployed(folder, ("dear", "redeem", "spend", "recommend"), serve)) as found:
        for row in (HOUSE, {**HOUSE, "size": None}):
            assert found.client.post("/v1/predict/dear", json=row).status_code == 200
        counts = found.app.service.metrics
        counts.count_unseen("dear", ["colour"])
        counts.count_request("predict", "dear", 503, 0.1)
        counts.count_parity("dear", mismatch=True)
        counts.failures["dear", 1, "champion"] += 1
        yield found


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server of metrics.prom with all series of monitoring, in place of node_exporter."""
    folder = tmp_path_factory.mktemp("textfile")
    made = {"gauge": gauge, "counter": counter}
    families = [
        made[kind](name, about, ("problem", *labels), [(("dear", *labels), 1.0)])
        for name, (kind, labels, about) in FAMILIES.items()
    ]
    (folder / "metrics.prom").write_bytes(text(families))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def ask(live: Live, monitored: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Prometheus' HTTP API: (path, query) -> data, once it has scraped both three times."""
    program = shutil.which("prometheus")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("prometheus is not installed; on CI it must be")
        pytest.skip("prometheus is not installed (package prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    jobs = {"evergreen": ("/metrics", live.port), "evergreen-monitoring": ("/metrics.prom", monitored)}
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for name, (path, port) in jobs.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    command = [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    log = (folder / "log").open("w")
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as client:

            def ask(path: str, **query: str) -> Any:
                answer = client.get(path, params=query).json()
                assert answer["status"] == "success", answer
                return answer["data"]

            await_scrapes(ask, process, folder / "log", len(jobs))
            yield ask
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def await_scrapes(ask: Callable[..., Any], process: subprocess.Popen[bytes], log: Path, jobs: int) -> None:
    end, found = time.monotonic() + 60, []
    while time.monotonic() < end and process.poll() is None:
        try:
            found = ask("/query", query="sum_over_time(up[1m]) >= 3")["result"]
        except (httpx.TransportError, ValueError):  # it starts
            found = []
        if len(found) == jobs:
            return
        time.sleep(0.1)
    raise AssertionError(f"{found}\n{log.read_text()[-3000:]}")


def filled(expression: str) -> str:
    """The expression of a panel with the values that Grafana puts in place of its variables."""
    return expression.replace("$__rate_interval", "1m").replace("$problem", ".*")


def test_each_panel_of_the_dashboard_shows_data(ask: Callable[..., Any]):
    """A legend names only labels that the expression keeps."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            found = ask("/query", query=filled(target["expr"]))["result"]
            assert found, f"{panel['title']}: {target['expr']}: no data"
            for label in set(target.get("legendFormat", "").replace("}}", "{{").split("{{")[1::2]):
                assert any(label in series["metric"] for series in found), f"{panel['title']}: no label {label}"


def test_the_dashboard_offers_the_problems(ask: Callable[..., Any]):
    (variable,) = [each for each in BOARD["templating"]["list"] if each["name"] == "problem"]
    series, label = variable["definition"].removeprefix("label_values(").removesuffix(")").split(", ")
    assert ask(f"/label/{label}/values", **{"match[]": series}) == ["dear", "recommend", "redeem", "spend"]


def test_each_alert_is_evaluated(ask: Callable[..., Any]):
    rules = [rule for group in ask("/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in yaml.safe_load(ALERTS.read_text())["groups"])
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
    assert firing >= {"EvergreenDrift", "EvergreenPerformanceBelowBound", "EvergreenRetrainingFailed"}
    assert "EvergreenDown" not in firing
