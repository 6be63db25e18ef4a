"""Recording with DVC, and lineage, on a real git and DVC project with the code of this one and made-up outputs."""

import fcntl
import hashlib
import json
import logging
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from evergreen.tasks.config import loading
from evergreen.tasks.core.errors import LockedError, ProjectError
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release.lineage import Stages, lineage
from tests import ROOT
from tests.kills import KilledError

pytestmark = pytest.mark.slow

PROBLEMS = {"redeem": "classification", "segments": "clustering"}
BRANCH = ("features", "tune", "train", "evaluate", "diagnose", "explain")
EVERY = ["ingest", "validate", *(f"{step}@{name}" for step in BRANCH for name in PROBLEMS)]


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def write_params(root: Path, trials: int = 12) -> None:
    yaml = YAML(typ="safe")
    raw = yaml.load(ROOT / "params.yaml")
    kept: dict[str, Any] = {key: raw[key] for key in ("project", "ingest", "validate", *PROBLEMS)}
    kept["problems"] = PROBLEMS
    kept["redeem"]["tune"]["n_trials"] = trials
    write(root, "params.yaml", json.dumps(kept))


def write_outputs(root: Path) -> None:
    for path in ("data/raw/t.parquet", "data/tables/t.parquet", "data/quarantine/t.parquet", "reports/validation/v.json"):
        write(root, path, path)
    for name in PROBLEMS:
        write(root, f"data/features/{name}/rows.parquet", name)
        (root / "data" / "newest" / name).mkdir(parents=True, exist_ok=True)
        write(root, f"models/{name}/tuning/best.json", name)
        write(root, f"models/{name}/model/model.json", json.dumps({"cutoff": "2017-12-03"}))
        for part in ("metrics", "headline"):
            write(root, f"reports/{name}/{part}.json", '{"score": 1}')
        write(root, f"reports/{name}/plots/curve.csv", "x,y\n1,2\n")
        for part in ("evaluation", "diagnosis", "explanation"):
            write(root, f"reports/{name}/{part}/{part}.json", name)


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project whose every stage is recorded; its path holds a space."""
    root = tmp_path_factory.mktemp("record") / "my shop"
    root.mkdir()
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("tasks", "src"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    write_params(root)
    write_outputs(root)
    git(root, "init", "-q")
    Repo.init(str(root)).close()
    stages = Stages(Layout(root))
    for stage in EVERY:
        stages.commit(stage)
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


@pytest.fixture
def project(recorded: Path, tmp_path: Path) -> Layout:
    return Layout(Path(shutil.copytree(recorded, tmp_path / "my shop", symlinks=True)))


def test_after_every_stage_is_committed_dvc_has_nothing_to_do(project: Layout):
    assert Stages(project).status() == {}


def test_a_stage_never_recorded_is_not_fresh(project: Layout):
    (project.root / "dvc.lock").unlink()
    assert not Stages(project).fresh("train@redeem")


def test_the_current_folder_does_not_matter(project: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stages = Stages(project)
    (project.model("redeem") / "model.json").unlink()
    assert list(stages.status()) == ["train@redeem", "evaluate@redeem", "explain@redeem"]
    assert not stages.fresh("train@redeem")
    assert stages.fresh("train@segments")


def test_one_number_changed_in_redeem_tune_makes_that_stage_alone_stale(project: Layout):
    stages = Stages(project)
    write_params(project.root, trials=13)
    assert [stage for stage in EVERY if not stages.fresh(stage)] == ["tune@redeem"]
    stages.commit("tune@redeem")
    assert stages.fresh("tune@redeem")


def test_a_deleted_output_makes_its_stage_stale_and_cannot_be_committed(project: Layout):
    stages = Stages(project)
    shutil.rmtree(project.tuning("redeem"))
    assert not stages.fresh("tune@redeem")
    with pytest.raises(ProjectError, match=r"dvc\.yaml: output .*models/redeem/tuning.* does not exist"):
        stages.commit("tune@redeem")


def test_a_new_output_is_stale_until_it_is_committed_and_so_is_what_reads_it(project: Layout):
    stages = Stages(project)
    write(project.root, "models/redeem/tuning/best.json", "better")
    stages.commit("tune@redeem")
    assert stages.fresh("tune@redeem")
    assert not stages.fresh("train@redeem")
    assert stages.fresh("evaluate@segments")


def test_the_graph_names_what_each_stage_reads(project: Layout):
    graph = Stages(project).graph()
    assert sorted(graph) == sorted(EVERY)
    assert graph["ingest"] == []
    assert graph["validate"] == ["ingest"]
    assert graph["train@redeem"] == ["features@redeem", "tune@redeem"]
    assert graph["evaluate@segments"] == ["features@segments", "train@segments"]
    assert graph["diagnose@segments"] == ["features@segments", "tune@segments"]
    before = ("diagnose", "evaluate", "features", "train", "tune")
    assert graph["explain@segments"] == [f"{step}@segments" for step in before]


def test_a_stage_that_is_not_there_is_named(project: Layout):
    with pytest.raises(ProjectError, match="Stage 'train@reedem' not found"):
        Stages(project).fresh("train@reedem")


def test_without_git_it_says_git_init(project: Layout):
    shutil.rmtree(project.root / ".git")
    with pytest.raises(ProjectError, match=r"my shop: not a git repository, .*run git init"):
        Stages(project)
    with pytest.raises(ProjectError, match=r"my shop: not a git repository, .*run git init"):
        lineage(project, loading.load(project.params), "redeem")


def test_without_dvc_it_says_dvc_init(project: Layout):
    shutil.rmtree(project.root / ".dvc")
    with pytest.raises(ProjectError, match="my shop: DVC is not set up here; run dvc init"):
        Stages(project)


@pytest.mark.parametrize("text", ["", "<<<<<<< HEAD\n"])
def test_a_lock_file_that_cannot_be_read_is_named_with_the_way_out(project: Layout, text: str):
    write(project.root, "dvc.lock", text)
    with pytest.raises(ProjectError, match=r"dvc.lock: .*git checkout dvc.lock.*or remove it"):
        Stages(project).fresh("ingest")


def test_another_dvc_that_keeps_the_lock_is_a_busy_error(project: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.1)
    stages = Stages(project, patience=0.1)
    with (project.root / ".dvc" / "tmp" / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="my shop: another dvc command has held the lock"):
            stages.fresh("ingest")


def test_it_waits_for_another_dvc_that_ends(project: Layout, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.1)
    stages = Stages(project)
    with (
        (project.root / ".dvc" / "tmp" / "lock").open("a") as other,
        caplog.at_level(logging.INFO, "evergreen.tasks.release.lineage"),
    ):
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.5, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        assert stages.fresh("ingest")
        release.join()
    assert "another dvc command holds the lock of this project; waiting" in caplog.text


@pytest.mark.parametrize("cut", [0, 50], ids=["between stages", "within a stage"])
@pytest.mark.parametrize("recorded_before", [True, False])
def test_a_kill_while_dvc_writes_its_lock_loses_no_recorded_stage(
    project: Layout, recorded_before: bool, cut: int, monkeypatch: pytest.MonkeyPatch
):
    lock, commit = project.root / "dvc.lock", Repo.commit
    if not recorded_before:
        lock.unlink()

    def kill(repo: Repo, *given: Any, **more: Any) -> None:
        commit(repo, *given, **more)
        content = lock.read_text()
        lock.write_text(content[: content.index("  tune@redeem:") + cut])
        raise KilledError("in the middle")

    monkeypatch.setattr(Repo, "commit", kill)
    with pytest.raises(KilledError, match="in the middle"):
        Stages(project).commit("tune@redeem")
    monkeypatch.undo()
    assert Stages(project).fresh("ingest") == recorded_before
    assert set(Stages(project).status()) == (set() if recorded_before else set(EVERY))
    Stages(project).commit("tune@redeem")
    assert Stages(project).fresh("tune@redeem")


def test_threads_take_turns(project: Layout):
    stages = Stages(project, patience=0)
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for step in BRANCH:
                stages.commit(f"{step}@{name}")
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    branches = [threading.Thread(target=work, args=(name,)) for name in PROBLEMS]
    for each in branches:
        each.start()
    for each in branches:
        each.join()
    assert not failures
    assert stages.status() == {}


def test_lineage_names_code_data_params_and_cost(project: Layout):
    write(project.root, "requirements.lock", "numpy==2.4.6\n")
    git(project.root, "add", ".")
    git(project.root, "commit", "-qm", "lock")
    for name, seconds in (("ingest", 1.5), ("train@redeem", 2.5), ("train@segments", 9.5)):
        write(project.root, f"var/costs/{name}.json", json.dumps({"cpu_seconds": seconds, "peak_mb": 100.0}))
    found = lineage(project, loading.load(project.params), "redeem")
    assert found["git.commit"] == git(project.root, "rev-parse", "HEAD").strip()
    assert found["git.dirty"] == "false"
    assert {key for key in found if key.startswith("dvc.")} == {
        *("dvc.data/raw", "dvc.data/tables", "dvc.data/quarantine", "dvc.reports/validation"),
        *("dvc.data/features/redeem", "dvc.data/newest/redeem", "dvc.models/redeem/tuning", "dvc.models/redeem/model"),
        *("dvc.reports/redeem/evaluation", "dvc.reports/redeem/metrics.json", "dvc.reports/redeem/plots"),
        "dvc.reports/redeem/headline.json",
        *("dvc.reports/redeem/diagnosis", "dvc.reports/redeem/explanation"),
    }
    lock = YAML(typ="safe").load(project.root / "dvc.lock")
    assert found["dvc.models/redeem/model"] == lock["stages"]["train@redeem"]["outs"][0]["md5"]
    assert json.loads(found["params"])["tune"]["n_trials"] == 12
    assert (found["cutoff"], found["as_of"]) == ("2017-12-03", "2017-12-31")
    assert found["requirements.lock"] == hashlib.sha256(b"numpy==2.4.6\n").hexdigest()
    assert (found["cpu_seconds.ingest"], found["cpu_seconds.train"], found["peak_mb.train"]) == ("1.5", "2.5", "100.0")


def test_a_changed_file_makes_the_tree_dirty_and_dvc_lock_does_not(project: Layout):
    known = loading.load(project.params)
    (project.root / "dvc.lock").write_text((project.root / "dvc.lock").read_text() + "\n")
    assert lineage(project, known, "redeem")["git.dirty"] == "false"
    for number in range(22):
        write(project.root, f"more/ä {number:02}.py", "")
    write(project.root, "tasks/train.py", "changed = 1")
    git(project.root, "add", "more")
    found = lineage(project, known, "redeem")
    assert found["git.dirty"] == "true"
    assert found["git.changed"].startswith("more/ä 00.py, more/ä 01.py, ")
    assert found["git.changed"].endswith("more/ä 19.py and 3 more")


def test_before_the_first_commit_the_commit_is_none(project: Layout):
    shutil.rmtree(project.root / ".git")
    git(project.root, "init", "-q")
    assert lineage(project, loading.load(project.params), "redeem")["git.commit"] == "none"
