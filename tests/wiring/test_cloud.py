"""The image, compose, Kubernetes and the dashboard match the code."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from evergreen.flows.operations.prometheus_textfile import FAMILIES
from evergreen.serving.metrics import Metrics, counter, gauge
from tests import ROOT
from tests import postgres as postgres_server

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")}
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
ROUTES, STATUS = ((ROOT / "serving" / name).read_text() for name in ("routes.py", "status_endpoints.py"))
IMAGES = (ROOT / "Dockerfile", ROOT / "deploy" / "serving" / "Dockerfile")


def exposed() -> set[str]:
    """Names of all series: the counts of Metrics, the gauges and counters of StatusEndpoints, and those of var/metrics.prom."""
    counts = Metrics()
    counts.count_request("predict", "redeem", 200, 0.01)
    counts.count_batch("redeem", 3)
    counts.count_parity("redeem", mismatch=True)
    counts.rows["redeem", 1, "champion"] += 1
    counts.failures["redeem", 1, "champion"] += 1
    counts.unseen["redeem", "shop"] += 1
    made = {"gauge": gauge, "counter": counter}
    states = [
        made[kind](name, "", [], [((), 0.0)]) for kind, name in re.findall(r'(gauge|counter)\(\s*"(evergreen_\w+)"', STATUS)
    ]
    states += [made[kind](name, "", [], [((), 0.0)]) for name, (kind, _, _) in FAMILIES.items()]
    families = text_string_to_metric_families(counts.text(states).decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_dashboard_shows_exactly_the_series_of_the_server_and_of_monitoring():
    board, known = json.loads((ROOT / "deploy" / "grafana" / "evergreen.json").read_text()), exposed()
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"evergreen_\w+", target["expr"])
    }
    asked |= set(re.findall(r"evergreen_\w+", board["templating"]["list"][1]["definition"]))
    assert asked
    assert asked <= known
    stems = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in known}
    assert stems == {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert (
        len({panel["title"] for panel in board["panels"]})
        == len({panel["id"] for panel in board["panels"]})
        == len(board["panels"])
    )


def test_names_of_series_follow_the_conventions():
    """A counter ends in _total, and a time, size or share bears its unit, as prometheus.io/docs/practices/naming says."""
    for name in exposed():
        assert re.fullmatch(r"evergreen(_[a-z]+)+", name), name
        assert not re.search(r"_(share|ms|minutes|kb|percent)$", name), name
        assert not re.search(r"_time(stamp)?$", name), name
    assert {name for name in exposed() if name.endswith("_info")} == {"evergreen_build_info", "evergreen_model_info"}


def test_the_alert_rules_name_series_that_exist_and_prometheus_reads_the_rules():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    for rule in rules:
        names = set(re.findall(r"evergreen_\w+", rule["expr"]))
        assert names <= exposed(), rule["alert"]
        assert names or rule["alert"] == "EvergreenDown"
    assert yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["rule_files"] == ["alerts.yaml"]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in runbook] == []


PROBLEM = '{problem="redeem"}'
FIRING = {
    "EvergreenDown": {'up{job="evergreen"}': "0x60"},
    "EvergreenNoChampion": {f"evergreen_champion_serving{PROBLEM}": "0x60"},
    "EvergreenRequestsFail": {
        'evergreen_requests_total{problem="redeem",status="200"}': "0+90x60",
        'evergreen_requests_total{problem="redeem",status="503"}': "0+10x60",
    },
    "EvergreenPredictionsFail": {f"evergreen_prediction_failures_total{PROBLEM}": "0+1x60"},
    "EvergreenParityMismatch": {f"evergreen_parity_mismatches_total{PROBLEM}": "0+1x60"},
    "EvergreenLedgerLags": {"evergreen_ledger_lag_bytes": "1+1000x60"},
    "EvergreenPredictionsLost": {"evergreen_predictions_lost_total": "0+1x60"},
    "EvergreenDrift": {f"evergreen_drift_alarm{PROBLEM}": "1x60"},
    "EvergreenPerformanceBelowBound": {f"evergreen_score_drop_low{PROBLEM}": "0.01x60"},
    "EvergreenRetrainingFailed": {f"evergreen_retraining_failed{PROBLEM}": "1x60"},
    "EvergreenRetrainingWaits": {
        f"evergreen_retrain{PROBLEM}": "1x2000",
        f"evergreen_retrainings_unfinished{PROBLEM}": "0x2000",
    },
    "EvergreenRolloutWaits": {'evergreen_rollout_step_timestamp_seconds{problem="redeem",state="paused"}': "1x2000"},
    "EvergreenMonitoringStopped": {f"evergreen_window_end_timestamp_seconds{PROBLEM}": "-200000x2000"},
}
"""Alert -> series with which it fires, a value a minute."""
CALM = {
    'up{job="evergreen"}': "1x2000",
    f"evergreen_champion_serving{PROBLEM}": "1x2000",
    'evergreen_requests_total{problem="redeem",status="200"}': "0+90x2000",
    f"evergreen_prediction_failures_total{PROBLEM}": "3x2000",
    "evergreen_ledger_lag_bytes": "500 0 300 0 500 0 0 0 400 0 0 0 0 200 0 0",
    f"evergreen_drift_alarm{PROBLEM}": "0x2000",
    f"evergreen_score_drop_low{PROBLEM}": "-0.02x2000",
    f"evergreen_retraining_failed{PROBLEM}": "0x2000",
    f"evergreen_retrain{PROBLEM}": "0x2000",
    'evergreen_rollout_step_timestamp_seconds{problem="redeem",state="running"}': "1x2000",
    f"evergreen_window_end_timestamp_seconds{PROBLEM}": "0x2000",
}


def test_each_alert_fires_on_its_fault_and_none_on_a_calm_day(tmp_path):
    if not (promtool := shutil.which("promtool")):
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is not installed; on CI it must be")
        pytest.skip("promtool is not installed (package prometheus)")
    rules = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    assert sorted(FIRING) == sorted(rules)

    def quiet(series, alert, minutes):
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"alertname": alert, "eval_time": f"{minutes}m", "exp_alerts": []}],
        }

    calm = [quiet(CALM, alert, 1500) for alert in rules]
    done = check_rules(promtool, tmp_path, calm)
    assert done.returncode == 0, done.stdout + done.stderr
    for alert, series in FIRING.items():
        minutes = 1600 if any(values.endswith("2000") for values in series.values()) else 45
        done = check_rules(promtool, tmp_path, [quiet({**CALM, **series}, alert, minutes)])
        assert done.returncode == 1, f"{alert} does not fire"
        assert f"alertname: {alert}" in done.stdout + done.stderr


def check_rules(promtool, folder, cases):
    whole = {"rule_files": [str(PROMETHEUS / "alerts.yaml")], "evaluation_interval": "1m", "tests": cases}
    (folder / "alerts.yaml").write_text(yaml.safe_dump(whole))
    return subprocess.run([promtool, "test", "rules", str(folder / "alerts.yaml")], capture_output=True, text=True, check=False)


def test_no_password_of_compose_has_a_default():
    secrets = [
        str(value)
        for service in COMPOSE["services"].values()
        for name, value in (service.get("environment") or {}).items()
        if re.search("PASSWORD|SECRET|KEY|AUTH|DATABASE", name)
    ]
    assert len(secrets) > 5
    for each in secrets:
        assert re.search(r"\$\{\w+:\?[^}]+\}", each), each
        assert "${" in each.split("@")[0]
    assert "${POSTGRES_PASSWORD:-" not in (ROOT / "compose.yaml").read_text()


def test_every_service_of_compose_has_a_health_check_and_waits_for_its_dependencies():
    services = COMPOSE["services"]
    for name, service in services.items():
        once = "condition: service_completed_successfully" in (ROOT / "compose.yaml").read_text() and name == "bucket"
        assert once or "healthcheck" in service, name
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if other == "bucket" else "service_healthy")
    named = {
        line.partition("=")[0].strip("# ") for line in (ROOT / "deploy" / "env.example").read_text().splitlines() if "=" in line
    }
    assert set(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text())) <= named


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("name", ["serve", "worker", "prefect", "mlflow"])
def test_a_health_check_fails_when_what_it_watches_fails(name):
    words = COMPOSE["services"][name]["healthcheck"]["test"]
    assert words[:3] == ["CMD", "python", "-c"]
    watched = re.search(r"127\.0\.0\.1:(\d+)", words[3])
    assert watched
    assert watched[1] in " ".join(COMPOSE["services"][name]["command"])

    def check(port):
        code = words[3].replace(watched[0], f"127.0.0.1:{port}")
        return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=False).returncode

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert check(port) == 0
        server.RequestHandlerClass = type("Failing", (Answer,), {"status": 503})
        assert check(port) != 0
        server.shutdown()
    assert check(port) != 0


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_the_health_check_of_a_server_fails_while_its_database_is_away(name, tmp_path):
    if postgres_server.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder, socket.socket() as free:
        database = postgres_server.Postgres(Path(folder))
        database.start()
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        words = COMPOSE["services"][name]["healthcheck"]["test"]
        code = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", words[3])
        place = f"postgres?host={folder}"
        command = {
            "prefect": ["server", "start", "--host", "127.0.0.1", "--port", port],
            "mlflow": [
                "server",
                "--port",
                port,
                "--workers",
                "1",
                "--backend-store-uri",
                f"postgresql+psycopg://evergreen@/{place}",
            ],
        }[name]
        environment = {
            **os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://evergreen@/{place}",
            "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip

        def healthy() -> bool:
            return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=False).returncode == 0

        process = subprocess.Popen(
            [Path(sys.executable).with_name(name), *command], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert any(healthy() or time.sleep(1) for _ in range(120)), "it starts"
            database.stop()
            assert not healthy()
            database.start()
            assert any(healthy() or time.sleep(1) for _ in range(60)), "it comes back"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            database.stop()


@pytest.mark.slow
@pytest.mark.postgres
def test_the_health_check_of_the_database_fails_while_it_hangs_and_once_it_ends():
    programs = postgres_server.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    check = COMPOSE["services"]["postgres"]["healthcheck"]
    _, program, *words = check["test"]
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:

        def healthy() -> bool:
            command = [programs / program, *(folder if word == "127.0.0.1" else word for word in words)]
            with contextlib.suppress(subprocess.TimeoutExpired):  # as the container's engine, which counts it as a failure
                return subprocess.run(command, capture_output=True, timeout=float(check["timeout"][:-1])).returncode == 0
            return False

        database = postgres_server.Postgres(Path(folder))
        database.start()
        try:
            assert healthy()
            server = int((Path(folder) / "data" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(server, signal.SIGSTOP)
            try:
                assert not healthy()
            finally:
                os.kill(server, signal.SIGCONT)
            assert any(healthy() for _ in range(5)), "it comes back"
        finally:
            database.stop()
        assert not healthy()


@pytest.mark.parametrize("name", ["serve", "worker", "prefect", "mlflow"])
def test_our_containers_have_a_read_only_file_system_and_no_capabilities(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_images_run_unprivileged_from_hashed_requirements_with_a_health_check():
    for path in (*IMAGES, ROOT / "flows" / "templates" / "bundle" / "Dockerfile"):
        text = path.read_text()
        assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BASE}"] * 2
        assert re.search(r"^ARG BASE=python:\S+-slim$|^ARG BASE=python:{{ python }}-slim$", text, re.M)
        assert re.search(r"^USER 10001$", text, re.M)
        assert "--require-hashes -r" in text or "{{ pip_options }}-r" in text
        assert "/ready" in text.partition("HEALTHCHECK")[2]


def test_the_build_context_holds_exactly_what_the_images_copy():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for path in IMAGES
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.M)
        for word in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / each).exists() for each in copied)


def test_a_pod_is_probed_at_existing_paths_and_runs_unprivileged():
    pod = MANIFESTS["deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}"' in ROUTES
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["args"][0] == "serve"


def test_the_manifests_refer_to_one_deployment():
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["service"]["spec"]["selector"] == labels
    assert MANIFESTS["disruption"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["autoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["deployment"]["metadata"]["name"])
    assert set(MANIFESTS["kustomization"]["resources"]) == {f"{name}.yaml" for name in MANIFESTS if name != "kustomization"}
