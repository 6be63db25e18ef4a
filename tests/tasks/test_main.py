"""What a step says it cost is what it cost itself."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from evergreen.tasks import ingest
from evergreen.tasks.__main__ import STEPS, main
from evergreen.tasks.core import table_parts
from evergreen.tasks.core.paths import Layout
from tests import store

SPENDING = """
import json, time
from evergreen.tasks.__main__ import usage
held = bytearray({mb} * 2**20)
end = time.process_time() + {seconds}
while time.process_time() < end:
    pass
print(json.dumps(usage()))
"""


def spent(mb: int, seconds: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", SPENDING.format(mb=mb, seconds=seconds)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_memory_is_a_steps_own_and_not_that_of_the_process_that_started_it():
    held = bytearray(300 * 2**20)
    small, large = spent(1, 0), spent(200, 0)
    assert len(held) > 2**28
    assert small["peak_mb"] < 150
    assert large["peak_mb"] - small["peak_mb"] == pytest.approx(199, abs=20)


def test_cpu_seconds_are_those_of_the_process():
    assert spent(1, 0.5)["cpu_seconds"] - spent(1, 0)["cpu_seconds"] == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize("words", [["tune"], ["ingest", "redeem"]])
def test_a_step_that_is_asked_wrongly_says_how(words, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("project: {name: shop}\ningest: {}\nproblems: {}\n")
    assert main([*words, "--root", str(tmp_path)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert ("needs a problem" if STEPS[words[0]] else "takes no problem") in line


def test_a_full_disk_in_a_step_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "params.yaml").write_text("project: {name: shop}\ningest: {}\nproblems: {}\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/var/tuning")

    monkeypatch.setattr(ingest, "run", full)
    assert main(["ingest", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: /var/tuning: No space left on device. Free space")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    store.project(tmp_path, households=20, weeks=20)
    return tmp_path


def test_damaged_bytes_in_the_middle_of_a_file_are_one_line_and_leave_the_last_tables(
    project: Path, capsys: pytest.CaptureFixture
):
    assert main(["ingest", "--root", str(project)]) == 0
    given = project / "data-in" / "transactions.parquet"
    (raw,) = table_parts.files(Layout(project).raw("transactions"))
    before, whole = raw.read_bytes(), given.read_bytes()
    damage(given)
    assert main(["ingest", "--root", str(project)]) == 1
    line = r"error: ingest.transactions: parquet data-in/transactions.parquet cannot be read: .*\. Fix the file or name another"
    assert re.match(line, capsys.readouterr().err.splitlines()[-1])
    assert raw.read_bytes() == before
    given.write_bytes(whole)
    assert main(["ingest", "--root", str(project)]) == 0
    assert raw.read_bytes() == before
    damage(raw)
    assert main(["validate", "--root", str(project)]) == 1
    line = rf"error: {raw}: is damaged: .*\. Remove it, then run evergreen train or dvc repro\."
    assert re.fullmatch(line, capsys.readouterr().err.splitlines()[-1])
    assert not Layout(project).table("transactions").parent.exists()
    raw.write_bytes(before)
    assert main(["validate", "--root", str(project)]) == 0


def damage(path: Path) -> None:
    """Overwrite bytes of each column's data; the file keeps its length and its end."""
    pl.read_parquet(path).write_parquet(path, compression="zstd", row_group_size=10**9)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 10, len(content) // 2, 50):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def test_an_error_of_another_cause_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert main(["ingest", "--root", str(project)]) == 0

    def broken(*_: object) -> None:
        raise pl.exceptions.ComputeError("a bug of ours")

    monkeypatch.setattr(ingest, "run", broken)
    with pytest.raises(pl.exceptions.ComputeError, match="a bug of ours"):
        main(["ingest", "--root", str(project)])
