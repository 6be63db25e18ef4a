"""`evergreen upgrade` moves the ledger of an earlier version into the present tables, without loss."""

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from evergreen.flows.operations import upgrade
from evergreen.monitoring.ledger import blocks
from evergreen.monitoring.ledger.label_matching import Label
from evergreen.monitoring.ledger.predictions import Ledger

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)
MICROS = int(NOON.timestamp()) * 1_000_000
EARLIER = (
    "CREATE TABLE predictions (problem VARCHAR(64) NOT NULL, id VARCHAR(255) NOT NULL, version INTEGER NOT NULL, "
    "variant VARCHAR(9) NOT NULL, at BIGINT NOT NULL, cutoff INTEGER, day INTEGER NOT NULL, entity VARCHAR(255), "
    "block BIGINT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (problem, id))",
    "CREATE TABLE prediction_blocks (number INTEGER PRIMARY KEY, outputs {bytes} NOT NULL, features {bytes} NOT NULL)",
    "CREATE TABLE labels (number {serial}, problem VARCHAR(64) NOT NULL, id VARCHAR(255), entity VARCHAR(255), day INTEGER, "
    "second BIGINT, value TEXT NOT NULL, known_at BIGINT NOT NULL)",
)


@pytest.fixture
def earlier(address: str) -> str:
    """The address of a ledger of an earlier version: a block of 2 rows over midnight, one of 70, and three labels."""
    engine = sa.create_engine(address)
    sqlite = engine.dialect.name == "sqlite"
    types = (
        {"bytes": "BLOB", "serial": "INTEGER PRIMARY KEY"} if sqlite else {"bytes": "BYTEA", "serial": "BIGSERIAL PRIMARY KEY"}
    )
    with engine.begin() as link:
        for each in EARLIER:
            link.execute(sa.text(each.format(**types)))
        for number, size in ((1, 2), (2, 70)):
            packed = (blocks.pack_columns({name: list(range(size))}, size) for name in ("prediction", "spend"))
            insert = sa.text("INSERT INTO prediction_blocks VALUES (:number, :outputs, :features)")
            link.execute(insert, {"number": number, **dict(zip(("outputs", "features"), packed, strict=True))})
            insert = sa.text(
                "INSERT INTO predictions VALUES ('churn', :id, 3, 'champion', :at, :cutoff, 17448, :entity, :block, :n)"
            )
            for place in range(size):
                at = MICROS + place * 13 * 3_600_000_000 if number == 1 else MICROS + place
                cutoff = 17448 if number == 2 else None
                row = {"id": f"{number}.{place}", "at": at, "cutoff": cutoff, "entity": str(place), "block": number, "n": place}
                link.execute(insert, row)
        insert = sa.text(
            "INSERT INTO labels (problem, id, entity, day, second, value, known_at) "
            "VALUES ('churn', :id, :entity, :day, :second, :value, :known)"
        )
        empty: dict[str, Any] = {"id": None, "entity": None, "day": None, "second": None, "known": MICROS}
        link.execute(insert, {**empty, "id": "1.1", "value": "1"})
        link.execute(insert, {**empty, "entity": "0", "second": MICROS // 1_000_000, "value": "2"})
        link.execute(insert, {**empty, "entity": "69", "day": 17448, "value": "3"})
    engine.dispose()
    return address


def check(ledger: Ledger) -> None:
    found = ledger.read("churn", version=3)
    assert found.rows["id"].to_list() == ["1.0", *(f"2.{place}" for place in range(70)), "1.1"]
    assert found.rows["prediction"].to_list() == found.features["spend"].to_list() == [0, *range(70), 1]
    assert dict(found.rows.filter(found.rows["label"].is_not_null()).select("id", "label").iter_rows()) == {
        "1.0": 2, "2.0": 2, "2.69": 3, "1.1": 1
    }  # fmt: skip
    assert [each.predictions for each in ledger.cohorts("churn")] == [72]
    assert ledger.add_labels("churn", [Label(1, id="1.1"), Label(3, entity="69", at=NOON.date())]).duplicate == 2


def test_an_earlier_ledger_is_moved_and_reads_the_same(earlier: str):
    upgrade.run(earlier)
    check(Ledger(earlier))
    check(Ledger(earlier))
    engine = sa.create_engine(earlier)
    assert not {"predictions", "prediction_blocks"} & set(sa.inspect(engine).get_table_names())
    engine.dispose()


KILLS = """
import os, shutil, signal, sys
import sqlalchemy as sa, sqlalchemy.event
from evergreen.flows.operations import upgrade

source, number, status = sys.argv[1], 0, 9
while status:
    number += 1
    shutil.copy(source, f"{source}.{number}")
    child = os.fork()
    if not child:
        writes = []

        @sa.event.listens_for(sa.Engine, "before_cursor_execute")
        def count(connection, cursor, statement, *rest):
            if writes or statement.startswith("UPDATE labels"):
                writes.append(statement)
                writes[-1].startswith(("SELECT", "PRAGMA")) and writes.pop()
            if len(writes) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        upgrade.run(f"sqlite:///{source}.{number}")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(number - 1)
"""
"""Upgrades a copy of a ledger once per statement that writes, and kills the process before it; prints how many there are."""


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_an_upgrade_that_is_killed_before_any_statement_loses_nothing_and_moves_nothing_twice(earlier: str):
    source = earlier.removeprefix("sqlite:///")
    done = subprocess.run([sys.executable, "-c", KILLS, source], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) > 15
    for number in range(1, int(done.stdout) + 1):
        upgrade.run(f"sqlite:///{source}.{number}")
        check(Ledger(f"sqlite:///{source}.{number}"))
