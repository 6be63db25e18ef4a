"""`evergreen upgrade` brings the stages of dvc.yaml that nobody edited to the present ones, and says what the others lack."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evergreen.flows.cli.main import app
from evergreen.flows.operations import upgrade_stages
from evergreen.tasks.core.errors import LockedError, ProjectError
from evergreen.tasks.core.paths import Layout, locking
from evergreen.tasks.release import lineage
from tests import ROOT

TEMPLATES = ROOT / "flows" / "templates"
EARLIER = sorted((TEMPLATES / "earlier").iterdir())
PRESENT: dict[str, Any] = yaml.safe_load((TEMPLATES / "dvc.yaml").read_text())


def lay(folder: Path, text: str) -> Layout:
    (folder / "dvc.yaml").write_text(text)
    (folder / "params.yaml").write_text("project: {name: shop}\nproblems: {churn: classification}\n")
    return Layout(folder)


def written(layout: Layout) -> dict[str, Any]:
    return yaml.safe_load((layout.root / "dvc.yaml").read_text())


@pytest.mark.parametrize("earlier", EARLIER, ids=lambda each: each.stem)
def test_stages_of_each_earlier_version_become_those_of_a_new_project(earlier: Path, tmp_path: Path):
    layout = lay(tmp_path, earlier.read_text())
    before = earlier.read_bytes()
    told = upgrade_stages.run(layout, dry_run=True)
    assert (tmp_path / "dvc.yaml").read_bytes() == before
    assert upgrade_stages.run(layout) == told
    assert any(each.endswith("outs: data/newest/${key} added") for each in told.changed)
    assert told.edited == ()
    assert written(layout) == PRESENT
    assert upgrade_stages.run(layout) == upgrade_stages.NOTHING


def test_dvc_reads_the_stages_that_an_upgrade_wrote(tmp_path: Path):
    layout = lay(tmp_path, EARLIER[0].read_text())
    lineage.set_up(layout)
    upgrade_stages.run(layout)
    (tmp_path / "params.yaml").write_text("problems: {churn: classification}\n")
    assert lineage.Stages(layout).graph()["explain@churn"] == [
        "diagnose@churn", "evaluate@churn", "features@churn", "train@churn", "tune@churn"
    ]  # fmt: skip


def test_sources_comments_other_stages_and_plots_stay(tmp_path: Path):
    text = EARLIER[-1].read_text()
    text = text.replace("evergreen ingest\n", "evergreen ingest\n    deps: ['${ingest.t.csv}', fetch.py]\n")
    text = text.replace("  tune:\n", "  # the long one\n  tune:\n").replace(
        "stages:\n", "stages:\n  fetch: {cmd: ./fetch}  # ours\n"
    )
    layout = lay(tmp_path, text + "plots:\n  - more.csv  # kept\n")
    assert [each.split(":")[0] for each in upgrade_stages.run(layout).changed] == [
        "features", "tune", "train", "evaluate", "diagnose", "explain"
    ]  # fmt: skip
    after = (tmp_path / "dvc.yaml").read_text()
    for kept in (
        "deps: ['${ingest.t.csv}', fetch.py]",
        "# the long one",
        "fetch: {cmd: ./fetch}  # ours",
        "- more.csv  # kept",
    ):
        assert kept in after
    pairs = zip(text.splitlines(), after.splitlines(), strict=False)
    assert sum(old != new for old, new in pairs) == 6  # a line of each stage


def test_a_stage_that_was_edited_stays_and_is_told_what_it_lacks(tmp_path: Path):
    text = EARLIER[-1].read_text()
    text = text.replace('deps: ["data/features/${key}"]', 'deps: ["data/features/${key}", ours.py]')
    text = text.replace('"${key}.features"]', '"${key}.features", ours]')
    layout = lay(tmp_path, text)
    done = upgrade_stages.run(layout)
    assert done.edited == (
        "features: outs: add data/newest/${key}",
        "tune: params: add project.seed, remove project",
    )
    assert [each.split(":")[0] for each in done.changed] == ["train", "evaluate", "diagnose", "explain"]
    for name in ("features", "tune"):
        assert written(layout)["stages"][name] == yaml.safe_load(text)["stages"][name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('deps: ["data/features/${key}"]', 'deps: ["data/features/${key}", ours.py]'),
        ("params: [validate]", "params: [validate, ours]"),
        ("{persist: true}", "{persist: true, cache: false}"),
        ("foreach: ${problems}", "foreach: [churn]"),
        ("[data/raw: {persist: true}]", "[{data/raw: , ours: {cache: false}}, {}]"),
        ("    params: [validate]\n", "    params: [validate]\n    frozen: true\n"),
        (', "${key}.train"', ""),
    ],
)
def test_what_a_person_changed_in_a_present_stage_is_no_matter_of_an_upgrade(old: str, new: str, tmp_path: Path):
    text = (TEMPLATES / "dvc.yaml").read_text()
    assert old in text
    layout = lay(tmp_path, text.replace(old, new))
    assert upgrade_stages.run(layout) == upgrade_stages.NOTHING
    assert (tmp_path / "dvc.yaml").read_text() == text.replace(old, new)


def test_a_clone_whose_stages_name_its_code_lacks_nothing(tmp_path: Path):
    layout = lay(tmp_path, (ROOT / "dvc.yaml").read_text())
    assert upgrade_stages.run(layout) == upgrade_stages.NOTHING


def test_a_project_without_dvc_yaml_is_left_alone(tmp_path: Path):
    assert upgrade_stages.run(Layout(tmp_path)) == upgrade_stages.NOTHING
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("stages:\n  tune: {\n", r"dvc.yaml: line 3: .* A key may occur once; indent with spaces"),
        ("stages:\n  tune: {}\n  tune: {}\n", r"dvc.yaml: line 3: found duplicate key .*A key may occur once"),
        ("plots: []\n", r"dvc.yaml: needs a mapping of stages. Restore it from git"),
        ("stages: [tune]\n", r"dvc.yaml: needs a mapping of stages. Restore it from git"),
        ("", r"dvc.yaml: needs a mapping of stages. Restore it from git"),
    ],
)
def test_a_broken_dvc_yaml_is_named_and_kept(text: str, error: str, tmp_path: Path):
    layout = lay(tmp_path, text)
    with pytest.raises(ProjectError, match=error):
        upgrade_stages.run(layout)
    assert (tmp_path / "dvc.yaml").read_text() == text


def test_no_stage_changes_under_a_training(tmp_path: Path):
    layout = lay(tmp_path, EARLIER[0].read_text())
    with locking(layout.var / "train.lock", "train"), pytest.raises(LockedError, match=r"upgrade: process .* holds the lock"):
        upgrade_stages.run(layout)
    assert written(layout) == yaml.safe_load(EARLIER[0].read_text())


def test_the_command_lists_what_it_would_do_and_then_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    text = EARLIER[-1].read_text().replace('"${key}.features"]', '"${key}.features", ours]')
    lay(tmp_path, text)
    asked = ("upgrade", "--root", str(tmp_path))
    said = CliRunner().invoke(app, (*asked, "--dry-run")).output
    assert "dvc.yaml: tune: params: project.seed added, project removed\n" in said
    assert "dvc.yaml: features: outs: add data/newest/${key}. The stage was edited by hand and stays; make" in said
    assert said.endswith("Nothing was changed.\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]
    assert (tmp_path / "dvc.yaml").read_text() == text
    done = json.loads(CliRunner().invoke(app, (*asked, "--json")).stdout)
    assert (len(done["stages"]["changed"]), len(done["stages"]["edited"]), done["changed"]) == (5, 1, True)
    assert (tmp_path / ".gitignore").is_file()
    again = CliRunner().invoke(app, asked).output
    assert "added" not in again
    assert "features: outs: add data/newest/${key}. The stage was edited" in again
