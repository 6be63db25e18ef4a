"""How much memory learning may take, and what a step says that had too little."""

import errno
import signal
from pathlib import Path

import pytest

from evergreen.flows import steps
from evergreen.tasks import train
from evergreen.tasks.__main__ import main
from evergreen.tasks.core import memory


def groups(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Control groups as this process would see them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", folder)
    monkeypatch.setattr(memory, "OWN_GROUPS", folder / "cgroup")


@pytest.mark.parametrize(
    "files",
    [
        {"cgroup": "0::/shop/train\n", "shop/train/memory.max": "max\n", "shop/memory.max": f"{2**30}\n"},
        {"cgroup": "5:cpu:/\n4:memory:/docker/abc\n", "memory/memory.limit_in_bytes": f"{2**30}\n"},
    ],
    ids=["version 2", "version 1"],
)
def test_a_container_has_the_memory_of_its_control_group(files, tmp_path, monkeypatch):
    monkeypatch.delenv("EVERGREEN_LEARNING_MB", raising=False)
    groups(tmp_path, files, monkeypatch)
    assert memory.machine() == 2**30
    assert memory.learning_limit() == 2**29


def test_without_a_limit_a_process_has_the_memory_of_its_machine(tmp_path, monkeypatch):
    groups(tmp_path, {"cgroup": "4:memory:/\n", "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, monkeypatch)
    whole = memory.machine()
    groups(tmp_path / "none", {}, monkeypatch)
    assert memory.machine() == whole > 2**28


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(
        "project: {name: shop}\ningest: {t: {parquet: t.parquet}}\nproblems: {pay: regression}\n"
        "pay: {question: How much?, features: {table: t, target: y, columns: {x: number}}}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory. Set EVERGREEN_LEARNING_MB below 700, its value now"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the project's folder or /"),
    ],
    ids=["memory", "disk"],
)
def test_too_little_memory_or_disk_in_a_step_is_one_line(error, line, shop, capsys, monkeypatch):
    def short(*_: object) -> None:
        raise error

    monkeypatch.setenv("EVERGREEN_LEARNING_MB", "700")
    monkeypatch.setattr(train, "run", short)
    assert main(["train", "pay", "--root", str(shop)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "last", "step", "name"),
    [
        (-signal.SIGKILL, "tune: trial 3", "tune", "EVERGREEN_LEARNING_MB"),
        (-signal.SIGKILL, "part 3 of 4", "features", "EVERGREEN_MEMORY_MB"),
        (-signal.SIGABRT, "memory allocation of 8000000000 bytes failed", "explain", "EVERGREEN_LEARNING_MB"),
    ],
)
def test_a_step_that_the_kernel_or_a_library_ends_names_the_setting_and_its_value(code, last, step, name, monkeypatch):
    monkeypatch.setenv(name, "640")
    assert f"Set {name} below 640, its value now" in str(steps._why(code, last, step, "pay", Path("train@pay.log")))
