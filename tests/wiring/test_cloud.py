"""What runs elsewhere: the image, compose, Kubernetes and the dashboard say what the code does."""

import json
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from evergreen.serving.metrics import Metrics, gauge
from tests import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")}
APP = (ROOT / "serving" / "app.py").read_text()


def exposed() -> set[str]:
    """Names of all series of /metrics: those that Metrics counts, and the gauges that the application adds."""
    counts = Metrics()
    counts.request("predict", "redeem", 200, 0.01)
    counts.batch("redeem", 3)
    counts.compared("redeem", 0.0, 1.0)
    counts.rows["redeem", 1, "champion"] += 1
    counts.failures["redeem", 1, "champion"] += 1
    gauges = [gauge(name, "", [], [((), 0.0)]) for name in re.findall(r'"(evergreen_\w+)"', APP)]
    families = text_string_to_metric_families(counts.text(gauges).decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_dashboard_asks_for_series_that_the_server_exposes_and_shows_all_but_few():
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


def test_no_password_of_compose_has_a_default_and_nothing_starts_without():
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


def test_every_service_of_compose_says_how_it_is_and_waits_for_what_it_needs():
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
def test_our_containers_cannot_write_their_file_system_nor_gain_rights(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_images_run_without_rights_by_the_lock_with_hashes_and_a_health_check():
    for path in (ROOT / "Dockerfile", ROOT / "flows" / "templates" / "bundle" / "Dockerfile"):
        text = path.read_text()
        assert len(re.findall("^FROM ", text, re.M)) == 2
        assert re.search(r"^USER 10001$", text, re.M)
        assert "--require-hashes -r" in text
        assert "/ready" in text.partition("HEALTHCHECK")[2]
        assert "-slim" in text


def test_what_the_image_is_made_of_gets_into_its_context():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.M)
        for word in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / each).exists() for each in copied)


def test_a_pod_is_probed_at_addresses_that_are_there_and_has_no_rights():
    pod = MANIFESTS["deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}"' in APP
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["args"][0] == "serve"


def test_the_manifests_speak_of_one_thing():
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["service"]["spec"]["selector"] == labels
    assert MANIFESTS["disruption"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["autoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["deployment"]["metadata"]["name"])
    assert set(MANIFESTS["kustomization"]["resources"]) == {f"{name}.yaml" for name in MANIFESTS if name != "kustomization"}
