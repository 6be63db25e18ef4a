"""Arrays are computed once for the steps of a problem, and again for other data."""

from pathlib import Path

import numpy as np
import pytest

from evergreen.tasks.core import step_cache
from evergreen.tasks.core.errors import StorageError


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes(b"one")
    return folder


def asked(cache: Path, features: Path, key: str = "a", calls: list[str] | None = None, settings: str = "") -> np.ndarray:
    def make() -> dict[str, np.ndarray]:
        (calls if calls is not None else []).append(key)
        return {"values": np.arange(3.0)}

    with step_cache.using(cache, features, settings):
        return step_cache.arrays(key, make)["values"]


def test_a_second_step_reads_what_the_first_computed(tmp_path, features):
    calls: list[str] = []
    for _ in range(2):
        assert asked(tmp_path / "cache", features, calls=calls).tolist() == [0.0, 1.0, 2.0]
    assert asked(tmp_path / "cache", features, "b", calls).tolist() == [0.0, 1.0, 2.0]
    assert calls == ["a", "b"]


def test_other_data_is_computed_anew_and_the_old_files_go(tmp_path, features):
    calls: list[str] = []
    asked(tmp_path / "cache", features, calls=calls)
    (features / "rows.parquet").write_bytes(b"two")
    asked(tmp_path / "cache", features, calls=calls)
    assert calls == ["a", "a"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_settings_are_computed_anew(tmp_path, features):
    calls: list[str] = []
    for settings in ("horizon_days: 28", "horizon_days: 14"):
        asked(tmp_path / "cache", features, calls=calls, settings=settings)
    assert calls == ["a", "a"]


def test_a_damaged_file_is_computed_again(tmp_path, features):
    calls: list[str] = []
    asked(tmp_path / "cache", features, calls=calls)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(file.read_bytes()[:20])
    assert asked(tmp_path / "cache", features, calls=calls).tolist() == [0.0, 1.0, 2.0]
    assert calls == ["a", "a"]


def test_without_a_step_and_on_a_full_disk_the_arrays_are_computed_each_time(tmp_path, features, monkeypatch):
    calls: list[str] = []
    assert step_cache.arrays("a", lambda: {"values": np.ones(1)})["values"].tolist() == [1.0]

    def full(_path):
        raise StorageError("no space left")

    monkeypatch.setattr(step_cache, "writing", full)
    for _ in range(2):
        asked(tmp_path / "cache", features, calls=calls)
    assert calls == ["a", "a"]
