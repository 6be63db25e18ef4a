"""What is written in one place holds in the others: stages, params, kinds, imports, the lock."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.config import params
from tests import ROOT

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
KINDS = (ROOT / "docs" / "explanation" / "problem-kinds.md").read_text()
PROBLEMS = PARAMS["problems"]
HOMES = {
    "great_expectations": {"tasks/data/great_expectations.py"},
    "optuna": {"tasks/search/optuna_study.py"},
    "mlflow": {"tasks/release/mlflow_store.py", "tasks/release/mlflow_model.py"},
    "dvc": {"tasks/release/lineage.py"},
    "vl_convert": {"monitoring/report/vega.py"},
    "evidently": {"monitoring/drift/evidently_report.py"},
    "implicit": {"tasks/problems/recommender/candidate_sources.py"},
    "onnx": {"tasks/model_files/onnx_graph.py"},
    "onnxruntime": {"tasks/model_files/onnx_runtime.py"},
}


def stages() -> list[tuple[str, str, str, dict]]:
    """(name, problem, kind, stage) of every stage, the ones per problem filled in."""
    found = []
    for name, stage in DVC["stages"].items():
        if "foreach" not in stage:
            found.append((name, "", "", stage))
        for problem, kind in PROBLEMS.items() if "foreach" in stage else ():
            text = yaml.safe_dump(stage["do"]).replace("${key}", problem).replace("${item}", kind)
            found.append((name, problem, kind, yaml.safe_load(text)))
    return found


@pytest.mark.parametrize(
    ("name", "problem", "kind", "stage"), stages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_stage_names_a_real_step_its_own_module_and_keys_that_exist(name, problem, kind, stage):
    assert stage["cmd"] == f"python -P -m evergreen {name} {problem}".strip()
    assert STEPS[name] == bool(problem)
    assert f"tasks/{name}.py" in stage["deps"]
    for path in stage["deps"]:
        assert not path.startswith("tasks/") or (ROOT / path).exists(), path
    for key in stage["params"]:
        section = PARAMS
        for part in key.split("."):
            assert part in section, f"{name}: params key {key} is not in params.yaml"
            section = section[part]


def test_the_stages_are_the_steps():
    assert list(DVC["stages"]) == list(STEPS)


def test_every_kind_has_a_folder_a_contract_and_a_row_in_the_documentation():
    for kind in params.SECTIONS:
        for part in ("kind", "predictions"):
            assert (ROOT / f"tasks/problems/{kind}/{part}.py").is_file()
            tests = ROOT / f"tests/tasks/problems/{kind}/test_{part}.py"
            classes = [node for node in ast.parse(tests.read_text()).body if isinstance(node, ast.ClassDef)]
            bases = [ast.unparse(base) for node in classes for base in node.bases]
            assert any("Contract" in base for base in bases), f"{tests} inherits no contract"
        assert re.search(rf"^\| {kind} ", KINDS, re.M), f"docs/explanation/problem-kinds.md has no row for {kind}"


@cache
def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def sources() -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for room in ("flows", "tasks", "serving", "monitoring")
        for path in (ROOT / room).rglob("*.py")
    ]


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library):
    assert {path for path in sources() if library in imported(ROOT / path)} == HOMES[library]


def test_prefect_lives_in_flows_alone():
    assert {path.split("/")[0] for path in sources() if "prefect" in imported(ROOT / path)} == {"flows"}


def test_imports_flow_one_way():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        assert re.search(rf'^\s*"{re.escape(requirement)}",\s+# \w', text, re.M), requirement


LOCKS = ("requirements.lock", "requirements-serving.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_by_hash_and_names_no_address(name):
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert "index-url" not in lock
    blocks = re.split(r"\n(?=[a-z0-9])", lock)[1:]
    assert len(blocks) > 50
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)


def test_the_serving_lock_has_versions_of_the_whole_lock_and_no_training_library():
    whole, serving = (set(re.findall(r"^\S+==[^ ;\\]+", (ROOT / name).read_text(), re.M)) for name in LOCKS)
    assert serving <= whole
    assert not {each.partition("==")[0] for each in serving} & {
        "scikit-learn",
        "lightgbm",
        "pandas",
        "pyarrow",
        "prefect",
        "dvc",
    }


def test_every_test_file_is_collected():
    for path in (ROOT / "tests").rglob("*.py"):
        has_tests = any(
            (isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
            or (isinstance(node, ast.ClassDef) and node.name.startswith("Test"))
            for node in ast.parse(path.read_text()).body
        )
        assert not has_tests or path.name.startswith("test_"), f"{path}: holds tests that pytest does not collect"


def test_no_file_names_this_machine():
    for path in sources():
        assert not re.search(r"/(root|home|work)/", (ROOT / path).read_text()), path
