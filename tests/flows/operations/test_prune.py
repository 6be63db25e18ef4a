"""Pruning removes what its rules state, and nothing that serves, is rolled back to or is reproduced."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergreen.flows import settings
from evergreen.flows.operations import prune
from evergreen.monitoring.ledger.predictions import Prediction
from evergreen.tasks.config.loading import load
from evergreen.tasks.core.errors import LockedError
from evergreen.tasks.core.paths import Layout, locking
from evergreen.tasks.release import lineage
from tests import projects

PROBLEM = "dear"
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=500)
"""Beyond monitor.retention_days."""


@pytest.fixture
def shop(deployed, tmp_path: Path) -> Layout:
    """v1 was champion, v2 is; v3 and v4 were refused, and v4 has a prediction in shadow mode."""
    shop = deployed(tmp_path / "shop", (PROBLEM,))
    projects.deploy(shop, PROBLEM, "logistic", C=0.5)
    for strength in (0.1, 0.2):
        projects.register(shop, PROBLEM, "logistic", C=strength)
    settings.registry(shop)._store._client.set_model_version_tag(PROBLEM, "2", "dvc.data", "a" * 32)
    for version in (1, 3):
        (shop.var / "monitoring" / PROBLEM / f"v{version}").mkdir(parents=True)
    given = Prediction("x", PROBLEM, 4, "shadow", NOW, None, None, {}, {"prediction": 1})
    settings.ledger(shop).append([given])
    subprocess.run(["git", "init", "-q", str(shop.root)], check=True)
    return shop


def found(shop: Layout, now: datetime) -> dict[str, tuple[Path, ...]]:
    return {part.what: part.paths for part in prune.find(shop, load(shop.params), now)}


def test_only_versions_that_nothing_refers_to_lose_their_files_and_all_others_load(shop):
    assert not any(found(shop, NOW).values())
    parts = prune.find(shop, load(shop.params), LATER)
    assert {part.what: len(part.paths) for part in parts} == {"DVC's cache": 0, "models": 1, "reference data": 1, "results": 0}
    assert parts[1].bytes > 1000
    for part in parts:
        prune.remove(part)
    registry = settings.registry(shop)
    assert [registry.damage(PROBLEM, version) is None for version in (1, 2, 3, 4)] == [True, True, False, True]
    assert (shop.var / "monitoring" / PROBLEM / "v1").exists()
    assert not any(found(shop, LATER).values())


def test_results_of_backtests_are_removed_once_they_are_unused_for_a_month(shop):
    (shop.var / "backtest" / PROBLEM).mkdir(parents=True)
    assert found(shop, NOW)["results"] == ()
    assert found(shop, LATER)["results"] == (shop.var / "backtest" / PROBLEM,)


def keep(shop: Layout, digest: str, content: str = "") -> Path:
    path = shop.root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (0, 0))
    return path


def commit(shop: Layout, text: str) -> None:
    (shop.root / "dvc.lock").write_text(text)
    for words in (("add", "-f", "dvc.lock"), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")):
        subprocess.run(["git", "-C", str(shop.root), *words], check=True)


def test_the_cache_keeps_what_the_present_a_commit_or_a_version_in_use_recorded(shop):
    folder, inside, now, version, nobody = ("b" * 32 + ".dir", "c" * 32, "d" * 32, "a" * 32, "e" * 32)
    keep(shop, folder, f'[{{"md5": "{inside}", "relpath": "x"}}]')
    for each in (inside, now, version):
        keep(shop, each)
    lost = keep(shop, nobody)
    commit(shop, f"outs: [{{md5: {folder}}}]")
    commit(shop, "outs: []")
    (shop.root / "dvc.lock").write_text(f"outs: [{{md5: {now}}}]")
    assert found(shop, LATER)["DVC's cache"] == (lost,)
    os.utime(lost)
    assert found(shop, NOW)["DVC's cache"] == ()
    assert set(lineage.unreferenced(shop, ())) == {lost, keep(shop, version)}


def test_the_cache_keeps_what_a_merged_branch_recorded_and_the_merge_left_out(shop):
    git = ("git", "-C", str(shop.root), "-c", "user.name=a", "-c", "user.email=a@b")
    kept = keep(shop, "f" * 32)
    commit(shop, "outs: []")
    subprocess.run([*git, "checkout", "-qb", "side"], check=True)
    commit(shop, f"outs: [{{md5: {'f' * 32}}}]")
    subprocess.run([*git, "checkout", "-q", "-"], check=True)
    subprocess.run([*git, "merge", "-q", "-s", "ours", "--no-ff", "-m", "x", "side"], check=True)
    subprocess.run([*git, "branch", "-qD", "side"], check=True)
    assert kept not in lineage.unreferenced(shop, ())


def test_the_cache_of_a_project_in_a_subfolder_of_a_repository_keeps_what_its_commits_recorded(shop, tmp_path):
    (shop.root / ".git").rename(tmp_path / ".git")
    kept, lost = keep(shop, "f" * 32), keep(shop, "e" * 32)
    commit(shop, f"outs: [{{md5: {'f' * 32}}}]")
    commit(shop, "outs: []")
    assert set(lineage.unreferenced(shop, ())) == {lost}
    assert kept.exists()


def test_a_project_without_a_commit_keeps_what_its_lock_names(shop):
    kept, lost = keep(shop, "f" * 32), keep(shop, "e" * 32)
    (shop.root / "dvc.lock").write_text(f"outs: [{{md5: {'f' * 32}}}]")
    assert set(lineage.unreferenced(shop, ())) == {lost}
    assert kept.exists()


def test_a_dry_run_counts_the_old_predictions_that_a_run_deletes_and_only_one_runs_beside_no_training(shop):
    params = load(shop.params)
    with locking(shop.var / "train.lock", "train"):
        dry = prune.run(shop, params, LATER, dry_run=True)
        with pytest.raises(LockedError, match=r"^prune: process \d+ holds the lock "):
            prune.run(shop, params, LATER)
    assert [each.number for each in dry if each.what == "predictions"] == [1]
    done = prune.run(shop, params, LATER)
    assert [each for each in done if each.what != "ledger"] == dry
    assert settings.ledger(shop).read(PROBLEM, variants=("shadow",)).rows.is_empty()
    assert [each.number for each in prune.run(shop, params, LATER, dry_run=True)] == [0] * 5
