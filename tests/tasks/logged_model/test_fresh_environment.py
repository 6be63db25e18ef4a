"""Logged models answer in an environment that holds what they list and nothing else, and so do MLflow's own commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from evergreen.flows import settings
from evergreen.tasks.core.paths import Layout
from tests import projects
from tests.projects import Deployed

pytestmark = pytest.mark.slow

ROWS = '[{"size": 100, "colour": "red", "built": "1990-05-01"}, {"size": null, "colour": null, "built": "1990-05-01"}]'
PREDICT = """
import json, sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
found = model.predict(json.loads(sys.argv[2]))
print(json.dumps(found.tolist() if hasattr(found, "tolist") else found["items"].tolist()))
"""


def environment_of(model: Path, folder: Path) -> Path:
    """A new environment with the requirements of `model`. Returns its interpreter."""
    python = folder / "bin" / "python"
    for words in (["venv", "-q", "--python", sys.executable, str(folder)], ["pip", "install", "-q", "--python", str(python)]):
        more = ["-r", str(model / "requirements.txt")] if words[0] == "pip" else []
        done = subprocess.run([sys.executable, "-m", "uv", *words, *more], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


def run(python: Path, folder: Path, *words: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EVERGREEN", "MLFLOW"))}
    kept |= {"PATH": f"{python.parent}:{kept['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([str(python), *words], cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def files_of(layout: Layout, problem: str, version: int) -> Path:
    found = settings.registry(layout)._store.folder(problem, version)
    assert found is not None
    return found


def test_a_compiled_model_answers_with_the_packages_that_it_lists(deployed: Deployed, tmp_path: Path):
    model = files_of(deployed(tmp_path / "shop", ("dear",)), "dear", 1)
    listed = {line.partition("==")[0] for line in (model / "requirements.txt").read_text().splitlines()}
    assert listed == {"mlflow", "numpy", "onnxruntime", "pandas", "polars", "pydantic"}
    python = environment_of(model, tmp_path / "environment")
    expected = mlflow.pyfunc.load_model(str(model)).predict(json.loads(ROWS)).tolist()
    assert json.loads(run(python, tmp_path, "-c", PREDICT, str(model), ROWS)) == expected
    (tmp_path / "rows.csv").write_text("size,colour,built\n100,red,1990-05-01\n,,1990-05-01\n")
    command = ["-m", "mlflow", "models", "predict", "-m", str(model), "--env-manager", "local", "-i", "rows.csv", "-t", "csv"]
    assert json.loads(run(python, tmp_path, *command).strip().splitlines()[-1]) == {"predictions": expected}
    run(python, tmp_path, "-m", "mlflow", "models", "generate-dockerfile", "-m", str(model), "-d", "image")
    assert (tmp_path / "image" / "model_dir").is_dir()


def test_a_recommender_answers_with_the_packages_that_it_lists(deployed: Deployed, tmp_path: Path):
    model = files_of(deployed(tmp_path / "shop", ("recommend",)), "recommend", 1)
    python = environment_of(model, tmp_path / "environment")
    (lists,) = json.loads(run(python, tmp_path, "-c", PREDICT, str(model), '[{"household_id": 7}]'))
    assert len(lists) == 10


def test_a_pipeline_without_a_compiled_model_answers_with_the_packages_that_it_lists(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from evergreen.tasks.model_files import onnx_export

    layout = deployed(tmp_path / "shop", ("dear",))
    monkeypatch.setattr(onnx_export, "attempt", lambda *_: onnx_export.Attempt(reason="not in this test"))
    model = files_of(layout, "dear", projects.register(layout, "dear", "lightgbm"))
    assert not (model / "compiled").exists()
    python = environment_of(model, tmp_path / "environment")
    assert len(json.loads(run(python, tmp_path, "-c", PREDICT, str(model), ROWS))) == 2
