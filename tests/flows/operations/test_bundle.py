"""A bundle: the modules and packages that answering needs, no more, and a model that is what was exported."""

import hashlib
import json

import pytest

from evergreen.flows.operations import bundle
from evergreen.serving.bundle_server import MANIFEST, MODEL, BundleFiles
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import ModelError, ProjectError
from evergreen.tasks.core.paths import Layout
from tests import ROOT

HEAVY = {"sklearn", "mlflow", "lightgbm", "prefect", "dvc", "polars", "pandas", "optuna", "evidently", "onnx"}


def packages(modules: dict) -> set[str]:
    return {name.partition(".")[0] for tree in modules.values() for name in bundle.imported(tree)}


def test_a_compiled_model_is_served_without_the_libraries_of_training():
    modules = bundle.closure(bundle._roots("classification", compiled=True))
    assert {
        "evergreen.serving.bundle_server",
        "evergreen.serving.app",
        "evergreen.tasks.model_files.onnx_runtime",
        "evergreen",
    } <= modules.keys()
    assert not packages(modules) & HEAVY
    assert not any(name.startswith("evergreen.tasks.problems") for name in modules)


def test_a_recommender_brings_what_its_lists_are_made_by():
    modules = bundle.closure(bundle._roots("recommendation", compiled=False))
    assert {
        "evergreen.tasks.model_files.skops_models",
        "evergreen.tasks.problems.recommendation.kind",
        "evergreen.serving.recommender_service",
        "evergreen.serving.event_log",
    } <= modules.keys()
    assert not packages(modules) & {"mlflow", "prefect", "dvc", "optuna", "evidently"}


def test_a_package_keeps_all_its_versions_and_hashes_and_no_comment():
    lock = (
        "# made\nnumpy==1 ; python_version < '3.12' \\\n    --hash=sha256:a\n    # via x\n"
        "numpy==2 \\\n    --hash=sha256:b\nPy_Yaml[c]==3 \\\n    --hash=sha256:c\n"
    )
    found = bundle._blocks(lock)
    assert found == {
        "numpy": "numpy==1 ; python_version < '3.12' \\\n    --hash=sha256:a\nnumpy==2 \\\n    --hash=sha256:b\n",
        "py-yaml": "Py_Yaml[c]==3 \\\n    --hash=sha256:c\n",
    }


def test_what_a_package_needs_comes_with_it():
    found = bundle._with_all_they_need({"onnxruntime", "pydantic"})
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
def test_two_answers_are_as_far_apart_as_their_numbers_and_else_not_alike_at_all(one, other, expected):
    assert bundle.apart(one, other) == expected


def test_no_address_of_a_database_leaves_the_project_and_the_section_stays_as_it_is(tmp_path):
    known = load(ROOT / "params.yaml")
    for name in known.problems:
        bundle._lay_params(tmp_path, known, name)
        again = load(tmp_path / "params.yaml")
        assert list(again.problems) == [name]
        assert again.section(name) == known.section(name)
        assert all(each.url is None and each.store is None for each in again.ingest.values())
        assert not again.serve.ledger


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match="is there already; name a folder that is new or empty"):
        bundle.run(Layout(ROOT), load(ROOT / "params.yaml"), "redeem", tmp_path, 1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_model_that_is_not_the_one_exported_is_not_loaded(tmp_path):
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "model.onnx").write_bytes(b"one")
    card = {"problem": "p", "version": 2, "compiled": True, "file": "model.onnx", "sha256": hashlib.sha256(b"two").hexdigest()}
    (tmp_path / MANIFEST).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"model.onnx: is not the exported file"):
        BundleFiles(tmp_path).load_compiled("p", 2)
    with pytest.raises(ModelError, match=r"cannot be read.*Is this the folder of a bundle"):
        BundleFiles(tmp_path / MODEL)


def test_a_request_that_lies_in_a_bundle_is_strict_json():
    assert json.dumps(bundle._known([{"a": float("nan"), "b": "x", "c": 1.5}]), allow_nan=False)
