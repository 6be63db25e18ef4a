"""What a version was made of comes back from git and DVC's cache, or is told to be gone."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from evergreen.flows.operations import reproduce
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import lineage
from evergreen.tasks.release.mlflow_store import Version

WHO = {f"GIT_{who}_{part}": value for who in ("AUTHOR", "COMMITTER") for part, value in (("NAME", "ada"), ("EMAIL", "a@b.org"))}
STAGES = "stages: {features: {cmd: python make.py, deps: [make.py], outs: [data/features/p]}}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, str, str]:
    """A project with one recorded folder; its commit, and DVC's hash of the folder. Then its code and data change."""
    root = tmp_path_factory.mktemp("my shop")
    layout = Layout(root)
    lineage.set_up(layout)
    (root / "params.yaml").write_text("project: {name: one}\n")
    (root / "make.py").write_text("")
    (root / "dvc.yaml").write_text(STAGES)
    (layout.features("p") / "deep").mkdir(parents=True)
    (layout.features("p") / "rows.parquet").write_text("rows")
    (layout.features("p") / "deep" / "more.parquet").write_text("more")
    lineage.Stages(layout).commit("features")
    digest = next(digest for path, digest in lineage._outputs(layout, "p"))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    commit = git(root, "rev-parse", "HEAD").strip()
    (root / "params.yaml").write_text("project: {name: two}\n")
    (layout.features("p") / "rows.parquet").write_text("other")
    return layout, commit, digest


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", root, *words], check=True, capture_output=True, text=True, env={**os.environ, **WHO}
    ).stdout


def version(**tags: str) -> Version:
    told = {name.replace("__", "."): value for name, value in tags.items()}
    return Version(problem="p", version=1, run_id="", created=datetime.now(UTC), aliases=(), tags=told, metrics={})


def test_a_commit_and_a_recorded_folder_come_back_as_they_were(project, tmp_path):
    layout, commit, digest = project
    assert lineage.archive(layout, commit, tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "project: {name: one}\n"
    assert not (tmp_path / "commit.tar").exists()
    assert lineage.restore(layout, digest, tmp_path / "features")
    assert (tmp_path / "features" / "rows.parquet").read_text() == "rows"
    assert (tmp_path / "features" / "deep" / "more.parquet").read_text() == "more"


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Layout, str]:
    """A project that holds its own copy of the package, laid out as this one is: folders at the top, links to them in src."""
    root = tmp_path / "project"
    for name, text in {
        "src/evergreen/__init__.py": "",
        "src/evergreen/__main__.py": "from evergreen.tasks import step\nstep.run()\n",
        "tasks/__init__.py": "",
        "tasks/step.py": STEP,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "src" / "evergreen" / "tasks").symlink_to("../../tasks")
    git(tmp_path, "init", "-q", "project")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    return Layout(root), git(root, "rev-parse", "HEAD").strip()


STEP = """
import sys
from pathlib import Path

def run():
    Path("ran.txt").write_text(f"{__file__} {sys.argv[1:3]}")
    sys.exit("no such rows" if sys.argv[1] == "evaluate" else 0)
"""


def test_a_step_runs_by_the_code_of_its_commit_through_the_links_of_the_package(checkout, tmp_path):
    layout, commit = checkout
    (layout.root / "tasks" / "step.py").write_text("raise SystemExit('the code of today')")
    scratch = Layout(tmp_path / "scratch")
    scratch.root.mkdir()
    assert lineage.archive(layout, commit, scratch.root)
    assert (scratch.root / "src" / "evergreen" / "tasks").readlink() == Path("../../tasks")
    assert reproduce._step(scratch, "train", "p") == ""
    code = scratch.root / "src" / "evergreen" / "tasks" / "step.py"
    assert (scratch.root / "ran.txt").read_text() == f"{code} ['train', 'p']"
    assert reproduce._step(scratch, "evaluate", "p") == "no such rows"


def test_a_step_of_a_project_without_the_package_runs_by_the_installed_code(tmp_path):
    (tmp_path / "params.yaml").write_text("project: {nmae: one}\n")
    assert "unknown key" in reproduce._step(Layout(tmp_path), "train", "p")


def test_what_is_not_to_be_had_is_told_and_what_to_do(project, tmp_path):
    layout, _, digest = project
    gone = version(git__commit="0" * 40, git__dirty="true", git__changed="params.yaml, tasks/train.py")
    said = list(reproduce._code(layout, gone, Layout(tmp_path)))
    assert said[0].startswith("code: git does not know the commit 000000000000")
    assert said[1] == "code: when it was trained, changes were not committed and are lost: tasks/train.py"
    tags = {"dvc.data/features/p": digest, "dvc.models/p/tuning": "ab" * 16 + ".dir"}
    found = version().model_copy(update={"tags": tags})
    said = list(reproduce._data(layout, found, Layout(tmp_path)))
    assert said == ["data: models/p/tuning (abababababab) is not in DVC's cache; dvc fetch brings it where a remote holds it"]


def test_recorded_params_stand_over_those_of_the_commit(project, tmp_path):
    layout, commit, _ = project
    lineage.archive(layout, commit, tmp_path)
    said = list(reproduce._params(layout, version(params='{"a": 1}', as_of="2024-05-06", kind="regression"), Layout(tmp_path)))
    assert [line.partition(":")[0] for line in said] == ["params"]
    text = (tmp_path / "params.yaml").read_text()
    assert "as_of: '2024-05-06'" in text.replace('"', "'") or "as_of: 2024-05-06" in text
    assert "name: one" in text


def test_packages_of_another_version_than_in_the_lock_are_named(project, tmp_path):
    (tmp_path / "requirements.lock").write_text(
        "numpy==0.1 \\\n    --hash=sha256:a\nnowhere-to-be-found==1 \\\n    --hash=sha256:b\n"
    )
    said = list(reproduce._libraries(Layout(tmp_path), version(python="2.7.1")))
    assert said[0].startswith("libraries: Python 2.7.1 then, ")
    assert said[1] == f"libraries: numpy 0.1 then, {np.__version__} here"


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        ({"p": np.array([1.0, np.nan])}, {"p": np.array([1.0 + 1e-12, np.nan])}, pytest.approx(1e-12, rel=1e-3)),
        ({"p": np.array([1000.0])}, {"p": np.array([1001.0])}, 0.001),
        ({"p": np.array(["a"])}, {"p": np.array(["b"])}, None),
        ({"p": np.array([1.0])}, {"q": np.array([1.0])}, None),
        ({"p": np.array([1.0])}, {"p": np.array([1.0, 2.0])}, None),
    ],
)
def test_predictions_are_compared_by_their_numbers_and_labels_must_be_the_same(one, two, apart):
    assert reproduce._apart(one, two) == apart
