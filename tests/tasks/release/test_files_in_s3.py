"""MLflow and DVC keep files in an S3-compatible store; what the store refuses is one line."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import polars as pl
import pytest

from evergreen.flows import settings
from evergreen.tasks.core.errors import ModelError
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.projects import Deployed
from tests.serving.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(s3: str, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A project whose registry keeps files in the store."""
    monkeypatch.setenv("EVERGREEN_ARTIFACTS", "s3://shop/models")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3)  # MLflow keeps a client for each
    layout = deployed(tmp_path / "shop", ("dear", "redeem", "recommend"))
    for path in layout.var.glob("mlflow.db*"):
        path.unlink()
    return layout


def test_a_store_that_refuses_or_is_gone_is_one_line(shop: Layout, s3: str, monkeypatch: pytest.MonkeyPatch):
    projects.register(shop, "dear", "logistic")
    registry = settings.registry(shop)
    assert registry.damage("dear", 1) is None
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    httpx.post(f"{s3}/moto-api/reset-auth", content=b"0")  # from now on it judges keys, and knows none
    try:
        with pytest.raises(ModelError, match=r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID") as refused:
            projects.register(shop, "dear", "logistic", C=0.5)
    finally:
        httpx.post(f"{s3}/moto-api/reset-auth", content=b"inf")
    monkeypatch.setenv("AWS_ENDPOINT_URL", gone)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", gone)
    with pytest.raises(ModelError, match=r"Could not connect to the endpoint URL.*AWS_ENDPOINT_URL") as dead:
        projects.register(shop, "dear", "logistic", C=0.5)
    with pytest.raises(ModelError, match=r"dear v1: cannot read .*s3://.*Check AWS_ENDPOINT_URL") as unread:
        registry._store.download("dear", 1, "MLmodel", str(shop.var))
    assert "\n" not in f"{refused.value}{dead.value}{unread.value}"


def test_dvc_keeps_data_in_the_store(s3: str, tmp_path: Path):
    project, file = tmp_path / "project", "sales.csv"
    project.mkdir()
    (project / file).write_text("id\n1\n")

    def dvc(*words: str) -> None:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr

    dvc("init", "--no-scm")
    dvc("remote", "add", "-d", "store", "s3://shop/dvc")
    dvc("add", file)
    dvc("push")
    shutil.rmtree(project / ".dvc" / "cache")
    (project / file).unlink()
    dvc("pull")
    assert (project / file).read_text() == "id\n1\n"


@pytest.mark.postgres
def test_a_server_with_postgresql_and_s3_alone_answers_rows_keys_and_lists(
    shop: Layout, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EVERGREEN_MLFLOW_URI", postgres)
    monkeypatch.setenv("EVERGREEN_DATABASE", postgres)
    for name in ("dear", "redeem", "recommend"):
        projects.deploy(shop, name, projects.MODELS[name])
    key = pl.read_parquet(shop.newest_rows("redeem"))["household_id"][0]
    shop.root.rename(tmp_path / "elsewhere")
    pod = Layout(tmp_path / "pod")
    pod.root.mkdir()
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL")
    served = Server(pod, env={**os.environ})
    try:
        answer = served.client.post("/v1/predict/redeem", json={"household_id": key}).json()
        assert answer.get("version") == 1, answer
        listed = served.client.post("/v1/recommend/recommend", json={"users": [key]}).json()
        assert len(listed["lists"][0]["items"]) > 0, listed
        house = {"size": 100, "colour": "red", "built": "1990-05-01"}
        assert served.client.post("/v1/predict/dear", json=house).json()["version"] == 1
        assert served.client.get("/ready").status_code == 200
    finally:
        served.stop()
