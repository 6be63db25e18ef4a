"""A bundle holds the modules and packages that serving needs, no more, and the exported model file."""

import asyncio
import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from evergreen.flows.operations import bundle, bundle_contents
from evergreen.serving import bundle_server, status_endpoints
from evergreen.serving.bundle_server import MANIFEST, MODEL, BundleFiles
from evergreen.serving.http_messages import BodyBudget, HttpRequest
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import code_closure
from tests import ROOT
from tests.projects import Deployed

HEAVY = {"sklearn", "mlflow", "lightgbm", "prefect", "dvc", "polars", "pandas", "optuna", "evidently", "onnx"}


def packages(modules: dict) -> set[str]:
    return {name.partition(".")[0] for tree in modules.values() for name in code_closure.imported(tree)}


def test_a_compiled_model_is_served_without_the_training_libraries():
    modules = code_closure.closure(bundle_contents.roots("classification", compiled=True))
    assert {
        "evergreen.serving.bundle_server",
        "evergreen.serving.app",
        "evergreen.tasks.model_files.onnx_runtime",
        "evergreen",
    } <= modules.keys()
    assert not packages(modules) & HEAVY
    assert not any(name.startswith("evergreen.tasks.problems") for name in modules)


def test_a_recommender_bundle_holds_the_modules_that_make_lists():
    modules = code_closure.closure(bundle_contents.roots("recommendation", compiled=False))
    assert {
        "evergreen.tasks.model_files.skops_models",
        "evergreen.tasks.problems.recommendation.kind",
        "evergreen.serving.recommender_service",
        "evergreen.serving.event_log",
    } <= modules.keys()
    assert not packages(modules) & {"mlflow", "prefect", "dvc", "optuna", "evidently"}


def test_a_project_without_a_lock_pins_the_installed_versions(tmp_path):
    modules = code_closure.closure(bundle_contents.roots("classification", compiled=True))
    names = bundle_contents.write_requirements(tmp_path, Layout(tmp_path), modules, compiled=True)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime=={version('onnxruntime')}" in lines
    assert [line.partition("==")[0] for line in lines[1:]] == names
    assert "--require-hashes" not in lines[0]


def test_a_lock_entry_keeps_all_versions_and_hashes_without_comments():
    lock = (
        "# made\nnumpy==1 ; python_version < '3.12' \\\n    --hash=sha256:a\n    # via x\n"
        "numpy==2 \\\n    --hash=sha256:b\nPy_Yaml[c]==3 \\\n    --hash=sha256:c\n"
    )
    found = bundle_contents.lock_entries(lock)
    assert found == {
        "numpy": "numpy==1 ; python_version < '3.12' \\\n    --hash=sha256:a\nnumpy==2 \\\n    --hash=sha256:b\n",
        "py-yaml": "Py_Yaml[c]==3 \\\n    --hash=sha256:c\n",
    }


def test_dependencies_of_a_package_are_included():
    found = bundle_contents.with_dependencies({"onnxruntime", "pydantic"})
    assert {"onnxruntime", "numpy", "pydantic", "pydantic-core", "typing-extensions"} <= found
    assert "pytest" not in found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([{"p": 0.5, "n": [1, "a"]}], [{"p": 0.25, "n": [1, "a"]}], 0.25),
        ([{"p": 1}], [{"p": 2}], float("inf")),
        ([1.0], [1.0, 2.0], float("inf")),
        ({"a": None}, {"a": None}, 0.0),
    ],
)
def test_the_difference_is_that_of_the_numbers_and_infinite_for_anything_else(one, other, expected):
    assert bundle.largest_difference(one, other) == expected


def test_no_database_address_leaves_the_project_and_the_section_is_unchanged(tmp_path):
    known = load(ROOT / "params.yaml")
    for name in known.problems:
        bundle._write_params(tmp_path, Layout(tmp_path), known, name)
        again = load(tmp_path / "params.yaml")
        assert list(again.problems) == [name]
        assert again.section(name) == known.section(name)
        assert all(each.url is None and each.store is None for each in again.ingest.values())
        assert not again.serve.ledger


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match="is not empty; name a new or empty folder"):
        bundle.run(Layout(ROOT), load(ROOT / "params.yaml"), "redeem", tmp_path, 1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_changed_model_file_is_not_loaded(tmp_path):
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "model.onnx").write_bytes(b"one")
    card = {"problem": "p", "version": 2, "compiled": True, "file": "model.onnx", "sha256": hashlib.sha256(b"two").hexdigest()}
    (tmp_path / MANIFEST).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"model.onnx: is not the exported file"):
        BundleFiles(tmp_path).load_compiled("p", 2)
    with pytest.raises(ModelError, match=r"cannot be read.*Is this the folder of a bundle"):
        BundleFiles(tmp_path / MODEL)


def test_a_bundle_is_complete_predicts_like_the_project_and_has_no_installed_package(
    tmp_path: Path, deployed: Deployed, monkeypatch
):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    layout = deployed(tmp_path / "shop", ("dear",))
    found = bundle.run(layout, load(layout.params), "dear", tmp_path / "bundle", None)
    assert (found.compiled, found.version, found.rows) == (True, 1, bundle.EXAMPLES)
    assert found.difference <= bundle.TOLERANCE
    assert bundle_server.BundleFiles(tmp_path / "bundle").model_input("dear", 1).optional == ("size", "colour")
    lines = (tmp_path / "bundle" / "requirements.txt").read_text()
    assert "onnxruntime==" in lines
    assert ("--require-hashes" in (tmp_path / "bundle" / "Dockerfile").read_text()) == layout.lock.is_file()
    assert not any(f"\n{name}==" in lines for name in HEAVY)
    monkeypatch.setattr(status_endpoints, "version", not_installed)
    app = bundle_server.application(tmp_path / "bundle", "127.0.0.1", tmp_path / "bundle")
    response = asyncio.run(app.routes["/v2"]["GET"].endpoint(HttpRequest({}, None, "", None, BodyBudget(0))))
    assert json.loads(response.body)["version"] == ""


def not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def test_the_example_request_is_strict_json():
    assert json.dumps(bundle._without_nan([{"a": float("nan"), "b": "x", "c": 1.5}]), allow_nan=False)
