"""The kind of problem that the tests of the stages use, and a small disk."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evergreen.tasks import problems
from tests.plain_kind import Plain


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """The plain kind, in place of whatever kind params.yaml names."""
    kind = Plain()
    monkeypatch.setattr(problems, "kind", lambda name: kind)
    return kind


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB. Needs the right to mount one."""
    disk = tmp_path / "small disk"
    disk.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux mounts a small disk")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
