"""What a server writes down reaches the ledger once: through kills of writers and drainers, half lines and a full disk."""

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

from evergreen.monitoring.ledger import spool as journals
from evergreen.monitoring.ledger.predictions import Ledger, Prediction
from evergreen.monitoring.ledger.spool import Journal, drain
from evergreen.tasks.core.errors import ProjectError, SpaceError
from tests import ROOT

NOON = datetime(2017, 10, 9, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'evergreen.db'}"


@pytest.fixture
def ledger(address: str) -> Ledger:
    return Ledger(address)


def put(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        journal.put(f"p{number}", "redeem", 1, "champion", NOON, str(number), {"spend": number}, {"prediction": number})


def ids(ledger: Ledger) -> list[str]:
    return sorted(ledger.read("redeem").rows["id"])


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_what_was_flushed_is_in_the_ledger_as_it_was_put(folder, ledger):
    journal = Journal(folder)
    features = {"n": np.float64(1.5), "missing": None, "nan": float("nan"), "word": "é", "yes": True, "whole": np.int64(3)}
    journal.put(
        "a", "redeem", 3, "candidate", NOON, None, features, {"prediction": "x", "probability_x": 0.5}, date(2017, 10, 8)
    )
    assert journal.flush() == 1
    assert drain(folder, ledger) == 1
    found = ledger.read("redeem")
    assert found.rows.row(0) == ("a", 3, "candidate", NOON, date(2017, 10, 8), None, "x", 0.5, None, None)
    assert found.features.row(0) == (1.5, None, None, "é", True, 3)


def test_what_was_not_flushed_is_not_there(folder, ledger):
    journal = Journal(folder)
    assert journal.flush() == 0
    put(journal, 1, 2)
    journal.flush()
    put(journal, 3)
    assert drain(folder, ledger) == 2
    assert ids(ledger) == ["p1", "p2"]


def test_a_file_is_drained_while_it_grows_and_removed_once_it_is_done(folder, ledger):
    journal = Journal(folder)
    for number in range(3):
        put(journal, number)
        journal.flush()
        assert journals.waiting(folder) > 0
        assert drain(folder, ledger) == 1
        assert journals.waiting(folder) == 0
    assert drain(folder, ledger) == 0
    put(journal, 7)
    journal.close()
    journal.close()
    assert drain(folder, ledger) == 1
    assert [path.name for path in folder.iterdir() if path.suffix in (".jsonl", ".done", ".count", ".born")] == []
    assert Journal(folder).lost() == 0


def test_a_large_file_is_followed_by_the_next(folder, ledger, monkeypatch):
    monkeypatch.setattr(journals, "SEGMENT", 300)
    journal = Journal(folder)
    for number in range(20):
        put(journal, number)
        journal.flush()
    assert len(list(folder.glob("*.jsonl"))) > 5
    assert drain(folder, ledger) == 20
    assert len(list(folder.glob("*.jsonl"))) == 1


def test_many_lines_go_in_parts(folder, ledger, monkeypatch):
    monkeypatch.setattr(journals, "AT_ONCE", 7)
    journal = Journal(folder)
    put(journal, *range(50))
    journal.flush()
    assert drain(folder, ledger) == 50
    assert drain(folder, ledger) == 0


def test_nothing_was_ever_written_where_there_is_no_folder(folder, ledger):
    assert drain(folder, ledger) == 0
    assert journals.waiting(folder) == 0


def test_threads_that_answer_lose_nothing(folder, ledger):
    journal = Journal(folder)

    def answer(first: int) -> None:
        for number in range(first, first + 500):
            put(journal, number)
            if number % 50 == 0:
                journal.flush()

    threads = [threading.Thread(target=answer, args=(first,)) for first in (0, 500, 1000)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    journal.close()
    assert drain(folder, ledger) == 1500
    assert Journal(folder).lost() == 0


SERVER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from evergreen.monitoring.ledger.spool import Journal
journal, flushed = Journal(Path(sys.argv[1])), int(sys.argv[2])
for number in range(int(sys.argv[3])):
    journal.put(f"p{number}", "redeem", 1, "champion", datetime.now(UTC), None, {}, {"prediction": number})
    if number + 1 == flushed:
        journal.flush()
print("ready", flush=True)
time.sleep(600)
"""


def killed(folder: Path, flushed: int, answered: int) -> None:
    """A server that answered so many, flushed so many of them, and was killed."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(flushed), str(answered)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    server.kill()
    server.communicate()


def test_a_killed_server_loses_what_it_had_not_flushed_and_the_next_says_how_many(folder, ledger):
    killed(folder, flushed=100, answered=117)
    assert Journal(folder).lost() == 17
    assert drain(folder, ledger) == 100
    killed(folder, flushed=5, answered=5)
    assert Journal(folder).lost() == 17
    killed(folder, flushed=1, answered=4)
    drain(folder, ledger)
    assert Journal(folder).lost() == 20


def test_lines_written_and_not_yet_counted_when_it_was_killed_are_not_lost(folder, ledger):
    journal = Journal(folder)
    put(journal, 1)
    journal.flush()
    put(journal, 2, 3, 4)
    (segment,) = folder.glob("*.jsonl")
    with segment.open("a") as file:  # two whole lines and a half came to the disk
        line = '["p{}","redeem",1,"champion",1507550400,null,null,{{}},{{"prediction":1}}]\n'
        file.write(line.format(2) + line.format(3) + line.format(4)[:30])
    os.close(journal._file)
    journal._counter.close()
    assert drain(folder, ledger) == 3
    assert ids(ledger) == ["p1", "p2", "p3"]
    assert Journal(folder).lost() == 1


def test_a_line_that_is_no_prediction_is_left_out_and_named(folder, ledger, caplog):
    journal = Journal(folder)
    put(journal, 1)
    journal.flush()
    (segment,) = folder.glob("*.jsonl")
    os.pwrite(journal._file, b"\x00\x00garbage\n", journal._end)
    journal._end += 10
    put(journal, 2)
    journal.flush()
    assert drain(folder, ledger) == 2
    assert caplog.messages[0].startswith(f"{segment.name}: a line cannot be read and is left out: ")


@pytest.mark.parametrize("before", ["the ledger has it", "it is noted how far that was"])
def test_a_drainer_that_was_killed_counts_nothing_twice_and_leaves_nothing_out(folder, ledger, monkeypatch, before):
    journal = Journal(folder)
    put(journal, *range(10))
    journal.flush()

    class Killed(BaseException): ...

    def die(*_: Any) -> int:
        raise Killed("now")

    with monkeypatch.context() as patched:
        patched.setattr(journals, "AT_ONCE", 4)
        if before == "the ledger has it":
            append, calls = ledger.append, list[int]()

            def second(predictions: Sequence[Prediction]) -> int:
                calls.append(1)
                return append(predictions) if len(calls) == 1 else die()

            patched.setattr(ledger, "append", second)
        else:
            patched.setattr(Path, "replace", die)
        with pytest.raises(Killed, match="now"):
            drain(folder, ledger)
    drain(folder, ledger)
    assert len(ids(ledger)) == 10
    assert journals.waiting(folder) == 0


def test_two_that_drain_move_each_line_once(folder, ledger, address):
    journal = Journal(folder)
    put(journal, *range(2000))
    journal.close()
    moved = list[int]()
    both = [threading.Thread(target=lambda: moved.append(drain(folder, Ledger(address)))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(moved) == [0, 2000]
    assert len(ids(ledger)) == 2000


def test_a_full_disk_keeps_lines_waiting_and_leaves_no_half_of_them(folder, ledger, monkeypatch):
    journal = Journal(folder)
    put(journal, 1)
    journal.flush()
    put(journal, 2, 3)
    write = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:-19], place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(SpaceError, match=r"No space left on device\. Free space or allow writing there"):
            journal.flush()
        assert drain(folder, ledger) == 1
    put(journal, 4)
    assert journal.flush() == 3
    assert drain(folder, ledger) == 3
    assert ids(ledger) == ["p1", "p2", "p3", "p4"]
    assert journal.lost() == 0


def test_more_than_memory_may_hold_is_lost_and_counted(folder, monkeypatch):
    monkeypatch.setattr(journals, "HELD", 3)
    journal = Journal(folder)
    put(journal, *range(5))
    assert journal.lost() == 2
    assert journal.flush() == 3


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpaceError, match=r"file/ledger: Not a directory"):
        Journal(tmp_path / "file" / "ledger")


def test_durable_lines_are_synced_before_flush_returns(folder, monkeypatch):
    synced = list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    for durable in (False, True):
        journal = Journal(folder, durable)
        synced.clear()
        put(journal, 1)
        journal.flush()
        assert (journal._file in synced) is durable


def test_a_database_that_is_away_leaves_all_where_it_is(folder, ledger, monkeypatch):
    journal = Journal(folder)
    put(journal, 1)
    journal.close()
    with monkeypatch.context() as patched:

        def away(_: Any) -> int:
            raise ProjectError("away")

        patched.setattr(ledger, "append", away)
        with pytest.raises(ProjectError, match="away"):
            drain(folder, ledger)
    assert drain(folder, ledger) == 1


def test_the_process_that_drains_goes_on_until_it_is_ended_and_ends_with_all_moved(folder, ledger, address):
    journal = Journal(folder)
    drainer = subprocess.Popen(
        [sys.executable, "-m", "evergreen.monitoring.ledger.spool", str(folder)],
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_DATABASE": address},
    )
    try:
        for number in range(3):
            put(journal, number)
            journal.flush()
            until(lambda number=number: len(ids(ledger)) == number + 1)
        put(journal, 9)
        journal.flush()
        drainer.send_signal(signal.SIGTERM)
        assert drainer.wait(60) == 0
        assert ids(ledger) == ["p0", "p1", "p2", "p9"]
    finally:
        drainer.kill()
        drainer.wait()
