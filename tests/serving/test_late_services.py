"""A server whose database or registry does not answer at its start, and what it says of that."""

import asyncio
import json
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evergreen.flows.operations import waiting_server
from evergreen.serving.app import App
from evergreen.serving.metrics import Metrics
from evergreen.serving.prediction_service import PredictionService
from evergreen.serving.status_endpoints import AWAY, NOT_DEPLOYED, NOT_SERVING, UNKNOWN
from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import ProjectError, RegistryError
from evergreen.tasks.core.paths import Layout
from tests import postgres as postgres_server
from tests import projects, store
from tests.projects import Deployed
from tests.serving.server import Server
from tests.serving.test_deployment_watcher import until

HOUSE = {"size": 100, "colour": "red", "built": "1990-05-01"}


# -- the database


@pytest.fixture
def stopped_postgres() -> Iterator[postgres_server.Postgres]:
    """A server of this test's own, which does not run."""
    if postgres_server.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as name:
        server = postgres_server.Postgres(Path(name))
        server.start()
        server.stop()
        yield server
        server.stop()


@pytest.mark.slow
@pytest.mark.postgres
def test_workers_start_without_the_database_become_ready_once_it_is_there_and_outlive_it(
    deployed: Deployed, stopped_postgres: postgres_server.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layout = deployed(tmp_path / "shop", ("dear",))
    monkeypatch.setenv("EVERGREEN_DATABASE", stopped_postgres.address)
    stopped_postgres.start()
    projects.deploy(layout, "dear", "logistic")
    stopped_postgres.stop()
    environment = {"PATH": "/usr/bin:/bin", "EVERGREEN_DATABASE": stopped_postgres.address}
    server = Server(layout, "--workers", "2", "--only", "dear", env=environment)
    try:
        assert server.client.get("/health").status_code == 200
        found = server.client.get("/ready")
        assert (found.status_code, found.json()["errors"]) == (503, {"dear": UNKNOWN})
        assert found.json()["database"].startswith("does not answer since ")
        stopped_postgres.start()
        until(lambda: server.client.get("/ready").status_code == 200)
        until(lambda: "database" not in server.client.get("/ready").json())  # its first update ended
        assert server.client.post("/v1/predict/dear", json=HOUSE).status_code == 200
        stopped_postgres.stop()
        until(lambda: "database" in server.client.get("/ready").json())
        assert server.client.get("/ready").status_code == 200, "what works goes on"
        assert server.client.post("/v1/predict/dear", json=HOUSE).status_code == 200
        stopped_postgres.start()
        until(lambda: "database" not in server.client.get("/ready").json())
    finally:
        server.stop()
    told = [line for line in server.lines if "cannot read the deployments" in line]
    assert 2 <= len(told) <= 4, "each worker says it once for each time, whose end it may not wait for"
    assert not [line for line in server.lines if "Traceback" in line]


# -- what /ready says


class State:
    """A watcher that has nothing loaded."""

    def __init__(self, **changed: Any) -> None:
        self.errors, self.away, self.read_at, self.unread_since = dict[str, str](), set[str](), None, None
        vars(self).update(changed)

    def serving_set(self, problem: str) -> None:
        return None


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"unread_since": SimpleNamespace(isoformat=lambda timespec: "noon")}, {"redeem": UNKNOWN, "spend": UNKNOWN}),
        ({"errors": {"redeem": "v1: MLflow is away"}, "away": {"redeem"}}, {"redeem": AWAY, "spend": NOT_DEPLOYED}),
        ({"errors": {"redeem": "v1: /data/x is damaged"}}, {"redeem": NOT_SERVING, "spend": NOT_DEPLOYED}),
        ({}, {"redeem": NOT_DEPLOYED, "spend": NOT_DEPLOYED}),
    ],
)
def test_ready_says_which_problem_cannot_answer_and_why(tmp_path: Path, state: dict[str, Any], told: dict[str, str]):
    store.project(tmp_path, households=5, weeks=20)
    names = ("redeem", "spend")
    params = loading.load(tmp_path / "params.yaml").narrow(names)
    watcher: Any = State(**state)
    app = App(PredictionService(params, watcher, None, None, Metrics()), required=names)
    found = asyncio.run(app._status.ready(SimpleNamespace(scope={})))  # type: ignore[arg-type]
    answer = json.loads(found.body)
    assert (found.status, answer["ready"], answer["errors"]) == (503, False, told)
    assert answer.get("database") == ("does not answer since noon" if "unread_since" in state else None)


# -- the registry of a server without a project folder


def asked(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_folder_whose_registry_does_not_answer_lives_and_is_not_ready_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: list[Any] = []

    def find_or_fetch(root: Path) -> Layout:
        """Comes back once /health, /ready and another path were asked."""
        if not answers:
            answers.append(None)
            raise RegistryError("MLflow: nothing listens there")
        answers.extend([asked(port, "/health"), asked(port, "/ready"), asked(port, "/v1/predict/dear", "POST")])
        return Layout(root)

    monkeypatch.setattr(waiting_server, "find_or_fetch", find_or_fetch)
    monkeypatch.setattr(waiting_server, "RETRY_SECONDS", 0.01)
    found, bound = waiting_server.find(tmp_path, "127.0.0.1", port)
    assert (found.root, bound) == (tmp_path, port)
    waiting = "the model registry does not answer; the server tries again"
    assert answers[1:] == [
        (200, {"status": "alive"}),
        (503, {"ready": False, "problems": {}, "registry": waiting}),
        (503, {"error": waiting}),
    ]
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free for the workers


def test_a_folder_without_a_project_and_without_addresses_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    with pytest.raises(ProjectError, match="To serve without a project folder, set EVERGREEN_DATABASE"):
        waiting_server.find(tmp_path, "127.0.0.1", 0)
