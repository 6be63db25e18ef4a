"""What a process read and wrote."""

import subprocess
import sys

import pytest

from evergreen.tasks.core import transfers

MOVING = """
import sys
from evergreen.tasks.core import transfers
before = transfers.megabytes()
open(sys.argv[1], "wb", buffering=0).write(bytes(30 * 2**20))
open(sys.argv[1], "rb", buffering=0).read(12 * 2**20)
after = transfers.megabytes()
print(*(after[name] - before[name] for name in ("read_mb", "written_mb")))
"""


@pytest.mark.skipif(not transfers.megabytes(), reason="the system does not count them")
def test_megabytes_are_those_that_the_process_moved(tmp_path):
    done = subprocess.run([sys.executable, "-c", MOVING, tmp_path / "file"], capture_output=True, text=True, check=True)
    assert [float(each) for each in done.stdout.split()] == pytest.approx([12, 30], abs=0.5)


def test_a_process_that_is_gone_has_none():
    assert transfers.megabytes(2**22 + 1) == {}
