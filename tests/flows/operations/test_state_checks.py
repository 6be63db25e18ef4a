"""`evergreen doctor` finds state that is lost, damaged or closed to this user, and names a command that mends it."""

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergreen.flows import settings, steps
from evergreen.flows.operations import doctor, state_checks, status
from evergreen.monitoring.ledger.spool import Spool, drain
from evergreen.serving.deployment_watcher import DeploymentWatcher
from evergreen.tasks.config.loading import load
from evergreen.tasks.core import schema_revision
from evergreen.tasks.core.paths import Layout
from evergreen.tasks.release.server_reports import ServerReport
from tests import projects

PROBLEM = "dear"


@pytest.fixture
def shop(deployed: projects.Deployed, tmp_path: Path) -> Layout:
    return deployed(tmp_path / "my shop", (PROBLEM,))


def wrong(layout: Layout) -> dict[str, tuple[str, str]]:
    """Subject -> what was found and what to do, of each check that failed."""
    return {
        each.subject: (each.found, each.advice) for each in state_checks.examine(layout, load(layout.params)) if not each.ok
    }


def test_a_copy_of_a_project_is_whole_and_uses_its_own_files(shop: Layout):
    assert wrong(shop) == {}
    folder = settings.registry(shop)._store.folder(PROBLEM, 1)
    assert folder is not None
    assert folder.is_relative_to(shop.root)


