"""A stage of dvc.yaml depends on the code that it imports: neither less nor more."""

from pathlib import Path

import pytest
import yaml

from evergreen.tasks.__main__ import STEPS
from evergreen.tasks.search import specification
from tests import ROOT
from tests.wiring.imports import closure

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = ("tasks/", "src/")


def code_deps(stage: str) -> list[str]:
    """The deps of a stage that are code, in their order."""
    return [dep for dep in STAGES[stage].get("do", STAGES[stage])["deps"] if dep.startswith(CODE)]


def room(path: Path) -> str:
    """The room of a file of tasks; the file itself for one that is in no room."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2] if parts[0] == "tasks" else parts)


@pytest.mark.parametrize("stage", STEPS)
def test_a_stage_depends_on_the_rooms_that_it_imports_and_on_no_others(stage):
    deps, imported = code_deps(stage), {room(path) for path in closure(ROOT / "tasks" / f"{stage}.py")}
    assert len(deps) == len(set(deps))
    assert imported - set(deps) == set(), f"dvc.yaml: {stage}: deps lacks what it imports"
    assert set(deps) - imported == set(), f"dvc.yaml: {stage}: deps names what it never imports"


def test_a_closure_follows_imports_inside_functions_and_kinds_that_are_imported_by_name():
    found = {str(path.relative_to(ROOT)) for path in closure(ROOT / "tasks" / "tune.py")}
    inside_a_function = "tasks/problems/tabular/subsample.py"
    assert {inside_a_function, "tasks/problems/clustering/kind.py", "tasks/search/optuna_study.py"} <= found
    assert "tasks/search/best_config.py" not in found


def test_an_interrupted_search_resumes_only_with_the_code_that_the_stage_depends_on():
    deps = [dep.removeprefix("src/evergreen/") for dep in code_deps("tune")]
    assert sorted(specification.CODE) == sorted(deps)
    assert all(path.exists() for path in specification._code())
    assert len(specification._code()) > len(specification.CODE)
