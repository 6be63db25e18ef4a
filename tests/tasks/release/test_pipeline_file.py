"""dvc.yaml follows params.yaml: source files are dependencies of ingest, and each problem has its plots."""

from pathlib import Path

import pytest
import yaml

from evergreen.tasks.config import loading
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release import pipeline_file
from tests import ROOT

TEMPLATE = ROOT / "flows" / "templates" / "dvc.yaml"


def lay(folder: Path, sources: str) -> Layout:
    """A project whose tables have `sources`, a mapping of YAML, and the dvc.yaml of a new project."""
    layout = Layout(folder)
    features = "{table: t, target: y, columns: {x: number}}"
    layout.params.write_text(
        f"project: {{name: p}}\nproblems: {{a: regression}}\ningest: {{t: {{csv: t.csv}}, {sources}}}\nvalidate: {{}}\n"
        f"a: {{question: q, features: {features}, pipeline: {{}}, tune: {{}}, train: {{}}, evaluate: {{}}, gate: {{}}}}\n"
    )
    if not (folder / "dvc.yaml").exists():
        (folder / "dvc.yaml").write_bytes(TEMPLATE.read_bytes())
    return layout


def deps(layout: Layout) -> list[str]:
    pipeline_file.name_sources(layout, loading.load(layout.params))
    return yaml.safe_load((layout.root / "dvc.yaml").read_text())["stages"]["ingest"]["deps"]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{parquet: old/u.parquet}", ["${ingest.u.parquet}"]),
        ("{jsonl: /elsewhere/u.jsonl}", ["${ingest.u.jsonl}"]),
        ("{csv: ../u.csv}", ["${ingest.u.csv}"]),
        ("{parquet: in/2024-*.parquet}", ["in"]),
        ("{parquet: 'in/*/u?.parquet'}", ["in"]),
        ("{parquet: 'part-*.parquet'}", ["part-1.parquet", "part-2.parquet"]),
        ("{parquet: 'data/part-*.parquet'}", ["data/part-1.parquet"]),
        ("{sql: select 1, url: 'env:DB'}", []),
        ("{store: products}", []),
    ],
)
def test_files_folders_and_globs_are_dependencies_and_queries_are_none(tmp_path: Path, source: str, wanted: list[str]):
    (tmp_path / "data").mkdir()
    for name in ("part-1.parquet", "part-2.parquet", "data/part-1.parquet"):
        (tmp_path / name).touch()
    assert deps(lay(tmp_path, f"u: {source}")) == ["${ingest.t.csv}", *wanted]


def test_the_file_stays_as_it_is_beside_its_dependencies(tmp_path: Path):
    layout = lay(tmp_path, "u: {csv: u.csv}")
    before = (layout.root / "dvc.yaml").read_text().splitlines()
    assert deps(layout) == ["${ingest.t.csv}", "${ingest.u.csv}"]
    after = (layout.root / "dvc.yaml").read_text().splitlines()
    assert [line for line in after if line not in before] == ["    deps: ['${ingest.t.csv}', '${ingest.u.csv}']"]
    assert [line for line in before if line not in after] == []
    assert not pipeline_file.name_sources(layout, loading.load(layout.params))


def test_a_table_that_is_gone_leaves_and_what_a_person_wrote_stays(tmp_path: Path):
    layout = lay(tmp_path, "u: {csv: u.csv}")
    deps(layout)
    text = (layout.root / "dvc.yaml").read_text()
    (layout.root / "dvc.yaml").write_text(text.replace("deps: ['${ingest.t.csv}'", "deps: [export.py, '${ingest.t.csv}'"))
    assert deps(lay(tmp_path, "w: {parquet: w.parquet}")) == ["export.py", "${ingest.t.csv}", "${ingest.w.parquet}"]


def test_plots_are_listed_once_and_templates_of_a_person_stay(tmp_path: Path):
    layout = lay(tmp_path, "u: {csv: u.csv}")
    (tmp_path / ".dvc" / "plots").mkdir(parents=True)
    (tmp_path / ".dvc" / "plots" / "roc.json").write_text("mine")
    for _ in range(2):
        pipeline_file.add_plots(layout, "a", ["roc", "gain"], {"roc.json": "{}", "gain.json": "{}"})
    assert yaml.safe_load((layout.root / "dvc.yaml").read_text())["plots"] == [
        {"reports/a/plots/roc.csv": {"template": "roc", "title": "a"}},
        {"reports/a/plots/gain.csv": {"template": "gain", "title": "a"}},
    ]
    assert (tmp_path / ".dvc" / "plots" / "roc.json").read_text() == "mine"
    assert (tmp_path / ".dvc" / "plots" / "gain.json").read_text() == "{}"
