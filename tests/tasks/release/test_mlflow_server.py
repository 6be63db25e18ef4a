"""Projects on one MLflow server, which keeps their files; and a server that has no project folder."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import polars as pl
import pytest
from ruamel.yaml import YAML

from evergreen.flows import settings
from evergreen.flows.operations.served_project import find_or_fetch
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import mlflow_store
from tests import projects
from tests.projects import Deployed
from tests.serving.server import Server

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


def test_a_server_without_a_project_folder_answers_by_key_and_follows_deployments(
    deployed: Deployed, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    layout = deployed(tmp_path / "shop", ("dear", "redeem", "recommend"))
    monkeypatch.setenv("EVERGREEN_MLFLOW_URI", server)
    monkeypatch.setenv("EVERGREEN_DATABASE", f"sqlite:///{tmp_path / 'evergreen.db'}")
    rename(layout, "west")
    projects.deploy(layout, "redeem", "logistic")
    key = pl.read_parquet(layout.newest_rows("redeem"))["household_id"][0]
    layout.root.rename(tmp_path / "elsewhere")
    pod = Layout(tmp_path / "pod")
    pod.root.mkdir()
    shop = Server(pod, env={**os.environ, "EVERGREEN_PROJECT": "west"})
    try:
        answer = shop.client.post("/v1/predict/redeem", json={"household_id": key}).json()
        assert answer.get("version") == 1, answer
        assert shop.client.get("/ready").status_code == 200
        moved = Layout(tmp_path / "elsewhere")
        projects.deploy(moved, "redeem", "logistic", C=0.3)
        shop.wait_for(r"redeem: has the features and tables of v2")
        for _ in range(100):
            again = shop.client.post("/v1/predict/redeem", json={"household_id": key}).json()
            if again["version"] == 2:
                break
            time.sleep(0.1)
        assert again["version"] == 2
    finally:
        shop.stop()
    assert not (pod.root / "data" / "features").exists()
    assert pl.read_parquet(pod.newest("redeem") / "rows.parquet")["cutoff"].n_unique() == 1


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "To serve without a project folder, set EVERGREEN_DATABASE and EVERGREEN_MLFLOW_URI"),
        ({"EVERGREEN_PROJECT": "nowhere"}, "EVERGREEN_PROJECT = nowhere: is no project of the registry; it has "),
        ({"EVERGREEN_PROJECT": ""}, "EVERGREEN_PROJECT: is not set, and the registry has "),
    ],
)
def test_a_folder_without_a_project_is_told_what_to_set(
    deployed: Deployed, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
):
    if variables:
        monkeypatch.setenv("EVERGREEN_MLFLOW_URI", server)
        monkeypatch.setenv("EVERGREEN_DATABASE", f"sqlite:///{tmp_path / 'evergreen.db'}")
        for name in ("first", "second"):
            layout = deployed(tmp_path / name, ("dear",))
            rename(layout, name)
            projects.register(layout, "dear", "logistic")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pod").mkdir()
    with pytest.raises(ProjectError, match=re.escape(told)):
        find_or_fetch(tmp_path / "pod")
    assert not list((tmp_path / "pod").iterdir())


def test_a_server_that_does_not_respond_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(mlflow_store, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(mlflow_store, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ModelError, match=f"MLflow at http://127.0.0.1:{port}: does not respond within 0 s. Check"):
            mlflow_store.MlflowStore(f"http://127.0.0.1:{port}", "", tmp_path)
    with pytest.raises(ModelError, match="nothing listens there") as told:
        mlflow_store.MlflowStore(f"http://ann:secret@127.0.0.1:{port}", "", tmp_path)
    assert "secret" not in str(told.value) + caplog.text
    assert "trying for" in caplog.text


def test_a_database_in_the_place_of_a_server_that_does_not_respond_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_store, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(mlflow_store, "ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql+psycopg://ann:secret@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(ModelError, match=r"MLflow at postgresql.*: .*timeout expired. Check the address"):
            mlflow_store.MlflowStore(address, "s3://shop/models", tmp_path)
    with pytest.raises(ModelError, match=r"MLflow at postgresql.*: .*Connection refused. Check the address") as told:
        mlflow_store.MlflowStore(address, "s3://shop/models", tmp_path)
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_mlflow_has_limits_for_a_database_that_falls_silent_unless_the_address_has_its_own():
    bounded = mlflow_store._bounded("postgresql+psycopg://ann:a%40b@host/x?connect_timeout=90")
    assert bounded.startswith("postgresql+psycopg://ann:a%40b@host/x?")
    assert "connect_timeout=90" in bounded
    assert "tcp_user_timeout=10000" in bounded
    assert mlflow_store._bounded("http://host:5000") == "http://host:5000"
