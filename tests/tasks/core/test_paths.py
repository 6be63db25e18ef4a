"""Artefacts arrive whole or not at all, and what goes wrong keeps its name."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from evergreen.tasks.core.errors import ProjectError, StorageError
from evergreen.tasks.core.paths import Layout, find, read_json, truncated_parquet, write_json, writing


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_and_a_folder_replace_the_old_ones(tmp_path):
    for content in ("old", "new"):
        with writing(tmp_path / "file") as scratch:
            scratch.write_text(content)
        with writing(tmp_path / "folder") as scratch:
            scratch.mkdir()
            (scratch / content).touch()
    assert (tmp_path / "file").read_text() == "new"
    assert left(tmp_path / "folder") == ["new"]
    assert left(tmp_path) == ["file", "folder"]


def test_a_block_that_fails_leaves_the_old_file_and_no_scratch(tmp_path):
    write_json(tmp_path / "a.json", {"good": True})
    with pytest.raises(ZeroDivisionError, match="division by zero"), writing(tmp_path / "a.json") as scratch:
        scratch.write_text(str(1 / 0))
    assert read_json(tmp_path / "a.json") == {"good": True}
    assert left(tmp_path) == ["a.json"]


def test_a_bug_in_the_block_keeps_its_own_type(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such thing"), writing(tmp_path / "a"):
        (tmp_path / "no such thing").read_text()
    with pytest.raises(PermissionError, match="elsewhere"), writing(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/source.csv")
    with pytest.raises(OSError, match="timed out") as caught, writing(tmp_path / "a"):
        raise OSError(errno.ETIMEDOUT, "timed out")
    assert not isinstance(caught.value, StorageError)
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="b"), writing(tmp_path / "a"):
        pl.DataFrame({"a": [1]}).select("b")


def test_a_right_that_is_missing_at_the_target_is_a_space_error(tmp_path):
    with pytest.raises(StorageError, match=r"Permission denied\. Free space"), writing(tmp_path / "a") as scratch:
        raise PermissionError(errno.EACCES, "denied", str(scratch))


def test_a_folder_that_is_a_file_is_a_space_error(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(StorageError, match=r"data/raw: .*allow writing there"), writing(tmp_path / "data" / "raw"):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(os.urandom(200_000)),
        lambda path: pl.DataFrame({"a": os.urandom(200_000)}, schema={"a": pl.Binary}).write_parquet(path),
        lambda path: pl.LazyFrame({"a": [os.urandom(200_000)]}).sink_parquet(path),
        lambda path: pl.DataFrame({"a": range(100_000)}).write_csv(path),
    ],
    ids=["bytes", "parquet", "sink", "csv"],
)
def test_a_full_disk_is_one_line_and_the_old_file_stays(small_disk, write):
    write_json(small_disk / "a", {"good": True})
    with (
        pytest.raises(StorageError, match=r"small disk/a: No space left on device\. Free space"),
        writing(small_disk / "a") as scratch,
    ):
        write(scratch)
    assert read_json(small_disk / "a") == {"good": True}
    assert left(small_disk) == ["a"]


KILLED = """
import os, signal, sys
from pathlib import Path
from evergreen.tasks.core import paths
where = Path(sys.argv[1])
if sys.argv[2] == "between":
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with paths.writing(where) as scratch:
    scratch.mkdir()
    (scratch / "half").touch()
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["within", "between"])
def test_a_kill_damages_nothing_and_the_next_writer_clears_up(tmp_path, when):
    with writing(tmp_path / "raw") as scratch:
        scratch.mkdir()
        (scratch / "good").touch()
    root = Path(__file__).resolve().parent.parent
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "raw", when], cwd=root, check=False)
    assert killed.returncode == -9
    assert len(left(tmp_path)) == (2 if when == "within" else 1), "the killed process left its scratch folder"
    with pytest.raises(ZeroDivisionError, match="zero"), writing(tmp_path / "raw"):
        _ = 1 / 0
    assert left(tmp_path) == ["raw"]
    assert left(tmp_path / "raw") == ["good"]


def test_a_living_process_keeps_its_scratch_folder(tmp_path):
    with writing(tmp_path / "a") as first:
        first.write_text("first")
        with writing(tmp_path / "a") as second:
            second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first"


def test_a_project_is_found_from_any_folder_below(tmp_path):
    (tmp_path / "params.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find(tmp_path / "a" / "b") == Layout(tmp_path)


def test_no_project_says_where_to_go(tmp_path):
    with pytest.raises(ProjectError, match=r"no params.yaml here or in any folder above.*--root"):
        find(tmp_path)


def test_a_damaged_json_file_is_named_with_the_way_out(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ProjectError, match=r"a.json: is damaged: Expecting property name.*Remove it, then run the same"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"PAR", b"PAR1 and half of the rest"])
def test_a_torn_parquet_file_is_found_and_a_whole_one_is_not_taken_for_one(tmp_path: Path, content: bytes):
    layout = Layout(tmp_path)
    layout.raw("a").parent.mkdir(parents=True)
    layout.raw("a").write_bytes(b"PAR1 rows PAR1")
    assert truncated_parquet(layout) is None
    left = layout.raw("a").parent / ".a.parquet.host.7.x" / "a.parquet"
    left.parent.mkdir()
    left.write_bytes(content)
    assert truncated_parquet(layout) is None, "nobody reads what a killed process left"
    layout.raw("b").write_bytes(content)
    assert truncated_parquet(layout) == layout.raw("b")
