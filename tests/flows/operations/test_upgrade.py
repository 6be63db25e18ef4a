"""`evergreen upgrade` brings the databases of all earlier versions to the present tables and keeps their rows."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from evergreen.flows.cli.main import app
from evergreen.flows.operations import upgrade
from evergreen.monitoring.ledger import decisions, migration, schema, suggestions
from evergreen.monitoring.ledger.decisions import DecisionLog
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.serving import event_log, keys
from evergreen.serving.event_log import EventLog
from evergreen.serving.keys import Keys
from evergreen.tasks.core import database, schema_revision
from evergreen.tasks.core.errors import ProjectError
from evergreen.tasks.release import deployments, server_reports
from evergreen.tasks.release.deployments import Deployments
from evergreen.tasks.release.rollout_state import fold
from evergreen.tasks.release.server_reports import ServerReports
from tests import store

SCHEMAS = Path(__file__).parent / "schemas"
NAMES = sorted(each.name.removesuffix(".sqlite.sql") for each in SCHEMAS.glob("*.sqlite.sql"))
EARLIER, SAME = NAMES[:4], NAMES[4:]
"""The tables of the last two are those of revision 0004."""
PRESENT = (
    deployments.METADATA, server_reports.METADATA, schema.METADATA, decisions.METADATA, suggestions.METADATA,
    event_log.METADATA, keys.TABLE.metadata,
)  # fmt: skip
NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)


def invoke(*words: str) -> Result:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done


def restore(name: str, address: str, folder: Path) -> None:
    """The stored database `name` at `address`: in SQLite as it was, in PostgreSQL with its tables and the same rows."""
    url = sa.make_url(address)
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else folder / "source.db"
    with closing(sqlite3.connect(file)) as link:
        link.executescript((SCHEMAS / f"{name}.sqlite.sql").read_text())
    if url.get_backend_name() == "sqlite":
        return
    source, target, tables = sa.create_engine(f"sqlite:///{file}"), sa.create_engine(address), sa.MetaData()
    with target.begin() as link, source.connect() as reader:
        for statement in (SCHEMAS / f"{name}.postgresql.sql").read_text().split(";\n"):
            link.execute(sa.text(statement)) if statement.strip() else None
        tables.reflect(link)
        for table in tables.tables.values():
            for column in table.columns:
                if isinstance(column.type, sa.DateTime):
                    column.type = sa.DateTime(timezone=True)
            rows = [{**row, **_aware(row)} for row in reader.execute(sa.select(table)).mappings()]
            if rows:
                link.execute(sa.insert(table), rows)
            for column in table.columns:
                if "nextval" in str(getattr(column.server_default, "arg", "")):
                    last = max((row[column.name] for row in rows), default=0) + 1
                    link.execute(sa.text(f"SELECT setval('{table.name}_{column.name}_seq', {last})"))
    source.dispose()
    target.dispose()


def _aware(row: Any) -> dict[str, Any]:
    return {name: each.replace(tzinfo=UTC) for name, each in row.items() if isinstance(each, datetime)}


def described(address: str) -> dict[str, Any]:
    """Table -> its columns with types and nullability, primary key, unique columns, indexes; in SQLite, how it numbers rows."""
    engine, found = sa.create_engine(address), dict[str, Any]()
    inspector = sa.inspect(engine)
    for name in inspector.get_table_names():
        made = {each["name"]: (str(each["type"]), each["nullable"]) for each in inspector.get_columns(name)}
        indexes = {(each["name"], tuple(each["column_names"]), bool(each["unique"])) for each in inspector.get_indexes(name)}
        unique = {tuple(each["column_names"]) for each in inspector.get_unique_constraints(name)}
        indexes = {each for each in indexes if each[1] not in unique}
        found[name] = (made, inspector.get_pk_constraint(name)["constrained_columns"], unique, indexes)
    if engine.dialect.name == "sqlite":
        with engine.connect() as link:
            ddl = link.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
        for name, sql in ddl:
            if name in found:
                found[name] = (*found[name], "AUTOINCREMENT" in sql.upper(), "WITHOUT ROWID" in sql.upper())
    engine.dispose()
    return found


def make_present(address: str) -> None:
    for each in PRESENT:
        database.connect(address, "everything", each).dispose()


def check(address: str) -> None:
    """Whether the present code reads what each stored database holds."""
    ledger = Ledger(address)
    found = ledger.read("churn", version=3)
    assert found.rows["id"].to_list() == ["one", *(f"r{n}" for n in range(70)), "two"]
    assert found.features["spend"].to_list()[:2] == [0, 0]
    assert found.features["spend"].to_list()[-1] == 19.5
    labels = dict(found.rows.filter(found.rows["label"].is_not_null()).select("id", "label").iter_rows())
    assert labels == {"one": 0, "r69": 1, "two": 0}  # of two labels of one prediction the later counts
    assert {each.week: each.predictions for each in ledger.cohorts("churn")}[date(2016, 1, 4)] == 10
    runs = DecisionLog(address).runs("churn")
    assert [each.decision.retrain for each in runs] == [False, True]
    assert runs[0].decision.trigger == "performance"
    assert runs[0].decision.window.drift.changes[0].aspect == "feature"
    assert [(each.trigger, each.started) for each in DecisionLog(address).retrainings("churn")] == [("performance", NOON)]
    rows = Deployments(address).numbered("churn")
    assert [row.action for _, row in rows] == ["deploy", "deploy", "rollback", "promote", "begin", "step"]
    assert [Deployments(address).champion(problem) for problem in ("churn", "basket")] == [3, 1]
    state = fold(rows)
    assert state
    assert (state.candidate, state.step, state.policy.strategy) == (4, 1, "canary")
    reports = ServerReports(address)
    assert [each.requests for each in reports.counts(8, 0)] in ([0, 200], [200, 0])
    assert [each.error for each in reports.servers("churn")] == ["cannot load"]
    assert sorted((each.name, each.revoked is None) for each in Keys(address).list()) == [("old", False), ("till", True)]
    assert sorted(EventLog(address).received("basket")["item"]) == ["i", "j"]
    assert [each.reason for each in EventLog(address).rejected("basket", 9)] == ["no item"]


def write_more(address: str) -> None:
    """New rows get numbers of their own, and a decision follows the newest one."""
    kept = Deployments(address).numbered("churn")
    made = kept[-1][1].model_copy(update={"action": "abort"})
    assert not Deployments(address).try_append([made], kept[0][0])
    assert Deployments(address).try_append([made], kept[-1][0])
    event = event_log.Event("e3", "u", "k", "b", date(2017, 10, 9), 1.0, None)
    assert len(EventLog(address).append("basket", [event], [event_log.RejectedEvent({}, "none")])) == 1
    assert Ledger(address).add_labels("churn", [Label(1, id="two", known_at=datetime(2031, 1, 1, tzinfo=UTC))]).changed == 1
    assert Keys(address).add("second", ["predict"])


@pytest.mark.parametrize("name", NAMES)
def test_each_stored_database_is_upgraded_once_without_loss(name: str, address: str, tmp_path: Path):
    restore(name, address, tmp_path)
    assert upgrade.run(address)[1:] == ("", schema_revision.NEWEST)
    check(address)
    assert upgrade.run(address)[1:] == (schema_revision.NEWEST, schema_revision.NEWEST)
    write_more(address)


@pytest.mark.parametrize("name", NAMES)
def test_an_upgraded_database_has_the_tables_of_a_new_one(name: str, tmp_path: Path):
    old, new = (f"sqlite:///{tmp_path / each}.db" for each in ("old", "new"))
    restore(name, old, tmp_path)
    upgrade.run(old)
    make_present(old)
    make_present(new)
    assert described(old) == described(new)


@pytest.mark.parametrize("name", EARLIER)
def test_a_database_that_had_only_one_of_the_tables_is_upgraded(name: str, tmp_path: Path):
    """Each part of the project makes its tables when it first needs them, so any of them may be missing."""
    whole = tmp_path / "all.db"
    restore(name, f"sqlite:///{whole}", tmp_path)
    with closing(sqlite3.connect(whole)) as link:
        names = {each for (each,) in link.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    names = {each for each in names if not each.startswith("sqlite_")}
    for kept in names & schema_revision.UNREVISED.keys():  # others are made beside one of these
        file = Path(shutil.copy(whole, tmp_path / f"{kept}.db"))
        with closing(sqlite3.connect(file)) as link:
            link.executescript("BEGIN;" + "".join(f"DROP TABLE {each};" for each in names - {kept}) + "COMMIT;")
        assert upgrade.run(f"sqlite:///{file}").after == schema_revision.NEWEST, kept
        make_present(f"sqlite:///{file}")


@pytest.mark.parametrize("name", EARLIER)
def test_a_command_that_meets_an_earlier_database_says_what_to_do_and_changes_nothing(name: str, tmp_path: Path):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    restore(name, address, tmp_path)
    before = described(address)
    for each in (Deployments, Ledger, DecisionLog, EventLog, Keys, ServerReports):
        with pytest.raises(ProjectError, match=r"evergreen.db: the tables are those of an earlier .* run evergreen upgrade"):
            each(address)
    assert described(address) == before


@pytest.mark.parametrize("name", SAME)
def test_a_database_with_the_newest_tables_and_no_revision_needs_no_upgrade(name: str, address: str, tmp_path: Path):
    restore(name, address, tmp_path)
    check(address)
    assert upgrade.run(address)[1:] == (schema_revision.NEWEST, schema_revision.NEWEST)
    write_more(address)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE deployments DROP COLUMN sha256",
        "ALTER TABLE deployments ADD COLUMN more TEXT",
        "DROP INDEX events_by_change",
        "UPDATE labels SET day = NULL, second = 1",
        "CREATE TABLE looks (decision TEXT)",
    ],
)
def test_a_database_that_differs_from_the_last_version_without_revisions_needs_one(statement: str, tmp_path: Path):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    restore(NAMES[-1], address, tmp_path)
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.exec_driver_sql(statement)
    engine.dispose()
    with pytest.raises(ProjectError, match=r"an earlier Evergreen \(without a revision.* run evergreen upgrade"):
        Ledger(address)


def test_no_database_is_upgraded_under_a_running_server(address: str, tmp_path: Path):
    restore("4-ids", address, tmp_path)
    before = described(address)
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.execute(sa.text("UPDATE servers SET at = :now"), {"now": datetime.now(UTC)})
    with pytest.raises(ProjectError, match=r"1 servers reported within the last 60 s .*Nothing is changed. Stop them"):
        upgrade.run(address)
    assert described(address) == before
    with engine.begin() as link:
        link.execute(sa.text("DELETE FROM servers"))  # as one that ends does
    engine.dispose()
    assert upgrade.run(address).after == schema_revision.NEWEST


def test_of_two_upgrades_at_once_one_does_the_work(address: str, tmp_path: Path):
    restore("3-rows", address, tmp_path)
    with ThreadPoolExecutor() as pool:
        done = [each.result() for each in [pool.submit(upgrade.run, address) for _ in range(2)]]
    assert sorted(each.before or "" for each in done) == ["", schema_revision.NEWEST]
    assert {each.after for each in done} == {schema_revision.NEWEST}
    check(address)


def test_without_space_an_upgrade_is_one_line_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    restore("3-rows", address, tmp_path)
    before, prepare = described(address), database._prepare

    def prepare_full(link: Any) -> None:
        prepare(link)
        link.execute(f"PRAGMA max_page_count = {link.execute('PRAGMA page_count').fetchone()[0]}")

    monkeypatch.setattr(database, "_prepare", prepare_full)
    with pytest.raises(ProjectError, match=r"cannot be used: .*disk is full.* free space"):
        upgrade.run(address)
    monkeypatch.undo()
    assert described(address) == before
    assert upgrade.run(address).after == schema_revision.NEWEST
    check(address)


def test_a_database_of_a_newer_version_is_refused_by_commands_and_by_the_upgrade(address: str):
    Deployments(address)
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.execute(sa.update(schema_revision.TABLE).values(version_num="0099"))
    engine.dispose()
    for meet in (Deployments, Ledger, upgrade.run):
        with pytest.raises(ProjectError, match=r"revision 0099, written by a newer Evergreen.* Install the newer version"):
            meet(address)


def test_an_upgrade_that_fails_or_is_killed_leaves_the_database_as_it_was(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    restore("3-rows", address, tmp_path)
    before = described(address)
    moved: Callable[..., bool] = migration._move_next
    monkeypatch.setattr(migration, "_move_next", lambda *given: moved(*given) and 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        upgrade.run(address)
    monkeypatch.undo()
    assert described(address) == before
    assert upgrade.run(address).after == schema_revision.NEWEST
    check(address)


def test_tables_of_another_program_with_the_same_names_are_left_alone(address: str):
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.execute(sa.text("CREATE TABLE looks (colour VARCHAR(9))"))
    assert upgrade.run(address)[1:] == (None, None)
    Deployments(address)
    with engine.connect() as link:
        assert schema_revision.read(link) == schema_revision.NEWEST
        assert schema_revision.columns(link, "looks") == {"colour"}
    engine.dispose()


def test_labels_that_a_later_version_wrote_beside_truths_win(tmp_path: Path):
    address = f"sqlite:///{tmp_path / 'evergreen.db'}"
    restore("1-words", address, tmp_path)
    engine = sa.create_engine(address)
    with engine.begin() as link:
        link.exec_driver_sql(
            "CREATE TABLE labels (number INTEGER PRIMARY KEY, problem VARCHAR(64) NOT NULL, id VARCHAR(255), entity "
            "VARCHAR(255), day INTEGER, second BIGINT, value TEXT NOT NULL, known_at BIGINT NOT NULL)"
        )
        link.exec_driver_sql("INSERT INTO labels VALUES (1, 'churn', 'two', NULL, 17448, NULL, '5', 9000000000000000)")
    engine.dispose()
    upgrade.run(address)
    rows = Ledger(address).read("churn", version=3).rows
    labels = dict(rows.filter(rows["label"].is_not_null()).select("id", "label").iter_rows())
    assert labels == {"one": 0, "r69": 1, "two": 5}


def test_the_command_upgrades_the_database_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text("project: {name: shop}\n")
    (tmp_path / "var").mkdir()
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    assert "no tables yet" in invoke("upgrade", "--root", str(tmp_path)).stderr
    assert not (tmp_path / "var" / "evergreen.db").exists()
    restore("2-claims", f"sqlite:///{tmp_path / 'var' / 'evergreen.db'}", tmp_path)
    done = invoke("upgrade", "--root", str(tmp_path), "--json")
    assert json.loads(done.stdout)["after"] == schema_revision.NEWEST
    assert "nothing to do" in invoke("upgrade", "--root", str(tmp_path)).stderr


def test_the_command_adds_what_gitignore_lacks_and_nothing_that_an_entry_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EVERGREEN_DATABASE", raising=False)
    store.project(tmp_path, households=5, weeks=20)
    path = tmp_path / ".gitignore"
    early = ("/data/raw/", "/data/tables", "/data/quarantine/", "/data/features/", "/data/scores/", "models/", "/reports/")
    path.write_text("\n".join([*early, "/dvc_plots/", "/var/"]))
    asked = ("upgrade", "--root", str(tmp_path))
    assert ".gitignore: /data/newest/, /data/events/, /data/received/ added" in invoke(*asked).output
    assert path.read_text().splitlines()[-4:] == ["/var/", "/data/newest/", "/data/events/", "/data/received/"]
    assert json.loads(invoke(*asked, "--json").output)["ignored"] == []
    path.write_text("data/\n/models/\n/reports/\n/dvc_plots/\n/var/\n")
    assert json.loads(invoke(*asked, "--json").output)["ignored"] == []


def test_a_database_that_the_environment_names_is_upgraded_without_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    address = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    restore("4-ids", address, tmp_path)
    monkeypatch.setenv("EVERGREEN_DATABASE", address)
    assert "upgraded, without a revision before" in invoke("upgrade", "--root", str(tmp_path)).stderr


def test_a_dry_run_names_the_revision_and_changes_nothing(address: str, tmp_path: Path):
    restore("4-ids", address, tmp_path)
    before = described(address)
    assert upgrade.run(address, dry_run=True)[1:] == ("", schema_revision.NEWEST)
    assert described(address) == before
    assert upgrade.run(address)[1:] == ("", schema_revision.NEWEST)