def test_a_champion_without_its_files_is_found_and_judged_as_if_there_were_none(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(shop.var / "artifacts" / "models")
    found, advice = wrong(shop)["champion dear"]
    assert "No such file" in found
    assert advice == "evergreen train dear"
    judged = []
    monkeypatch.setattr(
        "evergreen.tasks.release.promotion_gate.run", lambda *given: judged.append(given[3:5]) or projects.verdict()
    )
    steps.judge(str(shop.root), PROBLEM)
    assert judged == [(None, None)]


def test_a_changed_model_file_is_found(shop: Layout):
    (model,) = (shop.var / "artifacts" / "models").rglob("model.skops")
    model.write_bytes(b"other")
    assert "is not the file that was registered" in wrong(shop)["champion dear"][0]


def test_a_model_whose_files_are_lost_is_registered_again_under_a_new_number(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "digest", lambda origin, problem: "d1")
    monkeypatch.setattr("evergreen.tasks.release.lineage.lineage", lambda *given: {})
    projects.deploy(shop, PROBLEM, "logistic", C=0.5)
    registry = settings.registry(shop)
    registry._store._client.set_model_version_tag(PROBLEM, "2", "digest", "d1")
    assert status.standing(shop, PROBLEM) == (2, True)
    shutil.rmtree(shop.var / "artifacts" / "models")
    assert status.standing(shop, PROBLEM) == (None, False)
    assert projects.register(shop, PROBLEM, "logistic", C=0.5) == 3
    assert registry.damage(PROBLEM, 3) is None


@pytest.mark.parametrize(
    ("lost", "subject", "found"),
    [
        ("mlflow.db", "champion dear", "v1 is not in MLflow's store"),
        ("evergreen.db", "champion dear", "v1 is registered, and no decision is recorded"),
    ],
)
def test_half_of_a_copy_is_told_by_what_it_lacks(shop: Layout, lost: str, subject: str, found: str):
    for path in shop.var.glob(f"{lost}*"):
        path.unlink()
    assert wrong(shop)[subject][0] == found


def test_a_database_cut_short_is_damaged(shop: Layout):
    settings.deployments(shop)._engine.dispose()
    path = shop.var / "evergreen.db"
    for log in shop.var.glob("evergreen.db-*"):
        log.unlink()
    os.truncate(path, path.stat().st_size // 2)
    assert wrong(shop)["databases"][0] == "var/evergreen.db is damaged"


def test_a_locked_database_is_not_said_to_be_damaged(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    settings.deployments(shop)._engine.dispose()
    monkeypatch.setattr(state_checks, "LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(shop.var / "evergreen.db")) as link:
        link.execute("PRAGMA locking_mode = EXCLUSIVE")
        link.execute("BEGIN EXCLUSIVE")
        link.execute("CREATE TABLE more (id INTEGER)")
        link.commit()
        link.execute("BEGIN EXCLUSIVE")
        found = state_checks.check_databases(shop)
    assert (found.ok, found.found) == (False, "var/evergreen.db (database is locked) cannot be read now")
    assert found.advice == "free space, allow writing beside it, or end what locks it; then evergreen doctor"


def test_a_database_on_a_full_disk_is_read_as_it_lies(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    """Without space SQLite can make no files beside a database, and says that it cannot open it."""
    check = state_checks._check

    def on_full_disk(address: str) -> str | None:
        if "immutable" not in address:
            raise sqlite3.OperationalError("unable to open database file")
        return check(address)

    settings.deployments(shop)._engine.dispose()
    monkeypatch.setattr(state_checks, "_check", on_full_disk)
    assert state_checks.check_databases(shop).ok
    os.truncate(shop.var / "evergreen.db", (shop.var / "evergreen.db").stat().st_size // 2)
    assert state_checks.check_databases(shop).found == "var/evergreen.db is damaged"


def test_tables_of_an_earlier_version_are_one_finding(shop: Layout):
    settings.deployments(shop)._engine.dispose()
    with closing(sqlite3.connect(shop.var / "evergreen.db")) as link:
        link.execute(f"DROP TABLE {schema_revision.TABLE.name}")
        link.execute("ALTER TABLE deployments DROP COLUMN sha256")
    found = wrong(shop)
    assert [*found] == ["tables"]
    assert "run evergreen upgrade" in found["tables"][0]


def test_an_output_that_is_recorded_and_missing_is_found(shop: Layout):
    (shop.root / "dvc.lock").write_text("stages:\n  ingest:\n    outs:\n    - {path: data/raw, md5: a}\n")
    assert wrong(shop)["outputs"] == ("data/raw is missing or cut short", "evergreen train")
    (shop.root / "dvc.lock").write_text("stages:\n  ingest:\n    outs: [{path: data/raw}, {path: data/tables}]\n")
    assert wrong(shop)["outputs"][0] == "data/raw, data/tables are missing or cut short"


def test_files_of_another_user_are_named_with_the_command_that_takes_them(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    closed = shop.var / "mlflow.db"
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and allowed(path, mode))
    found, advice = wrong(shop)["access"]
    assert found == "var/mlflow.db is not open to this user"
    assert advice == f"sudo chown -R {os.geteuid()}:{os.getegid()} '{shop.root}'"


def test_state_that_other_users_can_enter_is_named_until_it_is_closed(shop: Layout, monkeypatch: pytest.MonkeyPatch):
    shop.var.chmod(0o755)
    assert wrong(shop)["privacy"] == (f"{shop.var} is open to other users", "evergreen doctor --repair")
    assert doctor.repair(state_checks.examine(shop, load(shop.params))) == [
        f"privacy: mended ({shop.var} is open to other users)"
    ]
    assert shop.var.stat().st_mode & 0o777 == 0o700
    assert wrong(shop) == {}
    outside = shop.root.parent / "outside.db"
    monkeypatch.setenv("EVERGREEN_DATABASE", f"sqlite:///{outside}")
    settings.keys(shop)._engine.dispose()
    assert state_checks.check_privacy(shop).ok
    outside.chmod(0o644)
    found = state_checks.check_privacy(shop)
    assert found.found == f"{outside} is open to other users"
    assert doctor.repair([found]) == [f"privacy: mended ({found.found})"]
    assert outside.stat().st_mode & 0o777 == 0o600


def test_an_alias_that_disagrees_with_the_record_goes_back_to_the_version_that_serves(shop: Layout):
    projects.register(shop, PROBLEM, "logistic", C=0.5)
    registry, decisions = settings.registry(shop), settings.deployments(shop)
    registry.set_alias(PROBLEM, "champion", 2)
    assert wrong(shop) == {"alias dear": ("MLflow says v2, and v1 serves by the record", "evergreen doctor --repair")}
    doctor.repair(state_checks.examine(shop, load(shop.params)))
    assert wrong(shop) == {}
    named = registry.version(PROBLEM, "champion")
    assert named is not None
    assert named.version == decisions.champion(PROBLEM) == 1
    registry.drop_alias(PROBLEM, "champion")
    assert wrong(shop)["alias dear"][0] == "MLflow says none, and v1 serves by the record"


def test_repair_leaves_alone_what_needs_a_person(shop: Layout):
    (model,) = (shop.var / "artifacts" / "models").rglob("model.skops")
    model.write_bytes(b"other")
    assert doctor.repair(state_checks.examine(shop, load(shop.params))) == []
    assert "champion dear" in wrong(shop)


def test_a_registry_from_another_backup_is_named_and_no_server_loads_its_version(shop: Layout):
    registry, decisions = settings.registry(shop), settings.deployments(shop)
    (move,) = decisions.history(PROBLEM)
    assert move.sha256 == registry.require(PROBLEM, 1).tags["sha256"]
    registry._store._client.set_model_version_tag(PROBLEM, "1", "sha256", "0" * 64)
    found, advice = wrong(shop)["champion dear"]
    assert found.startswith("v1 in the registry is another model than v1 that was deployed on ")
    assert "evergreen train dear" in advice
    watcher = DeploymentWatcher(load(shop.params), registry, settings.rollouts(shop), lambda *given: pytest.fail(str(given)))
    watcher.update()
    assert watcher.serving_set(PROBLEM) is None
    assert "is another model than v1" in watcher.errors[PROBLEM]


def test_damaged_numbers_of_the_journal_are_rebuilt_and_no_prediction_is_lost(shop: Layout):
    folder = settings.spool_folder(shop)
    spool = Spool(folder)
    at = datetime.now(UTC) - timedelta(hours=1)
    for number in range(3):
        spool.put(f"p{number}", PROBLEM, 1, "champion", at, None, {}, {"prediction": 1})
    spool.close()
    (segment,) = folder.glob("*.jsonl")
    assert "predictions since" in wrong(shop)["journal lag"][0]
    for name, content in (("lost", b"\0\0"), ("refused", b""), (segment.with_suffix(".done").name, b"9x"), ("1-1.count", b"")):
        (folder / name).write_bytes(content)
    (folder / "refused.ndjson").write_bytes(b"{}\n{}\n")
    assert wrong(shop)["journal counts"][0].endswith(" and 1 more are damaged")
    assert len(doctor.repair(state_checks.examine(shop, load(shop.params)))) == 1
    assert wrong(shop)["journal"][0] == "2 predictions were refused"
    assert "journal counts" not in wrong(shop)
    assert drain(folder, settings.ledger(shop)) == 3
    assert "journal lag" not in wrong(shop)


def test_status_names_a_server_whose_disk_takes_no_prediction(shop: Layout):
    reports = settings.rollouts(shop).reports
    since = datetime(2026, 1, 5, 9, tzinfo=UTC)
    now = datetime.now(UTC)
    report = ServerReport(
        server="a 7", problem=PROBLEM, champion=1, candidate=None, error=None, journal=since.isoformat(), at=now
    )
    reports.write(report)
    assert reports.servers(PROBLEM) == [report]
    (row,) = status.rows(shop, [PROBLEM])
    assert row.rollout == "a 7 reports: predictions wait in memory since 2026-01-05T09:00:00+00:00, its disk takes none"
