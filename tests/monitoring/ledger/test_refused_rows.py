"""A row that cannot be stored is set aside with its reason, and every other row arrives."""

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evergreen.monitoring.ledger import refused_rows
from evergreen.monitoring.ledger import spool as spools
from evergreen.monitoring.ledger.predictions import Ledger
from evergreen.monitoring.ledger.spool import Spool, drain
from evergreen.tasks.core.errors import ProjectError, RefusedValueError

NOON = datetime(2017, 10, 9, 12, tzinfo=UTC)


def put(spool: Spool, number: int, entity: str = "", **features: Any) -> None:
    spool.put(f"p{number}", "redeem", 1, "champion", NOON, entity or str(number), features, {"prediction": number})


def ids(ledger: Ledger) -> list[str]:
    return sorted(ledger.read("redeem").rows["id"])


def refused(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / refused_rows.FILE).read_text().splitlines()]


@pytest.mark.postgres
def test_a_nul_in_an_entity_does_not_stop_the_ledger_of_postgresql(tmp_path: Path, postgres: str):
    ledger = Ledger(postgres)
    spool = Spool(tmp_path)
    for number, entity in enumerate(["ann", "b\x00b", "cid"]):
        put(spool, number, entity)
    spool.flush()
    assert drain(tmp_path, ledger) == 2
    assert ids(ledger) == ["p0", "p2"]
    assert [row["row"]["id"] for row in refused(tmp_path)] == ["p1"]
    assert "NUL" in refused(tmp_path)[0]["reason"]
    put(spool, 9)
    spool.flush()
    assert drain(tmp_path, ledger) == 1, "what comes later arrives"


def test_every_row_but_the_refused_ones_is_stored(tmp_path: Path):
    stored = list[int]()

    def store(rows: Any) -> int:
        if any(row % 7 == 3 for row in rows):
            raise RefusedValueError("no such number")
        stored.extend(rows)
        return len(rows)

    assert refused_rows.store_each(range(100), store, tmp_path) == 86
    assert sorted(stored) == [row for row in range(100) if row % 7 != 3]
    assert [row["row"] for row in refused(tmp_path)] == list(range(3, 100, 7))
    assert refused_rows.count(tmp_path) == 14


def test_an_unavailable_database_sets_nothing_aside(tmp_path: Path):
    def store(_: Any) -> int:
        raise ProjectError("away")

    with pytest.raises(ProjectError, match="away"):
        refused_rows.store_each([1, 2], store, tmp_path)
    assert refused_rows.count(tmp_path) == 0
    assert not (tmp_path / refused_rows.FILE).exists()


def test_a_value_that_json_cannot_hold_does_not_stop_the_rows_beside_it(tmp_path: Path):
    ledger, spool = Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}"), Spool(tmp_path / "spool")
    put(spool, 1)
    put(spool, 2, word="\ud800")
    put(spool, 3)
    spool.flush()
    assert drain(tmp_path / "spool", ledger) == 2
    assert ids(ledger) == ["p1", "p3"]
    assert "surrogates" in refused(tmp_path / "spool")[0]["reason"]


@pytest.mark.parametrize("moment", [1e300, -1e18, "noon"])
def test_a_line_with_an_impossible_time_is_set_aside(tmp_path: Path, moment: Any):
    ledger, spool = Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}"), Spool(tmp_path / "spool")
    put(spool, 1)
    line = json.dumps(["bad", "redeem", 1, "champion", moment, "ann", None, {}, {"prediction": 1}]).encode() + b"\n"
    spool._write(spool._open(), line)
    put(spool, 2)
    spool.close()
    assert drain(tmp_path / "spool", ledger) == 2
    assert refused_rows.count(tmp_path / "spool") == 1


def test_the_file_stops_growing_and_the_count_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refused_rows, "MAX_BYTES", 200)
    for number in range(50):
        refused_rows.set_aside(tmp_path, [(number, ValueError("no"))])
    assert (tmp_path / refused_rows.FILE).stat().st_size < 400
    assert refused_rows.count(tmp_path) == 50


@pytest.mark.parametrize("content", [b"", b"\x00" * 24, b"garbage", b"\xff" * 40, struct.pack("QQQ", 2**60, 1, 5)])
@pytest.mark.parametrize("name", ["1-1.count", "lost", "refused", "1-1.000001.done"])
def test_a_damaged_state_file_stops_neither_server_nor_drainer(tmp_path: Path, name: str, content: bytes):
    ledger, folder = Ledger(f"sqlite:///{tmp_path / 'evergreen.db'}"), tmp_path / "spool"
    folder.mkdir()
    earlier = ["early", "redeem", 1, "champion", NOON.timestamp(), "ann", None, {}, {"prediction": 1}]
    (folder / "1-1.000001.jsonl").write_bytes(json.dumps(earlier).encode() + b"\n")
    (folder / name).write_bytes(content)
    spool = Spool(folder)
    put(spool, 2)
    spool.flush()
    assert spools.backlog_bytes(folder) > 0
    assert drain(folder, ledger) == 2
    assert ids(ledger) == ["early", "p2"]
    assert (spool.lost(), refused_rows.count(folder)) == (0, 0)
    refused_rows.set_aside(folder, [(1, ValueError("no"))])
    assert refused_rows.count(folder) == 1
    spool.close()
