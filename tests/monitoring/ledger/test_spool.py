"""Spooled predictions reach the ledger once: after kills of writers and drainers, incomplete lines and a full disk."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evergreen.monitoring.ledger import spool as spools
from evergreen.monitoring.ledger.predictions import Ledger, Prediction
from evergreen.monitoring.ledger.spool import Spool, drain
from evergreen.tasks.core.errors import ProjectError, StorageError
from tests import ROOT
from tests.kills import KilledError

NOON = datetime(2017, 10, 9, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'evergreen.db'}"


@pytest.fixture
def ledger(address: str) -> Ledger:
    return Ledger(address)


def put(spool: Spool, *numbers: int) -> None:
    for number in numbers:
        spool.put(f"p{number}", "redeem", 1, "champion", NOON, str(number), {"spend": number}, {"prediction": number})


def ids(ledger: Ledger) -> list[str]:
    return sorted(ledger.read("redeem").rows["id"])


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_a_flushed_prediction_is_in_the_ledger_as_it_was_put(folder, ledger):
    spool = Spool(folder)
    features = {"n": np.float64(1.5), "missing": None, "nan": float("nan"), "word": "é", "yes": True, "whole": np.int64(3)}
    spool.put("a", "redeem", 3, "candidate", NOON, None, features, {"prediction": "x", "probability_x": 0.5}, date(2017, 10, 8))
    assert spool.flush() == 1
    assert drain(folder, ledger) == 1
    found = ledger.read("redeem")
    assert found.rows.row(0) == ("a", 3, "candidate", NOON, date(2017, 10, 8), None, "x", 0.5, None, None)
    assert found.features.row(0) == (1.5, None, None, "é", True, 3)


def test_a_queued_prediction_is_not_in_the_ledger(folder, ledger):
    spool = Spool(folder)
    assert spool.flush() == 0
    put(spool, 1, 2)
    spool.flush()
    put(spool, 3)
    assert drain(folder, ledger) == 2
    assert ids(ledger) == ["p1", "p2"]


def test_a_segment_is_drained_while_it_grows_and_removed_when_finished(folder, ledger):
    spool = Spool(folder)
    for number in range(3):
        put(spool, number)
        spool.flush()
        assert spools.backlog_bytes(folder) > 0
        assert drain(folder, ledger) == 1
        assert spools.backlog_bytes(folder) == 0
    assert drain(folder, ledger) == 0
    put(spool, 7)
    spool.close()
    spool.close()
    assert drain(folder, ledger) == 1
    assert [path.name for path in folder.iterdir() if path.suffix in (".jsonl", ".done", ".count", ".born")] == []
    assert Spool(folder).lost() == 0


def test_a_large_segment_is_followed_by_the_next(folder, ledger, monkeypatch):
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 300)
    spool = Spool(folder)
    for number in range(20):
        put(spool, number)
        spool.flush()
    assert len(list(folder.glob("*.jsonl"))) > 5
    assert drain(folder, ledger) == 20
    assert len(list(folder.glob("*.jsonl"))) == 1


def test_many_lines_are_appended_in_parts(folder, ledger, monkeypatch):
    monkeypatch.setattr(spools, "LINES_PER_APPEND", 7)
    spool = Spool(folder)
    put(spool, *range(50))
    spool.flush()
    assert drain(folder, ledger) == 50
    assert drain(folder, ledger) == 0


def test_without_a_folder_nothing_is_drained(folder, ledger):
    assert drain(folder, ledger) == 0
    assert spools.backlog_bytes(folder) == 0


def test_concurrent_threads_lose_nothing(folder, ledger):
    spool = Spool(folder)

    def answer(first: int) -> None:
        for number in range(first, first + 500):
            put(spool, number)
            if number % 50 == 0:
                spool.flush()

    threads = [threading.Thread(target=answer, args=(first,)) for first in (0, 500, 1000)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    spool.close()
    assert drain(folder, ledger) == 1500
    assert Spool(folder).lost() == 0


SERVER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from evergreen.monitoring.ledger.spool import Spool
spool, flushed = Spool(Path(sys.argv[1])), int(sys.argv[2])
for number in range(int(sys.argv[3])):
    spool.put(f"p{number}", "redeem", 1, "champion", datetime.now(UTC), None, {}, {"prediction": number})
    if number + 1 == flushed:
        spool.flush()
print("ready", flush=True)
time.sleep(600)
"""


