"""The image, compose, Kubernetes and the dashboard match the code."""

import json
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from evergreen.serving.metrics import Metrics, gauge
from tests import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")}
ROUTES, STATUS = ((ROOT / "serving" / name).read_text() for name in ("routes.py", "status_endpoints.py"))
IMAGES = (ROOT / "Dockerfile", ROOT / "deploy" / "serving" / "Dockerfile")


def exposed() -> set[str]:
    """Names of all series of /metrics: the counts of Metrics, and the gauges of StatusEndpoints."""
    counts = Metrics()
    counts.count_request("predict", "redeem", 200, 0.01)
    counts.count_batch("redeem", 3)
    counts.count_parity("redeem", mismatch=True)
    counts.rows["redeem", 1, "champion"] += 1
    counts.failures["redeem", 1, "champion"] += 1
    gauges = [gauge(name, "", [], [((), 0.0)]) for name in re.findall(r'"(evergreen_\w+)"', STATUS)]
    families = text_string_to_metric_families(counts.text(gauges).decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_dashboard_shows_exactly_the_series_that_the_server_exposes():
    board, known = json.loads((ROOT / "deploy" / "grafana" / "serving.json").read_text()), exposed()
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
