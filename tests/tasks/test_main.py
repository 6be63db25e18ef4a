"""What a step says it cost is what it cost itself."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evergreen.tasks import ingest
from evergreen.tasks.__main__ import STEPS, main

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
