"""Two projects on one MLflow server, which keeps their files."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from ruamel.yaml import YAML

from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.projects import Deployed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that keeps files itself."""
    folder = tmp_path_factory.mktemp("mlflow server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        for _ in range(240):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        else:
            pytest.fail((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def rename(layout: Layout, name: str) -> None:
    yaml = YAML()
    params = yaml.load(layout.params.read_text())
    params["project"]["name"] = name
    yaml.dump(params, layout.params)


def test_two_projects_share_a_server_and_no_registered_model_and_another_machine_opens_both(
    deployed: Deployed, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EVERGREEN_MLFLOW_URI", raising=False)
    layouts = {name: deployed(tmp_path / name, ("dear",)) for name in ("north", "south")}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for name, layout in layouts.items():
        rename(layout, name)
        assert settings.read(layout).artifacts == ""
        projects.register(layout, "dear", "logistic", C=0.5 if name == "north" else 2.0)
        registry = settings.registry(layout)
        registry.set_alias("dear", "champion", 1)
        assert [each.version for each in registry.versions("dear")] == [1]
        assert not list((layout.var / "artifacts").rglob(f"*{name}*"))
        layout.root.rename(tmp_path / f"{name} is gone")
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient()
    assert {each.name for each in client.search_registered_models()} == {"north.dear", "south.dear"}
    frames = [mlflow.pyfunc.load_model(f"models:/{name}.dear@champion") for name in ("north", "south")]
    rows = {"size": [100], "colour": ["red"], "built": ["1990-05-01"]}
    north, south = (model.predict(rows, params={"output": "all"})["probability_yes"][0] for model in frames)
    assert north != south
    version = client.get_model_version("north.dear", "1")
    assert client.get_run(str(version.run_id)).info.artifact_uri.startswith("mlflow-artifacts:/")


def test_the_variable_of_mlflow_names_the_experiment(
    deployed: Deployed, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layout = deployed(tmp_path / "shop", ("dear",))
    monkeypatch.setenv("EVERGREEN_MLFLOW_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "houses")
    rename(layout, "east")
    projects.register(layout, "dear", "logistic", C=0.7)
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("houses")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.candidate != ''")) == 1