def killed(folder: Path, flushed: int, answered: int) -> None:
    """A server that put `answered` predictions, flushed the first `flushed`, and was killed."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(flushed), str(answered)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    server.kill()
    server.communicate()


def test_a_killed_server_loses_unflushed_predictions_and_the_next_counts_them(folder, ledger):
    killed(folder, flushed=100, answered=117)
    assert Spool(folder).lost() == 17
    assert drain(folder, ledger) == 100
    killed(folder, flushed=5, answered=5)
    assert Spool(folder).lost() == 17
    killed(folder, flushed=1, answered=4)
    drain(folder, ledger)
    assert Spool(folder).lost() == 20


def test_lines_written_but_not_counted_before_a_kill_are_not_lost(folder, ledger):
    spool = Spool(folder)
    put(spool, 1)
    spool.flush()
    put(spool, 2, 3, 4)
    (segment,) = folder.glob("*.jsonl")
    with segment.open("a") as file:  # two whole lines and a half reached the disk
        line = '["p{}","redeem",1,"champion",1507550400,null,null,{{}},{{"prediction":1}}]\n'
        file.write(line.format(2) + line.format(3) + line.format(4)[:30])
    os.close(spool._file)
    spool._counter.close()
    assert drain(folder, ledger) == 3
    assert ids(ledger) == ["p1", "p2", "p3"]
    assert Spool(folder).lost() == 1


def test_an_invalid_line_is_set_aside_and_logged(folder, ledger, caplog):
    spool = Spool(folder)
    put(spool, 1)
    spool.flush()
    (segment,) = folder.glob("*.jsonl")
    os.pwrite(spool._file, b"\x00\x00garbage\n", spool._end)
    spool._end += 10
    put(spool, 2)
    spool.flush()
    assert drain(folder, ledger) == 2
    assert f"{segment.name}: an invalid line: " in caplog.messages[0]
    assert b"garbage" in (folder / "refused.ndjson").read_bytes()


@pytest.mark.parametrize("moment", ["after the append", "before the progress is recorded"])
def test_a_killed_drainer_moves_nothing_twice_and_skips_nothing(folder, ledger, monkeypatch, moment):
    spool = Spool(folder)
    put(spool, *range(10))
    spool.flush()

    def die(*_: Any) -> int:
        raise KilledError("now")

    with monkeypatch.context() as patched:
        patched.setattr(spools, "LINES_PER_APPEND", 4)
        if moment == "after the append":
            append, calls = ledger.append, list[int]()

            def second(predictions: Sequence[Prediction]) -> int:
                calls.append(1)
                return append(predictions) if len(calls) == 1 else die()

            patched.setattr(ledger, "append", second)
        else:
            patched.setattr(Path, "replace", die)
        with pytest.raises(KilledError, match="now"):
            drain(folder, ledger)
    drain(folder, ledger)
    assert len(ids(ledger)) == 10
    assert spools.backlog_bytes(folder) == 0


def test_two_drainers_move_each_line_once(folder, ledger, address):
    spool = Spool(folder)
    put(spool, *range(2000))
    spool.close()
    moved = list[int]()
    both = [threading.Thread(target=lambda: moved.append(drain(folder, Ledger(address)))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(moved) == [0, 2000]
    assert len(ids(ledger)) == 2000


def test_a_full_disk_keeps_lines_queued_and_leaves_no_incomplete_line(folder, ledger, monkeypatch):
    spool = Spool(folder)
    put(spool, 1)
    spool.flush()
    put(spool, 2, 3)
    write = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:-19], place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"No space left on device\. Free space or allow writing there"):
            spool.flush()
        assert drain(folder, ledger) == 1
    put(spool, 4)
    assert spool.flush() == 3
    assert drain(folder, ledger) == 3
    assert ids(ledger) == ["p1", "p2", "p3", "p4"]
    assert spool.lost() == 0


def test_a_disk_that_is_full_of_predictions_is_drained(folder, ledger, monkeypatch):
    """The drainer needs no space to make some."""
    first, second = Spool(folder), Spool(folder)
    put(first, 1)
    first.flush()
    assert drain(folder, ledger) == 1
    put(first, 2)
    put(second, 3)
    first.flush()
    second.flush()
    second.close()
    write = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.suffix == ".new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert drain(folder, ledger) == 2
        (left,) = folder.glob("*.jsonl")
        assert spools.progress(left) == left.stat().st_size
        assert drain(folder, ledger) == 0
    assert ids(ledger) == ["p1", "p2", "p3"]
    first.close()
    drain(folder, ledger)
    assert (list(folder.glob("*.jsonl")), Spool(folder).lost()) == ([], 0)


def test_predictions_beyond_the_queue_limit_are_dropped_and_counted(folder, monkeypatch):
    monkeypatch.setattr(spools, "MAX_WAITING", 3)
    spool = Spool(folder)
    put(spool, *range(5))
    assert spool.lost() == 2
    assert spool.flush() == 3


def test_on_a_full_disk_large_predictions_wait_up_to_a_number_of_bytes(folder, ledger, monkeypatch):
    monkeypatch.setattr(spools, "MAX_WAITING_BYTES", 1_000)
    spool = Spool(folder)

    def full(file: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for number in range(20):
            put(spool, number)
            with pytest.raises(StorageError, match="No space left on device"):
                spool.flush()
    kept = spool.waiting
    assert 1 < kept < 20
    assert spool.lost() == 20 - kept
    assert spool.flush() == kept
    assert drain(folder, ledger) == kept
    assert ids(ledger) == sorted(f"p{number}" for number in range(kept))


def test_a_server_that_starts_on_a_full_disk_keeps_predictions_and_writes_them_once_there_is_space(folder, ledger, monkeypatch):
    calls = iter(range(100))
    write = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if next(calls) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, place)

    monkeypatch.setattr(os, "pwrite", full)
    spool = Spool(folder)
    assert spool.failing_since is not None
    put(spool, 1, 2)
    for _ in range(3):
        with pytest.raises(StorageError, match="No space left on device"):
            spool.flush()
    assert (spool.waiting, spool.lost()) == (2, 0)
    put(spool, 3)
    assert spool.flush() == 3
    assert (spool.failing_since, spool.waiting) == (None, 0)
    spool.close()
    assert drain(folder, ledger) == 3
    assert ids(ledger) == ["p1", "p2", "p3"]
    assert Spool(folder).lost() == 0


def test_an_impossible_folder_is_named_in_the_log_and_stops_no_server(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool", durable=True)
    assert "file/spool: Not a directory" in caplog.text
    put(spool, 1)
    with pytest.raises(StorageError, match=r"file/spool: Not a directory"):
        spool.flush()


def test_durable_lines_are_synced_before_flush_returns(folder, monkeypatch):
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    for durable in (False, True):
        spool = Spool(folder, durable)
        synced.clear()
        put(spool, 1)
        spool.flush()
        assert (spool._file in synced) is durable


def test_an_unavailable_database_loses_nothing(folder, ledger, monkeypatch):
    spool = Spool(folder)
    put(spool, 1)
    spool.close()
    with monkeypatch.context() as patched:

        def away(_: Any) -> int:
            raise ProjectError("away")

        patched.setattr(ledger, "append", away)
        with pytest.raises(ProjectError, match="away"):
            drain(folder, ledger)
    assert drain(folder, ledger) == 1


def test_the_drainer_process_runs_until_it_is_stopped_and_moves_everything_before_it_exits(folder, ledger, address):
    spool = Spool(folder)
    drainer = subprocess.Popen(
        [sys.executable, "-m", "evergreen.monitoring.ledger.spool", str(folder)],
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_DATABASE": address},
    )
    try:
        for number in range(3):
            put(spool, number)
            spool.flush()
            until(lambda number=number: len(ids(ledger)) == number + 1)
        put(spool, 9)
        spool.flush()
        drainer.send_signal(signal.SIGTERM)
        assert drainer.wait(60) == 0
        assert ids(ledger) == ["p0", "p1", "p2", "p9"]
    finally:
        drainer.kill()
        drainer.wait()


def test_an_outage_of_the_database_is_told_once_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    attempts = ["away", "away", "", "away"]

    class Stopped:
        def is_set(self) -> bool:
            return not attempts

        def wait(self, _seconds: float) -> None: ...

    def attempt(_folder: Path, _ledger: Ledger) -> int:
        if attempts and attempts.pop(0):
            raise ProjectError("the database of predictions cannot be used")
        return 0

    for name, stand_in in (("drain", attempt), ("threading", type("Threads", (), {"Event": Stopped}))):
        monkeypatch.setattr(spools, name, stand_in)
    monkeypatch.setattr(spools.os, "nice", lambda _: 0)
    monkeypatch.setattr(spools.gc, "set_threshold", lambda _: None)
    monkeypatch.setattr(spools.signal, "signal", lambda *_: None)
    spools.main(tmp_path, f"sqlite:///{tmp_path / 'evergreen.db'}")
    told = "the spool cannot be drained now: the database of predictions cannot be used"
    assert [each.message for each in caplog.records] == [told, told]
